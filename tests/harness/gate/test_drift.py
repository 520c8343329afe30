"""This version against the baseline."""

from __future__ import annotations

import pytest

from harness.gate.baseline import Stored
from harness.gate.canary import judge_canary
from harness.gate.drift import DEFAULT, judge_drift
from harness.gate.tolerance import Tolerance, parse_tolerance
from harness.gate.verdict import Status


def stored(value: float | None = 1.0, name: str = "e2el.mean", finished: int = 90, steps: int | None = 100) -> Stored:
    return Stored({name: value}, {"finished": finished, "failed": 90 - finished}, {"steps": steps}, {}, {})


def status(now: float | None, before: float | None, tolerance: str | None = None, name: str = "e2el.mean") -> Status:
    wanted: dict[str, Tolerance | None] = {} if tolerance is None else {name: parse_tolerance(tolerance, name, name)}
    first, *_ = judge_drift(stored(now, name), stored(before, name), wanted, DEFAULT)
    return first.status


@pytest.mark.parametrize(
    ("now", "expected"), [(1.0, Status.PASSED), (1.00009, Status.PASSED), (1.0002, Status.FAILED), (0.5, Status.FAILED)]
)
def test_one_in_ten_thousand_blocks_unless_more_is_tolerated(now: float, expected: Status) -> None:
    assert status(now, 1.0) is expected


def test_what_is_tolerated_is_reported() -> None:
    assert status(1.01, 1.0, "2%") is Status.CHANGED
    assert status(0.97, 1.0, "2%") is Status.FAILED
    assert status(1.01, 1.0, "5ms") is Status.FAILED
    assert status(0.0, 0.0) is Status.PASSED
    assert status(1e-12, 0.0) is Status.PASSED
    assert status(1e-6, 0.0, "2%") is Status.FAILED


def test_a_tolerance_with_a_sign_knows_improvements() -> None:
    assert status(0.5, 1.0, "+2%") is Status.IMPROVED
    assert status(1.5, 1.0, "-2%") is Status.CHANGED
    assert status(1.01, 1.0, "+2%") is Status.CHANGED
    assert status(150.0, 100.0, "-2%", "output_tokens_per_s") is Status.IMPROVED
    assert status(50.0, 100.0, "-2%", "output_tokens_per_s") is Status.FAILED


def test_report_never_blocks() -> None:
    first, *_ = judge_drift(stored(2.0), stored(1.0), {}, None)
    assert (first.status, first.tolerance) == (Status.CHANGED, "report")


@pytest.mark.parametrize(("now", "before"), [(None, 1.0), (1.0, None)])
def test_a_figure_that_comes_or_goes_blocks(now: float | None, before: float | None) -> None:
    first, *_ = judge_drift(stored(now), stored(before), {}, None)
    assert first.status is Status.FAILED


def test_requests_that_end_otherwise_block() -> None:
    verdicts = judge_drift(stored(finished=89), stored(), {}, None)
    assert {one.figure for one in verdicts if one.status is Status.FAILED} == {"requests.finished", "requests.failed"}
    assert [one.figure for one in judge_drift(stored(), stored(), {}, None)] == ["e2el.mean", "requests.finished"]


def test_a_count_must_be_equal() -> None:
    assert judge_canary(stored(), stored())[0].status is Status.PASSED
    (verdict,) = judge_canary(stored(steps=101), stored())
    assert (verdict.status, verdict.difference) == (Status.FAILED, 0.01)
    assert judge_canary(stored(steps=None), stored())[0].status is Status.FAILED
