"""Recorded steps of a real engine, planned again: no step may differ; and of what differs, the cause is named."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from harness.demo import BUNDLED
from simulator.scheduling.divergence import Divergence
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.rules import rules_of
from simulator.scheduling.step_replay import replay_steps
from simulator.simulate import simulate
from tests.conformance.cases import read_cases
from tests.conformance.recorded import NeverEndsError, recorded
from tests.conformance.scenario import Arrival, Scenario, draw_newer_options, draw_scenario
from tests.engines import engine, trace
from traces.capture import Capture, read_capture
from traces.errors import InputError
from traces.outcome import Status

CAPTURES = sorted(path for path in (BUNDLED / "captures").glob("*-?") if not path.name.startswith("apart-"))
"""Of one engine each; what is planned again is planned by one."""

OWN_CAPTURES = sorted((Path(__file__).with_name("captures")).glob("*"))
"""Of live engines with both policies, whose clients went away and whose answers ended early: conformance/record.py."""


def test_there_are_captures() -> None:
    assert len(CAPTURES) == 6
    assert [folder.name for folder in OWN_CAPTURES] == ["fcfs", "priority"]


@pytest.mark.parametrize("folder", OWN_CAPTURES, ids=lambda folder: folder.name)
def test_the_own_captures_hold_what_they_are_for(folder: Path) -> None:
    capture = read_capture(folder)
    reasons = Counter(outcome.reason for outcome in capture.outcomes)
    assert reasons["abort"] >= 10
    assert reasons["stop"] >= 10
    assert any(outcome.scheduled_s is None for outcome in capture.outcomes), "one left while it waited"
    assert len({row.priority for row in capture.trace.rows}) == (4 if folder.name == "priority" else 1)


@pytest.mark.parametrize("folder", [*CAPTURES, *OWN_CAPTURES], ids=lambda folder: folder.name)
def test_every_step_of_a_real_engine_is_planned_alike(folder: Path) -> None:
    capture = read_capture(folder)
    followed = replay_steps(capture)
    assert followed.divergence is None
    assert capture.steps is not None
    assert followed.n_steps == followed.n_recorded == len(capture.steps) > 1000
    assert followed.n_preempted == capture.steps.n_preempted.sum()


def test_another_versions_rules_do_not_fit_a_real_engine() -> None:
    """The engine was vLLM 0.32; up to 0.23 free blocks were reused in another order, which shows in a prefix hit."""
    divergence = replay_steps(read_capture(BUNDLED / "captures" / "saturated-1"), rules=rules_of((0, 23))).divergence
    assert divergence is not None
    assert divergence.rule == "prefix hit"


def simulated(**options: object) -> Capture:
    rows = [(0.01 * i, 20 + 7 * i % 90, 5 + 3 * i % 40) for i in range(30)]
    chosen = engine(num_gpu_blocks=40, max_model_len=400, **options)
    return with_option(simulate(trace(*rows), chosen, record_batches=True).capture)


def with_option(capture: Capture, **options: object) -> Capture:
    changed = {**capture.meta.engine_options, "max_model_len": 400, **options}
    return dataclasses.replace(capture, meta=msgspec.structs.replace(capture.meta, engine_options=changed))


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_our_own_steps_are_followed(async_scheduling: bool) -> None:
    capture = simulated(async_scheduling=async_scheduling)
    assert capture.steps is not None
    assert capture.steps.n_preempted.sum() > 0
    followed = replay_steps(capture)
    assert followed.divergence is None
    assert followed.n_steps == len(capture.steps)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    def pick(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    return draw_newer_options(pick, draw_scenario(pick))


@settings(max_examples=60, deadline=None)
@given(scenarios())
def test_whatever_happens_can_be_followed(scenario: Scenario) -> None:
    """Aborts at any moment, early ends, priorities, preemptions, two steps in flight: the order of events is enough."""
    try:
        capture = recorded(scenario)
    except NeverEndsError:
        reject()
    followed = replay_steps(capture)
    assert followed.divergence is None
    assert followed.n_steps == followed.n_recorded


@pytest.mark.parametrize("goes_under_way", [True, False])
@pytest.mark.parametrize("output", [1, 9])
def test_who_goes_while_nothing_can_be_planned_leaves_a_seat_to_later_steps(output: int, goes_under_way: bool) -> None:
    """The engine tried before the client went, and after that waited for an output; or it went before that."""
    goes = Arrival(tick=4, prompt=1, output=output, aborted=5, aborted_under_way=goes_under_way)
    capture = recorded(small(goes, Arrival(tick=4, prompt=1, output=1), max_num_seqs=1, async_scheduling=True))
    followed = replay_steps(capture)
    assert followed.divergence is None
    assert followed.n_steps == followed.n_recorded


KEPT = {
    name: case.scenario
    for name, case in read_cases().items()
    if case.scenario.options.speculative_config is None
    and all(arrival.elsewhere is None for arrival in case.scenario.arrivals)
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_scenarios_can_be_followed(name: str) -> None:
    assert replay_steps(recorded(KEPT[name])).divergence is None


def small(*arrivals: Arrival, num_gpu_blocks: int = 30, **options: object) -> Scenario:
    chosen = EngineOptions(**{"async_scheduling": False, "max_num_seqs": 4, "max_num_batched_tokens": 100, **options})  # type: ignore[arg-type]
    return Scenario(options=chosen, num_gpu_blocks=num_gpu_blocks, max_model_len=1000, arrivals=arrivals)


THREE = tuple(Arrival(tick=0, prompt=40 + i, output=9, hashes=(1, 2), priority=9 - i) for i in range(3))
GROWING = tuple(Arrival(tick=0, prompt=31, output=30) for _ in range(2))


@pytest.mark.parametrize(
    ("scenario", "changed", "rule", "words"),
    [
        (small(*THREE), {"max_num_seqs": 2}, "seats", "waits in the plan: all 2 seats are taken"),
        (small(*THREE, max_num_seqs=2), {"max_num_seqs": 3}, "seats", "admitted in the plan and not in the record"),
        (small(*THREE), {"max_num_batched_tokens": 30}, "token budget", "computes 40 tokens in the record and 30"),
        (small(*THREE), {"max_num_batched_tokens": 40}, "token budget", "the step has 0 tokens left for its 41"),
        (small(*THREE), {"long_prefill_token_threshold": 7}, "token budget", "computes 40 tokens in the record and 7"),
        (small(*THREE), {"enable_prefix_caching": False}, "prefix hit", "starts with 32 tokens computed in the record"),
        (small(*THREE), {"scheduling_policy": "priority"}, "order", "has request '0' the plan has request '2'"),
        (small(*THREE, max_num_seqs=1), {"scheduling_policy": "priority"}, "order", "policy is not priority"),
        (small(*THREE), {"num_gpu_blocks": 5}, "block shortage", "its 42 tokens take 3 KV blocks"),
        (small(*THREE, num_gpu_blocks=5), {"num_gpu_blocks": 30}, "block shortage", "the engine had 0 free"),
        (small(*GROWING, num_gpu_blocks=5), {"num_gpu_blocks": 9}, "preemption", "the engine preempted 1 requests"),
        (small(*GROWING, num_gpu_blocks=9), {"num_gpu_blocks": 5}, "preemption", "has lost its blocks in the plan"),
        (small(*THREE), {"async_scheduling": True}, "planned nothing", "its scheduling is not asynchronous"),
    ],
)  # fmt: skip
def test_the_cause_is_named(scenario: Scenario, changed: dict[str, object], rule: str, words: str) -> None:
    capture = recorded(scenario)
    options = msgspec.convert({**capture.meta.engine_options, "num_gpu_blocks": scenario.num_gpu_blocks}, EngineOptions)
    divergence = replay_steps(capture, msgspec.structs.replace(options, **changed)).divergence
    assert divergence is not None
    assert divergence.rule == rule, divergence.cause
    assert words in divergence.cause


def outcome_changed(capture: Capture, index: int, **changed: object) -> Divergence:
    outcomes = list(capture.outcomes)
    outcomes[index] = msgspec.structs.replace(outcomes[index], **changed)
    divergence = replay_steps(dataclasses.replace(capture, outcomes=tuple(outcomes))).divergence
    assert divergence is not None
    return divergence


def test_a_request_that_was_queued_later_is_unknown() -> None:
    divergence = outcome_changed(recorded(small(*THREE)), 2, queued_s=50.0)
    assert (divergence.rule, divergence.request_id) == ("unknown request", "2")
    divergence = outcome_changed(recorded(small(*THREE)), 0, queued_s=None)
    assert (divergence.step, divergence.rule, divergence.request_id) == (0, "unknown request", "0")


def test_an_answer_of_another_length_is_told() -> None:
    capture = recorded(small(*THREE))
    times_s = capture.outcomes[1].token_times_s
    assert times_s
    divergence = outcome_changed(capture, 1, output_tokens=3, finish_s=times_s[2])
    assert (divergence.rule, divergence.request_id) == ("length", "1")
    assert "in the plan it has ended after" in divergence.cause
    stopping = msgspec.structs.replace(THREE[1], stops_after=3)
    capture = recorded(small(THREE[0], stopping, THREE[2]))
    divergence = outcome_changed(capture, 1, status=Status.FAILED)
    assert (divergence.rule, divergence.request_id) == ("length", "1")
    assert "goes on in the plan" in divergence.cause


def test_an_abort_whose_moment_is_the_last_token_is_put_into_the_step_it_broke_off() -> None:
    """A recorder that knows only the last token's time: the step under way shows that the client left later."""
    gone = Arrival(tick=0, prompt=31, output=30, aborted=6, aborted_under_way=True)
    capture = recorded(small(gone, GROWING[0], num_gpu_blocks=9))
    outcomes = list(capture.outcomes)
    times_s = outcomes[0].token_times_s
    assert times_s
    assert outcomes[0].finish_s is not None
    assert outcomes[0].finish_s > times_s[-1]
    outcomes[0] = msgspec.structs.replace(outcomes[0], finish_s=times_s[-1])
    assert replay_steps(dataclasses.replace(capture, outcomes=tuple(outcomes))).divergence is None


def test_an_abort_in_the_queue_at_an_unknown_time_is_noted() -> None:
    gone = Arrival(tick=0, prompt=31, output=30, aborted=0)
    capture = recorded(small(gone, GROWING[0]))
    outcomes = list(capture.outcomes)
    outcomes[0] = msgspec.structs.replace(outcomes[0], finish_s=None)
    followed = replay_steps(dataclasses.replace(capture, outcomes=tuple(outcomes)))
    assert followed.divergence is None
    assert followed.notes == ("request '0' was aborted while it waited, at a time that is not known: left out",)


def test_instances_are_followed_one_by_one() -> None:
    """Two engines of one capture: each has its own queue and blocks; the earliest divergence is told."""
    one = recorded(small(*THREE))
    assert one.steps is not None
    assert one.steps.batches is not None
    twice = two_instances(one)
    followed = replay_steps(twice)
    assert followed.divergence is None
    assert followed.n_steps == 2 * len(one.steps)
    divergence = replay_steps(twice, msgspec.convert({**one.meta.engine_options, "num_gpu_blocks": 5}, EngineOptions))
    assert divergence.divergence is not None
    assert divergence.divergence.instance == 0


def two_instances(one: Capture) -> Capture:
    """The capture beside itself, as a second instance a moment later."""
    assert one.steps is not None
    batches = one.steps.batches
    assert batches is not None
    later = 0.25
    n = len(one.outcomes)
    rows = [msgspec.structs.replace(row, request_id=f"b{row.request_id}") for row in one.trace.rows]
    outcomes = [
        msgspec.structs.replace(
            outcome,
            request_id=f"b{outcome.request_id}",
            instance=1,
            queued_s=(outcome.queued_s or 0) + later,
            finish_s=(outcome.finish_s or 0) + later,
        )
        for outcome in one.outcomes
    ]
    columns = {}
    for name in one.steps.__slots__:
        column = getattr(one.steps, name)
        if name == "instance":
            columns[name] = np.concatenate([column, column + 1])
        elif name in ("scheduled_s", "end_s"):
            columns[name] = np.concatenate([column, column + later])
        elif column is not None and name != "batches":
            columns[name] = np.concatenate([column, column])
    doubled = type(batches)(
        np.concatenate([batches.offsets, batches.offsets[1:] + batches.offsets[-1]]),
        np.concatenate([batches.request, batches.request + n]),
        np.concatenate([batches.new_tokens, batches.new_tokens]),
        np.concatenate([batches.computed_tokens, batches.computed_tokens]),
    )
    steps = type(one.steps)(**columns, batches=doubled)
    return dataclasses.replace(
        one,
        trace=dataclasses.replace(one.trace, rows=(*one.trace.rows, *rows)),
        outcomes=(*one.outcomes, *outcomes),
        steps=steps,
    )


def test_a_capture_without_batches_cannot_be_followed() -> None:
    capture = simulated()
    assert capture.steps is not None
    bare = dataclasses.replace(capture, steps=dataclasses.replace(capture.steps, batches=None))
    with pytest.raises(InputError, match="which requests were in each step"):
        replay_steps(bare)
    assert np.all(capture.steps.n_requests > 0)


def test_steps_that_held_others_requests_cannot_be_followed() -> None:
    capture = simulated()
    assert capture.steps is not None
    crowded = dataclasses.replace(
        capture.steps, n_requests=capture.steps.n_requests + (np.arange(len(capture.steps)) == 7)
    )
    with pytest.raises(InputError, match="1 steps held requests that are not in the capture, the first is step 7"):
        replay_steps(dataclasses.replace(capture, steps=crowded))


def test_options_that_cannot_be_used_are_told() -> None:
    capture = simulated()
    with pytest.raises(InputError, match="engine options cannot be used"):
        replay_steps(with_option(capture, block_size=0))
    with pytest.raises(InputError, match="did not record num_gpu_blocks and max_model_len"):
        replay_steps(with_option(capture, max_model_len=None))
