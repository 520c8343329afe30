"""A run of vLLM that LLMServingSim's bench recorded, a folder:

    requests.jsonl    one row per request; arrivals by the wall clock, everything else by the engine's monotonic clock
    timeseries.csv    throughput and queue lengths, one row per tick
    meta.json         the engine's arguments

The format is that of LLMServingSim's `bench/` as of its vLLM 0.19 support (2026).
"""

from __future__ import annotations

from collections.abc import Sequence
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
from traces.trace import Tokens, Trace, TraceRow


class _RunRow(msgspec.Struct):
    request_id: Annotated[str, msgspec.Meta(pattern=r"^bench-(0|[1-9]\d*)$")]
    input_toks: Tokens
    output_toks: Tokens
    arrival_time: float
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float


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
