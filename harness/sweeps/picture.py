"""The points of a study as a picture: a panel for each pair of the first objective and another. SVG, a few kilobytes.

It reads on white and on black, and a point says what it is under the pointer.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.sweeps.view import in_view

WIDTH, HEIGHT, MARGIN = 460, 340, 64
FRONT, BEATEN, UNFIT = "#d55e00", "#0072b2", "none"
"""Okabe and Ito's vermillion and blue; points outside the constraints are hollow."""

STYLE = """text { font: 12px system-ui, sans-serif; fill: #1b1b1b } .grid { stroke: #80808040 } .back { fill: #ffffff }
@media (prefers-color-scheme: dark) { text { fill: #ececec } .back { fill: #16181c } }"""


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of the picture: its objectives, what it is called, and whether it is of use and on the front."""

    values: tuple[float, ...]
    text: str
    is_feasible: bool
    is_front: bool


def pareto_svg(objectives: Sequence[str], dots: Sequence[Dot]) -> str:
    """The picture. A single objective stands over the points' order. What is far beyond the constraints is counted."""
    names = list(objectives) if len(objectives) > 1 else ["point", *objectives]
    rows = [dot.values if len(objectives) > 1 else (float(i), *dot.values) for i, dot in enumerate(dots)]
    has_room = in_view([*zip(*(dot.values for dot in dots), strict=True)], [dot.is_feasible for dot in dots])
    drawn = [i for i, is_drawn in enumerate(has_room) if is_drawn]
    panels = [
        _panel(i, names[0], name, [(rows[k][0], rows[k][i + 1]) for k in drawn], [dots[k] for k in drawn])
        for i, name in enumerate(names[1:])
    ]
    if n := len(dots) - len(drawn):
        panels[0] += f'<text x="{WIDTH - 16}" y="14" text-anchor="end">{n} far beyond the limits</text>\n'
    width = WIDTH * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}">\n'
        f'<style>{STYLE}</style>\n<rect class="back" width="100%" height="100%"/>\n{"".join(panels)}</svg>\n'
    )


def _panel(index: int, x: str, y: str, at: Sequence[tuple[float, float]], dots: Sequence[Dot]) -> str:
    across, up = _Scale([a for a, _ in at], MARGIN, WIDTH - 16), _Scale([b for _, b in at], HEIGHT - 48, 24)
    lines = [
        f'<line class="grid" x1="{across(tick):.1f}" x2="{across(tick):.1f}" y1="24" y2="{HEIGHT - 48}"/>'
        f'<text x="{across(tick):.1f}" y="{HEIGHT - 32}" text-anchor="middle">{tick:g}</text>'
        for tick in across.ticks
    ]
    lines += [
        f'<line class="grid" x1="{MARGIN}" x2="{WIDTH - 16}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>'
        f'<text x="{MARGIN - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in up.ticks
    ]
    lines.append(f'<text x="{(MARGIN + WIDTH) / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{html.escape(x)}</text>')
    lines.append(f'<text x="8" y="14">{html.escape(y)}</text>')
    if all(len(dot.values) == 2 for dot in dots):  # of more objectives, a panel shows the front's shadow
        on_front = sorted(where for where, dot in zip(at, dots, strict=True) if dot.is_front)
        path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in on_front)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{FRONT}" stroke-opacity="0.4"/>')
    # The front is drawn last, over what it beats.
    for (a, b), dot in sorted(zip(at, dots, strict=True), key=lambda pair: pair[1].is_front):
        colour = FRONT if dot.is_front else BEATEN
        fill = colour if dot.is_feasible else UNFIT
        lines.append(
            f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="{5 if dot.is_front else 4}" fill="{fill}" '
            f'stroke="{colour}"><title>{html.escape(f"{dot.text}: {x} {a:.4g}, {y} {b:.4g}")}</title></circle>'
        )
    return f'<g transform="translate({index * WIDTH} 0)">\n' + "\n".join(lines) + "\n</g>\n"


SMALLEST = 1e-300
"""Below this there are no round numbers between two values: they are drawn as one."""


class _Scale:
    """Values to pixels, with round numbers to mark."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        span = high - low or abs(high)
        span = span if span > SMALLEST else 1.0
        self.low, self.high, self.start, self.end = low - 0.05 * span, high + 0.05 * span, start, end
        size = 10.0 ** math.floor(math.log10(span))
        step = next(size * part for part in (0.2, 0.5, 1.0, 2.0) if (self.high - self.low) / (size * part) <= 6)
        first = math.ceil(self.low / step)
        count = math.floor(self.high / step) - first + 1
        self.ticks = [float(f"{step * (first + i):.12g}") for i in range(count)]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
