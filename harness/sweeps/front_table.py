"""The front as rows of a table, and what is said below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from harness.sweeps.devices import COLUMN, device_cell
from harness.sweeps.pareto import excess, flat
from harness.sweeps.points import Point
from harness.sweeps.study import Limits
from harness.sweeps.wording import figure, missed, set_to, within


def front_table(record: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows: what is varied, devices where they differ, objectives, and what else is constrained.

    Headers hold the limits.
    """
    keys = list(dict.fromkeys(key for point in record["points"] for key in point["overrides"]))
    names, limits = list(record["objectives"]), constraints(record)
    others = [name for name in limits if name not in names]
    devices = [] if device_cell(record) is None else [COLUMN]
    return ["point", *keys, *devices, *headers([*names, *others], limits)], _rows(record, keys, names, others)


def headers(names: Sequence[str], limits: Mapping[str, Limits]) -> list[str]:
    """Figures' names, with the limits of those that have some."""
    return [f"{name} {within(name, limits[name])}" if name in limits else name for name in names]


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
    if not (beyond := _excesses(record)):
        return None
    _, point, figures = min(beyond, key=lambda one: one[0])
    misses = [f"{text} (wanted {within(name, limits[name])})" for name, text in missed(figures, limits).items()]
    label = Point(point["overrides"], "", point["first_requests"]).label
    return f"no point is within the constraints; the nearest is point {point['point']}, {label}: {', '.join(misses)}"


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
    devices = device_cell(record)
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for i in record["front"]:
        figures = flat(record["points"][i]["figures"])
        equal = (*(figures[name] for name in (*names, *others)), () if devices is None else (devices(i),))
        alike.setdefault(equal, []).append(record["points"][i])
    sign = -1 if record["objectives"][names[0]] == "max" else 1
    rows = []
    for (*values, used), points in sorted(alike.items(), key=lambda one: sign * one[0][0]):
        cells = [*(set_to(points[0]["overrides"].get(key)) for key in keys), *used]
        figures_there = [figure(name, value) for name, value in zip((*names, *others), values, strict=True)]
        rows.append((", ".join(str(point["point"]) for point in points), *cells, *figures_there))
    return rows
