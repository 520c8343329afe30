"""Comparison as subtraction: signs, pairs, reasons."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from harness.scoring.compare import compare
from simulator.simulate import simulate
from tests.engines import LinearStepTime, engine, trace
from traces.capture import Capture
from traces.outcome import Status

ROWS = [(0.05 * i, 20 + 7 * i % 90, 5 + 3 * i % 40) for i in range(60)]


def run(step_s: float = 0.01) -> Capture:
    return simulate(trace(*ROWS), engine(LinearStepTime(step_s))).capture


def changed(capture: Capture, index: int, **fields: object) -> Capture:
    outcomes = list(capture.outcomes)
    outcomes[index] = msgspec.structs.replace(outcomes[index], **fields)
    return dataclasses.replace(capture, outcomes=tuple(outcomes))


def test_a_run_has_no_error_against_itself() -> None:
    result = compare(run(), run())
    assert result["valid"]
    assert result["paired"]["e2el_s"] == {"mape": 0.0, "median_ape": 0.0, "mae": 0.0, "n": 60}
    assert result["series"]["output_tokens_per_s"]["mape"] == 0


def test_a_twin_that_is_ten_percent_slower_is_told_so() -> None:
    result = compare(run(0.010), run(0.011))
    tpot = result["metrics"]["tpot_s"]["mean"]
    assert tpot["error"] == pytest.approx(0.10, abs=1e-6)
    assert tpot["ci95"][0] <= 0.10 + 1e-9 <= tpot["ci95"][1] + 2e-9
    assert result["paired"]["tpot_s"]["mape"] == pytest.approx(0.10, abs=1e-6)
    assert compare(run(0.011), run(0.010))["metrics"]["tpot_s"]["mean"]["error"] == pytest.approx(-1 / 11, abs=1e-6)


def test_the_same_seed_gives_the_same_intervals() -> None:
    results = [compare(run(), run(0.012), seed=seed)["metrics"]["e2el_s"] for seed in (1, 1, 2)]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_requests_that_did_not_finish_are_a_reason() -> None:
    result = compare(run(), changed(run(), 3, status=Status.REJECTED))
    assert not result["valid"]
    assert result["reasons"] == ["1 requests finished when measured, rejected when simulated"]
    assert result["n_scored"] == 59


def test_requests_of_other_lengths_are_a_reason() -> None:
    assert compare(run(), changed(run(), 3, output_tokens=7))["reasons"] == [
        "1 requests differ in tokens between the two sides"
    ]


def test_too_few_requests_are_a_reason() -> None:
    few = simulate(trace(*ROWS[:5]), engine()).capture
    result = compare(few, few)
    assert result["reasons"] == ["5 requests scored, fewer than 20"]
    assert result["metrics"]["ttft_s"]["p99"] is None


def test_what_was_not_measured_is_null() -> None:
    bare = run()
    for i in range(60):
        bare = changed(bare, i, scheduled_s=None, token_times_s=None)
    result = compare(dataclasses.replace(bare, steps=None), run())
    assert result["metrics"]["itl_s"] is None
    assert result["stages"]["queue_s"] is None
    assert result["series"]["output_tokens_per_s"] is None
    assert result["metrics"]["ttft_s"] is not None
