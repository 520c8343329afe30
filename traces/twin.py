"""A synthetic twin of a trace: other requests with the same arrivals, lengths and shared prefixes, in distribution.

Three things are fitted, and drawn anew:

    arrivals    the rate over time, in windows, and the spread of gaps once that rate is taken out (a gamma law);
                what arrives at the same instant is one arrival, and how many requests it has is drawn, too
    lengths     prompt and answer of a request together, drawn from the trace's own with replacement
    prefixes    of each request, which earlier one it shares most with, how many blocks, and how long ago that one came

The last is enough for a prefix cache: what it can find is the blocks shared, and whether they are still there depends
on how long ago they were used last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from traces.arrivals import MOST_REQUESTS, Rate, unit_gaps
from traces.decoding import sha256
from traces.errors import InputError
from traces.steps import Floats, Ints
from traces.trace import Trace, TraceRow

LEAST_PER_WINDOW = 50
"""Requests that a window of the rate has at least, on average: its rate is then known to some 14 %."""
MOST_WINDOWS = 200
CANDIDATES = 64
"""Earlier requests that are looked at for one to share with."""


@dataclass(frozen=True, slots=True)
class TraceModel:
    """What a twin is drawn from. The arrays are of the trace's n requests, in its order.

    Attributes:
        rate: of instants at which something arrives, over the trace's span; None: everything arrives at once.
        gap_cv: spread of the gaps between them with the rate taken out.
        arriving: [instants] how many requests arrive at each.
        prompt_tokens: [n].
        output_tokens: [n].
        hash_block_size: tokens per block; None: no request has any.
        n_blocks: [n] known blocks of a request; -1: none are known.
        shared_blocks: [n] of the prompt, those that some earlier request has too.
        age_s: [n] how long before it the last request came that has them.
        parent_blocks: [n] known blocks of that one.
    """

    rate: Rate | None
    gap_cv: float
    arriving: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    hash_block_size: int | None
    n_blocks: Ints
    shared_blocks: Ints
    age_s: Floats
    parent_blocks: Ints


def fit(trace: Trace) -> TraceModel:
    """Fit a trace. Raises InputError when requests wait for others."""
    if any(row.delay_s is not None or row.after is not None for row in trace.rows):
        message = "has requests that arrive when others have ended: when, only a run can tell"
        raise InputError(message, file=trace.source, accepted="a trace of measured arrivals, as a capture holds it")
    times_s = np.array([row.arrival_s for row in trace.rows])
    instants_s, arriving = np.unique(times_s, return_counts=True)
    rate, gap_cv = _fit_arrivals(instants_s) if len(instants_s) > 1 else (None, 1.0)
    arriving = arriving if rate is not None else np.ones(1, dtype=np.int64)
    prompts = np.array([row.prompt_tokens for row in trace.rows])
    outputs = np.array([row.output_tokens for row in trace.rows])
    shared = _fit_prefixes(trace.rows, times_s, trace.hash_block_size or 1)
    return TraceModel(rate, gap_cv, arriving, prompts, outputs, trace.hash_block_size, *shared)


def _fit_arrivals(times_s: Floats) -> tuple[Rate, float]:
    """The rate in windows, and the cv of the gaps measured in arrivals that the rate brings."""
    n = len(times_s) - 1
    span_s = float(times_s[-1] - times_s[0])
    windows = int(np.clip(n // LEAST_PER_WINDOW, 1, MOST_WINDOWS))
    edges_s = np.linspace(0.0, span_s, windows + 1)
    counts = np.histogram(times_s[1:] - times_s[0], edges_s)[0]
    rate = Rate(n / span_s, span_s, edges_s, counts / np.diff(edges_s))
    brought = np.interp(times_s - times_s[0], edges_s, np.concatenate([[0], np.cumsum(counts)]))
    gaps = np.diff(brought)
    return rate, float(gaps.std() / gaps.mean())


def _fit_prefixes(rows: Sequence[TraceRow], times_s: Floats, size: int) -> tuple[Ints, Ints, Floats, Ints]:
    n_blocks = np.array([-1 if row.block_hashes is None else len(row.block_hashes) for row in rows])
    shared, parents = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    last: dict[int, int] = {}
    for i, row in enumerate(rows):
        hashes = row.block_hashes or ()
        known = next((k for k, h in enumerate(hashes) if h not in last), len(hashes))
        known = min(known, row.prompt_tokens // size)
        if known:
            shared[i], parents[i] = known, last[hashes[known - 1]]
        last.update(dict.fromkeys(hashes, i))
    return n_blocks, shared, times_s - times_s[parents], n_blocks[parents]


def twin(model: TraceModel, n_requests: int, seed: int, source: str, rate_per_s: float | None = None) -> Trace:
    """`n_requests` drawn from the model: the same for the same seed.

    The rate's course is stretched over them, so that its mean stays, or becomes `rate_per_s`. Of a trace whose requests
    all arrive at once the twin's arrivals are Poisson. Raises InputError.
    """
    if not 1 <= n_requests <= MOST_REQUESTS:
        raise InputError(field="--requests", found=n_requests, accepted=f"1 to {MOST_REQUESTS}")
    if rate_per_s is not None and not 0 < rate_per_s < np.inf:
        raise InputError(field="--rate", found=rate_per_s, accepted="requests per second, above 0")
    if rate_per_s is None and model.rate is None:
        message = "is missing: all requests of the trace arrive at once"
        raise InputError(message, file=source, field="--rate", accepted="requests per second")
    rng = np.random.default_rng(seed)
    course = model.rate or Rate.steady(1.0)
    scale = 1.0 if rate_per_s is None else rate_per_s / (course.mean_per_s * float(model.arriving.mean()))
    fitted_s = _arrivals_s(model, course, n_requests, rng)
    times_s = fitted_s / scale
    drawn = rng.integers(0, len(model.prompt_tokens), n_requests)
    hashes, short = _hashes(model, drawn, fitted_s)
    rows = tuple(
        TraceRow(
            request_id=str(i),
            arrival_s=float(times_s[i]),
            prompt_tokens=int(model.prompt_tokens[k]),
            output_tokens=int(model.output_tokens[k]),
            block_hashes=hashes[i],
        )
        for i, k in enumerate(drawn.tolist())
    )
    what = f"synthetic twin of {source}, {n_requests} requests, seed {seed}"
    notes = [what, "sessions and priorities are not part of it"]
    if short:
        notes.append(f"{short} requests share less than was drawn, as nothing long enough came before them")
    return Trace(rows, model.hash_block_size, what, sha256(what.encode()), tuple(notes))


def _arrivals_s(model: TraceModel, rate: Rate, n: int, rng: np.random.Generator) -> Floats:
    """[n] arrivals: instants, each as often as requests arrive at it."""
    at_once = model.arriving[rng.integers(0, len(model.arriving), n)]
    instants = int(np.searchsorted(np.cumsum(at_once), n)) + 1
    gaps = unit_gaps(instants - 1, "gamma", model.gap_cv, rng) if model.gap_cv >= 0.01 else np.ones(instants - 1)
    brought = np.concatenate([[0.0], np.cumsum(gaps)])
    stretch = instants / (rate.mean_per_s * rate.period_s + 1)
    course = Rate(rate.mean_per_s, rate.period_s * stretch, rate.edges_s * stretch, rate.per_s)
    return np.repeat(course.times_s(brought), at_once[:instants])[:n]


def _hashes(model: TraceModel, drawn: Ints, times_s: Floats) -> tuple[list[tuple[int, ...] | None], int]:
    """Blocks of each request, numbered as they appear; and how many requests found nothing long enough to share."""
    earlier = _Earlier(times_s, np.zeros(len(drawn), dtype=np.int64), [], {})
    next_number = short = 0
    for i, k in enumerate(drawn.tolist()):
        n_blocks, wanted = int(model.n_blocks[k]), int(model.shared_blocks[k])
        if n_blocks < 0:
            earlier.blocks.append(None)
            continue
        j = earlier.parent(wanted, float(times_s[i] - model.age_s[k]), int(model.parent_blocks[k])) if wanted else None
        shared = () if j is None else (earlier.blocks[j] or ())[:wanted]
        short += len(shared) < wanted
        own = n_blocks - len(shared)
        blocks = (*shared, *range(next_number, next_number + own))
        next_number += own
        earlier.blocks.append(blocks)
        earlier.lengths[i] = n_blocks
        earlier.last.update(dict.fromkeys(blocks, i))
    return earlier.blocks, short


@dataclass(frozen=True, slots=True)
class _Earlier:
    """The requests so far.

    Attributes:
        times_s: [n] arrivals, of those to come too.
        lengths: [n] known blocks of each.
        blocks: of each so far.
        last: by block, the last request that has it.
    """

    times_s: Floats
    lengths: Ints
    blocks: list[tuple[int, ...] | None]
    last: dict[int, int]

    def parent(self, wanted: int, at_s: float, n_blocks: int) -> int | None:
        """One that came near that time, is the last that has the blocks wanted, and has near `n_blocks` in all.

        Else the longest; None where nothing came before.
        """
        n = len(self.blocks)
        if not n or not self.lengths[:n].max():
            return None
        place = int(np.searchsorted(self.times_s[:n], at_s))
        for reach in (CANDIDATES, 16 * CANDIDATES, 2 * n):
            low, high = max(0, place - reach // 2), min(n, place + reach // 2 + 1)
            near = low + np.flatnonzero(self.lengths[low:high] >= wanted)
            near = near[np.argsort(np.abs(self.times_s[near] - at_s), kind="stable")][:CANDIDATES]
            near = near[[self.last[(self.blocks[j] or ())[wanted - 1]] == j for j in near.tolist()]]
            if len(near):
                return int(near[np.argmin(np.abs(self.lengths[near] - n_blocks))])
        return int(np.argmax(self.lengths[:n]))
