"""A run as a client saw it: what every load generator reports, made a capture.

Arrival is sending, and tokens are out when they reach the client: network and front end are part of every time, and the
stages inside the engine are not seen. Only instants are taken over; every metric is computed from them anew, by the
definitions of `traces.metrics`. What the tool calls TPOT or ITL is compared with ours where it is meant to be the same.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec

from traces.capture import Capture, CaptureMeta
from traces.errors import InputError
from traces.outcome import Outcome, Status
from traces.trace import Trace, TraceRow

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
"""A duration, or an instant of a clock: of Unix time, or of one that starts anywhere."""

AGREES = 0.01
"""A mean of ours may differ from the tool's by this share before it is said: they round, and count other requests."""


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """What a client noted of a request. Times are seconds of one clock of its own; None: not noted.

    Attributes:
        request_id: unique in the run.
        status: how it ended.
        prompt_tokens: as the client or the server counted.
        output_tokens: likewise.
        sent_s: when it was sent.
        first_token_s: when the first piece of the answer came.
        finish_s: when the last piece came.
        piece_times_s: when each piece came.
        reason: the error, or how the answer ended.
        cached_tokens: of the prompt, as the server told.
        session_id: of the conversation it belongs to.
        at: where it stands in the file, as a dotted path.
        line: or its line.
    """

    request_id: str
    status: Status
    prompt_tokens: int
    output_tokens: int
    sent_s: float
    first_token_s: float | None
    finish_s: float | None
    piece_times_s: tuple[float, ...] | None = None
    reason: str | None = None
    cached_tokens: int | None = None
    session_id: str | None = None
    at: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class ClientRun:
    """A run of a load generator.

    Attributes:
        file: it was read from.
        sha256: the file's digest.
        tool: its name.
        model: as the client called it.
        recorded_at: ISO date, when it is known.
        notes: what was assumed or left out.
    """

    file: Path
    sha256: str
    tool: str
    model: str
    recorded_at: str | None
    notes: tuple[str, ...]


def capture_of(run: ClientRun, requests: Sequence[ClientRequest], trace: Trace | None = None) -> Capture:
    """The capture, its second 0 at the first sending. Raises InputError.

    `trace` is the workload that was sent, request i its row i; without it the run's own requests are the trace.
    """
    _check(requests, run)
    ordered = requests if trace is not None else sorted(requests, key=lambda request: request.sent_s)
    zero_s = min(request.sent_s for request in requests)
    served = [request for request in ordered if request.prompt_tokens]
    notes = [*run.notes]
    if dropped := len(ordered) - len(served):
        notes.append(f"{dropped} requests state no prompt tokens: left out")
    if trace is None:
        trace = _trace_of(served, zero_s, run)
    else:
        served = _matched(served, trace, run)
    outcomes = tuple(_outcome(request, zero_s) for request in served)
    if odd := sum(o.client_token_times_s is not None and o.token_times_s is None for o in outcomes):
        notes.append(f"{odd} answers came in pieces of several tokens: their ITL is not known")
    ended = Counter(o.status.value for o in outcomes)
    meta = CaptureMeta(
        kind="measured",
        engine=None,
        model=run.model,
        device=None,
        clock="second 0 is when the first request was sent; all times are the client's",
        recorded_at=run.recorded_at,
        notes=(
            f"measured by {run.tool}, from outside: network and front end are part of every time",
            f"requests: {', '.join(f'{n} {name}' for name, n in sorted(ended.items()))}",
            *notes,
        ),
        provenance={run.file.name: run.sha256, **({} if trace.source == str(run.file) else {"trace": trace.sha256})},
    )
    return Capture(meta, trace, outcomes)


def compare_means(tool: str, ours: Sequence[float], theirs: Sequence[float | None], what: str) -> list[str]:
    """What is said where the tool's own figures of requests are not ours, though both should be the same thing."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if b is not None]
    if not pairs:
        return []
    a, b = (statistics.fmean(values) for values in zip(*pairs, strict=True))
    if abs(a - b) <= AGREES * max(abs(b), 1e-6):
        return []
    return [f"{tool} states a mean {what} of {b:.6g} s, the times it recorded give {a:.6g} s"]


def _check(requests: Sequence[ClientRequest], run: ClientRun) -> None:
    if not requests:
        raise InputError("holds no requests", file=run.file, accepted="at least one request")
    seen: set[str] = set()
    for request in requests:
        if request.request_id in seen:
            raise _error(request, run, "request_id", request.request_id, "an id that no earlier request has")
        seen.add(request.request_id)
        if request.status is not Status.FINISHED:
            continue
        times = [request.sent_s, request.first_token_s, *(request.piece_times_s or ()), request.finish_s]
        known = [time_s for time_s in times if time_s is not None]
        if known != sorted(known):
            raise _error(request, run, "times", known, "sending, first token and end in this order")
        if request.finish_s is None or request.output_tokens < 1:
            found = f"{request.output_tokens} output tokens, end {request.finish_s}"
            raise _error(request, run, "output tokens", found, "tokens and an end, for a request that finished")


def _error(request: ClientRequest, run: ClientRun, field: str, found: object, accepted: str) -> InputError:
    name = f"{request.at}.{field}" if request.at else field
    return InputError(file=run.file, line=request.line, field=name, found=found, accepted=accepted)


def _trace_of(requests: Sequence[ClientRequest], zero_s: float, run: ClientRun) -> Trace:
    rows = tuple(
        TraceRow(
            request_id=request.request_id,
            arrival_s=request.sent_s - zero_s,
            prompt_tokens=request.prompt_tokens,
            output_tokens=max(request.output_tokens, 1),
            session_id=request.session_id,
        )
        for request in requests
    )
    if not rows:
        raise InputError("holds no request that can be served", file=run.file)
    note = "made from the run itself: arrivals are the measured ones, prefix identity is unknown"
    return Trace(rows, None, str(run.file), run.sha256, (note,))


def _matched(requests: Sequence[ClientRequest], trace: Trace, run: ClientRun) -> list[ClientRequest]:
    """The requests under the trace's ids. Raises InputError unless they are the trace's, row by row."""
    if len(requests) != len(trace):
        accepted = f"{len(trace)}, as {trace.source} has"
        raise InputError(file=run.file, found=f"{len(requests)} requests", accepted=accepted)
    for request, row in zip(requests, trace.rows, strict=True):
        if request.prompt_tokens != row.prompt_tokens:
            accepted = f"{row.prompt_tokens}, as request {row.request_id!r} of {trace.source}"
            raise _error(request, run, "prompt tokens", request.prompt_tokens, accepted)
    return [replace(request, request_id=row.request_id) for request, row in zip(requests, trace.rows, strict=True)]


def _outcome(request: ClientRequest, zero_s: float) -> Outcome:
    def since(time_s: float | None) -> float | None:
        return None if time_s is None else time_s - zero_s

    pieces = None if request.piece_times_s is None else tuple(time_s - zero_s for time_s in request.piece_times_s)
    return Outcome(
        request_id=request.request_id,
        status=request.status,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        arrival_s=request.sent_s - zero_s,
        reason=request.reason,
        first_token_s=since(request.first_token_s),
        finish_s=since(request.finish_s),
        cached_tokens=request.cached_tokens,
        sent_s=request.sent_s - zero_s,
        client_first_token_s=since(request.first_token_s),
        client_finish_s=since(request.finish_s),
        client_token_times_s=pieces,
        token_times_s=pieces if pieces is not None and len(pieces) == request.output_tokens else None,
    )
