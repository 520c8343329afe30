"""How sure a profile's times are: the spread of a point's samples, and the points where it is worst."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from profiles.profile import Curve, OperatorTables
from traces.steps import Floats

NORMAL = 1.4826
"""Times the median absolute deviation: a normal distribution's standard deviation (Rousseeuw and Croux, JASA 88, 1993).
"""


def relative_spread(samples: Sequence[float]) -> float:
    """1.4826 * median absolute deviation / median; NaN for fewer than two samples, which have none.

    Half of the samples may be disturbed before it says more than the other half does.
    """
    if len(samples) < 2:
        return float("nan")
    middle = float(np.median(samples))
    return NORMAL * float(np.median(np.abs(np.asarray(samples) - middle))) / middle


def worst_spreads(tables: OperatorTables) -> list[str]:
    """One line for each operator whose spread was taken: the median over its points, and the worst of them."""
    lines = []
    for name, points, spread, n in _tables(tables):
        known = np.flatnonzero(~np.isnan(spread))
        worst = int(known[np.argmax(spread[known])])
        samples = "" if n is None or np.isnan(n[worst]) else f" (n {n[worst]:.0f})"
        middle = float(np.median(spread[known]))
        lines.append(f"{name}: median {middle:.1%}, worst {spread[worst]:.1%} at {points[worst]}{samples}")
    return lines


def _tables(tables: OperatorTables) -> Iterator[tuple[str, list[str], Floats, Floats | None]]:
    """Name, points in words, spread and number of samples of everything whose spread was taken."""
    for unit, curves in (("tokens", tables.dense), ("requests", tables.per_request)):
        for name, curve in curves.items():
            if curve.spread is not None:
                yield name, _curve_points(curve, unit), curve.spread, curve.n
    if (rows := tables.attention).spread is not None:
        yield (
            "attention",
            _points(rows, "prefill_tokens prefill_kv_tokens n_decode decode_kv_tokens"),
            rows.spread,
            rows.n,
        )
    if (moe := tables.moe) is not None and moe.spread is not None:
        yield "moe", _points(moe, "n_tokens n_experts"), moe.spread, moe.n
    if (skew := tables.skew) is not None and skew.spread is not None:
        yield "skew", _points(skew, "n_decode n_long mean_kv_tokens long_kv_tokens"), skew.spread, skew.n
    if (steps := tables.steps) is not None and steps.spread is not None:
        yield "whole steps", _points(steps, _BATCH), steps.spread, steps.repeats


_BATCH = "prefill_tokens prefill_kv_tokens n_decode decode_kv_tokens"


def _curve_points(curve: Curve, unit: str) -> list[str]:
    """The points of a curve, in words."""
    return [f"{x:.0f} {unit}" for x in curve.x]


def _points(rows: object, names: str) -> list[str]:
    """The points of a table of rows, in words; 0 is not said."""
    columns = [(name, getattr(rows, name)) for name in names.split()]
    return [
        ", ".join(f"{name} {values[i]:.0f}" for name, values in columns if values[i]) for i in range(len(columns[0][1]))
    ]
