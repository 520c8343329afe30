"""What inference-perf writes as per_request_lifecycle_metrics.json: a list with an entry per request.

Read are start_time and end_time (s of a clock of its own), the times of tokens, and the counts. The last token's time
is the end, where tokens were timed. Requests and answers themselves are not read. Its normalized time per output token
counts the first token in and is not taken over.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from traces.capture import Capture
from traces.decoding import decode_json, read_bytes, sha256
from traces.errors import InputError
from traces.outcome import Status
from traces.results.client_run import ClientRequest, ClientRun, Count, Seconds, capture_of
from traces.trace import Trace


class _Text(msgspec.Struct):
    input_tokens: Count | None = None


class _RequestMetrics(msgspec.Struct):
    text: _Text | None = None


class _ResponseMetrics(msgspec.Struct):
    output_tokens: Count = 0
    output_token_times: list[Seconds] = []


class _Info(msgspec.Struct):
    """`input_tokens` stands here in all versions; in older ones output_tokens and output_token_times do, too."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    output_token_times: list[Seconds] | None = None
    request_metrics: _RequestMetrics | None = None
    response_metrics: _ResponseMetrics | None = None


class _Error(msgspec.Struct):
    error_type: str = "error"


class _Record(msgspec.Struct):
    start_time: Seconds
    end_time: Seconds
    info: _Info
    error: _Error | None = None
    stage_id: int | None = None
    session_id: str | None = None


def read_inference_perf(path: Path, part: int | None = None, trace: Trace | None = None) -> Capture:
    """Read the requests, of one stage where `part` is its number. Raises InputError with the field."""
    if trace is not None:
        raise InputError("does not say which request is which row", file=path, accepted="no --trace beside it")
    data = read_bytes(path)
    records = decode_json(data, list[_Record], file=path)
    stages = sorted({record.stage_id for record in records if record.stage_id is not None})
    if part is not None and part not in stages:
        raise InputError(field="--part", found=part, accepted=f"one of the stages {', '.join(map(str, stages))}")
    chosen = [(i, record) for i, record in enumerate(records) if part is None or record.stage_id == part]
    requests = [_request(record, i, path) for i, record in chosen]
    notes = [f"stage {part} of {len(stages)}"] if part is not None else []
    if part is None and len(stages) > 1:
        notes.append(f"{len(stages)} stages of load, one after another")
    return capture_of(ClientRun(path, sha256(data), "inference-perf", "not recorded", None, tuple(notes)), requests)


def _request(record: _Record, i: int, path: Path) -> ClientRequest:
    info = record.info
    answer = info.response_metrics
    output_tokens = info.output_tokens if answer is None else answer.output_tokens
    times_s = info.output_token_times if answer is None else answer.output_token_times
    text = info.request_metrics.text if info.request_metrics is not None else None
    prompt_tokens = text.input_tokens if info.input_tokens is None and text is not None else info.input_tokens
    status = Status.FINISHED if record.error is None else Status.FAILED
    if status is Status.FINISHED and (prompt_tokens is None or output_tokens is None):
        field = f"[{i}].info.{'input' if prompt_tokens is None else 'output'}_tokens"
        raise InputError("is missing", file=path, field=field)
    return ClientRequest(
        request_id=str(i),
        status=status,
        prompt_tokens=prompt_tokens or 0,
        output_tokens=output_tokens or 0,
        sent_s=record.start_time,
        first_token_s=times_s[0] if times_s else None,
        finish_s=times_s[-1] if times_s else record.end_time,
        piece_times_s=tuple(times_s) if times_s else None,
        reason=None if record.error is None else record.error.error_type,
        session_id=record.session_id,
        at=f"[{i}]",
    )
