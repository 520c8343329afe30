"""What vLLM's /metrics would have said at any time of a run, so that a dashboard made for vLLM shows a simulated one.

Names, labels, buckets and what is counted when are those of vLLM 0.32 (v1/metrics/loggers.py, stats.py and buckets.py).
What a capture does not tell is left out, and never 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from prometheus_client import Metric

from traces.capture import Capture
from traces.metrics import requests
from traces.outcome import Outcome, Status
from traces.series import kv_usage, n_running, n_waiting
from traces.steps import STEP_COLUMNS, Floats, Steps, steps_from_columns
from traces.windows import Grid

Happened = tuple[Floats, Floats]
"""When something happened, ascending, and how much each time; [n] each."""
Labels = dict[str, str]

AT_ONCE_S = 0.1
"""An engine that plans no step for so long is idle, and its gauges are 0."""

LATENCY_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
REASONS = ("stop", "length", "abort", "error", "repetition")


class VllmMetrics:
    """The metrics of a run.

    Attributes:
        end_s: when the last of it is over.
    """

    def __init__(self, capture: Capture) -> None:
        """Sort what happened by engine and time."""
        self._engines = _by_engine(capture)
        self._labels = [
            {"model_name": capture.meta.model, "engine": str(number)} for number in range(len(self._engines))
        ]
        self._counters = [_counters(engine) for engine in self._engines]
        self._histograms = [_histograms(engine) for engine in self._engines]
        stamps = [stamp_s for o in capture.outcomes for stamp_s in (o.arrival_s, o.finish_s) if stamp_s is not None]
        steps = capture.steps
        self.end_s = max([*stamps, 0.0 if steps is None else float(steps.end_s.max(initial=0.0))], default=0.0)

    def at(self, time_s: float) -> Iterator[Metric]:
        """Every metric as it stands then."""
        yield from self._gauges(time_s)
        for name, documentation in COUNTERS.items():
            metric = Metric(name, documentation, "counter")
            for labels, counters in zip(self._labels, self._counters, strict=True):
                for extra, (when_s, total) in counters.get(name, ()):
                    metric.add_sample(f"{name}_total", {**labels, **extra}, _until(when_s, total, time_s))
            if metric.samples:
                yield metric
        for name, (documentation, bounds) in HISTOGRAMS.items():
            metric = Metric(name, documentation, "histogram")
            for labels, histograms in zip(self._labels, self._histograms, strict=True):
                if name in histograms:
                    histograms[name].add_to(metric, labels, bounds, time_s)
            if metric.samples:
                yield metric

    def _gauges(self, time_s: float) -> Iterator[Metric]:
        grid = Grid(time_s - AT_ONCE_S, AT_ONCE_S, 1)
        for name, (documentation, function) in GAUGES.items():
            metric = Metric(name, documentation, "gauge")
            for labels, engine in zip(self._labels, self._engines, strict=True):
                series = function(engine, grid)
                if series is not None:
                    metric.add_sample(name, labels, float(series.value[0]))
            if metric.samples:
                yield metric
        info = Metric("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", "gauge")
        for labels, engine in zip(self._labels, self._engines, strict=True):
            known = {"num_gpu_blocks": engine.meta.num_gpu_blocks}
            known |= {key: engine.meta.engine_options.get(key) for key in ("block_size", "enable_prefix_caching")}
            said = {key: str(value) for key, value in known.items() if value is not None}
            if said:
                info.add_sample(info.name, {**said, "engine": labels["engine"]}, 1.0)
        if info.samples:
            yield info


GAUGES = {
    "vllm:num_requests_running": ("Number of requests in model execution batches.", n_running),
    "vllm:num_requests_waiting": ("Number of requests waiting to be processed.", n_waiting),
    "vllm:kv_cache_usage_perc": ("KV-cache usage. 1 means 100 percent usage.", kv_usage),
}

COUNTERS = {
    "vllm:prompt_tokens": "Number of prefill tokens processed.",
    "vllm:prompt_tokens_cached": "Number of cached prompt tokens (local + external).",
    "vllm:generation_tokens": "Number of generation tokens processed.",
    "vllm:prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "vllm:prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
    "vllm:num_preemptions": "Cumulative number of preemption from the engine.",
    "vllm:request_success": "Count of successfully processed requests.",
}

HISTOGRAMS: dict[str, tuple[str, Sequence[float] | None]] = {
    "vllm:time_to_first_token_seconds": ("Histogram of time to first token in seconds.", TTFT_S),
    "vllm:inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", ITL_S),
    "vllm:request_time_per_output_token_seconds": ("Histogram of time_per_output_token_seconds per request.", ITL_S),
    "vllm:e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", LATENCY_S),
    "vllm:request_queue_time_seconds": ("Histogram of time spent in WAITING phase for request.", LATENCY_S),
    "vllm:request_inference_time_seconds": ("Histogram of time spent in RUNNING phase for request.", LATENCY_S),
    "vllm:request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase for request.", LATENCY_S),
    "vllm:request_decode_time_seconds": ("Histogram of time spent in DECODE phase for request.", LATENCY_S),
    "vllm:request_prompt_tokens": ("Number of prefill tokens processed.", None),
    "vllm:request_generation_tokens": ("Number of generation tokens processed.", None),
    "vllm:iteration_tokens_total": ("Histogram of number of tokens per engine_step.", STEP_TOKENS),
}
"""Documentation and upper bounds of buckets; None: 1, 2, 5, 10, ... up to the longest request."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Values of a histogram in the order of time, [n], and their running sum, [n + 1]."""

    time_s: Floats
    value: Floats
    total: Floats

    def add_to(self, metric: Metric, labels: Labels, bounds: Sequence[float] | None, time_s: float) -> None:
        """Add what was observed until then."""
        n = int(np.searchsorted(self.time_s, time_s, side="right"))
        upper = np.array(_one_two_five(self.value.max(initial=1)) if bounds is None else bounds, dtype=np.float64)
        below = np.bincount(np.searchsorted(upper, self.value[:n], side="left"), minlength=len(upper) + 1).cumsum()
        for bound, count in zip([*(f"{float(b)}" for b in upper), "+Inf"], below.tolist(), strict=True):
            metric.add_sample(f"{metric.name}_bucket", {**labels, "le": bound}, float(count))
        metric.add_sample(f"{metric.name}_count", labels, float(n))
        metric.add_sample(f"{metric.name}_sum", labels, float(self.total[n]))


def _one_two_five(most: float) -> list[float]:
    """1, 2, 5, 10, ..., as far as needed."""
    steps = [m * 10.0**e for e in range(12) for m in (1, 2, 5)]
    return steps[: int(np.searchsorted(steps, most)) + 1]


def _by_engine(capture: Capture) -> list[Capture]:
    """A capture of each instance alone, as its only one."""
    steps = capture.steps
    numbers = [0 if outcome.instance is None else outcome.instance for outcome in capture.outcomes]
    n = max([*numbers, 0 if steps is None or not len(steps) else int(steps.instance.max())], default=0) + 1
    engines = []
    for number in range(n):
        own = tuple(o for o, served_by in zip(capture.outcomes, numbers, strict=True) if served_by == number)
        engines.append(replace(capture, outcomes=own, steps=None if steps is None else _steps_of(capture, number)))
    return engines


def _steps_of(capture: Capture, instance: int) -> Steps:
    assert capture.steps is not None
    own = capture.steps.instance == instance
    columns = {name: getattr(capture.steps, name)[own] for name in STEP_COLUMNS}
    return steps_from_columns({**columns, "instance": np.zeros(int(own.sum()), dtype=np.int64)})


def _counters(engine: Capture) -> dict[str, list[tuple[Labels, Happened]]]:
    """What only grows, by name: each with further labels, its times, and its running total, [n + 1]."""
    outcomes, steps = engine.outcomes, engine.steps
    firsts = [outcome for outcome in outcomes if outcome.first_token_s is not None]
    asked = [outcome for outcome in outcomes if outcome.scheduled_s is not None]
    found: dict[str, Happened | None] = {
        "vllm:prompt_tokens": _happened(firsts, "first_token_s", "prompt_tokens"),
        "vllm:prompt_tokens_cached": _happened(firsts, "first_token_s", "cached_tokens"),
        "vllm:generation_tokens": _tokens(outcomes),
        "vllm:prefix_cache_queries": _happened(asked, "scheduled_s", "prompt_tokens"),
        "vllm:prefix_cache_hits": _happened(asked, "scheduled_s", "cached_tokens"),
        "vllm:num_preemptions": None if steps is None else (steps.scheduled_s, steps.n_preempted.astype(np.float64)),
    }
    if found["vllm:prefix_cache_hits"] is None:
        found["vllm:prefix_cache_queries"] = None
    counters: dict[str, list[tuple[Labels, Happened]]]
    counters = {name: [({}, _running_total(happened))] for name, happened in found.items() if happened is not None}
    ends: dict[str, list[float]] = {reason: [] for reason in REASONS}
    for outcome in outcomes:
        if outcome.finish_s is not None:
            ends.setdefault(_reason(outcome), []).append(outcome.finish_s)
    counters["vllm:request_success"] = [
        ({"finished_reason": reason}, _running_total((np.array(times_s), np.ones(len(times_s)))))
        for reason, times_s in ends.items()
    ]
    return counters


def _reason(outcome: Outcome) -> str:
    """vLLM's word for a request's end."""
    match outcome.status:
        case Status.FINISHED:
            return outcome.reason or "length"
        case Status.ABORTED:
            return "abort"
        case _:
            return "error"


def _histograms(engine: Capture) -> dict[str, Observed]:
    finished = [o for o in engine.outcomes if o.status is Status.FINISHED and o.finish_s is not None]
    durations = requests(finished)
    end_s = np.array([outcome.finish_s for outcome in finished], dtype=np.float64)
    first_s = np.array([outcome.first_token_s for outcome in finished], dtype=np.float64)
    queued_s = np.array([o.arrival_s if o.queued_s is None else o.queued_s for o in finished], dtype=np.float64)
    scheduled_s = np.array([outcome.scheduled_s for outcome in finished], dtype=np.float64)
    prompts = np.array([outcome.prompt_tokens for outcome in finished], dtype=np.float64)
    outputs = np.array([outcome.output_tokens for outcome in finished], dtype=np.float64)
    found = {
        "vllm:time_to_first_token_seconds": (first_s, durations.ttft_s),
        # vLLM counts a request of one token as 0 here.
        "vllm:request_time_per_output_token_seconds": (end_s, np.where(outputs > 1, durations.tpot_s, 0.0)),
        "vllm:e2e_request_latency_seconds": (end_s, durations.e2el_s),
        # From the scheduler's own stamp, and not from the arrival.
        "vllm:request_queue_time_seconds": (end_s, scheduled_s - queued_s),
        "vllm:request_inference_time_seconds": (end_s, end_s - scheduled_s),
        "vllm:request_prefill_time_seconds": (end_s, durations.prefill_s),
        "vllm:request_decode_time_seconds": (end_s, durations.decode_s),
        "vllm:request_prompt_tokens": (end_s, prompts),
        "vllm:request_generation_tokens": (end_s, outputs),
    }
    tokens = _tokens(engine.outcomes)
    if tokens is not None:
        found["vllm:inter_token_latency_seconds"] = _gaps(engine.outcomes)
        found["vllm:iteration_tokens_total"] = _step_tokens(engine.outcomes, tokens)
    return {name: _observed(*pair) for name, pair in found.items() if not np.isnan(pair[1]).all()}


def _tokens(outcomes: Sequence[Outcome]) -> Happened | None:
    """Each output token; None when the times of some are not known."""
    times_s = [o.token_times_s for o in outcomes if o.token_times_s]
    if len(times_s) < sum(outcome.output_tokens > 0 for outcome in outcomes):
        return None
    time_s = np.sort(np.concatenate([np.zeros(0), *map(np.asarray, times_s)]))
    return time_s, np.ones(len(time_s))


def _gaps(outcomes: Sequence[Outcome]) -> Happened:
    """Gaps between a request's tokens, at their ends."""
    times_s = [np.asarray(o.token_times_s) for o in outcomes if o.token_times_s]
    ends_s = np.concatenate([np.zeros(0), *(times[1:] for times in times_s)])
    return ends_s, np.concatenate([np.zeros(0), *map(np.diff, times_s)])


def _step_tokens(outcomes: Sequence[Outcome], tokens: Happened) -> Happened:
    """Tokens of each step that brought some out: these, and the computed prompt tokens of those that began."""
    time_s, counts = np.unique(tokens[0], return_counts=True)
    amount = counts.astype(np.float64)
    for outcome in outcomes:
        if outcome.token_times_s:
            step = np.searchsorted(time_s, outcome.token_times_s[0])
            amount[step] += outcome.prompt_tokens - (outcome.cached_tokens or 0)
    return time_s, amount


def _happened(outcomes: Sequence[Outcome], when: str, amount: str) -> Happened | None:
    """An amount of each outcome and its time; None when one does not know it."""
    amounts = [getattr(outcome, amount) for outcome in outcomes]
    if any(each is None for each in amounts):
        return None
    times_s = np.array([getattr(outcome, when) for outcome in outcomes], dtype=np.float64)
    return times_s, np.array(amounts, dtype=np.float64)


def _running_total(happened: Happened) -> Happened:
    order = np.argsort(happened[0], kind="stable")
    return happened[0][order], np.concatenate([[0.0], np.cumsum(happened[1][order])])


def _until(when_s: Floats, total: Floats, time_s: float) -> float:
    return float(total[np.searchsorted(when_s, time_s, side="right")])


def _observed(time_s: Floats, value: Floats) -> Observed:
    known = ~np.isnan(time_s) & ~np.isnan(value)
    time_s, value = time_s[known], value[known]
    order = np.argsort(time_s, kind="stable")
    return Observed(time_s[order], value[order], np.concatenate([[0.0], np.cumsum(value[order])]))
