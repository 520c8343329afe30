"""The capacities of a study's variants as rows of a table, and what is said below it."""

from __future__ import annotations

from typing import Any

from harness.sweeps.devices import COLUMN, device_cell
from harness.sweeps.front_table import constraints, headers
from harness.sweeps.pareto import flat
from harness.sweeps.wording import figure, set_to

NONE = "–"


def capacity_table(record: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows, a variant each: what it sets, its capacity, the figures there, and what failed next above it.

    Where variants use other devices, these have a column.

    The capacity is `≥` the most that was tried where that held, and `<` the least where that did not.
    """
    key = record["study"]["capacity"]["key"]
    keys = list(record["capacities"][0]["overrides"])
    names = [name for name in dict.fromkeys([*record["objectives"], *constraints(record)]) if name != key]
    devices = device_cell(record)
    used = [[] if devices is None else [devices(_known_point(record, one))] for one in record["capacities"]]
    header = [] if devices is None else [COLUMN]
    columns = ["point", *keys, *header, key, *headers(names, constraints(record)), "fails at", "with"]
    both = zip(record["capacities"], used, strict=True)
    return columns, [_row(record, one, keys, own, names) for one, own in both]


def _known_point(record: dict[str, Any], one: dict[str, Any]) -> int | None:
    """A point of a variant that has figures; None: none has."""
    points = [tried["point"] for tried in one["tried"]]
    return next((point for point in points if record["points"][point]["figures"] is not None), None)


def _row(
    record: dict[str, Any], one: dict[str, Any], keys: list[str], devices: list[str], names: list[str]
) -> tuple[str, ...]:
    highest, above = one["highest"], one["next_above"]
    set_here = [*(set_to(one["overrides"][key]) for key in keys), *devices]
    why = [NONE, NONE] if above is None else [set_to(above["value"]), ",\n".join(above["shortfalls"])]
    if highest is None:
        return (NONE, *set_here, f"< {set_to(above['value'])}", *(NONE for _ in names), *why)
    figures = flat(record["points"][highest["point"]]["figures"])
    there = [NONE if figures[name] is None else figure(name, figures[name]) for name in names]
    found = f"{'≥ ' if above is None else ''}{set_to(highest['value'])}"
    return (str(highest["point"]), *set_here, found, *there, *why)


def capacities_counted(record: dict[str, Any], n_known: int = 0) -> str:
    """How many points were tried for how many variants, `n_known` of them from before, and which are on the front."""
    n, points = len(record["capacities"]), len(record["points"])
    before = f", {n_known} of them from before" if n_known else ""
    front = ", ".join(map(str, record["front"])) or "none"
    tried = f"{n} variant{'s' * (n != 1)}, {points} points tried{before}"
    return f"{tried}: on the front {front}; {record['n_failed']} failed"
