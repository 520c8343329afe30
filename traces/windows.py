"""Windows of time: a grid over a capture, those that a measured series stands for, and what lies between them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from traces.capture import Capture, Series
from traces.steps import Floats, Mask

SAME_TIME_S = 1e-6
"""Times nearer to each other than this are the same."""

SERVER_POWER, DEVICES_POWER = "power_w", "power_w.devices"
"""Series of a capture: of a whole server, and of its accelerators alone."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Windows of equal width: number i (from 0) is (start_s + i * window_s, start_s + (i + 1) * window_s].

    Those of a log whose rows are not evenly spaced begin and end where `uneven_s` says, ascending, and do not overlap;
    `window_s` is then the width of most.
    """

    start_s: float
    window_s: float
    n: int
    uneven_s: tuple[tuple[float, float], ...] | None = field(default=None, kw_only=True)

    def ends_s(self) -> Floats:
        """End of each window, [n] seconds."""
        if self.uneven_s is not None:
            return np.asarray(self.uneven_s, dtype=np.float64)[:, 1]
        return np.asarray(self.start_s + self.window_s * np.arange(1, self.n + 1), dtype=np.float64)

    def begins_s(self) -> Floats:
        """Begin of each window, [n] seconds."""
        if self.uneven_s is not None:
            return np.asarray(self.uneven_s, dtype=np.float64)[:, 0]
        return np.asarray(self.start_s + self.window_s * np.arange(self.n), dtype=np.float64)

    def widths_s(self) -> Floats:
        """Width of each window, [n] seconds."""
        if self.uneven_s is not None:
            return self.ends_s() - self.begins_s()
        return np.full(self.n, self.window_s)

    def gaps_s(self) -> Floats:
        """Time between windows that is in none, [n_gaps] seconds; an even grid has none."""
        between_s = self.begins_s()[1:] - self.ends_s()[:-1]
        return between_s[between_s > SAME_TIME_S]

    def sums(self, time_s: Floats, amount: Floats) -> Floats:
        """Sum of the amounts whose time falls into each window, [n]; what falls outside the grid is left out."""
        edges = np.concatenate([[self.start_s], self.ends_s()])
        window = np.searchsorted(edges, time_s, side="left") - 1
        inside = (window >= 0) & (window < self.n)
        if self.uneven_s is not None:
            inside[inside] = time_s[inside] > self.begins_s()[window[inside]]
        return np.bincount(window[inside], weights=amount[inside], minlength=self.n).astype(np.float64)

    def rates(self, time_s: Floats, amount: Floats) -> Floats:
        """The same sums per second of each window, [n]."""
        return self.sums(time_s, amount) / self.widths_s()

    def earlier(self, by_s: float) -> Grid:
        """The same windows, that much before."""
        moved = None
        if self.uneven_s is not None:
            moved = tuple((begin_s - by_s, end_s - by_s) for begin_s, end_s in self.uneven_s)
        return replace(self, start_s=self.start_s - by_s, uneven_s=moved)

    def means(self, series: Series) -> Series:
        """Mean of the samples in each window that has any."""
        counts = self.sums(series.time_s, np.ones(len(series.time_s)))
        some = counts > 0
        return Series(self.ends_s()[some], self.sums(series.time_s, series.value)[some] / counts[some])


def grid_over(capture: Capture, window_s: float = 1.0) -> Grid:
    """Windows from second 0 until everything recorded of the run is over."""
    times = [t for o in capture.outcomes for t in (o.arrival_s, o.finish_s) if t is not None]
    if capture.steps is not None and len(capture.steps):
        times.append(float(capture.steps.end_s[-1]))
    return Grid(0.0, window_s, max(1, math.ceil(max(times, default=0.0) / window_s)))


def grid_like(series: Series) -> Grid | None:
    """The windows of a recorded series; None unless it has at least two and they are of equal width (to 1 %)."""
    widths = np.diff(series.time_s)
    if len(widths) == 0 or widths.min() <= 0 or widths.max() - widths.min() > 0.01 * widths.max():
        return None
    window_s = float(series.time_s[-1] - series.time_s[0]) / len(widths)
    if series.begin_s is not None and np.abs(series.time_s - series.begin_s - window_s).max() > 0.01 * window_s:
        return None
    return Grid(float(series.time_s[0]) - window_s, window_s, len(series.time_s))


def windows_of(series: Series) -> Grid | None:
    """The windows of a recorded series, even or as a log has them whose clock trembles, or that misses rows.

    A window begins where the series says, else where the one before ends; after a gap of more than half a window it is
    as wide as most. None for fewer than two rows, and where less than half of them are as far apart as the median of
    all, to 10 %.
    """
    even = _even(series)
    if even is not None or len(series.time_s) < 2:
        return even
    between_s = np.diff(series.time_s)
    window_s = float(np.median(between_s))
    if np.mean(np.abs(between_s - window_s) <= 0.1 * window_s) < 0.5:
        return None
    widths_s = np.where(between_s > 1.5 * window_s, window_s, between_s)
    return _uneven(series, np.append(window_s, widths_s))


def power_windows(series: Series) -> Grid | None:
    """The windows of a power series: even, or of each row the time that it stands for.

    A row stands for the time since the series says, else since the row before (`held_s`), and the first for as long as
    the second. None for fewer than two rows, or times that do not ascend.
    """
    even = _even(series)
    if even is not None or len(series.time_s) < 2 or np.diff(series.time_s).min() <= 0:
        return even
    widths_s = held_s(series.time_s)
    return _uneven(series, np.append(widths_s[0], widths_s))


GAP_INTERVALS = 3
"""A gap longer than so many of a log's usual intervals is not measured; a row or two that are late are no gap."""

NEAR_INTERVALS = 5
"""The usual interval is the median of so many on each side, as a log may change its rate."""


def held_s(time_s: Floats) -> Floats:
    """How long what was read holds between each row and the next, [n - 1] seconds.

    All the time between them, or the usual interval where they are more than `GAP_INTERVALS` of them apart. Usual is
    the median of the interval and the `NEAR_INTERVALS` on each side, mirrored at the ends of the log.

    Args:
        time_s: [n] ascending, at least two.
    """
    between_s = np.diff(time_s)
    near = np.pad(between_s, NEAR_INTERVALS, mode="symmetric")
    usual_s = np.median(np.lib.stride_tricks.sliding_window_view(near, 2 * NEAR_INTERVALS + 1), axis=1)
    return np.asarray(np.where(between_s > GAP_INTERVALS * usual_s, usual_s, between_s), dtype=np.float64)


def is_power(name: str) -> bool:
    """Whether a series is of power: `power_w`, or that of a component."""
    return name.split(".")[0] == SERVER_POWER


def is_before_second_0(grid: Grid) -> Mask:
    """Which windows begin before second 0, of which nothing is simulated, [n]."""
    return np.asarray(grid.begins_s() < -SAME_TIME_S)


def scored_windows(series: Series, name: str) -> Grid | None:
    """The windows over which a measured series is scored; None where it cannot be."""
    return power_windows(series) if is_power(name) else windows_of(series)


def _even(series: Series) -> Grid | None:
    """The windows of a series whose rows all stand at the ends of windows of equal width, and begin where it says."""
    grid = grid_like(series)
    if grid is None or np.abs(grid.ends_s() - series.time_s).max() > SAME_TIME_S:
        return None
    if series.begin_s is not None and np.abs(grid.begins_s() - series.begin_s).max() > SAME_TIME_S:
        return None
    return grid


def _uneven(series: Series, widths_s: Floats) -> Grid:
    """Windows that end at the times of the rows, and begin where the series says, else are of these widths, [n]."""
    if series.begin_s is None:
        begins_s = series.time_s - widths_s
    else:
        begins_s, widths_s = series.begin_s, series.time_s - series.begin_s
    spans_s = tuple(zip(begins_s.tolist(), series.time_s.tolist(), strict=True))
    return Grid(float(begins_s[0]), float(np.median(widths_s)), len(spans_s), uneven_s=spans_s)
