"""The change gate: what a change does to the engine, as measured and as the twin predicts it, within tolerances.

A tolerance is of the predicted ratio of after to before over the measured ratio, less 1, and not of the two changes'
difference in points: 10 % is the same demand of a change to five times and of one to a fifth, and of a change and of
its undoing. A twin that goes the wrong way by more than its tolerance fails by that; one that goes the wrong way by
less is told so, and does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from harness.gate import fidelity
from harness.gate.drift import REPORT
from harness.gate.fidelity import against_before, answered
from harness.gate.figures import is_sampled, key_of
from harness.gate.tolerance import Tolerance
from harness.gate.verdict import Status, Verdict
from harness.scoring.change import Change, Changes

DEFAULT = {**fidelity.DEFAULT, "default": REPORT}
"""Of a suite that states none: as much as its figures may be off by themselves. Set them once the noise is known."""

HEAD = "comparison"


def judge_change(
    found: Changes | str, tolerances: Mapping[str, Tolerance | None], errors_before: Mapping[str, float]
) -> list[Verdict]:
    """Judge a change.

    Args:
        found: every figure of it; in words why there is none.
        tolerances: by figure; None: report only.
        errors_before: errors of the same figures between the same captures, from the baseline.

    Returns:
        A verdict that says how the two sides are compared, and in how many figures that surely changed the twin goes
        the measured way; then one per tolerance.
    """
    if isinstance(found, str):
        return [
            Verdict("change", HEAD, Status.INCONCLUSIVE, why=found),
            *(_unsaid(name, tolerance, found) for name, tolerance in tolerances.items()),
        ]
    verdicts = [_judge(name, found.figures[key_of(name)], tolerance) for name, tolerance in tolerances.items()]
    judged = [against_before(verdict, errors_before.get(verdict.figure)) for verdict in verdicts]
    return [_comparison(found, judged), *judged]


def _comparison(found: Changes, judged: list[Verdict]) -> Verdict:
    before, after = found.n_requests
    compared = f"{after} requests, paired" if found.paired else f"{before} requests and {after} others, not paired"
    sure = [one for one in judged if one.change is not None and one.change.direction is not None]
    wrong = [one.figure for one in sure if one.change is not None and one.change.direction == "wrong"]
    told = f"direction right in {len(sure) - len(wrong)} of {len(sure)}"
    if wrong:
        told = f"{told}, wrong in {', '.join(wrong)}"
    return Verdict("change", HEAD, Status.REPORTED if wrong else Status.PASSED, why=f"{compared}; {told}")


def _judge(name: str, change: Change | str, tolerance: Tolerance | None) -> Verdict:
    if isinstance(change, str):
        return _unsaid(name, tolerance, change)
    verdict = Verdict(
        "change",
        name,
        Status.PASSED,
        change.measured_change,
        change.predicted_change,
        change.error,
        change.ci95,
        REPORT if tolerance is None else tolerance.text,
        change=change,
    )
    if tolerance is None:
        return replace(verdict, status=Status.REPORTED)
    bounds = change.ci95 if is_sampled(name) else (change.error, change.error)
    return answered(verdict, bounds, tolerance)


def _unsaid(name: str, tolerance: Tolerance | None, why: str) -> Verdict:
    """Of a figure whose change is not known."""
    if tolerance is None:
        return Verdict("change", name, Status.REPORTED, tolerance=REPORT, why=why)
    return Verdict("change", name, Status.INCONCLUSIVE, tolerance=tolerance.text, why=why)
