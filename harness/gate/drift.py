"""The drift gate: this version against the baseline, figure by figure. A simulation is deterministic, so that whatever
moved has a cause; it blocks whichever way it moved, unless its tolerance has a sign."""

from __future__ import annotations

import math
from collections.abc import Mapping

from harness.gate.baseline import Stored
from harness.gate.figures import more_is_better
from harness.gate.tolerance import Tolerance
from harness.gate.verdict import Gate, Status, Verdict

RTOL = 1e-4
"""Change above which a figure is called changed: well over what rounding on another machine does."""

ATOL = 1e-9
"""A nanosecond is no change either, where the stored value is about 0."""

REPORT = "report"
"""In place of a tolerance: say that it changed, and do not block."""

DEFAULT = Tolerance(RTOL, relative=True, above=True, below=True, text="0.01%")
"""Of figures for which the suite states none."""


def judge_drift(
    now: Stored, before: Stored, tolerances: Mapping[str, Tolerance | None], default: Tolerance | None
) -> list[Verdict]:
    """Compare what a scenario gives with what it gave.

    Args:
        now: by this version.
        before: in the baseline.
        tolerances: by figure; None: report only.
        default: of all other figures.

    Returns:
        A verdict per figure, and one per status of requests, whose numbers must be equal.
    """
    names = dict.fromkeys((*now.figures, *before.figures))
    verdicts = [
        _judge(name, now.figures.get(name), before.figures.get(name), tolerances.get(name, default))
        for name in names
        if now.figures.get(name) is not None or before.figures.get(name) is not None
    ]
    for status in dict.fromkeys((*now.requests, *before.requests)):
        counts = now.requests.get(status, 0), before.requests.get(status, 0)
        if any(counts):
            verdicts.append(equal_or_failed("drift", f"requests.{status}", *counts))
    return verdicts


def equal_or_failed(gate: Gate, name: str, now: int | None, before: int | None) -> Verdict:
    """A verdict on a count, in which only equality passes."""
    status = Status.PASSED if now == before else Status.FAILED
    difference = None if now is None or not before else (now - before) / before
    return Verdict(gate, name, status, before, now, difference)


def _judge(name: str, now: float | None, before: float | None, tolerance: Tolerance | None) -> Verdict:
    text = REPORT if tolerance is None else tolerance.text
    if now is None or before is None:
        why = "no longer there" if now is None else "not in the baseline"
        return Verdict("drift", name, Status.FAILED, before, now, tolerance=text, why=why)
    difference = (now - before) / before if before else None
    status = _status(name, now, before, tolerance)
    return Verdict("drift", name, status, before, now, 0.0 if now == before else difference, tolerance=text)


def _status(name: str, now: float, before: float, tolerance: Tolerance | None) -> Status:
    off = now - before
    if abs(off) <= max(RTOL * abs(before), ATOL):
        return Status.PASSED
    if tolerance is None:
        return Status.CHANGED
    measure = off
    if tolerance.relative:
        measure = off / abs(before) if before else math.copysign(math.inf, off)
    if tolerance.exceeded(measure, measure):
        return Status.FAILED
    guarded = tolerance.above if off > 0 else tolerance.below
    return Status.CHANGED if guarded or (off > 0) is not more_is_better(name) else Status.IMPROVED
