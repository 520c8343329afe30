"""What the transfer recorder wrote becomes the transfers of a capture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from collectors.client.request import ClientRecord
from collectors.engine.step_file import read_recordings
from collectors.engine.transfer_file import read_transfers
from collectors.recording.join import Subject, Witnesses, join
from tests.collectors.recording.test_join import HEADER, S, engine_id, step
from traces.capture import Capture
from traces.errors import CollectorError, InputError
from traces.trace import Trace, TraceRow

HEAD = {"kind": "header", "schema": "servetwin.transfers/1", "vllm_version": "0.32.0", "wall_ns": 1, "monotonic_ns": 1}


def transfer(request_id: str, asked_s: float, **told: Any) -> dict[str, Any]:
    """A transfer asked for at that time, posted for 1 ms and found 10 ms later."""
    at = {name: int((asked_s + s) * S) for name, s in (("asked_ns", 0), ("posted_ns", 1e-3), ("found_ns", 10e-3))}
    sizes = {"n_blocks": 2, "n_bytes": 1000, "n_descriptors": 8, "transfer_s": 9e-3, "post_s": 5e-4}
    return {
        "kind": "transfer",
        "id": engine_id(request_id),
        **at,
        "under_way_ns": None,
        "failed": False,
        **sizes,
    } | told


def written(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def times_ms(path: Path, line: dict[str, Any]) -> list[float]:
    """Posted, last seen under way, and there, in ms from when it was asked for."""
    (found,) = read_transfers(written(path, HEAD, line)).transfers.values()
    return [round(1e3 * (time_s - 5.0), 6) for time_s in found.times_s()]


def test_the_end_of_a_transfer_lies_between_two_looks(tmp_path: Path) -> None:
    """NIXL's 9 ms end with the look that finds it over, 10 ms after it was asked for."""
    seen = transfer("a", 5.0, under_way_ns=int(5.004 * S))
    assert times_ms(tmp_path / "t.jsonl", seen) == [1.0, 4.0, 10.0]
    assert times_ms(tmp_path / "t.jsonl", transfer("a", 5.0)) == [1.0, 1.0, 10.0]


def test_one_that_was_over_once_it_was_posted_has_nixls_own_time(tmp_path: Path) -> None:
    assert times_ms(tmp_path / "t.jsonl", transfer("a", 5.0, transfer_s=5e-4)) == [0.0, 0.5, 0.5]


def test_where_nixl_says_nothing_it_was_posted_when_asked_for(tmp_path: Path) -> None:
    silent = transfer("a", 5.0, transfer_s=None, post_s=None)
    assert times_ms(tmp_path / "t.jsonl", silent) == [0.0, 0.0, 10.0]


def test_lines_of_before_are_skipped_and_a_cut_one_ends_it(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", HEAD, transfer("a", 1.0))
    before = path.stat().st_size
    path.write_text(path.read_text() + json.dumps(transfer("b", 2.0)) + '\n{"kind": "tran')
    assert set(read_transfers(path).transfers) == {"a", "b"}
    assert set(read_transfers(path, before).transfers) == {"b"}


def test_a_recorder_that_was_off_is_trouble(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", {"kind": "refused", "reason": "servetwin knows vLLM 0.30 to 0.33"})
    assert read_transfers(path).trouble == ("the transfer recorder was off: servetwin knows vLLM 0.30 to 0.33",)


def test_no_file_and_another_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match="no such file"):
        read_transfers(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="found 'step'"):
        read_transfers(written(tmp_path / "t.jsonl", HEAD, {"kind": "step"}))


def request(request_id: str, queued_s: float, first_s: float, last_s: float, output: int) -> dict[str, Any]:
    return {
        "kind": "request",
        "id": engine_id(request_id),
        "arrival_wall_s": 1_000_100 + queued_s - 100 - 0.25,
        "queued_ns": int(queued_s * S),
        "scheduled_ns": int(queued_s * S),
        "first_token_ns": int(first_s * S),
        "last_token_ns": int(last_s * S),
        "end_ns": int(last_s * S),
        "prompt_tokens": 64,
        "max_tokens": output,
        "output_tokens": output,
        "num_preemptions": 1,
        "reason": "length",
        "cached_tokens": 0 if output == 1 else 63,
    }


@pytest.fixture
def capture(tmp_path: Path) -> Capture:
    """One request: its prompt computed from 1 to 2 s of the capture by one engine, its answer by another."""
    written(tmp_path / "s.jsonl", HEADER, step(0, 101, 102, [("a", 64, 0)], ["a"]), request("a", 101, 102, 102, 1))
    written(
        tmp_path / "s.jsonl.1",
        HEADER,
        step(0, 103, 104, [("a", 1, 63)], ["a"]),
        step(1, 104, 105, [("a", 1, 64)], ["a"]),
        request("a", 102.5, 104, 105, 2),
    )
    sent = written(tmp_path / "t.jsonl", HEAD, transfer("a", 102.75), transfer("other", 102.75))
    trace = Trace((TraceRow(request_id="a", arrival_s=0.5, prompt_tokens=64, output_tokens=2),), None, "t", "sha256:0")
    record = ClientRecord("a", 100.5, sent_s=100.5, token_times_s=[104.5, 105.5], end_s=105.5, output_tokens=2)
    record.prompt_tokens = 64
    from collectors.client.log import ClientHistory

    witnesses = Witnesses(
        trace=trace,
        origin_s=100.0,
        client=ClientHistory(100.0, {"a": record}, (), 0.0),
        recordings=read_recordings(tmp_path / "s.jsonl"),
        transfers=read_transfers(sent),
    )
    return join(witnesses, Subject("m", "d", "2026-01-01"))


def test_a_request_begins_on_one_engine_and_ends_on_another(capture: Capture) -> None:
    assert capture.meta.reasons == ()
    (outcome,) = capture.outcomes
    assert (outcome.arrival_s, outcome.queued_s, outcome.scheduled_s) == pytest.approx((0.75, 1.0, 1.0))
    assert (outcome.first_token_s, outcome.finish_s) == pytest.approx((4.0, 5.0))
    assert outcome.token_times_s == pytest.approx((4.0, 5.0))
    assert (outcome.instance, outcome.output_tokens, outcome.cached_tokens) == (1, 2, 0)
    assert outcome.num_preemptions == 2
    assert capture.steps is not None
    assert capture.steps.instance.tolist() == [0, 1, 1]


def test_its_transfer_is_of_the_capture_and_others_are_not(capture: Capture) -> None:
    sent = capture.transfers
    assert sent is not None
    assert len(sent) == 1
    assert (sent.request[0], sent.source[0], sent.target[0], sent.n_bytes[0]) == (0, 0, 1, 1000)
    assert (sent.start_s[0], sent.end_s[0]) == pytest.approx((2.751, 2.76))
