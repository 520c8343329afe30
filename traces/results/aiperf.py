"""What AIPerf (once GenAI-Perf) writes as profile_export.jsonl: a line per request with metadata, metrics and error.

Read are metadata.request_start_ns (Unix nanoseconds), time_to_first_token and request_latency in the unit that each
states, input_sequence_length and output_sequence_length (reasoning tokens included). Its inter_token_latency is our
TPOT. Warm-up is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from traces.capture import Capture
from traces.decoding import decode_json, lines, read_bytes, sha256
from traces.errors import InputError
from traces.outcome import Status
from traces.results.client_run import ClientRequest, ClientRun, capture_of, compare_means
from traces.trace import Trace

UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}
"""Seconds of each."""

Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Metric(msgspec.Struct):
    value: float | list[float]
    unit: str = ""


class _Metadata(msgspec.Struct):
    request_start_ns: Nanoseconds
    request_end_ns: Nanoseconds | None = None
    session_num: int | None = None
    x_request_id: str | None = None
    conversation_id: str | None = None
    benchmark_phase: str | None = None
    was_cancelled: bool = False


class _Record(msgspec.Struct):
    metadata: _Metadata
    metrics: dict[str, _Metric] = {}
    error: dict[str, Any] | None = None


def read_aiperf(path: Path, trace: Trace | None = None) -> Capture:
    """Read profile_export.jsonl. Raises InputError with file, line and field."""
    if trace is not None:
        raise InputError("does not say which request is which row", file=path, accepted="no --trace beside it")
    data = read_bytes(path)
    requests: list[ClientRequest] = []
    ours: list[float] = []
    theirs: list[float | None] = []
    warm_up = 0
    origin_ns: int | None = None
    for line, text in lines(data):
        record = decode_json(text, _Record, file=path, line=line)
        if (record.metadata.benchmark_phase or "profiling").lower().startswith("warm"):
            warm_up += 1
            continue
        origin_ns = record.metadata.request_start_ns if origin_ns is None else origin_ns
        request = _request(record, origin_ns, path, line, len(requests))
        requests.append(request)
        if request.first_token_s is not None and request.finish_s is not None and request.output_tokens > 1:
            ours.append((request.finish_s - request.first_token_s) / (request.output_tokens - 1))
            theirs.append(_seconds(record, "inter_token_latency", path, line))
    notes = [f"{warm_up} warm-up requests were left out"] if warm_up else []
    notes += compare_means("aiperf", ours, theirs, "inter-token latency, our TPOT,")
    run = ClientRun(path, sha256(data), "aiperf", "not recorded", None, tuple(notes))
    return capture_of(run, requests)


def _request(record: _Record, origin_ns: int, path: Path, line: int, number: int) -> ClientRequest:
    meta = record.metadata
    sent_s = (meta.request_start_ns - origin_ns) / 1e9
    status = Status.ABORTED if meta.was_cancelled else Status.FAILED if record.error is not None else Status.FINISHED
    ttft_s = _seconds(record, "time_to_first_token", path, line)
    latency_s = _seconds(record, "request_latency", path, line)
    prompt_tokens = _count(record, "input_sequence_length", path, line)
    output_tokens = _count(record, "output_sequence_length", path, line)
    if status is Status.FINISHED:
        needed = {"request_latency": latency_s, "output_sequence_length": output_tokens}
        for name, value in {**needed, "input_sequence_length": prompt_tokens}.items():
            if value is None:
                raise InputError("is missing", file=path, line=line, field=f"metrics.{name}")
    return ClientRequest(
        request_id=meta.x_request_id or str(number),
        status=status,
        prompt_tokens=prompt_tokens or 0,
        output_tokens=output_tokens or 0,
        sent_s=sent_s,
        first_token_s=None if ttft_s is None else sent_s + ttft_s,
        finish_s=None if latency_s is None else sent_s + latency_s,
        reason=None if record.error is None else str(record.error.get("type") or record.error.get("code") or "error"),
        session_id=meta.conversation_id,
        line=line,
    )


def _seconds(record: _Record, name: str, path: Path, line: int) -> float | None:
    metric = record.metrics.get(name)
    if metric is None:
        return None
    if metric.unit not in UNITS:
        accepted = f"one of {', '.join(UNITS)}"
        raise InputError(file=path, line=line, field=f"metrics.{name}.unit", found=metric.unit, accepted=accepted)
    if isinstance(metric.value, list) or not 0 <= metric.value <= 1e15:
        accepted = "a number, not negative"
        raise InputError(file=path, line=line, field=f"metrics.{name}.value", found=metric.value, accepted=accepted)
    return metric.value * UNITS[metric.unit]


def _count(record: _Record, name: str, path: Path, line: int) -> int | None:
    metric = record.metrics.get(name)
    if metric is None:
        return None
    value = metric.value
    if isinstance(value, list) or not 0 <= value <= 2**53 or value != int(value):
        accepted = "a count of tokens"
        raise InputError(file=path, line=line, field=f"metrics.{name}.value", found=value, accepted=accepted)
    return int(value)
