"""What the serving side says of each request: the step recorder, or a front end that reports its requests' stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from collectors.engine.stats_log import FinishedRequest, StatsLog
from collectors.engine.step_file import RecordedRequest, Recording
from collectors.server.spans import RequestSpan, Spans

ENDED_WELL = ("length", "stop", "repetition")
"""vLLM's words for an answer that was not broken off (0.32 v1/engine/__init__.py FinishReason)."""


RECORDER = "recorder"


@dataclass(frozen=True, slots=True)
class Served:
    """What the serving side says of one request. Times are seconds of the host's monotonic clock.

    Attributes:
        witness: who says so.
        complete: whether its answer was not broken off.
    """

    witness: str
    prompt_tokens: int
    output_tokens: int
    complete: bool
    arrival_s: float
    reason: str | None = None
    instance: int | None = None
    priority: int = 0
    max_tokens: int | None = None
    queued_s: float | None = None
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finish_s: float | None = None
    cached_tokens: int | None = None
    num_preemptions: int | None = None
    token_times_s: tuple[float, ...] | None = None
    block_hashes: tuple[int, ...] | None = None


def served_by(recordings: Sequence[Recording]) -> dict[str, Served]:
    """The requests of the step recorder, by the client's id.

    With prefill and decode apart the first engine computed the prompt, and the last the answer, all of its tokens.
    """
    found: dict[str, Served] = {}
    for instance, recording in enumerate(recordings):
        times_s = _token_times_s(recording)
        for name, request in recording.requests.items():
            one = _recorded(request, instance, times_s, recording.header.wall_minus_monotonic_s)
            found[name] = one if name not in found else _gone_on(found[name], one)
    return found


def _gone_on(prompt: Served, answer: Served) -> Served:
    """A request that began on one engine and went on on another."""
    known = None not in (prompt.num_preemptions, answer.num_preemptions)
    return replace(
        answer,
        arrival_s=prompt.arrival_s,
        queued_s=prompt.queued_s,
        scheduled_s=prompt.scheduled_s,
        cached_tokens=prompt.cached_tokens,
        num_preemptions=(prompt.num_preemptions or 0) + (answer.num_preemptions or 0) if known else None,
    )


def _recorded(
    request: RecordedRequest, instance: int, times_s: Mapping[str, list[float]], wall_minus_monotonic_s: float
) -> Served:
    def seconds(time_ns: int | None) -> float | None:
        return None if time_ns is None else time_ns / 1e9

    return Served(
        witness=RECORDER,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        complete=request.reason in ENDED_WELL,
        reason=request.reason,
        instance=instance,
        priority=request.priority,
        max_tokens=request.max_tokens,
        arrival_s=request.arrival_wall_s - wall_minus_monotonic_s,
        queued_s=seconds(request.queued_ns),
        scheduled_s=seconds(request.scheduled_ns),
        first_token_s=seconds(request.first_token_ns),
        finish_s=seconds(request.last_token_ns),
        cached_tokens=request.cached_tokens,
        num_preemptions=request.num_preemptions,
        token_times_s=tuple(times_s.get(request.id, ())),
        block_hashes=request.block_hashes or None,
    )


def _token_times_s(recording: Recording) -> dict[str, list[float]]:
    """Times of every token by the engine's id."""
    times: dict[str, list[float]] = {}
    for step in recording.steps:
        for engine_id, count in step.tokens:
            times.setdefault(engine_id, []).extend([step.output_ns / 1e9] * count)
    return times


def told_by_spans(spans: Spans) -> dict[str, Served]:
    """The requests of the front end's spans, by the client's id; those without token counts are left out."""
    return {
        name: _of_span(span, span.prompt_tokens, span.output_tokens, spans.wall_minus_monotonic_s)
        for name, span in spans.requests.items()
        if span.prompt_tokens is not None and span.output_tokens is not None
    }


def told_by_stats(stats: StatsLog) -> dict[str, Served]:
    """The requests of the front end's stat logger, by the client's id."""
    offset_s = (stats.header.wall_ns - stats.header.monotonic_ns) / 1e9
    return {name: _of_finished(request, offset_s) for name, request in stats.requests.items()}


def _of_span(span: RequestSpan, prompt_tokens: int, output_tokens: int, wall_minus_monotonic_s: float) -> Served:
    arrival_s = span.arrival_s - wall_minus_monotonic_s
    if span.ttft_s is not None:
        first_token_s: float | None = arrival_s + span.ttft_s
    elif span.e2e_s is not None and span.decode_s is not None:
        first_token_s = arrival_s + span.e2e_s - span.decode_s
    else:
        first_token_s = None
    scheduled_s = _minus(first_token_s, span.prefill_s)
    return Served(
        witness="spans",
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        complete=span.finish_reason in (None, *ENDED_WELL),
        reason=span.finish_reason,
        max_tokens=span.max_tokens,
        arrival_s=arrival_s,
        queued_s=_minus(scheduled_s, span.queue_s),
        scheduled_s=scheduled_s,
        first_token_s=first_token_s,
        finish_s=None if first_token_s is None or span.decode_s is None else first_token_s + span.decode_s,
    )


def _of_finished(request: FinishedRequest, wall_minus_monotonic_s: float) -> Served:
    finish_s = request.end_wall_s - wall_minus_monotonic_s
    first_token_s = _minus(finish_s, request.decode_s)
    scheduled_s = _minus(first_token_s, request.prefill_s)
    return Served(
        witness="stat logger",
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        complete=request.reason in ENDED_WELL,
        reason=request.reason,
        instance=request.engine,
        max_tokens=request.max_tokens,
        arrival_s=request.arrival_wall_s - wall_minus_monotonic_s,
        queued_s=_minus(scheduled_s, request.queued_s),
        scheduled_s=scheduled_s,
        first_token_s=first_token_s,
        finish_s=finish_s,
        cached_tokens=request.cached_tokens,
        num_preemptions=request.num_preemptions,
    )


def _minus(time_s: float | None, duration_s: float | None) -> float | None:
    return None if time_s is None or duration_s is None else time_s - duration_s
