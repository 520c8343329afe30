"""A chart as data: what is drawn, by whom is left open. `page` hands it to Plotly, `figures` to Matplotlib.

A mark names a role and no colour: `measured`, `simulated`, a stage, or `run0`, `run1`, ... of several side by side.
Colours belong to whoever draws, who knows whether the page is light or dark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from traces.steps import Floats

MOST_POINTS = 1000
"""Points of a curve: about as many as a screen is wide."""

Role = str


@dataclass(frozen=True, slots=True)
class Line:
    """A curve through points, [n] each. As stairs, a value holds until the next; with dots, one alone is seen."""

    name: str
    role: Role
    x: Floats
    y: Floats
    stairs: bool = False
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Points:
    """A dot per pair, [n] each, and what each is called."""

    name: str
    role: Role
    x: Floats
    y: Floats
    text: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bars:
    """A horizontal bar per label, [n] each, from `start` on. Bars of one label stand in one line."""

    name: str
    role: Role
    labels: tuple[str, ...]
    start: Floats
    length: Floats


@dataclass(frozen=True, slots=True)
class Intervals:
    """A dot per label with the bounds around it, [n] each; NaN bounds where there are none."""

    name: str
    role: Role
    labels: tuple[str, ...]
    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class Cells:
    """How many points fall into each cell of a grid, [n_y, n_x], between edges [n_x + 1] and [n_y + 1]."""

    name: str
    role: Role
    x_edges: Floats
    y_edges: Floats
    counts: Floats


Mark = Line | Points | Bars | Intervals | Cells
Scale = Literal["linear", "log"]


@dataclass(frozen=True, slots=True)
class Chart:
    """Marks on two axes.

    Attributes:
        name: unique on a page, and the name of a figure's file.
        caption: what is seen, and what was left out to draw it.
        x: title of the axis, with its unit.
        y: likewise; empty where labels stand on the axis.
        marks: drawn in this order.
        x_scale: of the axis.
        y_scale: of the axis.
        times: whether the x axis is a duration that a reader may want to see on a logarithmic scale.
        percent: whether the x axis is a share, shown in percent.
    """

    name: str
    caption: str
    x: str
    y: str
    marks: tuple[Mark, ...]
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    times: bool = False
    percent: bool = False


def distribution(name: str, role: Role, values: Floats) -> Line:
    """The share of values at or below each; of more than `MOST_POINTS` values, so many of their quantiles."""
    ordered = np.sort(values)
    share = (np.arange(len(ordered)) + 1) / max(len(ordered), 1)
    keep = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), MOST_POINTS)).astype(int))
    return Line(name, role, ordered[keep], share[keep], stairs=True)
