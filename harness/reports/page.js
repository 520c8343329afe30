// Draws the page's charts: each when it is first scrolled into view, all before printing.
'use strict';
const CHARTS = JSON.parse(document.getElementById('data-charts').textContent);
const COLOURS = JSON.parse(document.getElementById('data-colours').textContent);
const root = document.documentElement;
const prefersDark = matchMedia('(prefers-color-scheme: dark)');
const coarse = matchMedia('(pointer: coarse)');
const drawn = new Set();
let printing = false;

const isDark = () => !printing && root.dataset.theme === 'dark';
const byId = (id) => document.getElementById(id);

function faded(colour, alpha) {
  const part = (i) => parseInt(colour.slice(i, i + 2), 16);
  return `rgba(${part(1)}, ${part(3)}, ${part(5)}, ${alpha})`;
}

/** A trace in the colours of the theme. */
function coloured({role, ...trace}, colours) {
  const colour = colours[role];
  if (trace.type === 'heatmap') {
    return {...trace, colorscale: [[0, faded(colour, 0.15)], [1, colour]]};
  }
  if (trace.mode === 'lines') {
    return {...trace, line: {...trace.line, color: colour}};
  }
  if (trace.values) {
    return {...trace, marker: {...trace.marker, color: trace.values}};
  }
  const error = trace.error_x && {error_x: {...trace.error_x, color: colour}};
  return {...trace, ...error, marker: {...trace.marker, color: colour}};
}

function draw(name) {
  const chart = CHARTS[name], colours = COLOURS[isDark() ? 'dark' : 'light'];
  const axis = {gridcolor: colours.grid, linecolor: colours.grid, zerolinecolor: colours.reference, zeroline: false, automargin: true};
  const logTimes = chart.times && byId('log-times')?.checked;
  drawn.add(name);
  return Plotly.react(byId(`chart-${name}`), chart.data.map((trace) => coloured(trace, colours)), {
    margin: {l: 55, r: 12, t: 8, b: 45}, height: chart.height, barmode: 'overlay', bargap: 0.3, scattermode: chart.grouped ? 'group' : 'overlay',
    font: {color: colours.text, family: 'system-ui, sans-serif', size: 13},
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', hovermode: chart.hovermode,
    hoverlabel: {bgcolor: colours.back, bordercolor: colours.grid, font: {color: colours.text}},
    dragmode: coarse.matches ? false : 'zoom', showlegend: chart.legend, legend: {orientation: 'h', y: 1.02, yanchor: 'bottom'},
    xaxis: {...axis, ...chart.xaxis, ...(logTimes && {type: 'log', rangemode: 'normal'})}, yaxis: {...axis, ...chart.yaxis},
  }, {responsive: true, displaylogo: false, displayModeBar: coarse.matches ? false : 'hover'});
}

const redraw = (names = drawn) => Promise.all([...names].map(draw));

function setTheme() {
  const chosen = byId('theme').value;
  root.dataset.theme = chosen === 'auto' ? (prefersDark.matches ? 'dark' : 'light') : chosen;
  redraw();
}

/** Of several charts that stand for one, the chosen one is shown. */
function choose(select) {
  for (const option of select.options) {
    byId(`chart-${option.value}`).closest('figure').hidden = option.value !== select.value;
  }
}

/** A sweep's points: the reader chooses the axes, and what colours mean. */
function explore() {
  const {numbers, kinds, text} = JSON.parse(byId('data-points').textContent);
  const [x, y, colour] = ['x', 'y', 'colour'].map((key) => byId(`explore-${key}`).value);
  const trace = (role, name, picked) => ({
    type: 'scatter', mode: 'markers', role, name, x: picked.map((i) => numbers[x][i]), y: picked.map((i) => numbers[y][i]),
    text: picked.map((i) => text[i]), hovertemplate: '%{text}<extra></extra>', marker: {size: 9, opacity: 0.8},
  });
  const all = [...text.keys()];
  const data = colour in kinds
    ? [...new Set(kinds[colour])].map((kind, n) => trace(`run${n}`, kind, all.filter((i) => kinds[colour][i] === kind)))
    : [trace('run0', '', all)];
  if (colour in numbers) {
    data[0].marker = {size: 9, colorscale: 'Cividis', showscale: true, colorbar: {title: {text: colour}}};
    data[0].values = numbers[colour];
  }
  CHARTS.explore = {
    data, height: 480, hovermode: 'closest', legend: data.length > 1, times: false,
    xaxis: {title: {text: x}}, yaxis: {title: {text: y}},
  };
}

const seen = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) {
    if (isIntersecting) {
      seen.unobserve(target);
      draw(target.id.slice('chart-'.length));
    }
  }
}, {rootMargin: '200px'});

byId('theme').addEventListener('change', setTheme);
byId('log-times')?.addEventListener('change', () => redraw([...drawn].filter((name) => CHARTS[name].times)));
for (const select of document.querySelectorAll('select[data-chooses]')) {
  select.addEventListener('change', () => choose(select));
  choose(select);
}
if (byId('data-points')) {
  explore();
  for (const key of ['x', 'y', 'colour']) {
    byId(`explore-${key}`).addEventListener('change', () => { explore(); draw('explore'); });
  }
}
prefersDark.addEventListener('change', setTheme);
addEventListener('beforeprint', () => {
  printing = true;
  root.dataset.theme = 'light';
  for (const details of document.querySelectorAll('details')) details.open = true;
  redraw(Object.keys(CHARTS).filter((name) => !byId(`chart-${name}`).closest('figure').hidden));
});
addEventListener('afterprint', () => { printing = false; setTheme(); });
setTheme();
for (const place of document.querySelectorAll('.chart')) seen.observe(place);
