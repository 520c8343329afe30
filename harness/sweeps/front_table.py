"""The front as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.sweeps.pareto import flat
from harness.sweeps.points import text_of
from harness.terminal.words import seconds


def front_rows(record: dict[str, Any], keys: Sequence[str], names: Sequence[str]) -> list[tuple[str, ...]]:
    """The points of the front, best by the first objective first; those of equal objectives share a row."""
    alike: dict[tuple[float, ...], list[dict[str, Any]]] = {}
    for i in record["front"]:
        figures = flat(record["points"][i]["figures"])
        alike.setdefault(tuple(figures[name] for name in names), []).append(record["points"][i])
    sign = -1 if record["objectives"][names[0]] == "max" else 1
    rows = []
    for values, points in sorted(alike.items(), key=lambda one: sign * one[0][0]):
        cells = [_set_to(points[0]["overrides"].get(key)) for key in keys]
        objectives = [_figure(name, value) for name, value in zip(names, values, strict=True)]
        rows.append((", ".join(str(point["point"]) for point in points), *cells, *objectives))
    return rows


def _set_to(value: Any) -> str:
    """What a point sets a key to; results.csv has all digits."""
    return f"{value:.4g}" if isinstance(value, float) else text_of(value)


def _figure(name: str, value: float) -> str:
    """A figure; durations with their unit."""
    is_duration = any(part.endswith("_s") and not part.endswith("per_s") for part in name.split("."))
    return seconds(value) if is_duration else f"{value:.4g}"
