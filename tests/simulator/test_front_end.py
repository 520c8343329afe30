"""The way to the engine: what it changes of a simulation, and what it leaves."""

from __future__ import annotations

import itertools

import pytest

from simulator.cluster import Cluster
from simulator.front_end import DIRECT, FrontEnd, simulate_behind
from simulator.simulate import simulate
from tests.engines import engine, trace
from traces.trace import Trace, TraceRow

WAY = FrontEnd(0.004, 1e-5)


def test_a_request_alone_is_later_by_its_way() -> None:
    served = trace((1.0, 100, 5))
    (plain,) = simulate(served, engine()).capture.outcomes
    (behind,) = simulate_behind(WAY, served, engine()).capture.outcomes
    assert behind.arrival_s == plain.arrival_s == 1.0
    assert behind.queued_s == pytest.approx(1.005)
    assert behind.first_token_s == pytest.approx((plain.first_token_s or 0) + 0.005)
    assert behind.finish_s == pytest.approx((plain.finish_s or 0) + 0.005)


def test_no_front_end_changes_nothing() -> None:
    served = trace((0.0, 100, 5), (0.1, 50, 9))
    assert simulate_behind(DIRECT, served, engine()).capture.outcomes == simulate(served, engine()).capture.outcomes


def test_a_longer_prompt_can_be_overtaken_and_outcomes_and_batches_keep_the_traces_order() -> None:
    served = trace((0.0, 900, 3), (0.001, 10, 3))
    capture = simulate_behind(WAY, served, engine(), record_batches=True).capture
    first, second = capture.outcomes
    assert (first.request_id, second.request_id) == ("0", "1")
    assert (first.queued_s or 0) > (second.queued_s or 0)
    assert capture.steps is not None
    assert capture.steps.batches is not None
    assert capture.steps.batches.request[0] == 1


def test_a_request_that_waits_for_another_is_sent_when_that_has_ended() -> None:
    rows = tuple(
        TraceRow(
            request_id=str(i),
            arrival_s=0.0,
            prompt_tokens=100,
            output_tokens=5,
            session_id="a",
            delay_s=0.5 if i else None,
        )
        for i in range(3)
    )
    served = Trace(rows, None, "test", "sha256:0")
    outcomes = simulate_behind(WAY, served, engine()).capture.outcomes
    for before, after in itertools.pairwise(outcomes):
        assert after.arrival_s == pytest.approx((before.finish_s or 0) + 0.5)
        assert after.queued_s == pytest.approx(after.arrival_s + 0.005)


def test_a_seat_sends_when_its_last_request_has_ended() -> None:
    served = trace((0.0, 100, 5), (0.0, 100, 5), (0.0, 100, 5))
    outcomes = simulate_behind(WAY, served, Cluster((engine(),), concurrency=1, think_s=0.2)).capture.outcomes
    assert outcomes[0].arrival_s == 0.0
    for before, after in itertools.pairwise(outcomes):
        assert after.arrival_s == pytest.approx((before.finish_s or 0) + 0.2)
        assert after.queued_s == pytest.approx(after.arrival_s + 0.005)
