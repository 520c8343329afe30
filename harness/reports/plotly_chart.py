"""Charts as Plotly's traces and axes, without colours: those are the page's, by role and theme."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.reports.chart import Bars, Cells, Chart, Intervals, Line, Mark, Points
from traces.steps import Floats

LABEL_HEIGHT_PX, AXES_HEIGHT_PX, HEIGHT_PX, SQUARE_HEIGHT_PX = 25, 100, 320, 480
"""Of a line of labels, of what stands around such lines, and of charts without any, of curves and of pairs."""

DASHES = {"measured": "solid", "simulated": "dash", "reference": "dot"}
"""Curves are told apart without their colours too."""
RUN_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def plotly_chart(chart: Chart) -> dict[str, Any]:
    """What the page's script draws."""
    labelled = [mark for mark in chart.marks if isinstance(mark, Bars | Intervals)]
    labels = dict.fromkeys(label for mark in labelled for label in mark.labels)
    scales = {"linear": {"rangemode": "tozero"}, "log": {"type": "log"}}
    y_axis: dict[str, Any] = {"title": {"text": chart.y}, **scales[chart.y_scale]}
    if labels:
        y_axis = {"type": "category", "autorange": "reversed", "title": {"text": chart.y}}
    x_axis: dict[str, Any] = {"title": {"text": chart.x}, **scales[chart.x_scale]}
    if chart.percent:
        x_axis |= {"tickformat": "+.0%", "rangemode": "normal", "zeroline": True, "zerolinewidth": 2}
    if any(isinstance(mark, Intervals) for mark in chart.marks):
        x_axis["rangemode"] = "normal"
    named = [mark.name for mark in chart.marks if mark.name]
    return {
        "data": [_trace(mark) for mark in chart.marks],
        "xaxis": x_axis,
        "yaxis": y_axis,
        "height": _height(chart, labelled),
        "legend": len(dict.fromkeys(named)) > 1,
        "hovermode": "x unified" if all(isinstance(mark, Line) for mark in chart.marks) else "closest",
        "grouped": bool(labels),
        "times": chart.times,
    }


def _height(chart: Chart, labelled: Sequence[Bars | Intervals]) -> int:
    if labelled:
        return AXES_HEIGHT_PX + _lines(labelled) * LABEL_HEIGHT_PX
    return SQUARE_HEIGHT_PX if any(isinstance(mark, Points | Cells) for mark in chart.marks) else HEIGHT_PX


def _lines(marks: Sequence[Bars | Intervals]) -> int:
    """Lines that labels need: bars of a label stand in one, intervals beside each other."""
    most = max(len(mark.labels) for mark in marks)
    return most * max(1, sum(isinstance(mark, Intervals) for mark in marks) * 2 // 3)


def _trace(mark: Mark) -> dict[str, Any]:
    common: dict[str, Any] = {"name": mark.name, "role": mark.role}
    match mark:
        case Line():
            line = {"dash": dash_of(mark.role), "shape": "hv" if mark.stairs else "linear", "width": 2}
            mode = "lines+markers" if mark.dots else "lines"
            hover = {} if mark.role != "reference" else {"hoverinfo": "skip"}
            return {**common, **hover, "type": "scatter", "mode": mode, **_xy(mark.x, mark.y), "line": line}
        case Points():
            marker = {"size": 7, "opacity": 0.65}
            return {
                **common,
                "type": "scatter",
                "mode": "markers",
                **_xy(mark.x, mark.y),
                "text": mark.text,
                "marker": marker,
                "hovertemplate": "%{text}<br>%{x:.4s} measured, %{y:.4s} simulated<extra></extra>",
            }
        case Bars():
            return {
                **common,
                "type": "bar",
                "orientation": "h",
                "y": mark.labels,
                "base": array(mark.start),
                "x": array(mark.length),
                "marker": {"pattern": {"shape": _PATTERNS.get(mark.role, "")}},
                "hovertemplate": "%{y}<br>%{fullData.name} %{x:.4s} s<extra></extra>",
            }
        case Intervals():
            bounds = {"array": array(mark.high - mark.value), "arrayminus": array(mark.value - mark.low)}
            return {
                **common,
                "type": "scatter",
                "mode": "markers",
                "orientation": "h",
                "cliponaxis": False,
                "x": array(mark.value),
                "y": mark.labels,
                "marker": {"size": 9},
                "error_x": {"type": "data", "symmetric": False, **bounds, "thickness": 2},
            }
        case Cells():
            shown = np.log10(np.where(mark.counts > 0, mark.counts, np.nan))
            return {
                **common,
                "type": "heatmap",
                "x": array(mark.x_edges),
                "y": array(mark.y_edges),
                "z": [[None if np.isnan(cell) else round(float(cell), 2) for cell in row] for row in shown],
                "text": mark.counts.astype(int).tolist(),
                "showscale": False,
                "hoverongaps": False,
                "hovertemplate": "%{text} requests<extra></extra>",
            }


_PATTERNS = {"prefill": "/", "queue": "."}
"""Stages are told apart without their colours too."""


def dash_of(role: str) -> str:
    """How a curve of a role is dashed."""
    if role.startswith("run"):
        return RUN_DASHES[int(role.removeprefix("run")) % len(RUN_DASHES)]
    return DASHES[role]


def _xy(x: Floats, y: Floats) -> dict[str, Any]:
    return {"x": array(x), "y": array(y)}


def array(values: Floats | Sequence[float]) -> dict[str, str]:
    """Numbers as Plotly reads them fastest: 32-bit, of seven digits, which is more than a picture can show."""
    return {"dtype": "f4", "bdata": base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()}
