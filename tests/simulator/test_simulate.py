"""Whole runs: closed forms, conservation, and the same bytes however they are computed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.simulate import simulate
from tests.engines import LinearStepTime, engine, trace
from traces.capture import Capture, write_capture
from traces.errors import InputError
from traces.outcome import Status
from traces.steps import STEP_COLUMNS
from traces.trace import Trace


def test_a_request_that_waits_for_anothers_end_arrives_after_it() -> None:
    rows = trace((0, 10, 2), (0, 10, 2)).rows
    first = msgspec.structs.replace(rows[0], session_id="a")
    waiting = msgspec.structs.replace(rows[1], session_id="a", delay_s=1.0)
    _, outcome = simulate(Trace((first, waiting), None, "test", "sha256:0"), engine()).capture.outcomes
    assert outcome.arrival_s == outcome.scheduled_s == pytest.approx(0.02 + 1.0)


def test_one_request_alone_has_a_closed_form() -> None:
    """A 100-token prompt in chunks of 64 takes two steps, each further token one."""
    run = simulate(trace((0.5, 100, 10)), engine(max_num_batched_tokens=64))
    (outcome,) = run.capture.outcomes
    assert outcome.scheduled_s == 0.5
    assert outcome.first_token_s == pytest.approx(0.5 + 2 * 0.01)
    assert outcome.finish_s == pytest.approx(0.5 + 2 * 0.01 + 9 * 0.01)
    assert run.n_steps == 11


def test_decode_history_is_priced_as_it_grows() -> None:
    """Tokens 2..10 read 100, 101, .. 108 tokens of history."""
    run = simulate(trace((0.0, 100, 10)), engine(LinearStepTime(step_s=0.0, kv_token_s=1.0)))
    assert run.capture.outcomes[0].finish_s == pytest.approx(sum(range(100, 109)))


def test_a_full_engine_serves_at_its_step_rate() -> None:
    """64 seats, 10 ms a step: 6,400 tokens a second, whatever the queue."""
    rows = [(0.0, 1, 51)] * 640
    run = simulate(trace(*rows), engine(max_num_batched_tokens=64))
    assert run.capture.steps is not None
    last_s = max(outcome.finish_s or 0.0 for outcome in run.capture.outcomes)
    assert 640 * 51 / last_s == pytest.approx(6400)


def test_an_arrival_waits_for_the_step_in_flight() -> None:
    late = trace((0.0, 10, 100), (0.0155, 10, 5))
    synchronous = simulate(late, engine()).capture.outcomes[1]
    assert synchronous.first_token_s == pytest.approx(0.03)
    asynchronous = simulate(late, engine(async_scheduling=True)).capture.outcomes[1]
    assert asynchronous.first_token_s == pytest.approx(0.04)


def test_asynchronous_scheduling_hides_the_host() -> None:
    slow_host = LinearStepTime(step_s=0.01, host_s=0.004)
    synchronous = simulate(trace((0.0, 10, 101)), engine(slow_host))
    asynchronous = simulate(trace((0.0, 10, 101)), engine(slow_host, async_scheduling=True))
    assert synchronous.capture.outcomes[0].finish_s == pytest.approx(101 * 0.014)
    assert asynchronous.capture.outcomes[0].finish_s == pytest.approx(0.004 + 101 * 0.01)


def test_a_host_slower_than_the_device_sets_the_pace() -> None:
    run = simulate(trace((0.0, 10, 101)), engine(LinearStepTime(step_s=0.01, host_s=0.03), async_scheduling=True))
    assert run.capture.outcomes[0].finish_s == pytest.approx(101 * 0.03 + 0.01)


def test_a_rejected_request_says_why_and_the_others_are_served() -> None:
    run = simulate(trace((0.0, 5000, 5), (0.0, 10, 5)), engine())
    rejected, served = run.capture.outcomes
    assert rejected.status is Status.REJECTED
    assert rejected.reason == "prompt of 5000 tokens, max_model_len is 4096"
    assert rejected.first_token_s is None
    assert served.status is Status.FINISHED
    assert "1 requests rejected; their outcomes carry the reason" in run.capture.meta.notes


def test_prefix_hits_are_counted() -> None:
    shared = trace((0.0, 40, 5), (1.0, 40, 5), hashes=[(1, 2), (1, 2)], size=16)
    first, second = simulate(shared, engine()).capture.outcomes
    assert (first.cached_tokens, second.cached_tokens) == (0, 32)


def test_hashes_of_small_blocks_serve_engines_of_larger_ones() -> None:
    shared = trace((0.0, 40, 5), (1.0, 40, 5), hashes=[(1, 2), (1, 2)], size=16)
    assert simulate(shared, engine(block_size=32)).capture.outcomes[1].cached_tokens == 32
    with pytest.raises(InputError, match="hash_block_size"):
        simulate(shared, engine(block_size=12))


def test_contradicting_options_are_refused_as_vllm_does() -> None:
    with pytest.raises(InputError, match="max_num_batched_tokens"):
        simulate(trace((0.0, 1, 1)), engine(enable_chunked_prefill=False))
    with pytest.raises(InputError, match="at least max_num_seqs 64"):
        simulate(trace((0.0, 1, 1)), engine(max_num_batched_tokens=32))


requests = st.lists(st.tuples(st.floats(0, 0.3), st.integers(1, 120), st.integers(1, 50)), min_size=1, max_size=16)


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[Trace, dict[str, object]]:
    """A trace with some shared prefixes, and an engine with few blocks, seats and tokens per step."""
    rows = sorted(draw(requests))
    size = draw(st.sampled_from([4, 16]))
    hashes = []
    for i, (_, prompt, output) in enumerate(rows):
        group, shared = draw(st.integers(1, 3)), draw(st.integers(0, prompt // size))
        known = draw(st.integers(shared, (prompt + output) // size))
        hashes.append(tuple(1000 * group + j if j < shared else 10**6 * (i + 1) + j for j in range(known)))
    seats = draw(st.integers(1, 8))
    options = {
        "block_size": size,
        "num_gpu_blocks": -(-170 // size) + 2 + draw(st.integers(0, 40)),
        "max_num_seqs": seats,
        "max_num_batched_tokens": seats + draw(st.integers(8, 70)),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 10])),
        "async_scheduling": draw(st.booleans()),
        "scheduler_reserve_full_isl": draw(st.booleans()),
        "enable_prefix_caching": draw(st.booleans()),
        "scheduling_policy": draw(st.sampled_from(["fcfs", "priority"])),
        "watermark": draw(st.sampled_from([0.0, 0.1])),
        "max_num_active_seqs": draw(st.sampled_from([None, seats, (seats + 1) // 2])),
        "long_prefill_token_threshold_adaptive": draw(st.booleans()),
    }
    host_s = draw(st.sampled_from([0.0, 0.002, 0.02]))
    made = trace(*rows, hashes=hashes, size=size)
    priorities = [msgspec.structs.replace(row, priority=draw(st.integers(0, 2))) for row in made.rows]
    return dataclasses.replace(made, rows=tuple(priorities)), {**options, "host_s": host_s}


def run(made: Trace, options: dict[str, object], *, fast_forward: bool) -> Capture:
    rest = dict(options)
    step_time = LinearStepTime(step_s=0.01, token_s=0.0003, kv_token_s=0.00001, host_s=float(str(rest.pop("host_s"))))
    chosen = engine(step_time, **rest)  # type: ignore[arg-type]
    return simulate(made, chosen, fast_forward=fast_forward, record_batches=True).capture


@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_fast_forward_changes_nothing(scenario: tuple[Trace, dict[str, object]]) -> None:
    """Sweeping over alike steps gives every time, count and batch that single steps give, to the last bit."""
    swept, stepped = (run(*scenario, fast_forward=fast_forward) for fast_forward in (True, False))
    assert swept.outcomes == stepped.outcomes
    assert swept.steps is not None
    assert stepped.steps is not None
    for name in STEP_COLUMNS:
        np.testing.assert_array_equal(getattr(swept.steps, name), getattr(stepped.steps, name), err_msg=name)
    assert swept.steps.batches is not None
    assert stepped.steps.batches is not None
    for name in ("offsets", "request", "new_tokens", "computed_tokens"):
        swept_column, stepped_column = getattr(swept.steps.batches, name), getattr(stepped.steps.batches, name)
        np.testing.assert_array_equal(swept_column, stepped_column, err_msg=name)


@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_requests_tokens_and_blocks_are_conserved(scenario: tuple[Trace, dict[str, object]]) -> None:
    """Every request is served in full, in causal order; each token it got was computed; no block is used twice."""
    made, options = scenario
    capture = run(made, options, fast_forward=True)
    assert capture.steps is not None
    batches = capture.steps.batches
    assert batches is not None
    computed = np.bincount(batches.request, weights=batches.new_tokens, minlength=len(made))
    for row, outcome, tokens in zip(made.rows, capture.outcomes, computed, strict=True):
        assert outcome.status is Status.FINISHED
        assert outcome.output_tokens == row.output_tokens
        assert outcome.token_times_s is not None
        assert list(outcome.token_times_s) == sorted(set(outcome.token_times_s))
        assert row.arrival_s <= outcome.queued_s <= outcome.scheduled_s < outcome.first_token_s <= outcome.finish_s  # type: ignore[operator]
        if outcome.num_preemptions == 0:
            assert tokens + outcome.cached_tokens == row.prompt_tokens + row.output_tokens - 1
    assert (capture.steps.kv_blocks <= int(str(options["num_gpu_blocks"])) - 1).all()
    assert (capture.steps.n_running <= int(str(options["max_num_seqs"]))).all()
    budget = int(str(options["max_num_batched_tokens"]))
    assert (capture.steps.n_prefill_tokens + capture.steps.n_decode_tokens <= budget).all()


SAME_IN_ANOTHER_PROCESS = """
import hashlib, sys
from pathlib import Path
from tests.simulator.test_simulate import write_run
folder = Path(sys.argv[1])
write_run(folder)
print({f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())})
"""


def write_run(folder: Path) -> None:
    rows = [(0.02 * i, 20 + 7 * i % 90, 5 + 3 * i % 40) for i in range(60)]
    write_capture(simulate(trace(*rows), engine(num_gpu_blocks=40, async_scheduling=True)).capture, folder)


def test_the_same_input_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    printed = [
        subprocess.run(
            [sys.executable, "-c", SAME_IN_ANOTHER_PROCESS, str(tmp_path / name)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"},
        ).stdout
        for name, seed in (("one", "1"), ("two", "2"))
    ]
    assert printed[0] == printed[1]
    assert "outcomes.parquet" in printed[0]
    assert msgspec.json.decode((tmp_path / "one" / "meta.json").read_bytes())["kind"] == "simulated"
