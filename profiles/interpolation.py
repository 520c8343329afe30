"""Exact interpolation on measured grids, and a declared policy outside them.

Measured grids are ragged: slices have their own axes and corners are missing. A table is made regular once, when it
is loaded, by these rules, and every rule that was used is counted:

* at a measured point the measured value comes back, to the last bit of a division;
* between measured points of a slice: linear, along the history first, then along the other axes;
* a missing corner is never taken flat from a neighbour in *time*: it is extrapolated along its slice, or (for mixed
  batches) taken from the ratio of the mixed to the separate kernels, which varies slowly;
* below the smallest measured point: the value there, a kernel's floor; above the largest: linear from the last two.

Queries outside the measured range are counted by `Outside`, so that a result can say how many steps they touched.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from traces.steps import Floats


def interpolate(x: Floats, y: Floats, at: Floats) -> Floats:
    """Piecewise linear y(x): the first value below x[0], linear from the last two points above x[-1].

    Args:
        x: [n] ascending.
        y: [n].
        at: [m] where to read.

    Returns:
        [m] values; bit-identical however the queries are split into calls.
    """
    if len(x) == 1:
        return np.full(np.shape(at), y[0])
    at = np.maximum(at, x[0])
    low = np.minimum(x.searchsorted(at, side="right") - 1, len(x) - 2)
    at_low, y_low = x[low], y[low]
    share = (at - at_low) / (x[low + 1] - at_low)
    between: Floats = y_low + share * (y[low + 1] - y_low)
    return between


def interpolate_ascending(x: Sequence[float], y: Sequence[float], at: Floats) -> Floats:
    """`interpolate` to the last bit, for queries that ascend: those of a sweep mostly lie between the same two points.

    Args:
        x: [n] ascending, as plain numbers.
        y: [n], as plain numbers.
        at: [m] ascending, at least one.
    """
    if len(x) > 1 and x[0] <= at[0]:
        low = min(bisect_right(x, at[0]) - 1, len(x) - 2)
        if low == len(x) - 2 or at[-1] < x[low + 1]:
            between: Floats = y[low] + (at - x[low]) / (x[low + 1] - x[low]) * (y[low + 1] - y[low])
            return between
    return interpolate(np.array(x), np.array(y), at)


def interpolate_one(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """`interpolate` to the last bit, for one query and plain numbers."""
    low, high, share = bracket(x, at)
    return y[low] + share * (y[high] - y[low])


def bracket(x: Sequence[float], at: float) -> tuple[int, int, float]:
    """Indices below and above `at` on the ascending axis x, and the weight of the upper one.

    Below x[0] the weight is 0 (the floor); above x[-1] it exceeds 1 (linear from the last two).
    """
    if len(x) == 1 or at <= x[0]:
        return 0, 0, 0.0
    low = min(bisect_right(x, at) - 1, len(x) - 2)
    return low, low + 1, (at - x[low]) / (x[low + 1] - x[low])


def fill_inside(axes: tuple[Floats, ...], values: Floats) -> Floats:
    """`values` with every NaN that lies between two known points of a line filled linearly, last axis first."""
    filled = values.copy()
    for axis in reversed(range(values.ndim)):
        lines = np.moveaxis(filled, axis, -1)
        shape = lines.shape
        flat = np.ascontiguousarray(lines.reshape(-1, shape[-1]))
        for row in np.flatnonzero(np.isnan(flat).any(axis=1)):
            line = flat[row]
            known = np.flatnonzero(~np.isnan(line))
            if len(known) < 2:
                continue
            between = slice(known[0], known[-1] + 1)
            line[between] = np.interp(axes[axis][between], axes[axis][known], line[known])
        filled = np.moveaxis(flat.reshape(shape), -1, axis)
    return filled


def extend_linear(axes: tuple[Floats, ...], values: Floats) -> Floats:
    """`values` with every NaN beyond a line's last known point extrapolated from its last two, last axis first.

    What lies before a line's first known point takes the first value: the floor.
    """
    filled = values.copy()
    for axis in reversed(range(values.ndim)):
        lines = np.moveaxis(filled, axis, -1)
        for index in np.ndindex(lines.shape[:-1]):
            line = lines[index]
            known = np.flatnonzero(~np.isnan(line))
            if 0 < len(known) < len(line):
                missing = np.isnan(line)
                line[missing] = interpolate(axes[axis][known], line[known], axes[axis][missing])
    return filled


def extend_nearest(values: Floats) -> Floats:
    """`values` with every NaN replaced by the nearest known value of its line, last axis first."""
    filled = values.copy()
    for axis in reversed(range(values.ndim)):
        lines = np.moveaxis(filled, axis, -1)
        ragged = np.isnan(lines).any(axis=-1) & ~np.isnan(lines).all(axis=-1)
        for index in zip(*np.nonzero(ragged), strict=True):
            line = lines[index]
            known, missing = np.flatnonzero(~np.isnan(line)), np.flatnonzero(np.isnan(line))
            nearest = known[np.argmin(np.abs(missing[:, None] - known[None, :]), axis=1)]
            line[missing] = line[nearest]
    return filled
