"""Readers for LLMServingSim's files: its workloads, and the runs of vLLM that its bench recorded.

A workload is JSON Lines with nanosecond arrivals and, if it has them, token ids. The ids are content: they are hashed
to prefix identity and dropped. A line is a request, or an agent's session: calls in a chain, each sent when the one
before it has ended and a tool has run for the time that the file states. A run is a folder:

    requests.jsonl    one row per request; arrivals by the wall clock, everything else by the engine's monotonic clock
    timeseries.csv    throughput and queue lengths, one row per tick
    meta.json         the engine's arguments

The formats are those of LLMServingSim's `workloads/` and `bench/` as of its vLLM 0.19 support (2026).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from traces import llmservingsim_meta
from traces.capture import Capture, CaptureMeta, Series
from traces.decoding import decode_json, lines, read_bytes, read_columns, sha256
from traces.errors import InputError
from traces.llmservingsim_meta import RunMeta
from traces.outcome import Outcome, Status
from traces.readers.source import Numbered, Source
from traces.trace import Tokens, Trace, TraceRow, checked_rows

TokenIds = list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]]


Nanoseconds = Annotated[float, msgspec.Meta(ge=0)]


class _WorkloadRow(msgspec.Struct):
    input_toks: Tokens
    output_toks: Tokens
    arrival_time_ns: Nanoseconds
    input_tok_ids: TokenIds | None = None
    output_tok_ids: TokenIds | None = None


class _Call(msgspec.Struct):
    """One request of an agent's session."""

    input_toks: Tokens
    output_toks: Tokens
    tool_duration_ns: Nanoseconds = 0.0
    input_tok_ids: TokenIds | None = None
    output_tok_ids: TokenIds | None = None


class _SessionRow(msgspec.Struct):
    session_id: Annotated[str, msgspec.Meta(min_length=1)]
    arrival_time_ns: Nanoseconds
    sub_requests: Annotated[list[_Call], msgspec.Meta(min_length=1)]


class _RunRow(msgspec.Struct):
    request_id: Annotated[str, msgspec.Meta(pattern=r"^bench-(0|[1-9]\d*)$")]
    input_toks: Tokens
    output_toks: Tokens
    arrival_time: float
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float


def read_workload(path: Path, block_size: int = 16) -> Trace:
    """Read a workload, flat, agentic or both.

    A request's id is the number of its row, from "0"; that of a session's call is the session's and the number of the
    call, as in "session_0/2". A call but the first has the tool time after the call before it as its `delay_s`.

    Args:
        path: the JSON Lines file.
        block_size: tokens per block hash, where rows carry token ids.

    Raises:
        InputError: with file, line and field.
    """
    with Source(path) as source:
        numbered = list(rows(source, block_size))
    checked = checked_rows([row for _, row in numbered], path, [line for line, _ in numbered])
    return Trace(checked, source.hash_block_size, str(path), source.sha256(), tuple(source.notes))


def rows(source: Source, block_size: int = 16) -> Iterator[Numbered]:
    """The requests of a workload, a session's calls one after another. Raises InputError.

    The source has a hash_block_size until all are read, and then where a row had token ids.
    """
    source.hash_block_size = block_size
    first_line, previous_ns = b"", 0.0
    n_rows = n_hashed = n_unread = 0
    sessions: set[str] = set()
    for index, (line, data) in enumerate(source.lines()):
        first_line = first_line or data
        row = _workload_row(data, source.path, line)
        if row.arrival_time_ns < previous_ns:
            accepted = f"arrivals in ascending order, here at least {previous_ns:.0f}"
            found = row.arrival_time_ns
            raise InputError(file=source.path, line=line, field="arrival_time_ns", found=found, accepted=accepted)
        previous_ns = row.arrival_time_ns
        if isinstance(row, _SessionRow):
            if row.session_id in sessions:
                accepted, found_id = "an id that no earlier line has", row.session_id
                raise InputError(file=source.path, line=line, field="session_id", found=found_id, accepted=accepted)
            sessions.add(row.session_id)
            n_unread += row.sub_requests[-1].tool_duration_ns > 0
        own = _calls(row, block_size) if isinstance(row, _SessionRow) else [_request(row, str(index), block_size)]
        n_rows += len(own)
        n_hashed += sum(one.block_hashes is not None for one in own)
        yield from ((line, one) for one in own)
    source.notes.append(f"{n_hashed} of {n_rows} requests have token ids; the others share no prefix")
    if n_unread:
        of_all = f"{n_unread} of {len(sessions)} sessions"
        source.notes.append(f"{of_all} state a tool time after their last call: nothing waits for it")
    if ignored := _unread_fields(first_line or b"{}"):
        source.notes.append(f"fields of {source.path.name} that were not read: {ignored}")
    if not n_hashed:
        source.hash_block_size = None


def _request(row: _WorkloadRow, request_id: str, block_size: int) -> TraceRow:
    return TraceRow(
        request_id=request_id,
        arrival_s=row.arrival_time_ns / 1e9,
        prompt_tokens=row.input_toks,
        output_tokens=row.output_toks,
        block_hashes=_row_hashes(row, block_size),
    )


def _calls(session: _SessionRow, block_size: int) -> list[TraceRow]:
    """The session's calls in order; all but the first arrive when the one before has ended and its tool has run."""
    delays_s = [None, *(call.tool_duration_ns / 1e9 for call in session.sub_requests)]
    return [
        TraceRow(
            request_id=f"{session.session_id}/{i}",
            arrival_s=session.arrival_time_ns / 1e9,
            prompt_tokens=call.input_toks,
            output_tokens=call.output_toks,
            block_hashes=_row_hashes(call, block_size),
            session_id=session.session_id,
            delay_s=delays_s[i],
        )
        for i, call in enumerate(session.sub_requests)
    ]


def is_workload(first_line: bytes) -> bool:
    """Whether a file that starts with this line is meant as an LLMServingSim workload, flat or agentic."""
    return any(name in first_line for name in (b'"input_toks"', b'"arrival_time_ns"', b'"sub_requests"'))


def chained_hashes(token_ids: Sequence[int], block_size: int) -> tuple[int, ...]:
    """Identity of each full block of tokens together with everything before it, as unsigned 64-bit integers.

    The chain is vLLM's (0.19 v1/core/kv_cache_utils.py hash_block_tokens: parent's hash, then the block's tokens), the
    hash is not: equality within a trace is all that is needed of it. 64 bits make a false match of two among a million
    blocks less likely than 1 in 10 million.
    """
    tokens = np.asarray(token_ids, dtype="<i8").tobytes()
    hashes: list[int] = []
    parent = b""
    for start in range(0, len(token_ids) // block_size * block_size * 8, block_size * 8):
        parent = hashlib.blake2b(parent + tokens[start : start + block_size * 8], digest_size=16).digest()
        hashes.append(int.from_bytes(parent[:8], "little"))
    return tuple(hashes)


def _workload_row(line: bytes, path: Path, number: int) -> _WorkloadRow | _SessionRow:
    if b'"sub_requests"' not in line:
        row = decode_json(line, _WorkloadRow, file=path, line=number)
        _check_ids(row, "", path, number)
        return row
    session = decode_json(line, _SessionRow, file=path, line=number)
    for i, call in enumerate(session.sub_requests):
        _check_ids(call, f"sub_requests[{i}].", path, number)
    return session


def _check_ids(row: _WorkloadRow | _Call, at: str, path: Path, number: int) -> None:
    """Raise InputError when there are not as many token ids as tokens."""
    for field, ids, count in (
        ("input_tok_ids", row.input_tok_ids, row.input_toks),
        ("output_tok_ids", row.output_tok_ids, row.output_toks),
    ):
        if ids is not None and len(ids) != count:
            accepted = f"{count} ids, as {field.replace('_tok_ids', '_toks')} says"
            raise InputError(file=path, line=number, field=at + field, found=f"{len(ids)} ids", accepted=accepted)


def _row_hashes(row: _WorkloadRow | _Call, block_size: int) -> tuple[int, ...] | None:
    """None without the prompt's ids; the answer's blocks are known only where its ids are."""
    if row.input_tok_ids is None:
        return None
    return chained_hashes(row.input_tok_ids + (row.output_tok_ids or []), block_size)


def _unread_fields(line: bytes) -> str:
    """Names of a line's fields that no reader looks at."""
    found = msgspec.json.decode(line)
    calls = found.get("sub_requests")
    kind: type[msgspec.Struct] = _WorkloadRow if calls is None else _SessionRow
    unread = set(found) - set(kind.__struct_fields__)
    unread |= {f"sub_requests.{name}" for call in calls or () for name in set(call) - set(_Call.__struct_fields__)}
    return ", ".join(sorted(unread))


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run that LLMServingSim's bench recorded."""
    return (folder / "requests.jsonl").is_file() and (folder / "meta.json").is_file()


@dataclass(frozen=True, slots=True)
class _Clock:
    """How the run's clocks become the capture's, in seconds.

    Two small steps in this order, because a float of wall-clock seconds is good to a quarter of a microsecond only.
    """

    wall_to_engine_s: float
    engine_zero_s: float

    def from_engine_s(self, time_s: float) -> float:
        return time_s - self.engine_zero_s

    def from_wall_s(self, time_s: float) -> float:
        return self.from_engine_s(time_s + self.wall_to_engine_s)


def read_run(folder: Path, trace: Trace | None = None) -> Capture:
    """Read a measured run.

    `queued_ts` is stamped when the engine drains its input queue, after the step in flight, so it is no arrival. True
    arrival by the engine's clock is `arrival_time + min(queued_ts - arrival_time)`: the quickest request tells how far
    the two clocks are apart, and its own way through the front end is counted as none.

    Args:
        folder: holds requests.jsonl, meta.json and, where it was recorded, timeseries.csv.
        trace: the workload that was sent; request bench-i is its request i. None: a trace is made from the run, with
            measured arrivals and no prefix identity.

    Raises:
        InputError: with file, line and field; also when the run's requests are not the trace's.
    """
    meta_data, requests_data = read_bytes(folder / "meta.json"), read_bytes(folder / "requests.jsonl")
    meta = decode_json(meta_data, RunMeta, file=folder / "meta.json")
    rows, line_of = _run_rows(requests_data, folder / "requests.jsonl", meta)
    clock = _clock(rows, 0.0 if trace is None else trace.rows[0].arrival_s)
    outcomes = [_outcome(row, clock, meta) for row in rows]
    provenance: dict[str, str | None] = {"meta.json": sha256(meta_data), "requests.jsonl": sha256(requests_data)}
    series, notes = _read_series(folder / "timeseries.csv", meta, clock)
    if (folder / "timeseries.csv").exists():
        provenance["timeseries.csv"] = sha256(read_bytes(folder / "timeseries.csv"))
    recorded = None if meta.dataset_hash is None else f"sha256:{meta.dataset_hash}"
    if trace is None:
        trace = _trace_of(outcomes, folder / "requests.jsonl", sha256(requests_data))
    else:
        trace = _as_sent(trace, meta.num_requests, notes)
        _check_same(rows, line_of, trace, folder / "requests.jsonl")
        provenance["trace"] = trace.sha256
        if recorded not in (None, trace.sha256):
            notes.append("the trace's digest is not the dataset_hash that the run recorded")
    provenance["dataset_hash"] = recorded
    position = {row.request_id: index for index, row in enumerate(trace.rows)}
    outcomes.sort(key=lambda outcome: position[outcome.request_id])
    return Capture(_capture_meta(meta, clock, notes, provenance), trace, tuple(outcomes), None, series)


def _clock(rows: Sequence[_RunRow], first_arrival_s: float) -> _Clock:
    offset_s = min(row.queued_ts - row.arrival_time for row in rows)
    return _Clock(offset_s, min(row.arrival_time for row in rows) + offset_s - first_arrival_s)


def _run_rows(data: bytes, path: Path, meta: RunMeta) -> tuple[list[_RunRow], list[int]]:
    numbered = list(lines(data))
    rows = [decode_json(line, _RunRow, file=path, line=number) for number, line in numbered]
    if not rows:
        raise InputError("holds no requests", file=path, accepted="at least one request")
    if meta.num_requests is not None and meta.num_requests != len(rows):
        accepted = f"{meta.num_requests}, as num_requests of meta.json says"
        raise InputError(file=path, found=f"{len(rows)} requests", accepted=accepted)
    seen: set[str] = set()
    for row, (line, _) in zip(rows, numbered, strict=True):
        if row.request_id in seen:
            accepted = "an id that no earlier row has"
            raise InputError(file=path, line=line, field="request_id", found=row.request_id, accepted=accepted)
        seen.add(row.request_id)
        stamps = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
        for before, field in pairwise(stamps):
            if (found := getattr(row, field)) < getattr(row, before):
                accepted = f"at least {before}, {getattr(row, before)}"
                raise InputError(file=path, line=line, field=field, found=found, accepted=accepted)
    return rows, [line for line, _ in numbered]


def _outcome(row: _RunRow, clock: _Clock, meta: RunMeta) -> Outcome:
    return Outcome(
        request_id=row.request_id.removeprefix("bench-"),
        status=Status.FINISHED,
        prompt_tokens=row.input_toks,
        output_tokens=row.output_toks,
        arrival_s=clock.from_wall_s(row.arrival_time),
        instance=0 if llmservingsim_meta.engine_options(meta).get("data_parallel_size") == 1 else None,
        queued_s=clock.from_engine_s(row.queued_ts),
        scheduled_s=clock.from_engine_s(row.scheduled_ts),
        first_token_s=clock.from_engine_s(row.first_token_ts),
        finish_s=clock.from_engine_s(row.last_token_ts),
    )


def _trace_of(outcomes: Sequence[Outcome], path: Path, digest: str) -> Trace:
    rows = [
        TraceRow(
            request_id=outcome.request_id,
            arrival_s=outcome.arrival_s,
            prompt_tokens=outcome.prompt_tokens,
            output_tokens=outcome.output_tokens,
        )
        for outcome in sorted(outcomes, key=lambda outcome: outcome.arrival_s)
    ]
    note = "made from the run itself: arrivals are the measured ones, prefix identity is unknown"
    return Trace(tuple(rows), None, str(path), digest, (note,))


def _as_sent(trace: Trace, n_requests: int | None, notes: list[str]) -> Trace:
    """The part of a workload that was sent: the bench can be told to stop after its first requests (`--num-reqs`)."""
    if n_requests is None:
        return trace
    first = {str(number) for number in range(n_requests)}
    kept = tuple(row for row in trace.rows if row.request_id in first)
    if len(kept) < n_requests or n_requests == len(trace):
        return trace
    notes.append(f"the run is of the first {n_requests} requests of the {len(trace)} of {trace.source}")
    return replace(trace, rows=kept)


def _check_same(rows: Sequence[_RunRow], line_of: Sequence[int], trace: Trace, path: Path) -> None:
    """Raise InputError unless the run served exactly the trace's requests."""
    wanted = {row.request_id: row for row in trace.rows}
    for row, line in zip(rows, line_of, strict=True):
        sent = wanted.pop(row.request_id.removeprefix("bench-"), None)
        if sent is None:
            accepted = f"one of the {len(trace)} requests of {trace.source}"
            raise InputError(file=path, line=line, field="request_id", found=row.request_id, accepted=accepted)
        for field, found, expected in (
            ("input_toks", row.input_toks, sent.prompt_tokens),
            ("output_toks", row.output_toks, sent.output_tokens),
        ):
            if found != expected:
                accepted = f"{expected}, as in {trace.source}"
                raise InputError(file=path, line=line, field=field, found=found, accepted=accepted)
    if wanted:
        message = f"lacks {len(wanted)} of the {len(trace)} requests of {trace.source}, first {next(iter(wanted))!r}"
        raise InputError(message, file=path)


def _capture_meta(meta: RunMeta, clock: _Clock, notes: Sequence[str], provenance: dict[str, str | None]) -> CaptureMeta:
    version = llmservingsim_meta.version(meta)
    return CaptureMeta(
        kind="measured",
        engine=None if version is None else f"vllm {version}",
        model=meta.model,
        device=llmservingsim_meta.device(meta),
        engine_options=llmservingsim_meta.engine_options(meta),
        num_gpu_blocks=llmservingsim_meta.num_gpu_blocks(meta),
        clock=(
            "second 0 is the first true arrival less the trace's first arrival; engine times are monotonic, arrivals "
            f"wall clock plus {clock.wall_to_engine_s:.6f} s, the least of queued_ts - arrival_time"
        ),
        recorded_at=meta.started_at,
        notes=("every request finished: the bench records no others", *llmservingsim_meta.notes(meta), *notes),
        provenance=provenance,
    )


_SERIES = {
    "prompt_throughput": "prompt_tokens_per_s",
    "gen_throughput": "output_tokens_per_s",
    "running": "n_running",
    "waiting": "n_waiting",
    "kv_cache_pct": "kv_usage",
}


def _read_series(path: Path, meta: RunMeta, clock: _Clock) -> tuple[dict[str, Series], list[str]]:
    """The series that were measured, on the capture's clock, and what was assumed or left out."""
    if not path.exists():
        return {}, ["no timeseries.csv: no series were recorded"]
    if meta.started_at is None:
        return {}, ["timeseries.csv was left out: meta.json does not say when its recorder started (started_at)"]
    started_s = clock.from_wall_s(_instant_s(meta.started_at, path.with_name("meta.json")))
    columns = read_columns(path, ("t", *_SERIES))
    if not len(columns["t"]):
        return {}, ["timeseries.csv has no rows: no series were recorded"]
    series = {name: Series(columns["t"] + started_s, columns[column]) for column, name in _SERIES.items()}
    notes = [f"timeseries.csv: its t is taken as seconds since started_at of meta.json, here {started_s:.3f} s"]
    if np.any(columns["kv_cache_pct"]):
        series["kv_usage"] = replace(series["kv_usage"], value=columns["kv_cache_pct"] / 100)
        notes.append("timeseries.csv: kv_cache_pct is taken as percent")
    else:
        del series["kv_usage"]
        notes.append("timeseries.csv: kv_cache_pct is 0 throughout, so KV use counts as not measured")
    return series, notes


def _instant_s(text: str, file: Path) -> float:
    """Seconds since 1970 of an ISO 8601 instant; one without a zone would mean another instant on every machine."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = datetime.min
    if instant.tzinfo is None:
        accepted = "an ISO 8601 date and time with its zone"
        raise InputError(file=file, field="started_at", found=text, accepted=accepted)
    return instant.timestamp()
