"""Quantities over time, derived from a capture's outcomes and steps on one grid of windows.

Measured and simulated captures go through the same functions and the same grid, so two series subtract entry by entry.
A rate is counted over a window; a state (requests running, KV in use) is read at the window's end. Either way the
window's END is the series' time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from traces.capture import Capture, Series
from traces.outcome import Status
from traces.steps import Batches, Floats, Ints, Steps
from traces.windows import Grid


def derive(capture: Capture, grid: Grid) -> dict[str, Series]:
    """Every series of this module that the capture has the records for, by name."""
    found = {name: function(capture, grid) for name, function in derivations().items()}
    return {name: series for name, series in found.items() if series is not None}


def derivations() -> dict[str, Callable[[Capture, Grid], Series | None]]:
    """What can be derived of a capture, by its name."""
    return {
        "output_tokens_per_s": output_tokens_per_s,
        "prompt_tokens_per_s": prompt_tokens_per_s,
        "n_running": n_running,
        "n_waiting": n_waiting,
        "kv_usage": kv_usage,
        "gpu_memory_bytes": gpu_memory_bytes,
        "prefix_hit_rate": prefix_hit_rate,
    }


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
