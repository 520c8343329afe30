"""What GuideLLM writes as benchmarks.json (0.4 and later): benchmarks, each with its requests and their instants.

Read are `info.timings` (Unix seconds): request_start, first_token_iteration, last_token_iteration, request_end; and the
counts prompt_tokens, output_tokens, cached_tokens. Its inter_token_latency_ms is our TPOT; its
time_per_output_token_ms counts the first token in, (last token - start) / tokens, and is not taken over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from traces.capture import Capture
from traces.decoding import decode_json, read_bytes, sha256
from traces.errors import InputError
from traces.outcome import Status
from traces.results.client_run import ClientRequest, ClientRun, Count, Seconds, capture_of, compare_means
from traces.trace import Trace


class _Timings(msgspec.Struct):
    request_start: Seconds | None = None
    resolve_start: Seconds | None = None
    first_token_iteration: Seconds | None = None
    last_token_iteration: Seconds | None = None
    request_end: Seconds | None = None


class _Info(msgspec.Struct):
    timings: _Timings
    error: str | None = None
    conversation_id: str | None = None


class _Usage(msgspec.Struct):
    total_tokens: Count | None = None
    text_tokens: Count | None = None
    cached_tokens: Count | None = None


class _Request(msgspec.Struct):
    request_id: str
    info: _Info
    input_metrics: _Usage = msgspec.field(default_factory=_Usage)
    output_metrics: _Usage = msgspec.field(default_factory=_Usage)
    prompt_tokens: Count | None = None
    output_tokens: Count | None = None
    cached_tokens: Count | None = None
    inter_token_latency_ms: Seconds | None = None


class _Requests(msgspec.Struct):
    successful: list[_Request] = []
    incomplete: list[_Request] = []
    errored: list[_Request] = []


class _Benchmark(msgspec.Struct):
    requests: _Requests
    config: dict[str, Any] = {}


class _Report(msgspec.Struct):
    benchmarks: list[_Benchmark]


STATUSES = {"successful": Status.FINISHED, "incomplete": Status.ABORTED, "errored": Status.FAILED}


def read_guidellm(path: Path, part: int | None = None, trace: Trace | None = None) -> Capture:
    """Read one benchmark of a report, of several that number `part`, from 0. Raises InputError with the field."""
    if trace is not None:
        raise InputError("does not say which request is which row", file=path, accepted="no --trace beside it")
    data = read_bytes(path)
    report = decode_json(data, _Report, file=path)
    n = len(report.benchmarks)
    if part is None and n != 1:
        raise InputError(file=path, found=f"{n} benchmarks", accepted=f"--part with one of them, from 0 to {n - 1}")
    if part is not None and not 0 <= part < n:
        raise InputError(field="--part", found=part, accepted=f"0 to {n - 1}")
    chosen = report.benchmarks[part or 0]
    requests, stated = [], list[tuple[ClientRequest, float | None]]()
    for name, status in STATUSES.items():
        for i, request in enumerate(getattr(chosen.requests, name)):
            at = f"benchmarks[{part or 0}].requests.{name}[{i}]"
            requests.append(_client_request(request, status, at, path))
            stated.append((requests[-1], request.inter_token_latency_ms))
    notes = [f"benchmark {part or 0} of {n}"] if n > 1 else []
    notes += _compared(stated)
    run = ClientRun(path, sha256(data), "guidellm", _model(chosen), None, tuple(notes))
    return capture_of(run, requests)


def _client_request(request: _Request, status: Status, at: str, path: Path) -> ClientRequest:
    timings = request.info.timings
    sent_s = timings.resolve_start if timings.request_start is None else timings.request_start
    if sent_s is None:
        raise InputError("is missing", file=path, field=f"{at}.info.timings.request_start")
    prompt_tokens = _first(request.prompt_tokens, request.input_metrics.total_tokens, request.input_metrics.text_tokens)
    output = _first(request.output_tokens, request.output_metrics.total_tokens, request.output_metrics.text_tokens)
    if status is Status.FINISHED and (prompt_tokens is None or output is None):
        field = f"{at}.{'prompt' if prompt_tokens is None else 'output'}_tokens"
        raise InputError("is missing", file=path, field=field)
    return ClientRequest(
        request_id=request.request_id,
        status=status,
        prompt_tokens=prompt_tokens or 0,
        output_tokens=output or 0,
        sent_s=sent_s,
        first_token_s=timings.first_token_iteration,
        finish_s=_first(timings.last_token_iteration, timings.request_end),
        reason=request.info.error,
        cached_tokens=_first(request.cached_tokens, request.input_metrics.cached_tokens),
        session_id=request.info.conversation_id,
        at=at,
    )


def _compared(stated: list[tuple[ClientRequest, float | None]]) -> list[str]:
    ours, theirs = [], []
    for request, itl_ms in stated:
        first_s, last_s, n = request.first_token_s, request.finish_s, request.output_tokens
        if itl_ms is not None and first_s is not None and last_s is not None and n > 1:
            ours.append((last_s - first_s) / (n - 1))
            theirs.append(itl_ms / 1e3)
    return compare_means("guidellm", ours, theirs, "inter-token latency, our TPOT,")


def _model(benchmark: _Benchmark) -> str:
    """The model's name, which stands in different places in different versions."""
    found = benchmark.config.get("backend")
    name = found.get("model") if isinstance(found, dict) else benchmark.config.get("model")
    return name if isinstance(name, str) and name else "not recorded"


def _first(*values: Any) -> Any:
    """The first that is known."""
    return next((value for value in values if value is not None), None)
