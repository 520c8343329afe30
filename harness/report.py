"""The HTML report: one self-contained file that opens without a network.

Plotly draws; the page around it is plain HTML that reads well on a phone, in light and dark, and when printed.
"""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.console import LABELS, figure_columns, figure_rows, paired_columns, paired_rows, verdict
from traces.capture import Capture
from traces.metrics import defined, requests
from traces.series import derive, grid_over
from traces.steps import Floats

if TYPE_CHECKING:
    from harness.compare import Validation

MEASURED, SIMULATED = "#0072b2", "#d55e00"
"""Okabe and Ito's blue and vermillion: apart for every kind of colour vision, on white and on black."""

MOST_POINTS = 2000
"""Points of a curve; a distribution of more is thinned to its quantiles."""

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --dim: #5c5c5c; --back: #ffffff; --line: #d9d9d9; }
@media (prefers-color-scheme: dark) { :root { --text: #ececec; --dim: #a8a8a8; --back: #16181c; --line: #3a3d44; } }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif;
       color: var(--text); background: var(--back); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { font-size: 1.1rem; border-left: .3rem solid currentColor; padding-left: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figcaption, .dim { color: var(--dim); font-size: .9rem; }
pre { overflow-x: auto; font-size: .85rem; }
@media print { .charts { display: block; } figure { break-inside: avoid; } }
"""

SCRIPT = """
const dark = matchMedia('(prefers-color-scheme: dark)');
function draw() {
  const text = dark.matches ? '#ececec' : '#1b1b1b', grid = dark.matches ? '#3a3d44' : '#d9d9d9';
  for (const chart of CHARTS) {
    const axis = {gridcolor: grid, zerolinecolor: grid, automargin: true, rangemode: 'tozero'};
    Plotly.react(chart.id, chart.data, {
      margin: {l: 50, r: 10, t: 10, b: 45}, height: 320, font: {color: text},
      paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
      legend: {orientation: 'h', y: 1.12}, modebar: {bgcolor: 'rgba(0,0,0,0)', color: grid, activecolor: text},
      xaxis: {...axis, title: {text: chart.x}}, yaxis: {...axis, title: {text: chart.y}},
    }, {responsive: true, displaylogo: false});
  }
}
draw(); dark.addEventListener('change', draw);
"""


def validation_report(validation: Validation) -> str:
    """The page of a validation."""
    result = validation.result
    runs = {"measured": validation.measured, "simulated": validation.simulated}
    charts = [*_distributions(runs), _scatter(validation), *_over_time(runs)]
    body = [
        f"<p class='verdict'>{html.escape(verdict(result))}</p>",
        "<h2>Measured and simulated</h2>",
        _table(figure_columns(result), figure_rows(result)),
        "<h2>Paired by request</h2>",
        _table(paired_columns(result), paired_rows(result)),
        _charts(charts),
        _notes(result["notes"]),
        "<h2>Configuration</h2>",
        _json(
            {
                "scenario": validation.scenario.requested,
                "engine": validation.simulated.meta.engine_options,
                "num_gpu_blocks": validation.simulated.meta.num_gpu_blocks,
                "measured": {
                    "engine": validation.measured.meta.engine,
                    "device": validation.measured.meta.device,
                    "engine_options": validation.measured.meta.engine_options,
                },
                "provenance": result["provenance"],
            }
        ),
    ]
    title = f"{validation.simulated.meta.model} on {validation.simulated.meta.device}: measured and simulated"
    return _page(title, body, charts)


def capture_report(capture: Capture, figures: dict[str, Any]) -> str:
    """The page of one capture, measured or simulated."""
    runs: dict[str, Capture] = {capture.meta.kind: capture}
    charts = [*_distributions(runs), *_over_time(runs)]
    body = [
        _charts(charts),
        _notes(capture.meta.notes),
        "<h2>Figures</h2>",
        _json({key: value for key, value in figures.items() if key != "wall_s"}),
        "<h2>Configuration</h2>",
        _json({"engine": capture.meta.engine, "options": capture.meta.engine_options, **capture.meta.provenance}),
    ]
    return _page(f"{capture.meta.model} on {capture.meta.device}: {capture.meta.kind} run", body, charts)


def _distributions(runs: dict[str, Capture]) -> list[dict[str, Any]]:
    """Empirical distribution of each latency: the share of requests within so many seconds."""
    charts = []
    for name in ("ttft_s", "tpot_s", "e2el_s"):
        data = []
        for run, capture in runs.items():
            values = np.sort(defined(getattr(requests(capture.outcomes), name)))
            if len(values):
                share = (np.arange(len(values)) + 1) / len(values)
                keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).astype(int))
                data.append(_line(run, values[keep], share[keep], shape="hv"))
        caption = f"{LABELS[name]}: share of requests within the time"
        charts.append(_chart(f"distribution-{name}", caption, data, f"{LABELS[name]} (s)", "share of requests"))
    return charts


def _scatter(validation: Validation) -> dict[str, Any]:
    """Each request's E2EL, simulated over measured."""
    twins = {outcome.request_id: outcome for outcome in validation.simulated.outcomes}
    pairs = [(o, twins[o.request_id]) for o in validation.measured.outcomes if o.request_id in twins]
    before = requests([pair[0] for pair in pairs]).e2el_s
    after = requests([pair[1] for pair in pairs]).e2el_s
    both = ~np.isnan(before) & ~np.isnan(after)
    most = float(max(before[both].max(initial=0), after[both].max(initial=0)))
    names = [pair[0].request_id for pair, kept in zip(pairs, both, strict=True) if kept]
    points = {
        "type": "scattergl" if len(names) > MOST_POINTS else "scatter",
        "mode": "markers",
        "name": "request",
        "x": _rounded(before[both]),
        "y": _rounded(after[both]),
        "text": names,
        "marker": {"color": SIMULATED, "size": 6, "opacity": 0.6},
    }
    equal: dict[str, Any] = {"type": "scatter", "mode": "lines", "name": "equal", "x": [0, most], "y": [0, most]}
    equal["line"] = {"color": "#888888", "dash": "dot"}
    caption = "E2EL of each request, simulated over measured"
    return _chart("scatter", caption, [equal, points], "measured E2EL (s)", "simulated E2EL (s)")


def _over_time(runs: dict[str, Capture]) -> list[dict[str, Any]]:
    """Throughput, running and waiting requests and KV use over time, as far as both runs have them."""
    grid = grid_over(max(runs.values(), key=lambda capture: grid_over(capture).n))
    series = {run: {**derive(capture, grid), **capture.series} for run, capture in runs.items()}
    charts = []
    for name, title in (
        ("output_tokens_per_s", "output tokens per second"),
        ("n_running", "running requests"),
        ("n_waiting", "waiting requests"),
        ("kv_usage", "KV blocks in use (share)"),
    ):
        data = [_line(run, s[name].time_s, s[name].value) for run, s in series.items() if name in s]
        if data:
            charts.append(_chart(f"series-{name}", f"{title[0].upper()}{title[1:]} over time", data, "time (s)", title))
    return charts


def _line(run: str, x: Floats, y: Floats, shape: str = "linear") -> dict[str, Any]:
    colour = MEASURED if run == "measured" else SIMULATED
    dash = "solid" if run == "measured" else "dash"
    line = {"color": colour, "shape": shape, "dash": dash}
    return {"type": "scatter", "mode": "lines", "name": run, "x": _rounded(x), "y": _rounded(y), "line": line}


def _rounded(values: Floats) -> list[float]:
    """Six significant digits: more than a picture can show."""
    return [float(f"{value:.6g}") for value in values]


def _chart(name: str, caption: str, data: list[dict[str, Any]], x: str, y: str) -> dict[str, Any]:
    """What the page's script draws: traces of Plotly, and the axes' titles."""
    return {"id": name, "caption": caption, "data": data, "x": x, "y": y}


def _charts(charts: list[dict[str, Any]]) -> str:
    figures = [
        f"<figure><div id='{chart['id']}' role='img' aria-label='{html.escape(chart['caption'])}'></div>"
        f"<figcaption>{html.escape(chart['caption'])}</figcaption></figure>"
        for chart in charts
    ]
    return "<h2>Charts</h2><div class='charts'>" + "".join(figures) + "</div>"


def _table(columns: list[str], rows: list[Any]) -> str:
    head = "".join(f"<th scope='col'>{html.escape(column)}</th>" for column in columns)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _notes(notes: Any) -> str:
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"<h2>Notes</h2><ul class='dim'>{items}</ul>" if items else ""


def _json(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=1, default=str))}</pre>"


def _page(title: str, body: list[str], charts: list[dict[str, Any]]) -> str:
    from plotly.offline import get_plotlyjs

    data = json.dumps(charts).replace("</", "<\\/")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{html.escape(title)}</h1>{''.join(body)}</main>\n"
        f"<script>{get_plotlyjs()}</script>\n<script>const CHARTS = {data};{SCRIPT}</script></body></html>\n"
    )
