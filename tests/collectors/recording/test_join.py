"""Two records of the same requests become one capture, or say why they do not agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collectors.client.request import ClientRecord
from collectors.engine.step_file import read_recordings
from collectors.recording.join import Subject
from tests.collectors.recording.joined import joined
from traces.capture import Capture
from traces.errors import CollectorError
from traces.outcome import Status
from traces.trace import Trace, TraceRow

S = 10**9
HEADER = {
    "kind": "header",
    "vllm_version": "0.32.0",
    "wall_ns": 1_000_100 * S,
    "monotonic_ns": 100 * S,
    "num_gpu_blocks": 65,
    "options": {"block_size": 16, "enable_prefix_caching": True, "max_num_seqs": 8, "cudagraph_capture_sizes": None},
}


def engine_id(request_id: str) -> str:
    return f"cmpl-{request_id}-0-905b4b46"


def step(index: int, begin_s: float, end_s: float, requests: list[tuple[str, int, int]], tokens: list[str]) -> dict:
    return {
        "kind": "step",
        "index": index,
        "schedule_begin_ns": int(begin_s * S),
        "schedule_end_ns": int(begin_s * S) + 1,
        "output_ns": int(end_s * S),
        "update_end_ns": int(end_s * S) + 1,
        "requests": [[engine_id(rid), n, done] for rid, n, done in requests],
        "tokens": [[engine_id(rid), 1] for rid in tokens],
        "preempted": [],
        "n_running": len(requests),
        "n_waiting": 0,
        "kv_blocks": 3,
    }


def request(request_id: str, queued_s: float, first_s: float, last_s: float, output_tokens: int = 2) -> dict:
    return {
        "kind": "request",
        "id": engine_id(request_id),
        "arrival_wall_s": 1_000_000 + queued_s - 0.25,
        "queued_ns": int(queued_s * S),
        "scheduled_ns": int(queued_s * S),
        "first_token_ns": int(first_s * S),
        "last_token_ns": int(last_s * S),
        "end_ns": int(last_s * S),
        "prompt_tokens": 20,
        "max_tokens": 2,
        "output_tokens": output_tokens,
        "num_preemptions": 0,
        "cached_tokens": 16,
        "block_hashes": [7],
        "reason": "length",
    }


def recording(tmp_path: Path, *lines: dict) -> Path:
    file = tmp_path / "steps.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def captured(file: Path, *, seen_tokens: int = 2) -> Capture:
    """The trace of one request, due at 111 s of the monotonic clock, which is second 1 of the trace."""
    record = ClientRecord("a", 111.0, 111.01, [112.1, 112.6], prompt_tokens=20, output_tokens=seen_tokens, status=200)
    subject = Subject("model", "device", "2026-11-21")
    row = TraceRow(request_id="a", arrival_s=1.0, prompt_tokens=20, output_tokens=2)
    return joined(Trace((row,), None, "test", "sha256:0"), [record], read_recordings(file), subject)


def whole(tmp_path: Path) -> Path:
    return recording(
        tmp_path,
        HEADER,
        step(0, 105.0, 105.5, [("warmup-0", 5, 0)], ["warmup-0"]),
        step(1, 111.5, 112.0, [("a", 4, 16)], ["a"]),
        step(2, 112.0, 112.5, [("a", 1, 20)], ["a"]),
        request("a", 111.5, 112.0, 112.5),
    )


def test_clocks_and_ids_are_joined(tmp_path: Path) -> None:
    capture = captured(whole(tmp_path))
    (outcome,) = capture.outcomes
    assert capture.meta.reasons == ()
    assert outcome.status is Status.FINISHED
    assert outcome.arrival_s == pytest.approx(1.25)
    assert (outcome.sent_s, outcome.queued_s) == (pytest.approx(1.01), pytest.approx(1.5))
    assert outcome.token_times_s == (pytest.approx(2.0), pytest.approx(2.5))
    assert (outcome.client_first_token_s, outcome.client_finish_s) == (pytest.approx(2.1), pytest.approx(2.6))
    assert capture.trace.rows[0].block_hashes == (7,)
    assert capture.trace.rows[0].arrival_s == pytest.approx(1.25)
    assert capture.trace.hash_block_size == 16
    assert "cudagraph_capture_sizes" not in capture.meta.engine_options


def test_steps_of_the_warm_up_are_left_out(tmp_path: Path) -> None:
    steps = captured(whole(tmp_path)).steps
    assert steps is not None
    assert steps.n_prefill_tokens.tolist() == [4, 0]
    assert steps.n_decode_tokens.tolist() == [0, 1]
    assert steps.end_s.tolist() == [2.0, 2.5]
    assert steps.batches is not None
    assert steps.batches.computed_tokens.tolist() == [16, 20]


def test_a_disagreement_is_a_reason_not_to_score(tmp_path: Path) -> None:
    (reason,) = captured(whole(tmp_path), seen_tokens=1).meta.reasons
    assert "1 requests differ in tokens between client and engine, first a" in reason


def test_a_request_the_engine_has_no_record_of_is_a_reason(tmp_path: Path) -> None:
    capture = captured(recording(tmp_path, HEADER))
    assert capture.outcomes[0].scheduled_s is None
    assert "1 requests are not in the engine's record" in capture.meta.reasons[0]


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    file = whole(tmp_path)
    with file.open("a") as stream:
        stream.write('{"kind":"step","index":3,"sched')
    assert len(read_recordings(file)[0].steps) == 3


def test_a_file_without_a_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match="holds no header"):
        read_recordings(recording(tmp_path, request("a", 1, 2, 3)))
