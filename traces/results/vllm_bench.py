"""What `vllm bench serve --save-result --save-detailed` writes: one JSON object, arrays with an entry per request.

Read are input_lens, output_lens, start_times (s of a clock of its own), ttfts (s), itls (s, gaps between pieces) and,
where they are there, latencies (s) and errors (vLLM 0.32 benchmarks/serve.py). Its TPOT is ours: (latency - ttft) /
(output_len - 1); requests of one token count with 0 there, and with none here.
"""

from __future__ import annotations

import re
from itertools import accumulate
from pathlib import Path

import msgspec

from traces.capture import Capture
from traces.decoding import decode_json, read_bytes, sha256
from traces.errors import InputError
from traces.outcome import Status
from traces.results.client_run import ClientRequest, ClientRun, Count, Seconds, capture_of, compare_means
from traces.trace import Trace

CLOSE_S = 1e-3
"""Two ends of a request are the same within it."""


class _Result(msgspec.Struct):
    input_lens: list[Count]
    output_lens: list[Count]
    ttfts: list[Seconds]
    itls: list[list[Seconds]]
    start_times: list[Seconds]
    latencies: list[Seconds] | None = None
    errors: list[str] | None = None
    date: str | None = None
    model_id: str | None = None
    backend: str | None = None
    request_rate: float | str | None = None
    max_concurrency: int | None = None
    mean_ttft_ms: Seconds | None = None
    mean_tpot_ms: Seconds | None = None


def read_vllm_bench(path: Path, trace: Trace | None = None) -> Capture:
    """Read a detailed result. `trace` is the workload, request i its row i. Raises InputError with the field."""
    data = read_bytes(path)
    _check_detailed(data, path)
    result = decode_json(data, _Result, file=path)
    n = len(result.input_lens)
    for name in ("output_lens", "ttfts", "itls", "start_times", "latencies", "errors"):
        values = getattr(result, name)
        if values is not None and len(values) != n:
            accepted = f"{n}, as input_lens has"
            raise InputError(file=path, field=name, found=f"{len(values)} entries", accepted=accepted)
    requests = [_request(result, i) for i in range(n)]
    limit = "as many at once as came" if result.max_concurrency is None else f"at most {result.max_concurrency} at once"
    notes = [f"sent at {result.request_rate} requests per second, {limit}"]
    notes += _compared(result, requests)
    run = ClientRun(
        path, sha256(data), "vllm bench serve", result.model_id or "not recorded", _date(result), tuple(notes)
    )
    return capture_of(run, requests, trace)


def _check_detailed(data: bytes, path: Path) -> None:
    """Raise InputError for a result that holds statistics alone."""
    keys = decode_json(data, dict[str, msgspec.Raw], file=path)
    for name in ("input_lens", "output_lens", "ttfts", "itls", "start_times"):
        if name not in keys:
            accepted = "a result of vllm bench serve with --save-detailed, of a version that keeps start_times"
            raise InputError("is missing", file=path, field=name, accepted=accepted)


def _request(result: _Result, i: int) -> ClientRequest:
    error = result.errors[i] if result.errors is not None else ""
    sent_s, ttft_s, gaps_s, tokens = result.start_times[i], result.ttfts[i], result.itls[i], result.output_lens[i]
    prompt_tokens, at = result.input_lens[i], f"[{i}]"
    if error or not tokens:
        return ClientRequest(
            str(i), Status.FAILED, prompt_tokens, tokens, sent_s, None, None, reason=error or "no tokens", at=at
        )
    first_s = sent_s + ttft_s
    pieces = tuple(accumulate(gaps_s, initial=first_s))
    return ClientRequest(str(i), Status.FINISHED, prompt_tokens, tokens, sent_s, first_s, pieces[-1], pieces, at=at)


def _compared(result: _Result, requests: list[ClientRequest]) -> list[str]:
    """Where the means that the tool states are not those of the times that it recorded."""
    done = [r for r in requests if r.status is Status.FINISHED]
    if not done:
        return []
    ttft_s = [(r.first_token_s or 0.0) - r.sent_s for r in done]
    tpot_s = [
        ((r.finish_s or 0.0) - (r.first_token_s or 0.0)) / (r.output_tokens - 1) for r in done if r.output_tokens > 1
    ]
    said = []
    if result.latencies is not None:
        latency_s = [(r.finish_s or 0.0) - r.sent_s for r in done]
        stated = [result.latencies[int(r.request_id)] for r in done]
        if late := sum(abs(a - b) > CLOSE_S for a, b in zip(latency_s, stated, strict=True)):
            said.append(f"{late} latencies are not ttfts and itls together: the end is the last piece's")
    for name, ours, stated_ms in (("TTFT", ttft_s, result.mean_ttft_ms), ("TPOT", tpot_s, result.mean_tpot_ms)):
        if stated_ms is not None and ours:
            said += compare_means("vllm bench serve", ours, [stated_ms / 1e3] * len(ours), name)
    return said


def _date(result: _Result) -> str | None:
    """`20260102-030405` as an ISO date."""
    match = re.fullmatch(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)", result.date or "")
    return None if match is None else "{}-{}-{}T{}:{}:{}".format(*match.groups())
