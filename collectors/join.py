"""What the client saw and what the engine recorded, joined by request id into one capture.

Both clocks are the host's monotonic one. The front end stamps arrivals with the wall clock; the recorder's header
pairs the two. Second 0 of the capture is second 0 of the trace that the client sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from collectors.client import ClientRecord
from traces.capture import Capture, CaptureMeta
from traces.decoding import decode_json, lines, read_bytes
from traces.errors import CollectorError
from traces.outcome import Outcome, Status
from traces.steps import Batches, Steps, steps_from_columns
from traces.trace import Trace, TraceRow

_ENGINE_ID = re.compile(r"^cmpl-(?P<id>.+)-\d+-[0-9a-f]{8}$")
"""vLLM 0.32: `cmpl-<X-Request-Id>` in the API, `-<prompt>` added per prompt, and 8 random digits in the engine."""


class RecordedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A `request` line of the recorder."""

    id: str
    arrival_wall_s: float
    queued_ns: int
    end_ns: int
    prompt_tokens: int
    max_tokens: int
    output_tokens: int
    num_preemptions: int
    reason: str
    block_hashes: tuple[int, ...] = ()
    scheduled_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    cached_tokens: int | None = None


class RecordedStep(msgspec.Struct, frozen=True, kw_only=True):
    """A `step` line of the recorder."""

    index: int
    schedule_begin_ns: int
    schedule_end_ns: int
    output_ns: int
    update_end_ns: int
    requests: tuple[tuple[str, int, int], ...]
    tokens: tuple[tuple[str, int], ...]
    preempted: tuple[str, ...]
    n_running: int
    n_waiting: int
    kv_blocks: int


class RecordedHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The `header` line of the recorder."""

    vllm_version: str
    wall_ns: int
    monotonic_ns: int
    num_gpu_blocks: int
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorder's file: the header, the steps in order, the requests by the id that the client gave them."""

    header: RecordedHeader
    steps: list[RecordedStep]
    requests: dict[str, RecordedRequest]


@dataclass(frozen=True, slots=True)
class Subject:
    """What a capture is of, beyond what the engine says of itself."""

    model: str
    device: str
    recorded_at: str
    notes: tuple[str, ...] = ()


def read_recording(path: Path) -> Recording:
    """Read a recorder's file; a last line that was cut off is left out. Raises InputError or CollectorError."""
    header, steps, requests = None, [], {}
    data = read_bytes(path)
    whole = data[: data.rfind(b"\n") + 1]
    for number, line in lines(whole):
        kind = decode_json(line, dict[str, Any], file=path, line=number).get("kind")
        if kind == "header":
            header = decode_json(line, RecordedHeader, file=path, line=number)
        elif kind == "step":
            steps.append(decode_json(line, RecordedStep, file=path, line=number))
        else:
            request = decode_json(line, RecordedRequest, file=path, line=number)
            if (name := client_id(request.id)) in requests:
                raise CollectorError(f"{path}:{number}: request {name!r} was served twice; replay on a fresh server")
            requests[name] = request
    if header is None:
        raise CollectorError(f"{path}: holds no header; was the server started with the recorder?")
    steps.sort(key=lambda step: step.index)
    return Recording(header, steps, requests)


def client_id(engine_id: str) -> str:
    """The client's X-Request-Id inside an engine's request id; an id of another form is returned as it is."""
    match = _ENGINE_ID.match(engine_id)
    return match["id"] if match else engine_id


def join(trace: Trace, records: Sequence[ClientRecord], recording: Recording, subject: Subject) -> Capture:
    """One capture of the trace's requests; what else the server served is left out.

    Args:
        trace: as it was sent.
        records: the client's, one per row.
        recording: the engine's.
        subject: what the capture is of.
    """
    origin_s = records[0].due_s - trace.rows[0].arrival_s
    wall_minus_monotonic_s = (recording.header.wall_ns - recording.header.monotonic_ns) / 1e9
    token_times_s = _token_times_s(recording, origin_s)
    rows = {row.request_id: row for row in trace.rows}
    outcomes = [
        _outcome(rows[record.request_id], record, recording, token_times_s, origin_s, wall_minus_monotonic_s)
        for record in records
    ]
    outcomes.sort(key=lambda outcome: outcome.arrival_s)
    served = tuple(_served_row(rows[o.request_id], o, recording.requests.get(o.request_id)) for o in outcomes)
    ids = {outcome.request_id: i for i, outcome in enumerate(outcomes)}
    options = {key: value for key, value in recording.header.options.items() if value is not None}
    meta = CaptureMeta(
        kind="measured",
        engine=f"vllm {recording.header.vllm_version}",
        model=subject.model,
        device=subject.device,
        engine_options=options,
        num_gpu_blocks=recording.header.num_gpu_blocks,
        clock="monotonic clock of the engine's host; second 0 is second 0 of the trace that the client sent",
        recorded_at=subject.recorded_at,
        reasons=(*_reasons(records, recording), *_clock_reasons(outcomes)),
        notes=(*subject.notes, _lateness_note(records)),
        provenance={"trace": trace.sha256},
    )
    size = int(options["block_size"]) if options.get("enable_prefix_caching") else None
    served_trace = Trace(served, size, trace.source, trace.sha256, trace.notes)
    return Capture(meta, served_trace, tuple(outcomes), _steps(recording, ids, origin_s))


def _served_row(row: TraceRow, outcome: Outcome, request: RecordedRequest | None) -> TraceRow:
    """The row as it was served: at its true arrival, with the engine's own hashes of its full blocks."""
    hashes = request.block_hashes or None if request is not None else None
    return msgspec.structs.replace(row, arrival_s=max(outcome.arrival_s, 0.0), block_hashes=hashes)


def _token_times_s(recording: Recording, origin_s: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    for step in recording.steps:
        for engine_id, count in step.tokens:
            times.setdefault(client_id(engine_id), []).extend([step.output_ns / 1e9 - origin_s] * count)
    return times


def _outcome(
    row: TraceRow,
    record: ClientRecord,
    recording: Recording,
    token_times_s: dict[str, list[float]],
    origin_s: float,
    wall_minus_monotonic_s: float,
) -> Outcome:
    sent_s = (record.due_s if record.sent_s is None else record.sent_s) - origin_s
    seen = [time_s - origin_s for time_s in record.token_times_s]
    client: dict[str, Any] = {
        "sent_s": None if record.sent_s is None else sent_s,
        "client_first_token_s": seen[0] if seen else None,
        "client_finish_s": seen[-1] if seen else None,
    }
    request = recording.requests.get(record.request_id)
    if request is None:
        refused = record.status is not None and 400 <= record.status < 500
        return Outcome(
            request_id=record.request_id,
            status=Status.REJECTED if refused else Status.FAILED,
            reason=record.error or "the engine has no record of it",
            prompt_tokens=row.prompt_tokens,
            output_tokens=len(seen),
            arrival_s=sent_s,
            **client,
        )

    def at(time_ns: int | None) -> float | None:
        return None if time_ns is None else time_ns / 1e9 - origin_s

    complete = request.output_tokens == request.max_tokens
    return Outcome(
        request_id=record.request_id,
        status=Status.FINISHED if complete else Status.ABORTED,
        reason=request.reason if record.error is None else record.error,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        arrival_s=request.arrival_wall_s - wall_minus_monotonic_s - origin_s,
        instance=0,
        queued_s=at(request.queued_ns),
        scheduled_s=at(request.scheduled_ns),
        first_token_s=at(request.first_token_ns),
        finish_s=at(request.last_token_ns),
        cached_tokens=request.cached_tokens,
        num_preemptions=request.num_preemptions,
        token_times_s=tuple(token_times_s.get(record.request_id, ())),
        **client,
    )


def _steps(recording: Recording, ids: dict[str, int], origin_s: float) -> Steps:
    """The steps in which a request of the trace took part, with those requests."""
    kept = [
        (step, entries)
        for step in recording.steps
        if (entries := [(ids[client_id(rid)], n, done) for rid, n, done in step.requests if client_id(rid) in ids])
    ]
    decodes = [_decodes(step) for step, _ in kept]
    columns = {
        "instance": [0] * len(kept),
        "scheduled_s": [step.schedule_begin_ns / 1e9 - origin_s for step, _ in kept],
        "end_s": [step.output_ns / 1e9 - origin_s for step, _ in kept],
        "n_requests": [len(step.requests) for step, _ in kept],
        "n_prefill_tokens": [
            sum(n for _, n, _ in step.requests) - count for (step, _), count in zip(kept, decodes, strict=True)
        ],
        "n_decode_tokens": decodes,
        "n_preempted": [len(step.preempted) for step, _ in kept],
        "n_running": [step.n_running for step, _ in kept],
        "n_waiting": [step.n_waiting for step, _ in kept],
        "kv_blocks": [step.kv_blocks for step, _ in kept],
    }
    flat = np.array([entry for _, entries in kept for entry in entries], dtype=np.int64).reshape(-1, 3)
    offsets = np.concatenate([[0], np.cumsum([len(entries) for _, entries in kept])]).astype(np.int64)
    return steps_from_columns(columns, Batches(offsets, flat[:, 0], flat[:, 1], flat[:, 2]))


def _decodes(step: RecordedStep) -> int:
    """Requests of a step that computed one token to produce the next; one token of an unfinished prompt is none."""
    brought = {engine_id for engine_id, _ in step.tokens}
    return sum(new == 1 and engine_id in brought for engine_id, new, _ in step.requests)


def _clock_reasons(outcomes: Sequence[Outcome]) -> list[str]:
    """An arrival lies between sending and queueing, unless the wall clock was set while the server ran."""
    astray = [
        outcome.request_id
        for outcome in outcomes
        if outcome.sent_s is not None
        and outcome.queued_s is not None
        and not outcome.sent_s <= outcome.arrival_s <= outcome.queued_s
    ]
    if not astray:
        return []
    return [f"{len(astray)} requests arrived before they were sent or after they were queued, the first is {astray[0]}"]


def _reasons(records: Sequence[ClientRecord], recording: Recording) -> list[str]:
    """Why the capture must not be scored: the two sides do not agree, or requests failed."""
    missing = [record.request_id for record in records if record.request_id not in recording.requests]
    differing = [
        record.request_id
        for record in records
        if (request := recording.requests.get(record.request_id)) is not None
        and record.error is None
        and (record.output_tokens, record.prompt_tokens) != (request.output_tokens, request.prompt_tokens)
    ]
    failed = [record for record in records if record.error is not None]
    reasons = []
    if missing:
        reasons.append(f"{len(missing)} requests are not in the engine's record, the first is {missing[0]}")
    if differing:
        reasons.append(f"{len(differing)} requests differ in tokens between client and engine, first {differing[0]}")
    if failed:
        reasons.append(f"{len(failed)} requests failed at the client, the first with: {failed[0].error}")
    return reasons


def _lateness_note(records: Sequence[ClientRecord]) -> str:
    late_ms = np.array([record.late_s for record in records]) * 1e3
    return f"the client sent {late_ms.mean():.1f} ms late on average, {late_ms.max():.1f} ms at most"
