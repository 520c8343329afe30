"""Which points a picture has room for: one far beyond the constraints would push all others into a corner."""

from __future__ import annotations

from collections.abc import Sequence


def in_view(columns: Sequence[Sequence[float | None]], is_feasible: Sequence[bool]) -> list[bool]:
    """Whether each point is drawn: those within the constraints are, and others that are near them in every column.

    Near is no further away than those within are apart: of these at 2 and 5, others from -1 to 8. Where none is
    within, all are drawn.

    Args:
        columns: [n] values of each axis that a point may be drawn by; None has no place on it.
        is_feasible: [n] whether points are within the constraints.
    """
    drawn = [True] * len(is_feasible)
    for values in columns:
        within = [value for value, feasible in zip(values, is_feasible, strict=True) if feasible and value is not None]
        if not within:
            continue
        low, high = min(within), max(within)
        span = high - low or abs(high) or 1.0
        for i, value in enumerate(values):
            if not is_feasible[i] and value is not None and not low - span <= value <= high + span:
                drawn[i] = False
    return drawn
