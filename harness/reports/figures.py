"""The charts of a page as pictures for papers and pull requests: PNG, SVG or PDF, drawn by Matplotlib.

One file per chart, and captions.md with what each shows. The same input and Matplotlib give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from harness.reports.chart import Bars, Cells, Chart, Intervals, Line, Mark, Points
from harness.reports.colours import colours
from harness.reports.plotly_chart import dash_of
from harness.reports.report import page_of
from traces.capture import new_folder
from traces.errors import InputError, installs

Format = Literal["png", "svg", "pdf"]

WIDTH_IN, HEIGHT_IN, SQUARE_IN, LABEL_IN = 5.5, 3.2, 4.8, 0.2
"""A figure as wide as a text column; the height of curves and of pairs; what a line of labels adds to a height."""
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "figure.dpi": 200,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "servetwin",
    "svg.fonttype": "none",
}
NO_DATE: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
LINES = {
    "solid": "-",
    "dash": "--",
    "dot": ":",
    "dashdot": "-.",
    "longdash": (0, (8, 3)),
    "longdashdot": (0, (8, 3, 1, 3)),
}
HATCHES = {"prefill": "////", "queue": "...."}


def figures(paths: Sequence[Path], out: Path, format: str = "png") -> list[Path]:
    """Draw every chart of the page that `paths` would have into a new folder. Returns the files.

    Raises:
        InputError: the format is unknown, Matplotlib is not installed, nothing at `paths` has charts, or as
            `harness.reports.report.page_of`.
    """
    if format not in get_args(Format):
        raise InputError(field="--format", found=format, accepted=", ".join(get_args(Format)))
    matplotlib = _matplotlib()
    charts = page_of(paths).charts
    if not charts:
        raise InputError("holds nothing that is drawn", file=paths[0])
    with new_folder(out) as folder, matplotlib.rc_context(STYLE):
        for chart in charts:
            drawn(chart).savefig(folder / f"{chart.name}.{format}", metadata=NO_DATE[format])
        captions = "\n".join(f"- `{chart.name}.{format}`: {chart.caption}" for chart in charts)
        (folder / "captions.md").write_text(captions + "\n", encoding="utf-8")
    return [out / f"{chart.name}.{format}" for chart in charts]


def drawn(chart: Chart) -> Any:
    """A chart as a Matplotlib figure. Raises InputError when Matplotlib is not installed."""
    _matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, PercentFormatter

    labels = list(dict.fromkeys(label for m in chart.marks if isinstance(m, Bars | Intervals) for label in m.labels))
    figure = Figure(figsize=(WIDTH_IN, _height_in(chart, labels)))
    axes = figure.add_subplot()
    palette = colours("light")
    for number, mark in enumerate(chart.marks):
        _draw(axes, mark, palette[mark.role], labels, _offset(chart.marks, number))
    axes.set(xlabel=chart.x, ylabel=chart.y, xscale=chart.x_scale, yscale=chart.y_scale)
    if labels:
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
    elif chart.y_scale == "linear":
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    if chart.percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.axvline(0, color=palette["reference"], linewidth=1)
    for axis, scale in ((axes.xaxis, chart.x_scale), (axes.yaxis, chart.y_scale)):
        if scale == "log":
            axis.set_major_formatter(LogFormatter())
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    names = [mark.name for mark in chart.marks if mark.name]
    if len(names) > 1:
        figure.legend(loc="outside upper center", ncols=min(len(names), 3))
    return figure


def _height_in(chart: Chart, labels: Sequence[str]) -> float:
    if labels:
        return 0.9 + LABEL_IN * len(labels)
    return SQUARE_IN if any(isinstance(mark, Points | Cells) for mark in chart.marks) else HEIGHT_IN


def _offset(marks: Sequence[Mark], number: int) -> float:
    """How far above or below its line an interval stands, so that those of several runs are beside each other."""
    n = len(marks)
    return 0.0 if n == 1 else 0.6 * (number / (n - 1) - 0.5)


def _draw(axes: Any, mark: Mark, colour: str, labels: Sequence[str], offset: float) -> None:
    match mark:
        case Line():
            style = {"color": colour, "linestyle": LINES[dash_of(mark.role)], "label": mark.name, "linewidth": 1.3}
            axes.plot(
                mark.x,
                mark.y,
                marker="." if mark.dots else None,
                drawstyle="steps-post" if mark.stairs else "default",
                **style,
            )
        case Points():
            axes.scatter(mark.x, mark.y, s=9, alpha=0.6, color=colour, label=mark.name, linewidths=0)
        case Bars():
            lines = [labels.index(label) for label in mark.labels]
            style = {"color": colour, "label": mark.name, "hatch": HATCHES.get(mark.role), "edgecolor": "white"}
            axes.barh(lines, mark.length, left=mark.start, height=0.7, linewidth=0, **style)
        case Intervals():
            at = [labels.index(label) + offset for label in mark.labels]
            reach = np.nan_to_num(np.array([mark.value - mark.low, mark.high - mark.value]))
            style = {"color": colour, "label": mark.name, "fmt": "o", "markersize": 4, "capsize": 2}
            axes.errorbar(mark.value, at, xerr=reach, **style)
        case Cells():
            from matplotlib.colors import LinearSegmentedColormap, LogNorm

            shades = LinearSegmentedColormap.from_list("shades", ["#ffffff", colour])
            counts = np.ma.masked_equal(mark.counts, 0)
            axes.pcolormesh(mark.x_edges, mark.y_edges, counts, cmap=shades, norm=LogNorm(0.5), rasterized=True)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise InputError(f"figures need the extra: {installs('figures')}") from None
    return matplotlib
