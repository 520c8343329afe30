"""Quantities over time, derived from a capture's outcomes and steps on one grid of windows.

Measured and simulated captures go through the same functions and the same grid, so two series subtract entry by entry.
A rate is counted over a window; a state (requests running, KV in use) is read at the window's end. Either way the
window's END is the series' time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from traces.capture import Capture, Series
from traces.outcome import Status
from traces.steps import Batches, Floats, Ints, Mask, Steps

SAME_TIME_S = 1e-6
"""Times nearer to each other than this are the same."""


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
    return Grid(float(series.time_s[0]) - window_s, window_s, len(series.time_s))


def windows_of(series: Series) -> Grid | None:
    """The windows of a recorded series, even or as a log has them whose clock trembles, or that misses rows.

    A window begins where the one before ends; after a gap of more than half a window it is as wide as most. None for
    fewer than two rows, and where less than half of them are as far apart as the median of all, to 10 %.
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

    A row stands for the time since the row before (`held_s`); the first for as long as the second. None for fewer than
    two rows, or times that do not ascend.
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
    return name.split(".")[0] == "power_w"


def is_before_second_0(grid: Grid) -> Mask:
    """Which windows begin before second 0, of which nothing is simulated, [n]."""
    return np.asarray(grid.begins_s() < -SAME_TIME_S)


def scored_windows(series: Series, name: str) -> Grid | None:
    """The windows over which a measured series is scored; None where it cannot be."""
    return power_windows(series) if is_power(name) else windows_of(series)


def _even(series: Series) -> Grid | None:
    """The windows of a series whose rows all stand at the ends of windows of equal width."""
    grid = grid_like(series)
    if grid is None or np.abs(grid.ends_s() - series.time_s).max() > SAME_TIME_S:
        return None
    return grid


def _uneven(series: Series, widths_s: Floats) -> Grid:
    """Windows of these widths, [n], that end at the times of the rows."""
    begins_s = series.time_s - widths_s
    spans_s = tuple(zip(begins_s.tolist(), series.time_s.tolist(), strict=True))
    return Grid(float(begins_s[0]), float(np.median(widths_s)), len(spans_s), uneven_s=spans_s)


def derive(capture: Capture, grid: Grid) -> dict[str, Series]:
    """Every series of this module that the capture has the records for, by name."""
    found = {name: function(capture, grid) for name, function in _derivations().items()}
    return {name: series for name, series in found.items() if series is not None}


def _derivations() -> dict[str, Callable[[Capture, Grid], Series | None]]:
    return {
        "output_tokens_per_s": output_tokens_per_s,
        "prompt_tokens_per_s": prompt_tokens_per_s,
        "n_running": n_running,
        "n_waiting": n_waiting,
        "kv_usage": kv_usage,
        "gpu_memory_bytes": gpu_memory_bytes,
        "prefix_hit_rate": prefix_hit_rate,
    }


@dataclass(frozen=True, slots=True)
class SeriesError:
    """How far one series is from another.

    Attributes:
        mape: mean of |simulated - measured| / measured over the windows that count.
        n: how many count: those that both have and in which the measured value is above 0.
        n_left_out: measured windows that do not, because nothing was measured there to divide by, or nothing simulated.
        weighted_s: of power whose rows are uneven, the time that those that count stand for, by which they weigh in the
            mean; None: each weighs the same.
    """

    mape: float
    n: int
    n_left_out: int
    weighted_s: float | None = None


@dataclass(frozen=True, slots=True)
class LogPhase:
    """How far the windows of a log are from where their times put them, as its first third tells.

    Attributes:
        early_s: by how much they end before their times.
        mape: the error of the others, the last two thirds, when they are read so.
        n: how many of those count.
    """

    early_s: float
    mape: float
    n: int


N_PHASES = 20
"""Phases of a log that are tried, evenly over one window."""


def log_phase(simulated: Capture, measured: Series, name: str = "output_tokens_per_s") -> LogPhase | None:
    """The phase of a log that numbers its windows, out of `N_PHASES`, and the error in it.

    vLLM logs its throughput every VLLM_LOG_STATS_INTERVAL since the server was started (`_force_log`,
    entrypoints/launchers/utils/server_utils.py of 0.32), whenever requests arrive. Numbered from the last row before
    the first token, row k ends somewhere in (k - 1, k] windows after the load began, and nothing in the rows says
    where. The phase is the one in which the first third of the windows has the least error. None where either part has
    no window that counts, and of a series that was recorded and cannot be derived: it has no phase but its own.
    """
    grid = windows_of(measured)
    if grid is None or name not in _derivations():
        return None
    fitted = np.arange(grid.n) < grid.n / 3

    def error(early_s: float, counted: Mask) -> SeriesError | None:
        return series_mape(simulated, measured, name, counted=counted, early_s=early_s)

    found = [(error(early_s, fitted), early_s) for early_s in (grid.window_s * np.arange(N_PHASES) / N_PHASES).tolist()]
    errors = [(of_fitted.mape, early_s) for of_fitted, early_s in found if of_fitted is not None]
    if not errors or (scored := error(early_s := min(errors)[1], ~fitted)) is None:
        return None
    return LogPhase(early_s, scored.mape, scored.n)


def series_mape(
    simulated: Capture,
    measured: Series,
    name: str = "output_tokens_per_s",
    *,
    counted: Mask | None = None,
    early_s: float = 0.0,
) -> SeriesError | None:
    """The error of a simulated run's series against a measured one, window by window.

    The simulated series is derived on the measured one's own windows, so that a second is compared with the same
    second. After the simulated run's end it is 0, and counts. Power was simulated over windows: where the measured rows
    are uneven, these must be theirs (`power_windows`), and each weighs by the time that it stands for. Power of time
    before second 0 is not simulated, and does not count. None where the run has no such series, the measured one has no
    windows (`scored_windows`), or none counts.

    Args:
        simulated: the simulated run.
        measured: the series.
        name: what it is of.
        counted: which of its windows count, [n]; all unless given.
        early_s: by how much its windows end before their times, for a series that can be derived.
    """
    grid = scored_windows(measured, name)
    if grid is None:
        return None
    if is_power(name):
        return _power_error(simulated.series.get(name), measured, grid, counted)
    derive_one = _derivations().get(name)
    if derive_one is None and grid.uneven_s is not None:
        return None  # a series that was simulated by its own windows cannot be brought into others
    twin = None if derive_one is None else derive_one(simulated, grid.earlier(early_s))
    twin = simulated.series.get(name) if twin is None else Series(twin.time_s + early_s, twin.value)
    return None if twin is None else series_error(measured, twin, counted)


def _power_error(twin: Series | None, measured: Series, grid: Grid, counted: Mask | None) -> SeriesError | None:
    """The error of simulated power; None where it is not known over the windows of the measured rows."""
    if twin is None:
        return None
    counts = ~is_before_second_0(grid)
    if counted is not None:
        counts &= counted
    if grid.uneven_s is None:
        return series_error(measured, twin, counts)
    if len(twin.time_s) != grid.n or np.abs(twin.time_s - measured.time_s).max() > SAME_TIME_S:
        return None
    return series_error(measured, twin, counts, grid.widths_s())


def series_error(
    measured: Series, simulated: Series, counted: Mask | None = None, widths_s: Floats | None = None
) -> SeriesError | None:
    """The error of one series against another at the times that both have, to a millionth of a second; None if none.

    So does LLMServingSim's paper count its per-second error (docs/validity.md). `counted` says which measured windows
    count, [n]; all unless given. `widths_s`, [n] seconds, is by what they weigh; all the same unless given.
    """
    if not len(measured.time_s) or not len(simulated.time_s):
        return None
    at = np.clip(np.searchsorted(simulated.time_s, measured.time_s - SAME_TIME_S), 0, len(simulated.time_s) - 1)
    counts = (np.abs(simulated.time_s[at] - measured.time_s) <= SAME_TIME_S) & (measured.value > 0)
    if counted is not None:
        counts &= counted
    if not counts.any():
        return None
    off = np.abs(simulated.value[at][counts] - measured.value[counts]) / measured.value[counts]
    n, n_left_out = int(counts.sum()), int((~counts).sum())
    if widths_s is None:
        return SeriesError(float(off.mean()), n, n_left_out)
    weights_s = widths_s[counts]
    return SeriesError(float(np.average(off, weights=weights_s)), n, n_left_out, float(weights_s.sum()))


def output_tokens_per_s(capture: Capture, grid: Grid) -> Series | None:
    """Output tokens per second: from token times, else from the steps; None when neither was recorded."""
    produced = _output_tokens(capture)
    return None if produced is None else Series(grid.ends_s(), grid.rates(*produced))


def prompt_tokens_per_s(capture: Capture, grid: Grid) -> Series | None:
    """Prompt tokens per second, each prompt counted whole, cached tokens too, when its first token is out.

    So does vLLM's prompt throughput (0.19 v1/metrics/stats.py IterationStats.update_from_output).
    """
    prompts = [(o.first_token_s, o.prompt_tokens) for o in capture.outcomes if o.first_token_s is not None]
    if not prompts:
        return None
    time_s, tokens = np.array(prompts, dtype=np.float64).T
    return Series(grid.ends_s(), grid.rates(time_s, tokens))


def n_running(capture: Capture, grid: Grid) -> Series | None:
    """Requests that have been scheduled and are not over, at each window's end.

    From the steps where they were recorded, else from the outcomes; the latter cannot see a preempted request go back
    to waiting and count it as running.
    """
    if capture.steps is not None:
        return Series(grid.ends_s(), _state(capture.steps, capture.steps.n_running, grid))
    times = _queue_times(capture)
    return None if times is None else Series(grid.ends_s(), _inside(times[1], times[2], grid))


def n_waiting(capture: Capture, grid: Grid) -> Series | None:
    """Requests that wait to be scheduled at each window's end; from the steps, else from the outcomes."""
    if capture.steps is not None:
        return Series(grid.ends_s(), _state(capture.steps, capture.steps.n_waiting, grid))
    times = _queue_times(capture)
    return None if times is None else Series(grid.ends_s(), _inside(times[0], times[1], grid))


def kv_usage(capture: Capture, grid: Grid) -> Series | None:
    """KV blocks in use over those that requests can have, all instances together, at each window's end.

    One block of each instance is the null block and never in use, as in vLLM's own gauge (0.32 v1/core/block_pool.py
    BlockPool.get_usage). None without steps or the number of blocks.
    """
    steps, blocks = capture.steps, capture.meta.num_gpu_blocks
    if steps is None or blocks is None or blocks < 2 or not len(steps):
        return None
    instances = int(steps.instance.max()) + 1
    return Series(grid.ends_s(), _state(steps, steps.kv_blocks, grid) / (instances * (blocks - 1)))


def gpu_memory_bytes(capture: Capture, grid: Grid) -> Series | None:
    """Bytes of a device that hold something, at each window's end: weights, and KV blocks with content.

    vLLM takes the memory of all KV blocks when it starts, so that a driver's own figure never moves; this counts the
    blocks in use and the free ones whose content can still be found, mean over the instances. None without steps, or
    when the weights, the bytes of a block or the free blocks' content are not known.
    """
    steps, meta = capture.steps, capture.meta
    if steps is None or steps.kv_cached is None or meta.weight_bytes is None or meta.kv_block_bytes is None:
        return None
    if not len(steps):
        return None
    instances = int(steps.instance.max()) + 1
    filled = _last(steps, steps.kv_blocks + steps.kv_cached, grid) / instances
    return Series(grid.ends_s(), meta.weight_bytes + meta.kv_block_bytes * filled)


def prefix_hit_rate(capture: Capture, grid: Grid) -> Series | None:
    """Prompt tokens found in the prefix cache over those asked for, of the run so far, at each window's end.

    vLLM's counters `prefix_cache_hits` and `prefix_cache_queries` (0.32 v1/metrics/stats.py `PrefixCacheStats`), which
    count a request when it is first admitted; its log prints the rate of the last 1000 requests instead. They move when
    the step that admitted it is over: the scheduler hands out its statistics with the step's outputs
    (v1/core/sched/scheduler.py `update_from_output`, `make_stats`). Without steps, when it was admitted. Only windows
    by which something was asked for. None when a scheduled request lacks its time or its cached tokens, or none was.
    """
    asked = [o for o in capture.outcomes if o.scheduled_s is not None]
    if not asked or any(o.cached_tokens is None for o in asked):
        return None
    if any(o.scheduled_s is None and o.status is Status.FINISHED for o in capture.outcomes):
        return None
    time_s = counted_at_s(capture, np.array([o.scheduled_s for o in asked], dtype=np.float64))
    order = np.argsort(time_s, kind="stable")
    hits = np.concatenate([[0], np.cumsum(np.array([o.cached_tokens for o in asked], dtype=np.float64)[order])])
    queries = np.concatenate([[0], np.cumsum(np.array([o.prompt_tokens for o in asked], dtype=np.float64)[order])])
    n = np.searchsorted(time_s[order], grid.ends_s(), side="right")
    some = queries[n] > 0
    return Series(grid.ends_s()[some], hits[n][some] / queries[n][some])


def counted_at_s(capture: Capture, scheduled_s: Floats) -> Floats:
    """When the steps that were planned at these times were over; the times themselves where none was recorded."""
    steps = capture.steps
    if steps is None or not len(steps):
        return scheduled_s
    order = np.argsort(steps.scheduled_s, kind="stable")
    planned_s = steps.scheduled_s[order]
    step = np.clip(np.searchsorted(planned_s, scheduled_s - 1e-6), 0, len(planned_s) - 1)
    same = np.abs(planned_s[step] - scheduled_s) <= 1e-6
    return np.where(same, steps.end_s[order][step], scheduled_s)


def _output_tokens(capture: Capture) -> tuple[Floats, Floats] | None:
    """When output tokens came out and how many came then."""
    outcomes = capture.outcomes
    times_s = [np.asarray(o.token_times_s) for o in outcomes if o.token_times_s]
    if times_s and len(times_s) == sum(o.output_tokens > 0 for o in outcomes):
        time_s = np.concatenate(times_s)
        return time_s, np.ones(len(time_s))
    steps = capture.steps
    if steps is None:
        return None
    if steps.batches is not None:
        prompts = np.array([o.prompt_tokens for o in outcomes], dtype=np.int64)
        return steps.end_s, _tokens_of_steps(steps.batches, prompts)
    # Without batches: a token per decoding request, and each first token, which its prompt's last chunk gave.
    first_s = np.array([o.first_token_s for o in outcomes if o.first_token_s is not None], dtype=np.float64)
    amount = np.concatenate([steps.n_decode_tokens.astype(np.float64), np.ones(len(first_s))])
    return np.concatenate([steps.end_s, first_s]), amount


def _tokens_of_steps(batches: Batches, prompt_tokens: Ints) -> Floats:
    """Output tokens of each step, [n_steps].

    A request gives its token k + 1 when its KV first covers prompt + k tokens: a chunk that ends inside the prompt
    gives none, and neither does one that only recomputes, after a preemption, what had been covered before.
    """
    covered = batches.computed_tokens + batches.new_tokens
    order = np.argsort(batches.request, kind="stable")
    request = batches.request[order]
    key = request * (int(covered.max(initial=0)) + 1) + covered[order]  # ascends from request to request
    before = np.concatenate([[-1], np.maximum.accumulate(key)[:-1]])
    gives = np.empty(len(key))
    gives[order] = (key > before) & (covered[order] >= prompt_tokens[request])
    step = np.repeat(np.arange(len(batches.offsets) - 1), np.diff(batches.offsets))
    return np.bincount(step, weights=gives, minlength=len(batches.offsets) - 1).astype(np.float64)


def _state(steps: Steps, column: Ints, grid: Grid) -> Floats:
    """A step column at each window's end, summed over the instances: that of the last step planned by then.

    An instance whose last step is over and which begins no other within a window is idle and counts as 0.
    """
    ends_s = grid.ends_s()
    summed = np.zeros(grid.n)
    for instance in np.unique(steps.instance):
        own = np.flatnonzero(steps.instance == instance)
        own = own[np.argsort(steps.scheduled_s[own], kind="stable")]
        last = np.searchsorted(steps.scheduled_s[own], ends_s, side="right") - 1
        following_s = np.append(steps.scheduled_s[own], np.inf)[last + 1]
        over_s = np.maximum.accumulate(steps.end_s[own])[last]
        idle = (last < 0) | ((over_s <= ends_s) & (following_s - over_s > grid.window_s))
        summed += np.where(idle, 0, column[own][last])
    return summed


def _last(steps: Steps, column: Ints, grid: Grid) -> Floats:
    """A step column at each window's end, summed over the instances: that of the last step planned by then, or 0."""
    summed = np.zeros(grid.n)
    for instance in np.unique(steps.instance):
        own = np.flatnonzero(steps.instance == instance)
        own = own[np.argsort(steps.scheduled_s[own], kind="stable")]
        last = np.searchsorted(steps.scheduled_s[own], grid.ends_s(), side="right") - 1
        summed += np.where(last < 0, 0, column[own][last])
    return summed


def _queue_times(capture: Capture) -> tuple[Floats, Floats, Floats] | None:
    """When each scheduled request was queued (else arrived), scheduled and over.

    None when a request that finished, or one that was scheduled, lacks a time.
    """
    known = [o for o in capture.outcomes if o.status is Status.FINISHED or o.scheduled_s is not None]
    if not known or any(o.scheduled_s is None or o.finish_s is None for o in known):
        return None
    queued_s = np.array([o.arrival_s if o.queued_s is None else o.queued_s for o in known], dtype=np.float64)
    times = np.array([(o.scheduled_s, o.finish_s) for o in known], dtype=np.float64)
    return queued_s, times[:, 0], times[:, 1]


def _inside(begin_s: Floats, end_s: Floats, grid: Grid) -> Floats:
    """How many spans begin <= t < end hold each window's end t."""
    ends_s = grid.ends_s()
    begun = np.searchsorted(np.sort(begin_s), ends_s, side="right")
    over = np.searchsorted(np.sort(end_s), ends_s, side="right")
    return (begun - over).astype(np.float64)
