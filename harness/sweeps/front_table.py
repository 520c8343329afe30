"""The front as rows of a table, and what is said below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from harness.sweeps.pareto import excess, flat
from harness.sweeps.points import Point, text_of
from harness.sweeps.study import Limits
from harness.terminal.words import seconds


def front_table(record: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows: what is varied, the objectives, and what else is constrained; headers hold the limits."""
    keys = list(dict.fromkeys(key for point in record["points"] for key in point["overrides"]))
    names, limits = list(record["objectives"]), constraints(record)
    others = [name for name in limits if name not in names]
    shown = [f"{name} {_within(name, limits[name])}" if name in limits else name for name in [*names, *others]]
    return ["point", *keys, *shown], _rows(record, keys, names, others)


def counted(record: dict[str, Any], n_known: int = 0) -> str:
    """How many points there are, `n_known` of them from before, and what became of them."""
    points = record["points"]
    before = f", {n_known} of them from before" if n_known else ""
    beyond = f", {sum(by > 0 for by, _, _ in _excesses(record))} beyond the constraints"
    n_failed = sum(point["reason"] is not None for point in points)
    return (
        f"{len(points)} point{'s' * (len(points) != 1)}{before}: {len(record['front'])} on the front"
        f"{beyond if record['constraints'] else ''}, {n_failed} failed"
    )


def nearest_miss(record: dict[str, Any]) -> str | None:
    """Where no point is within the constraints, the one that is beyond them by the least (`pareto.excess`), in a line.

    None: one is within, nothing is constrained, or no point has all the figures.
    """
    limits = constraints(record)
    if not limits or any(point["is_feasible"] for point in record["points"]):
        return None
    if not (missed := _excesses(record)):
        return None
    _, point, figures = min(missed, key=lambda one: one[0])
    beyond = [
        f"{name} {_figure(name, figures[name])} (wanted {_within(name, one)})"
        for name, one in limits.items()
        if one.excess(figures[name])
    ]
    label = Point(point["overrides"], "", point["first_requests"]).label
    return f"no point is within the constraints; the nearest is point {point['point']}, {label}: {', '.join(beyond)}"


def constraints(record: dict[str, Any]) -> dict[str, Limits]:
    """What the study limits, by figure."""
    return msgspec.convert(record["constraints"], dict[str, Limits])


def _excesses(record: dict[str, Any]) -> list[tuple[float, dict[str, Any], dict[str, Any]]]:
    """By how much each point is beyond the constraints, the point and its figures; those where that is known."""
    limits = constraints(record)
    known = [(point, flat(point["figures"])) for point in record["points"] if point["figures"] is not None]
    return [(by, point, figures) for point, figures in known if (by := excess(figures, limits)) is not None]


def _rows(
    record: dict[str, Any], keys: Sequence[str], names: Sequence[str], others: Sequence[str]
) -> list[tuple[str, ...]]:
    """The points of the front, best by the first objective first; those of equal figures share a row."""
    alike: dict[tuple[float, ...], list[dict[str, Any]]] = {}
    for i in record["front"]:
        figures = flat(record["points"][i]["figures"])
        alike.setdefault(tuple(figures[name] for name in (*names, *others)), []).append(record["points"][i])
    sign = -1 if record["objectives"][names[0]] == "max" else 1
    rows = []
    for values, points in sorted(alike.items(), key=lambda one: sign * one[0][0]):
        cells = [_set_to(points[0]["overrides"].get(key)) for key in keys]
        figures_there = [_figure(name, value) for name, value in zip((*names, *others), values, strict=True)]
        rows.append((", ".join(str(point["point"]) for point in points), *cells, *figures_there))
    return rows


def _within(name: str, limits: Limits) -> str:
    """What a figure may be, as `≤ 150 ms`."""
    least = None if limits.min is None else _figure(name, limits.min)
    most = None if limits.max is None else _figure(name, limits.max)
    if least is not None and most is not None:
        return f"{least} to {most}"
    return f"≤ {most}" if least is None else f"≥ {least}"


def _set_to(value: Any) -> str:
    """What a point sets a key to; results.csv has all digits."""
    return f"{value:.4g}" if isinstance(value, float) else text_of(value)


def _figure(name: str, value: float) -> str:
    """A figure; durations with their unit."""
    is_duration = any(part.endswith("_s") and not part.endswith("per_s") for part in name.split("."))
    return seconds(value) if is_duration else f"{value:.4g}"
