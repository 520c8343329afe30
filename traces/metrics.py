"""The only definitions of what is reported: TTFT, TPOT, ITL, E2EL, the stages, throughput and goodput.

All times are anchored at the request's true arrival `Outcome.arrival_s`, not at the stamp of a queue behind it.
Only requests that FINISHED count; how many were left out is always returned beside the figures.

    arrival ── queue ── scheduled ── prefill ── first token ── decode ── finish
    └────────────────── TTFT ──────────────────┘
    └──────────────────────────────── E2EL ──────────────────────────────────┘

`docs/glossary.md` has the words, this module the arithmetic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.capture import Capture
from traces.outcome import Outcome, Status
from traces.statistics import STATISTICS, statistic
from traces.steps import Floats

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2el_s")
STAGES = ("queue_s", "prefill_s", "decode_s")


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Durations of each request in seconds, one entry per outcome and in the outcomes' order.

    NaN stands where a duration has no value: the request did not finish, a time it needs was not measured, or (TPOT)
    there was one output token. `defined` takes those out; no other function here returns a NaN.

    Attributes:
        finished: [n] whether the request FINISHED.
        ttft_s: [n] first token - arrival.
        tpot_s: [n] (E2EL - TTFT) / (output tokens - 1).
        e2el_s: [n] finish - arrival.
        queue_s: [n] scheduled - arrival.
        prefill_s: [n] first token - scheduled.
        decode_s: [n] finish - first token. Queue, prefill and decode time add up to E2EL.
    """

    finished: npt.NDArray[np.bool_]
    ttft_s: Floats
    tpot_s: Floats
    e2el_s: Floats
    queue_s: Floats
    prefill_s: Floats
    decode_s: Floats


def requests(outcomes: Sequence[Outcome]) -> RequestMetrics:
    """The durations of every request, aligned with `outcomes`."""
    finished = np.array([o.status is Status.FINISHED for o in outcomes], dtype=bool)
    arrival_s = np.array([o.arrival_s for o in outcomes], dtype=np.float64)
    scheduled_s, first_token_s, finish_s = (
        np.where(finished, np.array([getattr(o, name) for o in outcomes], dtype=np.float64), np.nan)  # None becomes NaN
        for name in ("scheduled_s", "first_token_s", "finish_s")
    )
    gaps = np.array([o.output_tokens - 1 for o in outcomes], dtype=np.float64)
    decode_s = finish_s - first_token_s
    tpot_s = np.divide(decode_s, gaps, out=np.full(len(gaps), np.nan), where=gaps > 0)
    ttft_s, e2el_s, queue_s = first_token_s - arrival_s, finish_s - arrival_s, scheduled_s - arrival_s
    return RequestMetrics(finished, ttft_s, tpot_s, e2el_s, queue_s, first_token_s - scheduled_s, decode_s)


def defined(values: Floats) -> Floats:
    """The entries of a `RequestMetrics` column that have a value."""
    return values[~np.isnan(values)]


def itl_by_request(outcomes: Sequence[Outcome]) -> list[Floats] | None:
    """Gaps between successive output tokens of each finished request, in the outcomes' order.

    None unless token times were recorded for every finished request: a pool of some would be a biased one.
    """
    finished = [o for o in outcomes if o.status is Status.FINISHED]
    times_s = [o.token_times_s for o in finished if o.token_times_s is not None]
    if not times_s or len(times_s) < len(finished):
        return None
    return [np.diff(np.asarray(times, dtype=np.float64)) for times in times_s]


def itl_s(outcomes: Sequence[Outcome]) -> Floats | None:
    """The gaps of `itl_by_request`, pooled over tokens: every token weighs the same."""
    gaps_s = itl_by_request(outcomes)
    return None if gaps_s is None else np.concatenate(gaps_s)


@dataclass(frozen=True, slots=True)
class Throughput:
    """What finished requests amounted to per second of the run, from the first arrival to the last finish.

    As vllm bench serve counts (vLLM 0.32 benchmarks/serve.py: tokens of completed requests over the duration), but the
    clock starts at the first true arrival.

    Attributes:
        duration_s: first arrival of any request to last finish of a finished one.
        requests_per_s: finished requests.
        output_tokens_per_s: their output tokens.
        total_tokens_per_s: their prompt and output tokens; prompt tokens found in the prefix cache count.
    """

    duration_s: float
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float


def throughput(outcomes: Sequence[Outcome]) -> Throughput | None:
    """Throughput of the run; None when nothing finished or the finish of a finished request was not measured."""
    finished = [o for o in outcomes if o.status is Status.FINISHED]
    finishes_s = [o.finish_s for o in finished if o.finish_s is not None]
    if not finishes_s or len(finishes_s) < len(finished):
        return None
    duration_s = max(finishes_s) - min(o.arrival_s for o in outcomes)
    if duration_s <= 0:
        return None
    output_tokens = sum(o.output_tokens for o in finished)
    total_tokens = output_tokens + sum(o.prompt_tokens for o in finished)
    return Throughput(duration_s, len(finished) / duration_s, output_tokens / duration_s, total_tokens / duration_s)


@dataclass(frozen=True, slots=True)
class Slo:
    """Service-level objective of one request: the most each duration may be; None sets no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None


def goodput_per_s(outcomes: Sequence[Outcome], slo: Slo) -> float | None:
    """Finished requests that meet every limit of the SLO, per second of the run.

    A request of one output token has no TPOT and cannot miss its limit (vllm bench serve counts it as 0, to the same
    end). None when the run's duration, or a duration that the SLO limits, was not measured.
    """
    run, met = throughput(outcomes), n_meeting(outcomes, slo)
    return None if run is None or met is None else met / run.duration_s


def n_meeting(outcomes: Sequence[Outcome], slo: Slo) -> int | None:
    """Finished requests that meet every limit; None when a duration that the SLO limits was not measured."""
    columns = requests(outcomes)
    good = columns.finished.copy()
    for name in ("ttft_s", "tpot_s", "e2el_s"):
        limit_s, values = getattr(slo, name), getattr(columns, name)
        if limit_s is None:
            continue
        single = np.array([name == "tpot_s" and o.output_tokens <= 1 for o in outcomes])
        if np.any(columns.finished & np.isnan(values) & ~single):
            return None
        good &= (values <= limit_s) | single
    return int(np.count_nonzero(good))


def prefix_hit_rate(outcomes: Sequence[Outcome]) -> float | None:
    """Prompt tokens found in the prefix cache over prompt tokens, of the finished requests; None when not recorded."""
    finished = [o for o in outcomes if o.status is Status.FINISHED]
    cached = total(outcomes, "cached_tokens")
    return None if cached is None or not finished else cached / sum(o.prompt_tokens for o in finished)


def total(outcomes: Sequence[Outcome], name: str) -> int | None:
    """Sum of a count (`cached_tokens`, `num_preemptions`) over the finished requests; None unless all recorded it."""
    counts = [getattr(o, name) for o in outcomes if o.status is Status.FINISHED]
    return None if not counts or None in counts else sum(counts)


def samples(outcomes: Sequence[Outcome]) -> dict[str, Floats]:
    """The values of each metric in `LATENCIES` and `STAGES`, without those that have none; empty when not measured."""
    columns = requests(outcomes)
    pooled = itl_s(outcomes)
    per_request = {name: defined(getattr(columns, name)) for name in (*LATENCIES, *STAGES) if name != "itl_s"}
    return {**per_request, "itl_s": np.empty(0) if pooled is None else pooled}


def summary(capture: Capture) -> dict[str, Any]:
    """The figures of one run, ready for JSON. None: not measured, or too few samples for that statistic.

    `metrics` holds mean, p50, p90, p95 and p99 of each latency and stage, and the throughputs.
    """
    outcomes = capture.outcomes
    status = Counter(o.status for o in outcomes)
    values = samples(outcomes)
    run = throughput(outcomes)
    latencies = {name: {key: statistic(values[name], key) for key in STATISTICS} for name in (*LATENCIES, *STAGES)}
    rates = ("duration_s", "requests_per_s", "output_tokens_per_s", "total_tokens_per_s")
    return {
        "n_requests": len(outcomes),
        "n_finished": status[Status.FINISHED],
        "n_left_out": len(outcomes) - status[Status.FINISHED],
        "requests": {each.value: status[each] for each in Status},
        "metrics": {**latencies, **{name: None if run is None else getattr(run, name) for name in rates}},
        "prompt_tokens": sum(o.prompt_tokens for o in outcomes if o.status is Status.FINISHED),
        "output_tokens": sum(o.output_tokens for o in outcomes if o.status is Status.FINISHED),
        "cached_tokens": total(outcomes, "cached_tokens"),
        "prefix_hit_rate": prefix_hit_rate(outcomes),
        "num_preemptions": total(outcomes, "num_preemptions"),
    }
