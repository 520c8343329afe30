"""The loads of a campaign: traces drawn from fixed seeds, at rates that the device itself sets.

All requests of the shape at once tell how many a second the server can serve; light, knee and saturated are shares of
that, so that the same campaign suits any device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from traces.arrivals import Rate
from traces.capture import Capture
from traces.decoding import sha256
from traces.errors import CollectorError
from traces.outcome import Status
from traces.synthesis import Lengths, synthetic_trace
from traces.trace import Trace, TraceRow

LIGHT_SHARE, KNEE_SHARE, SATURATED_SHARE = 0.4, 0.9, 1.5
"""Arrivals as a share of what was served when everything came at once."""

SHAPE_SEED, PREFIX_SEED, LONG_SEED = 1, 2, 3
N_SYSTEMS = 6
"""System prompts of the prefix load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadScale:
    """How large the loads are.

    Attributes:
        n_requests: of the shape; others are fewer by themselves.
        prompt, output: its lengths.
        system_blocks: least and most blocks of a system prompt.
        turn_blocks: blocks that each turn of a conversation adds.
        n_prefix: requests of the prefix load.
        long_prompt: of the long-context load.
        n_long: its requests.
        long_gap_s: between them.
        pulses: requests that come at once, pulse after pulse.
        pulse_output: their answers' tokens; their prompts are the shape's median.
        pulse_gap_s: from pulse to pulse, rest included.
    """

    n_requests: int
    prompt: Lengths
    output: Lengths
    system_blocks: tuple[int, int]
    turn_blocks: int
    n_prefix: int
    long_prompt: Lengths
    n_long: int
    long_gap_s: float
    pulses: tuple[int, ...]
    pulse_output: int
    pulse_gap_s: float


def shape(scale: LoadScale, n_requests: int, workload: Trace | None = None) -> Trace:
    """The requests, one a second on average: drawn, or the first of a workload that was measured elsewhere."""
    if workload is None:
        return synthetic_trace(n_requests, Rate.steady(1.0), scale.prompt, scale.output, SHAPE_SEED)
    rows = workload.rows[:n_requests]
    mean_gap_s = (rows[-1].arrival_s - rows[0].arrival_s) / max(len(rows) - 1, 1) or 1.0
    return _at(replace(workload, rows=rows), lambda row: (row.arrival_s - rows[0].arrival_s) / mean_gap_s)


def at_once(trace: Trace) -> Trace:
    """The same requests, all at second 0."""
    return _at(trace, lambda _: 0.0)


def at_rate(trace: Trace, per_s: float) -> Trace:
    """A trace of one request a second, at so many."""
    return _at(trace, lambda row: row.arrival_s / per_s)


def served_per_s(capture: Capture) -> float:
    """Requests per second that were served of a load that came at once. Raises CollectorError when some were not."""
    ends_s = [one.finish_s for one in capture.outcomes if one.status is Status.FINISHED and one.finish_s is not None]
    if len(ends_s) < len(capture.outcomes) or not ends_s:
        raise CollectorError(f"{len(capture.outcomes) - len(ends_s)} requests of the burst were not served: no rate")
    return len(ends_s) / max(ends_s)


def prefixes(scale: LoadScale, block_size: int, per_s: float) -> Trace:
    """Conversations behind a few system prompts, each turn longer than the last, `per_s` requests a second."""
    rng = np.random.default_rng(PREFIX_SEED)
    arrivals_s = np.cumsum(rng.exponential(1 / per_s, scale.n_prefix))
    least, most = scale.system_blocks
    systems = rng.integers(least, most + 1, N_SYSTEMS).tolist()
    turns: dict[int, int] = {}
    rows = []
    for i, arrival_s in enumerate(arrivals_s.tolist()):
        user = int(rng.integers(max(scale.n_prefix // 4, 1)))
        system, turn = user % N_SYSTEMS, turns.get(user, 0)
        turns[user] = turn + 1
        shared = [10**6 * (system + 1) + j for j in range(systems[system])]
        shared += [10**9 * (user + 1) + j for j in range(scale.turn_blocks * (turn + 1))]
        prompt = len(shared) * block_size + int(rng.integers(1, block_size))
        output = int(scale.output.draw(1, rng)[0]) // 4 + 1
        rows.append(_row(i, arrival_s, prompt, output, tuple(shared)))
    return _trace(rows, f"prefix load of a campaign, {per_s:g}/s", block_size)


def long_prompts(scale: LoadScale) -> Trace:
    """Long prompts at even gaps, with short answers."""
    rng = np.random.default_rng(LONG_SEED)
    prompts, outputs = scale.long_prompt.draw(scale.n_long, rng), scale.output.draw(scale.n_long, rng) // 4 + 1
    rows = [
        _row(i, i * scale.long_gap_s, prompt, output)
        for i, (prompt, output) in enumerate(zip(prompts.tolist(), outputs.tolist(), strict=True))
    ]
    return _trace(rows, "long-context load of a campaign")


def pulses(scale: LoadScale) -> Trace:
    """More and more requests at once, with rests between: power by load, from one request to the device's own cap."""
    prompt = round(scale.prompt.median or scale.prompt.most)
    starts = [(i * scale.pulse_gap_s, n) for i, n in enumerate(scale.pulses)]
    times_s = [start_s for start_s, n in starts for _ in range(n)]
    rows = [_row(i, time_s, prompt, scale.pulse_output) for i, time_s in enumerate(times_s)]
    return _trace(rows, "pulses of a campaign")


def _row(index: int, arrival_s: float, prompt: int, output: int, hashes: tuple[int, ...] | None = None) -> TraceRow:
    return TraceRow(
        request_id=str(index),
        arrival_s=round(arrival_s, 6),
        prompt_tokens=prompt,
        output_tokens=output,
        block_hashes=hashes,
    )


def _trace(rows: Sequence[TraceRow], source: str, block_size: int | None = None) -> Trace:
    return Trace(tuple(rows), block_size, source, sha256(msgspec.json.encode(rows)))


def _at(trace: Trace, when_s: Callable[[TraceRow], float]) -> Trace:
    return replace(
        trace, rows=tuple(msgspec.structs.replace(row, arrival_s=round(when_s(row), 6)) for row in trace.rows)
    )
