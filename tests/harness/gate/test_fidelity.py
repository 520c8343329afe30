"""Simulated against measured: what blocks, what is only reported, what cannot be said."""

from __future__ import annotations

from typing import Any

import pytest

from harness.gate.fidelity import judge_fidelity
from harness.gate.tolerance import parse_tolerance
from harness.gate.verdict import Status, Verdict


def result(error: float | None, ci95: list[float] | None, measured: float = 0.1, **other: Any) -> dict[str, Any]:
    """A validation in which every figure is as far off."""
    figure = {"measured": measured, "simulated": 0.1, "error": error, "ci95": ci95}
    distribution = dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), figure)
    metrics = dict.fromkeys(("ttft_s", "tpot_s", "itl_s", "e2el_s"), distribution)
    return {
        "valid": True,
        "reasons": [],
        "n_scored": 90,
        "metrics": metrics | {"output_tokens_per_s": figure | {"ci95": None}, "duration_s": None},
        "paired": {"ttft_s": {"mape": 0.2}, "tpot_s": None, "e2el_s": None},
        "stages": dict.fromkeys(("queue_s", "prefill_s", "decode_s"), distribution),
        "series": {"power_w": {"mape": 0.05}},
        **other,
    }


def judged(name: str, tolerance: str, found: dict[str, Any], before: float | None = None) -> Verdict:
    comparison, verdict = judge_fidelity(
        found, {name: parse_tolerance(tolerance, name, name)}, {} if before is None else {name: before}
    )
    assert comparison.figure == "comparison"
    return verdict


@pytest.mark.parametrize(
    ("error", "ci95", "status"),
    [
        (0.04, [0.02, 0.06], Status.PASSED),
        (0.09, [0.07, 0.12], Status.INCONCLUSIVE),
        (0.12, [0.09, 0.15], Status.INCONCLUSIVE),
        (0.12, [0.11, 0.15], Status.FAILED),
        (-0.12, [-0.15, -0.11], Status.FAILED),
        (0.12, None, Status.INCONCLUSIVE),
    ],
)
def test_it_blocks_when_all_of_the_interval_is_beyond(error: float, ci95: list[float] | None, status: Status) -> None:
    assert judged("ttft.p99", "10%", result(error, ci95)).status is status


def test_a_signed_tolerance_looks_one_way() -> None:
    fast = result(-0.12, [-0.15, -0.11])
    assert judged("ttft.p99", "+10%", fast).status is Status.PASSED
    assert judged("ttft.p99", "-10%", fast).status is Status.FAILED


def test_seconds_are_compared_with_seconds() -> None:
    slow = result(0.12, [0.11, 0.15], measured=0.1)
    assert judged("tpot.mean", "10ms", slow).status is Status.FAILED
    assert judged("tpot.mean", "16ms", slow).status is Status.PASSED


def test_one_number_for_a_run_is_judged_as_it_is() -> None:
    assert judged("output_tokens_per_s", "5%", result(-0.06, None)).status is Status.FAILED
    assert judged("output_tokens_per_s", "7%", result(-0.06, None)).status is Status.PASSED
    assert judged("ttft.mape", "15%", result(0.0, None)).status is Status.FAILED
    assert judged("power_w.mape", "10%", result(0.0, None)).status is Status.PASSED


def test_what_was_not_measured_cannot_be_said() -> None:
    verdict = judged("tpot.mape", "10%", result(0.0, None))
    assert (verdict.status, verdict.why) == (Status.INCONCLUSIVE, "not measured, or too few requests for it")
    verdict = judged("queue.p50", "10%", result(None, None, measured=0.0))
    assert (verdict.status, verdict.difference) == (Status.INCONCLUSIVE, None)
    assert "only a tolerance in seconds" in verdict.why


def test_a_smaller_error_than_in_the_baseline_is_an_improvement() -> None:
    good = result(0.04, [0.02, 0.06])
    assert judged("e2el.mean", "10%", good, before=-0.08).status is Status.IMPROVED
    assert judged("e2el.mean", "10%", good, before=0.04).status is Status.PASSED
    assert judged("e2el.mean", "10%", good, before=0.02).status is Status.PASSED


def test_a_comparison_that_is_not_valid_blocks_and_says_nothing_else() -> None:
    reasons = ["configuration mismatch: block_size 16 simulated, 32 measured"]
    found = result(0.5, [0.4, 0.6], valid=False, reasons=reasons)
    tolerances = {"ttft.mean": parse_tolerance("10%", "ttft.mean", "")}
    comparison, figure = judge_fidelity(found, tolerances, {})
    assert (comparison.status, comparison.why) == (Status.FAILED, reasons[0])
    assert (figure.status, figure.difference) == (Status.INCONCLUSIVE, None)
