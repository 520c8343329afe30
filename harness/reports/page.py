"""The page around the charts: one self-contained HTML file that opens without a network.

It reads well on a phone, in light and dark, with a keyboard alone, and on paper. Plotly draws.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.reports.chart import Chart
from harness.reports.colours import COLOURS, colours
from harness.reports.plotly_chart import plotly_chart

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page: its heading, its HTML, and the charts that the HTML has places for."""

    title: str
    body: str
    charts: tuple[Chart, ...] = ()

    @property
    def name(self) -> str:
        """What a link to it says."""
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Page:
    """A page.

    Attributes:
        title: of the page.
        head: what stands above everything else, as HTML.
        sections: in order; one without a body is left out.
    """

    title: str
    head: str
    sections: tuple[Section, ...]

    @property
    def charts(self) -> list[Chart]:
        """All that are drawn on it."""
        return [chart for section in self.sections for chart in section.charts]

    def html(self) -> str:
        """The whole file."""
        kept = [section for section in self.sections if section.body]
        charts = {chart.name: plotly_chart(chart) for chart in self.charts}
        links = "".join(f"<a href='#{section.name}'>{escape(section.title)}</a>" for section in kept)
        bodies = "".join(f"<section id='{s.name}'><h2>{escape(s.title)}</h2>{s.body}</section>" for s in kept)
        title = escape(self.title)
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_file("page.css")}</style>
<script>
document.documentElement.dataset.theme = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';
</script>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{title}</h1>{_THEMES}</header>
<nav aria-label="Sections"><div>{links}</div></nav>
<main id="main">{self.head}{bodies}</main>
<noscript><p>The charts need JavaScript; tables and text do not.</p></noscript>
<script type="application/json" id="data-charts">{data(charts)}</script>
<script type="application/json" id="data-colours">{data({theme: colours(theme) for theme in COLOURS})}</script>
<script>{_file("plotly/plotly-cartesian.min.js")}</script>
<script>{_file("page.js")}</script>
</body>
</html>
"""


_THEMES = (
    "<label>Colours <select id='theme'><option value='auto'>as the system</option>"
    "<option value='light'>light</option><option value='dark'>dark</option></select></label>"
)


def escape(text: object) -> str:
    """Text as it stands in HTML, in attributes too."""
    return html.escape(str(text))


def verdict_line(*, good: bool, mark: str, sentence: str) -> str:
    """The one sentence that everything else is there for."""
    word = f"<strong>{escape(mark)}</strong>" if mark else ""
    return f"<p class='verdict{'' if good else ' bad'}' role='status'>{word}{escape(sentence)}</p>"


def tiles(entries: Iterable[tuple[str, str, Sequence[str]]]) -> str:
    """A few figures in large letters: what, how much, and how sure, a line each."""
    items = ""
    for what, figure, sure in entries:
        items += f"<li><span class='dim'>{escape(what)}</span><b>{escape(figure)}</b>"
        items += "".join(f"<span class='dim'>{escape(line)}</span>" for line in sure) + "</li>"
    return f"<ul class='tiles'>{items}</ul>" if items else ""


def chart_places(charts: Sequence[Chart], shape: Literal["columns", "wide", "square"] = "columns") -> str:
    """Where the script draws the charts: beside each other, each as wide as the page, or as wide as high."""
    figures = "".join(_figure(chart) for chart in charts)
    return f"<div class='charts {shape}'>{figures}</div>" if figures else ""


def chosen_chart(label: str, options: Mapping[str, Chart], name: str) -> str:
    """Places of charts of which a reader sees one at a time."""
    choices = "".join(
        f"<option value='{escape(chart.name)}'>{escape(text)}</option>" for text, chart in options.items()
    )
    control = f"<label>{escape(label)} <select id='{name}' data-chooses>{choices}</select></label>"
    return f"<div class='controls'>{control}</div>{chart_places(list(options.values()), 'square')}" if options else ""


def log_times() -> str:
    """The control that puts durations on a logarithmic scale."""
    return "<div class='controls'><label><input type='checkbox' id='log-times'> logarithmic time axes</label></div>"


def _figure(chart: Chart) -> str:
    caption = escape(chart.caption)
    return (
        f"<figure><div class='chart' id='chart-{escape(chart.name)}' role='group' aria-label='{caption}'></div>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table that scrolls by itself where it is too wide, its headers broken; its first column names the rows."""
    texts = [[str(cell) for cell in row] for row in rows]
    kinds = ["" if i and _is_of_figures([row[i] for row in texts]) else " class=text" for i in range(len(columns))]
    head = "".join(f"<th scope='col'{kind}>{_breakable(c)}</th>" for c, kind in zip(columns, kinds, strict=True))
    lines = ""
    for row in texts:
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
        lines += f"<tr>{cells}</tr>"
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    label = escape(caption or columns[0] or "table")
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{label}'>"
        f"<table>{named}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


_JOINT = re.compile(r"(?<=\w\.)(?=[^\W\d])|(?<=[^\W\d]\.)(?=\d)|(?<=\w_)(?=[^\W\d]{3})")
"""Behind the dots and underscores of a name; not before a unit, as `_s`, and not in a number."""


_FIGURE = re.compile(r"(?<=[≤≥]) |(?<=\d) (?=%|[mµ]?s\b)")
"""Spaces within a figure, as in `≤ 150 ms`."""


def _breakable(header: str) -> str:
    """A header that goes on in the next line, where it must, behind the joints of names too, and in no figure."""
    return "<wbr>".join(map(escape, _JOINT.split(_FIGURE.sub("\u00a0", header))))


def _is_of_figures(texts: Sequence[str]) -> bool:
    """Whether most of a column's cells begin as a number does; "same" is said of numbers."""
    said = [text for text in texts if text not in ("", "–", "same")]
    return 2 * sum(text[0] in "0123456789+-.[" for text in said) >= len(said)


def facts(values: Mapping[str, object]) -> str:
    """Names and values; what is not known is left out."""
    known = {name: value for name, value in values.items() if value is not None}
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in known.items()) + "</dl>"
    )


def heading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def prose(text: str) -> str:
    """A paragraph that explains."""
    return f"<p class='dim'>{escape(text)}</p>"


def notes(texts: Sequence[str]) -> str:
    """What a reader must know, a point each; empty when there is none."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>" if texts else ""


def unfolded(title: str, body: str) -> str:
    """HTML that a reader unfolds."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def folded(title: str, value: Any) -> str:
    """A value as JSON, to be unfolded."""
    text = json.dumps(value, indent=1, default=str)
    return unfolded(title, f"<pre tabindex='0'>{escape(text)}</pre>")


def data(value: Any) -> str:
    """JSON for a script element: without `<`, nothing in it can end the element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
