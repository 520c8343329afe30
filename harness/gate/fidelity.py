"""The fidelity gate: simulated against measured, within tolerances; blocks only when the interval is clear of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.gate.figures import Figure, figure_of, is_sampled
from harness.gate.tolerance import Tolerance
from harness.gate.verdict import Status, Verdict

DEFAULT = {
    "ttft.mean": "25%",
    "ttft.p90": "30%",
    "tpot.mean": "10%",
    "itl.mean": "10%",
    "e2el.mean": "15%",
    "output_tokens_per_s": "5%",
}
"""Of a suite that states none. A start, to be changed once the noise is known: with nothing fitted, twins of measured
GPU runs are up to 14 % off in TTFT and 2 % in E2EL by request (docs/validity.md); two recordings of one load on a busy
CPU are 3 to 11 % apart in their mean E2EL."""

IMPROVED_BY = 1e-4
"""By how much an error must have shrunk to be called better: as much as a drift needs to be one."""


def judge_fidelity(
    result: dict[str, Any], tolerances: Mapping[str, Tolerance], errors_before: Mapping[str, float]
) -> list[Verdict]:
    """Judge a validation.

    Args:
        result: what validation.json holds.
        tolerances: by figure.
        errors_before: errors of the same figures against the same capture, from the baseline.

    Returns:
        A verdict on the comparison itself, then one per tolerance. A comparison that is not valid fails, and nothing
        else can be said then.
    """
    comparison = Verdict("fidelity", "comparison", Status.PASSED, why=f"{result['n_scored']} requests scored")
    if not result["valid"]:
        comparison = replace(comparison, status=Status.FAILED, why="; ".join(result["reasons"]))
        unsaid = [
            Verdict("fidelity", name, Status.INCONCLUSIVE, tolerance=tolerance.text, why="the comparison is not valid")
            for name, tolerance in tolerances.items()
        ]
        return [comparison, *unsaid]
    judged = [_judge(name, figure_of(result, name), tolerance) for name, tolerance in tolerances.items()]
    return [comparison, *(against_before(verdict, errors_before.get(verdict.figure)) for verdict in judged)]


def _judge(name: str, figure: Figure | None, tolerance: Tolerance) -> Verdict:
    if figure is None:
        why = "not measured, or too few requests for it"
        return Verdict("fidelity", name, Status.INCONCLUSIVE, tolerance=tolerance.text, why=why)
    verdict = Verdict(
        "fidelity",
        name,
        Status.PASSED,
        figure.measured,
        figure.simulated,
        figure.error,
        figure.ci95,
        tolerance.text,
    )
    if figure.error is None and tolerance.relative:
        why = "the measured value is 0: only a tolerance in seconds can be judged"
        return replace(verdict, status=Status.INCONCLUSIVE, why=why)
    return answered(verdict, _interval(name, figure, tolerance), tolerance)


def answered(verdict: Verdict, bounds: tuple[float, float] | None, tolerance: Tolerance) -> Verdict:
    """A verdict that passes, fails or is inconclusive, by what its difference may be; None: that cannot be told."""
    if bounds is None:
        return replace(verdict, status=Status.INCONCLUSIVE, why="too few requests for an interval")
    if tolerance.exceeded(*bounds):
        return replace(verdict, status=Status.FAILED)
    if not tolerance.held(*bounds):
        return replace(verdict, status=Status.INCONCLUSIVE, why="the interval reaches over the tolerance")
    return verdict


def _interval(name: str, figure: Figure, tolerance: Tolerance) -> tuple[float, float] | None:
    """What the difference may be, in the tolerance's unit; None when it cannot be told.

    One number for a whole run has no interval: it is judged as it is, and its tolerance must cover how far two runs
    lie apart. Seconds are the relative error's times the measured value.
    """
    if figure.error is None:
        return None
    bounds = figure.ci95 if is_sampled(name) else (figure.error, figure.error)
    if bounds is None or tolerance.relative:
        return bounds
    assert figure.measured is not None, "only a mape has none, and it takes no seconds"
    return bounds[0] * figure.measured, bounds[1] * figure.measured


def against_before(verdict: Verdict, before: float | None) -> Verdict:
    """Say that the twin came nearer to the same capture."""
    if before is None or verdict.difference is None or verdict.status is not Status.PASSED:
        return verdict
    if abs(before) - abs(verdict.difference) <= IMPROVED_BY:
        return verdict
    return replace(verdict, status=Status.IMPROVED, why=f"{before:+.1%} in the baseline")
