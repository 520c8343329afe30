"""What the client saw, what the engine recorded and what its front end reported, joined by request id into one capture.

All times are put on the host's monotonic clock, minus the origin. The front end stamps arrivals with the wall clock;
the header of every file pairs the two clocks. Of each request the best witness is believed: the step recorder, else
the front end's spans, else the client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from collectors.client.log import ClientHistory
from collectors.client.request import ClientRecord
from collectors.engine.engine_steps import steps_of
from collectors.engine.step_file import Recording
from collectors.engine.transfer_file import TransferRecording, transfers_of
from collectors.recording.counted import disagreements
from collectors.recording.served import RECORDER, Served, served_by
from collectors.request_ids import id_of_engine
from collectors.server.engine_info import EngineInfo
from collectors.server.scrape_file import Scrapes, series_of
from traces.capture import Capture, CaptureMeta, Series
from traces.outcome import Outcome, Status
from traces.trace import NO_FILE, Trace, TraceRow

SPREAD = ("tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel", "disable_custom_all_reduce")
"""Recorded options that say how one engine is spread over devices."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a capture is of, beyond what the engine says of itself."""

    model: str
    device: str | None
    recorded_at: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Witnesses:
    """Everything that was recorded of one run.

    Attributes:
        trace: as it was sent; None: the requests were others' and the serving side tells them.
        origin_s: second 0 of the capture on the host's monotonic clock.
        until_s: when recording ended, on the same clock; None: when the last request of the trace had.
        client: of a client of ours.
        recordings: of the step recorder, one for each engine.
        reported: what the front end reported of requests, by the client's id.
        transfers: KV that a decode engine read.
        scrapes: of the server's metrics.
        series: over time, on the capture's clock, beside those of the metrics.
        reasons: why the run must not be scored, from those who recorded it.
        notes: likewise.
    """

    trace: Trace | None
    origin_s: float
    until_s: float | None = None
    client: ClientHistory | None = None
    recordings: Sequence[Recording] = ()
    reported: Mapping[str, Served] = field(default_factory=dict)
    transfers: TransferRecording | None = None
    scrapes: Scrapes | None = None
    series: Mapping[str, Series] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def join(witnesses: Witnesses, subject: Subject) -> Capture:
    """One capture of the trace's requests, or of all that the server was seen to serve from arrival to end."""
    served = {**witnesses.reported, **served_by(witnesses.recordings)}
    trace, left_out = (witnesses.trace, 0) if witnesses.trace is not None else _trace_of(served, witnesses)
    records = {} if witnesses.client is None else witnesses.client.records
    outcomes = [
        _outcome(row, served.get(row.request_id), records.get(row.request_id), witnesses.origin_s) for row in trace.rows
    ]
    outcomes.sort(key=lambda outcome: outcome.arrival_s)
    rows = {row.request_id: row for row in trace.rows}
    engine = _engine(witnesses)
    meta = CaptureMeta(
        kind="measured",
        engine=engine.engine or None,
        model=subject.model,
        device=subject.device,
        engine_options=engine.options,
        num_gpu_blocks=engine.num_gpu_blocks,
        clock=_clock(witnesses),
        recorded_at=subject.recorded_at,
        reasons=(*witnesses.reasons, *_reasons(trace, served, witnesses), *_outcome_reasons(outcomes, witnesses)),
        notes=(*subject.notes, *witnesses.notes, *_notes(outcomes, served, witnesses, left_out)),
        provenance={"trace": trace.sha256},
    )
    ids = {outcome.request_id: i for i, outcome in enumerate(outcomes)}
    steps = steps_of(witnesses.recordings, ids, witnesses.origin_s) if witnesses.recordings else None
    scraped = {} if witnesses.scrapes is None else series_of(witnesses.scrapes, witnesses.origin_s)
    kept = _trace_as_served([rows[o.request_id] for o in outcomes], outcomes, served, trace, engine)
    sent = witnesses.transfers
    transfers = None if sent is None else transfers_of(sent, witnesses.recordings, ids, witnesses.origin_s)
    return Capture(meta, kept, tuple(outcomes), steps, {**scraped, **witnesses.series}, transfers)


def _trace_of(served: Mapping[str, Served], witnesses: Witnesses) -> tuple[Trace, int]:
    """The requests that arrived while recording went on and ended before it did, and the number of the others."""
    until_s = np.inf if witnesses.until_s is None else witnesses.until_s
    inside = {
        name: one
        for name, one in served.items()
        if one.arrival_s >= witnesses.origin_s and (one.finish_s is None or one.finish_s <= until_s)
    }
    rows = [
        TraceRow(
            request_id=name,
            arrival_s=one.arrival_s - witnesses.origin_s,
            prompt_tokens=one.prompt_tokens,
            output_tokens=max(1, one.output_tokens if one.complete else one.max_tokens or one.output_tokens),
            priority=one.priority,
        )
        for name, one in sorted(inside.items(), key=lambda entry: entry[1].arrival_s)
    ]
    return Trace(tuple(rows), None, "requests of others", NO_FILE), len(served) - len(inside)


def _trace_as_served(
    rows: Sequence[TraceRow],
    outcomes: Sequence[Outcome],
    served: Mapping[str, Served],
    trace: Trace,
    engine: EngineInfo,
) -> Trace:
    """The trace at its true arrivals, with the engine's own hashes of full blocks where the engine was recorded."""
    recorded = any(one.witness == RECORDER for one in served.values())
    hashed = engine.options.get("enable_prefix_caching")
    size = (int(engine.options["block_size"]) if hashed else None) if recorded else trace.hash_block_size
    kept = []
    for row, outcome in zip(rows, outcomes, strict=True):
        one = served.get(row.request_id)
        hashes = (None if one is None else one.block_hashes) if recorded else row.block_hashes
        hashes = None if size is None else hashes  # a connector has vLLM hash blocks that it does not cache
        arrival_s = max(outcome.arrival_s, 0.0)
        kept.append(msgspec.structs.replace(row, arrival_s=arrival_s, delay_s=None, block_hashes=hashes))
    some = any(row.block_hashes for row in kept)
    return Trace(tuple(kept), size if some else None, trace.source, trace.sha256, trace.notes)


def _outcome(row: TraceRow, served: Served | None, record: ClientRecord | None, origin_s: float) -> Outcome:
    times = {} if record is None else _client_times(record, origin_s)
    if served is None:
        return _outcome_at_the_client(row, record, times)

    def at(time_s: float | None) -> float | None:
        return None if time_s is None else time_s - origin_s

    return Outcome(
        request_id=row.request_id,
        status=Status.FINISHED if served.complete else Status.ABORTED,
        reason=served.reason if record is None or record.error is None else record.error,
        prompt_tokens=served.prompt_tokens,
        output_tokens=served.output_tokens,
        arrival_s=served.arrival_s - origin_s,
        instance=served.instance,
        queued_s=at(served.queued_s),
        scheduled_s=at(served.scheduled_s),
        first_token_s=at(served.first_token_s),
        finish_s=at(served.finish_s),
        cached_tokens=served.cached_tokens,
        num_preemptions=served.num_preemptions,
        token_times_s=None if served.token_times_s is None else tuple(t - origin_s for t in served.token_times_s),
        **times,
    )


def _outcome_at_the_client(row: TraceRow, record: ClientRecord | None, times: dict[str, Any]) -> Outcome:
    """The outcome of a request that only the client speaks of: its times are the client's."""
    pieces = times.get("client_token_times_s") or ()
    finished = record is not None and record.error is None
    refused = record is not None and record.status is not None and 400 <= record.status < 500
    stopped = record is not None and (record.error or "").startswith(("stopped", "not sent"))
    status = Status.REJECTED if refused else Status.ABORTED if stopped else Status.FAILED
    n_tokens = len(pieces) if record is None or record.output_tokens is None else record.output_tokens
    return Outcome(
        request_id=row.request_id,
        status=Status.FINISHED if finished else status,
        reason="nobody has a record of it" if record is None else record.error or record.reason,
        prompt_tokens=row.prompt_tokens if record is None or record.prompt_tokens is None else record.prompt_tokens,
        output_tokens=n_tokens,
        arrival_s=row.arrival_s if times.get("sent_s") is None else times["sent_s"],
        first_token_s=times.get("client_first_token_s"),
        finish_s=times.get("client_finish_s"),
        cached_tokens=None if record is None else record.cached_tokens,
        token_times_s=pieces if finished and len(pieces) == n_tokens else None,
        **times,
    )


def _client_times(record: ClientRecord, origin_s: float) -> dict[str, Any]:
    seen = tuple(time_s - origin_s for time_s in record.token_times_s)
    return {
        "sent_s": None if record.sent_s is None else record.sent_s - origin_s,
        "client_first_token_s": seen[0] if seen else None,
        "client_finish_s": seen[-1] if seen else None,
        "client_token_times_s": seen or None,
    }


def _engine(witnesses: Witnesses) -> EngineInfo:
    """What is known of the engine: from the recorder, else from what the server told and its metrics."""
    if witnesses.recordings:
        header, unlike = witnesses.recordings[0].header, _spread_unlike(witnesses.recordings)
        options = {n: value for n, value in header.options.items() if value is not None and n not in unlike}
        ranks = [recording.header.engine.get("data_parallel_index") for recording in witnesses.recordings]
        if len(ranks) > 1 and ranks == list(range(len(ranks))):  # an engine of a dense model knows of itself alone
            options["data_parallel_size"] = len(ranks)
        engine = f"vllm {header.vllm_version}"
        return EngineInfo(engine=engine, options=options, num_gpu_blocks=header.num_gpu_blocks)
    scrapes = witnesses.scrapes
    if scrapes is None or scrapes.server is None:
        return EngineInfo(engine="")
    engine = scrapes.server if scrapes.told is None else scrapes.told.engine
    return EngineInfo(engine=engine, options=scrapes.engine_options(), num_gpu_blocks=scrapes.num_gpu_blocks())


def _spread_unlike(recordings: Sequence[Recording]) -> list[str]:
    """Options of parallelism that the engines do not share, as those that prefill and those that decode may not."""
    every = [recording.header.options for recording in recordings]
    return [name for name in SPREAD if len({options.get(name) for options in every}) > 1]


def _clock(witnesses: Witnesses) -> str:
    zero = "second 0 of the trace that the client sent" if witnesses.client is not None else "the start of recording"
    whose = "engine's" if witnesses.recordings or witnesses.reported else "client's"
    return f"monotonic clock of the {whose} host; second 0 is {zero}"


def _outcome_reasons(outcomes: Sequence[Outcome], witnesses: Witnesses) -> Iterator[str]:
    """Why the capture must not be scored: clocks that do not agree, or a server that counted something else.

    An arrival lies between sending and queueing, unless the wall clock was set while the server ran.
    """
    astray = [
        outcome.request_id
        for outcome in outcomes
        if (outcome.sent_s is not None and outcome.sent_s > outcome.arrival_s)
        or (outcome.queued_s is not None and outcome.arrival_s > outcome.queued_s)
    ]
    if astray:
        when = "before they were sent or after they were queued"
        yield f"{len(astray)} requests arrived {when}, the first is {astray[0]}"
    if witnesses.scrapes is not None:
        yield from disagreements(outcomes, witnesses.scrapes)


def _reasons(trace: Trace, served: Mapping[str, Served], witnesses: Witnesses) -> list[str]:
    """Why the capture must not be scored: two sides do not agree, requests failed, or the client was too slow."""
    if witnesses.client is None:
        return []
    records = [witnesses.client.records.get(row.request_id) for row in trace.rows]
    failed = [record for record in records if record is not None and record.error is not None]
    differing = [
        record.request_id
        for record in records
        if record is not None
        and record.error is None
        and (one := served.get(record.request_id)) is not None
        and (record.output_tokens, record.prompt_tokens) != (one.output_tokens, one.prompt_tokens)
    ]
    reasons = []
    if unsent := sum(record is None or record.sent_s is None for record in records):
        reasons.append(f"{unsent} requests were not sent")
    engine_speaks = bool(witnesses.recordings or witnesses.reported)
    if engine_speaks and (missing := [row.request_id for row in trace.rows if row.request_id not in served]):
        reasons.append(f"{len(missing)} requests are not in the engine's record, the first is {missing[0]}")
    if differing:
        reasons.append(f"{len(differing)} requests differ in tokens between client and engine, first {differing[0]}")
    if failed:
        reasons.append(f"{len(failed)} requests failed at the client, the first with: {failed[0].error}")
    if (slow := witnesses.client.bottleneck(only_witness=not engine_speaks)) is not None:
        reasons.append(slow)
    return reasons


def _notes(
    outcomes: Sequence[Outcome], served: Mapping[str, Served], witnesses: Witnesses, left_out: int
) -> Iterator[str]:
    if left_out:
        yield f"{left_out} requests that arrived before recording began or ended after it did are left out"
    if witnesses.client is not None:
        late_ms = np.array([record.late_s for record in witnesses.client.records.values()] or [0.0]) * 1e3
        yield f"the client sent {late_ms.mean():.1f} ms late on average, {late_ms.max():.1f} ms at most"
        lag_ms = np.quantile(np.array(witnesses.client.lags_s or [0.0]) * 1e3, [0.5, 0.99])
        yield f"its event loop answered {lag_ms[0]:.1f} ms late (median), {lag_ms[1]:.1f} ms (99th percentile)"
        if not served:
            yield "all times are the client's; the server's own were not recorded"
    pieces = sum(
        o.client_token_times_s is not None and len(o.client_token_times_s) != o.output_tokens
        for o in outcomes
        if o.status is Status.FINISHED
    )
    if pieces:
        yield f"{pieces} answers came in fewer pieces than tokens; their tokens' times at the client are not known"
    if witnesses.scrapes is not None:
        yield from witnesses.scrapes.notes
    yield from _recorder_notes(witnesses.recordings, outcomes, witnesses.origin_s)


def _recorder_notes(recordings: Sequence[Recording], outcomes: Sequence[Outcome], origin_s: float) -> Iterator[str]:
    if unlike := _spread_unlike(recordings):
        yield f"the engines differ in {', '.join(unlike)}: none is kept of them"
    known = {outcome.request_id for outcome in outcomes}
    steps = [step for recording in recordings for step in recording.steps if step.schedule_begin_ns / 1e9 >= origin_s]
    if foreign := sum(any(id_of_engine(rid) not in known for rid, _, _ in step.requests) for step in steps):
        yield f"{foreign} of {len(steps)} recorded steps also held requests that are not in this capture"
    own_us = [step.recorder_ns / 1e3 for step in steps if step.recorder_ns is not None]
    if own_us:
        yield f"the recorder took {np.median(own_us):.0f} us of a step (median)"
