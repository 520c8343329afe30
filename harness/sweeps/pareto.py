"""Which points are not beaten: no other is as good by every objective and better by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.sweeps.study import Direction, Limits

Losses = tuple[float, ...]
"""A point by each objective, turned so that less is better."""


def flat(figures: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Figures by dotted name, as `ttft_s.p99` and `cost.total`: `metrics` is left out of names, lists altogether."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= flat(value, prefix if name == "metrics" else f"{prefix}{name}.")
        elif not isinstance(value, list | tuple):
            found[prefix + name] = value
    return found


def losses(figures: Mapping[str, Any], objectives: Mapping[str, Direction]) -> Losses | None:
    """A point's losses; None when one of the objectives has no value there."""
    values = [figures.get(name) for name in objectives]
    if any(value is None for value in values):
        return None
    turned = zip(values, objectives.values(), strict=True)
    return tuple(-float(value) if way == "max" else float(value) for value, way in turned if value is not None)


def excess(figures: Mapping[str, Any], constraints: Mapping[str, Limits]) -> float | None:
    """How far a point is outside its constraints, as a sum of relative amounts; None: a figure is not known."""
    total = 0.0
    for name, limits in constraints.items():
        if (value := figures.get(name)) is None:
            return None
        scale = max((abs(limit) for limit in (limits.min, limits.max) if limit), default=1.0)
        total += limits.excess(value) / scale
    return total


def beats(a: Losses, b: Losses) -> bool:
    """Whether a is as good as b by every objective, and better by one."""
    return a != b and all(ours <= theirs for ours, theirs in zip(a, b, strict=True))


def front(points: Sequence[Losses]) -> list[int]:
    """Indices of the points that no other beats, in their order; equal points are on it together."""
    return [i for i, own in enumerate(points) if not any(beats(other, own) for other in points)]


def ranked(points: Sequence[Losses]) -> list[int]:
    """All indices, best first: front by front (Deb et al., IEEE Trans. Evol. Comput. 6, 2002), each in its order."""
    order: list[int] = []
    left = list(range(len(points)))
    while left:
        best = {left[i] for i in front([points[j] for j in left])}
        order += [i for i in left if i in best]
        left = [i for i in left if i not in best]
    return order
