"""Client and engine, joined by hand-made records: one clock, one id, and every disagreement said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from collectors.client.request import ClientRecord
from collectors.engine.step_file import Recording, read_recordings, sizes
from collectors.recording.join import Subject
from tests.collectors.recording.joined import joined
from traces.capture import Capture, read_capture, write_capture
from traces.errors import InputError
from traces.outcome import Status
from traces.trace import Trace, TraceRow

START_S = 1000.0
"""Second 0 of the trace on the monotonic clock."""
WALL_MINUS_MONOTONIC_S = 5_000_000.0
HASH = 2**64 - 1
SUBJECT = Subject("model", "device", "2026-01-01", ("a note",))


def _ns(time_s: float) -> int:
    """Nanoseconds of the monotonic clock at a second of the trace."""
    return round((START_S + time_s) * 1e9)


def _header() -> dict[str, Any]:
    options = {"block_size": 4, "enable_prefix_caching": True, "cudagraph_capture_sizes": None}
    wall_ns = _ns(-50.0) + round(WALL_MINUS_MONOTONIC_S * 1e9)
    clocks = {"wall_ns": wall_ns, "monotonic_ns": _ns(-50.0)}
    return {"kind": "header", "vllm_version": "0.32.0", "num_gpu_blocks": 64, "options": options, **clocks}


def _request(request_id: str, arrival_s: float, **changes: Any) -> dict[str, Any]:
    """A request of 9 prompt tokens that is scheduled 10 ms after it came and has 2 tokens, 20 and 30 ms after that."""
    record = {
        "kind": "request",
        "id": f"cmpl-{request_id}-0-0123abcd",
        "arrival_wall_s": START_S + arrival_s + WALL_MINUS_MONOTONIC_S,
        "queued_ns": _ns(arrival_s + 0.005),
        "scheduled_ns": _ns(arrival_s + 0.01),
        "first_token_ns": _ns(arrival_s + 0.03),
        "last_token_ns": _ns(arrival_s + 0.04),
        "end_ns": _ns(arrival_s + 0.041),
        "prompt_tokens": 9,
        "max_tokens": 2,
        "output_tokens": 2,
        "cached_tokens": 4,
        "num_preemptions": 1,
        "reason": "length",
        "block_hashes": [7, HASH],
    }
    return {**record, **changes}


def _step(index: int, begin_s: float, output_s: float, batch: list[tuple[str, int, int]], **changes: Any) -> Any:
    """A step of (request, new tokens, computed tokens); each request brings a token unless `tokens` says otherwise."""
    ids = {request_id: f"cmpl-{request_id}-0-0123abcd" for request_id, _, _ in batch}
    record = {
        "kind": "step",
        "index": index,
        "schedule_begin_ns": _ns(begin_s),
        "schedule_end_ns": _ns(begin_s + 0.001),
        "output_ns": _ns(output_s),
        "update_end_ns": _ns(output_s + 0.001),
        "requests": [[ids[request_id], new, computed] for request_id, new, computed in batch],
        "tokens": [[engine_id, 1] for engine_id in ids.values()],
        "preempted": [],
        "n_running": len(batch),
        "n_waiting": 3,
        "kv_blocks": 5,
    }
    return {**record, **changes}


def _recording(tmp_path: Path, *records: dict[str, Any], cut: str = "") -> tuple[Recording, ...]:
    file = tmp_path / "steps.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records) + cut)
    return read_recordings(file)


def _trace(*rows: tuple[str, float]) -> Trace:
    made = [TraceRow(request_id=name, arrival_s=at, prompt_tokens=9, output_tokens=2) for name, at in rows]
    return Trace(tuple(made), None, "test", "sha256:0")


def _client(request_id: str, due_s: float, **changes: Any) -> ClientRecord:
    due_s += START_S
    seen = {"sent_s": due_s + 0.001, "token_times_s": [due_s + 0.032, due_s + 0.042]}
    counts = {"prompt_tokens": 9, "output_tokens": 2, "status": 200}
    return ClientRecord(request_id, due_s, **{**seen, **counts, **changes})


def _one(tmp_path: Path, client: ClientRecord | None = None, **changes: Any) -> Capture:
    """One request, `a`, due at 0.5 s, that reached the front end 2 ms later."""
    steps = [_step(0, 0.512, 0.532, [("a", 5, 4)]), _step(1, 0.533, 0.542, [("a", 1, 9)])]
    recording = _recording(tmp_path, _header(), *steps, _request("a", 0.502, **changes))
    return joined(_trace(("a", 0.5)), [client or _client("a", 0.5)], recording, SUBJECT)


def test_parallelism_that_engines_do_not_share_is_kept_of_none(tmp_path: Path) -> None:
    both = []
    for name, size in (("prefill", 2), ("decode", 4)):
        (tmp_path / name).mkdir()
        options = {"tensor_parallel_size": size, "pipeline_parallel_size": 2, "block_size": 4}
        both += _recording(tmp_path / name, {**_header(), "options": options}, _request("a", 0.502))
    alike = joined(_trace(("a", 0.5)), [_client("a", 0.5)], (both[0],), SUBJECT).meta
    assert alike.engine_options["tensor_parallel_size"] == 2
    unlike = joined(_trace(("a", 0.5)), [_client("a", 0.5)], tuple(both), SUBJECT).meta
    assert unlike.engine_options == {"pipeline_parallel_size": 2, "block_size": 4}
    assert "the engines differ in tensor_parallel_size: none is kept of them" in unlike.notes


@pytest.mark.parametrize(("indices", "kept"), [((0, 1), {"data_parallel_size": 2}), ((0, 0), {}), ((None, None), {})])
def test_ranks_of_one_server_are_told_from_two_servers(
    tmp_path: Path, indices: tuple[int | None, ...], kept: dict[str, int]
) -> None:
    ranks = []
    for number, index in enumerate(indices):
        (tmp_path / str(number)).mkdir()
        header = {**_header(), "options": {}, "engine": {"data_parallel_index": index}}
        ranks += _recording(tmp_path / str(number), header, _request("a", 0.502))
    assert joined(_trace(("a", 0.5)), [_client("a", 0.5)], tuple(ranks), SUBJECT).meta.engine_options == kept


def test_the_trace_of_a_capture_is_what_was_served(tmp_path: Path) -> None:
    """Rows carry the true arrival and the engine's own hashes, and survive the folder."""
    capture = _one(tmp_path)
    write_capture(capture, tmp_path / "capture")
    for trace in (capture.trace, read_capture(tmp_path / "capture").trace):
        assert trace.hash_block_size == 4
        assert trace.rows[0].block_hashes == (7, HASH)
        assert trace.rows[0].arrival_s == pytest.approx(0.502, abs=1e-6)


def test_steps_have_the_requests_of_the_trace_and_the_batch_as_it_was(tmp_path: Path) -> None:
    """A step that the warm-up had to itself is left out; where it was one of two, it still counts."""
    recording = _recording(
        tmp_path,
        _header(),
        _step(0, -0.2, -0.1, [("warm-up-1", 9, 0)]),
        _step(1, 0.51, 0.53, [("warm-up-1", 1, 9), ("a", 5, 4)], preempted=["x"]),
        _request("warm-up-1", -0.3),
        _request("a", 0.502),
    )
    capture = joined(_trace(("a", 0.5)), [_client("a", 0.5)], recording, SUBJECT)
    assert [outcome.request_id for outcome in capture.outcomes] == ["a"]
    steps = capture.steps
    assert steps is not None
    assert len(steps) == 1
    step = steps[0]
    assert (step.scheduled_s, step.end_s) == pytest.approx((0.51, 0.53), abs=1e-6)
    assert (step.n_requests, step.n_prefill_tokens, step.n_decode_tokens) == (2, 5, 1)
    assert (step.n_preempted, step.n_running, step.n_waiting, step.kv_blocks) == (1, 2, 3, 5)
    assert steps.batches is not None
    assert steps.batches.offsets.tolist() == [0, 1]
    assert (steps.batches.new_tokens.tolist(), steps.batches.computed_tokens.tolist()) == ([5], [4])


def test_one_token_of_an_unfinished_prompt_is_prefill(tmp_path: Path) -> None:
    """`Steps`: a decode computes one token *to produce the next*; the token budget can leave a prompt just one."""
    recording = _recording(
        tmp_path,
        _header(),
        _step(0, 0.51, 0.52, [("a", 1, 4)], tokens=[]),
        _step(1, 0.52, 0.53, [("a", 3, 5)], tokens=[]),
        _step(2, 0.53, 0.54, [("a", 1, 8)]),
        _request("a", 0.502),
    )
    steps = joined(_trace(("a", 0.5)), [_client("a", 0.5)], recording, SUBJECT).steps
    assert steps is not None
    assert steps.n_prefill_tokens.tolist() == [1, 3, 0]
    assert steps.n_decode_tokens.tolist() == [0, 0, 1]


def test_outcomes_stand_in_order_of_arrival_and_batches_point_at_them(tmp_path: Path) -> None:
    """The front end may receive in another order than was sent."""
    step = _step(0, 0.6, 0.7, [("a", 9, 0), ("b", 8, 1)])
    recording = _recording(tmp_path, _header(), step, _request("a", 0.51), _request("b", 0.505))
    trace = _trace(("a", 0.5), ("b", 0.501))
    capture = joined(trace, [_client("a", 0.5), _client("b", 0.501)], recording, SUBJECT)
    assert [outcome.request_id for outcome in capture.outcomes] == ["b", "a"]
    assert [row.request_id for row in capture.trace.rows] == ["b", "a"]
    assert capture.steps is not None
    assert capture.steps.batches is not None
    assert capture.steps.batches.request.tolist() == [1, 0]


def test_a_request_that_the_engine_ended_early_is_aborted(tmp_path: Path) -> None:
    capture = _one(tmp_path, _client("a", 0.5, output_tokens=None, error="stalled"), output_tokens=1, reason="abort")
    (outcome,) = capture.outcomes
    assert (outcome.status, outcome.reason, outcome.output_tokens) == (Status.ABORTED, "stalled", 1)
    assert capture.meta.reasons == ("1 requests failed at the client, the first with: stalled",)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(429, Status.REJECTED), (400, Status.REJECTED), (500, Status.FAILED), (None, Status.FAILED)],
)
def test_a_request_that_never_reached_the_engine_is_rejected_or_failed(
    tmp_path: Path, status: int | None, expected: Status
) -> None:
    nothing = {"token_times_s": [], "prompt_tokens": None, "output_tokens": None}
    recording = _recording(tmp_path, _header(), _step(0, 0.51, 0.53, [("a", 9, 0)]), _request("a", 0.502))
    records = [_client("a", 0.5), _client("b", 0.6, status=status, error="no", **nothing)]
    capture = joined(_trace(("a", 0.5), ("b", 0.6)), records, recording, SUBJECT)
    outcome = capture.outcomes[1]
    assert (outcome.status, outcome.reason, outcome.output_tokens) == (expected, "no", 0)
    assert outcome.prompt_tokens == 9
    assert outcome.scheduled_s is outcome.finish_s is outcome.cached_tokens is outcome.token_times_s is None
    assert capture.meta.reasons[0] == "1 requests are not in the engine's record, the first is b"


def test_an_id_given_twice_names_the_first_request_that_had_it(tmp_path: Path) -> None:
    again = "cmpl-a-0-89abcdef"
    (recording,) = _recording(tmp_path, _header(), _request("a", 0.5), _request("a", 9.5, id=again))
    assert set(recording.requests) == {"a", again}
    assert recording.requests["a"].arrival_wall_s < recording.requests[again].arrival_wall_s


def test_what_was_written_before_is_not_read(tmp_path: Path) -> None:
    """A second replay against one server meets the ids of the first; the header stands before both."""
    _recording(tmp_path, _header(), _step(0, 0.1, 0.2, [("a", 9, 0)]), _request("a", 0.5))
    file = tmp_path / "steps.jsonl"
    before = sizes(file)
    assert before == {str(file): file.stat().st_size}
    with file.open("a") as stream:
        stream.write(json.dumps(_request("a", 9.5)) + "\n")
    (recording,) = read_recordings(file, before)
    assert recording.steps == []
    assert recording.requests["a"].queued_ns == _ns(9.505)


def test_every_data_parallel_rank_is_an_instance(tmp_path: Path) -> None:
    """Each rank writes a file of its own and counts its own steps."""
    one, two = _recording(tmp_path, _header(), _step(0, 0.1, 0.2, [("a", 9, 0)]), _request("a", 0.1)), []
    rank_1 = [_header(), _step(0, 0.1, 0.15, [("b", 9, 0)]), _request("b", 0.1)]
    (tmp_path / "steps.jsonl.1").write_text("".join(json.dumps(record) + "\n" for record in rank_1))
    (tmp_path / "steps.jsonl.old").write_text("not a rank")
    two = read_recordings(tmp_path / "steps.jsonl")
    assert (len(one), len(two)) == (1, 2)
    capture = joined(_trace(("a", 0.1), ("b", 0.1)), [_client("a", 0.1), _client("b", 0.1)], two, SUBJECT)
    assert [outcome.instance for outcome in capture.outcomes] == [0, 1]
    assert capture.steps is not None
    assert capture.steps.instance.tolist() == [1, 0]


def test_a_line_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"steps\.jsonl:2: field 'kind': found 'poem'"):
        _recording(tmp_path, _header(), {"kind": "poem"})
