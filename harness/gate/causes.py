"""Why a scenario fails, in a few sentences: what changed since the baseline, and what moved farthest by it.

The first tell "less is tolerated" from "an input is another" and from "the simulator is another"; the last tell
decisions, which the canary counts, from times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

from harness.gate.drift import REPORT
from harness.gate.text import cells, headline, sentence
from harness.gate.tolerance import parse_tolerance
from harness.gate.verdict import MEASURED, Checked, Gate, InputChange, ScenarioCheck, Since, Status, Verdict

MOST_INPUTS = 6
"""Inputs, and tolerances, that are named; more are counted."""

TITLE = "What changed"
GATES = get_args(Gate)


def causes(checked: Checked) -> dict[str, list[str]]:
    """Of scenarios that fail, or whose inputs or tolerances changed, by name: sentences that say why.

    Those that fail stand first.
    """
    told = [one for one in checked.scenarios if not one.passed or one.inputs or one.tolerances]
    told.sort(key=lambda scenario: scenario.passed)
    inputs = {one.name: one.inputs for one in checked.scenarios}
    return {one.name: cause(one, checked.since, inputs.get(one.change_from or "", ())) for one in told}


def cause(scenario: ScenarioCheck, since: Since | None, from_inputs: Sequence[InputChange] = ()) -> list[str]:
    """What changed since the baseline, and what that moved, a sentence each.

    Args:
        scenario: what is told of.
        since: the baseline; None: there is none.
        from_inputs: what went in otherwise into the scenario that it is a change of.
    """
    unpaired = next((one.why for one in scenario.verdicts if one.figure == "scenario"), None)  # new, or lost
    if not any(one.gate == "change" for one in scenario.of(Status.FAILED)):
        from_inputs = ()
    as_before = not scenario.passed and not from_inputs
    known = [*_tolerated(scenario), _changed(scenario, since, as_before=as_before)] if unpaired is None else [unpaired]
    if from_inputs:
        changed = _some([_change(one) for one in from_inputs])
        known.append(f"inputs of {scenario.change_from}, which it is a change of, changed: {changed}")
    parts = [*known, *_moved(scenario)]
    return [f"{part[:1].upper()}{part[1:]}." for part in parts]


def in_a_line(checked: Checked) -> dict[str, str]:
    """As `causes`, the sentences one after another."""
    return {name: " ".join(sentences) for name, sentences in causes(checked).items()}


def baseline_line(since: Since) -> str:
    """Which baseline it is."""
    return f'The baseline is of version {since.version}, made for: "{since.reason}"'


def as_json(checked: Checked) -> dict[str, Any]:
    """The whole result, ready for JSON, with what changed beside whether it passed."""
    return {"passed": checked.passed, "what_changed": in_a_line(checked), **checked.as_dict()}


def failures(checked: Checked) -> str:
    """The sentence, what changed, and a line for all that blocks."""
    lines = [
        f"{scenario.name}: {sentence(one)}" for scenario in checked.scenarios for one in scenario.of(Status.FAILED)
    ]
    return "\n".join([headline(checked), *(f"{name}: {why}" for name, why in in_a_line(checked).items()), *lines])


def _tolerated(scenario: ScenarioCheck) -> list[str]:
    """Tolerances that are not the baseline's, those of figures that failed first."""
    if not scenario.tolerances:
        return []
    failed = {one.name for one in scenario.of(Status.FAILED)}
    first = sorted(scenario.tolerances, key=lambda one: one.name.rpartition(" ")[2] not in failed)
    return [_some([f"{one.name}: {one.before or 'none'} -> {one.now or 'none'}" for one in first])]


def _some(named: list[str]) -> str:
    more = len(named) - MOST_INPUTS
    return ", ".join(named[:MOST_INPUTS] + ([f"{more} more"] if more > 0 else []))


def _changed(scenario: ScenarioCheck, since: Since | None, *, as_before: bool) -> str:
    if since is None:
        return "there is no baseline, so that what changed cannot be told"
    if scenario.inputs:
        sources = "; servetwin's sources are others too" if since.same_sources is False else ""
        return f"inputs changed: {_some([_change(one) for one in scenario.inputs])}{sources}"
    if not any(one.gate not in MEASURED and one.status is not Status.PASSED for one in scenario.verdicts):
        told = ": it was as far off when the baseline was made" if as_before else ""
        return f"no input changed, and nothing moved{told}"
    match since.same_sources:
        case None:
            return "no input changed: the simulator did (of which sources the baseline is, it does not say)"
        case True:
            return "no input changed, and no source of servetwin: what else is installed, or the machine, did"
        case False:
            return "no input changed: the simulator did, servetwin's sources are others"


def _change(one: InputChange) -> str:
    if one.before is None:
        return f"{one.name} {one.now}"
    return f"{one.name} {one.before} -> {'none' if one.now is None else one.now}"


def _moved(scenario: ScenarioCheck) -> list[str]:
    """Decisions that differ, and the figures that are farthest beyond what is tolerated."""
    failed = scenario.of(Status.FAILED) or scenario.of(Status.ACCEPTED)
    of = {gate: [one for one in failed if one.gate == gate and one.figure != "scenario"] for gate in GATES}
    parts = []
    if counts := of["canary"]:
        parts.append(f"decisions differ: {_farthest(counts)}")
    elif of["drift"]:
        parts.append("the canary's decisions are as they were, times are not")
    if of["drift"]:
        parts.append(f"moved most for its tolerance: {_farthest(of['drift'])}")
    if comparison := next((one for one in of["fidelity"] if one.figure == "comparison"), None):
        parts.append(f"not comparable with what was measured: {comparison.why}")
    elif of["fidelity"]:
        parts.append(f"farthest from what was measured: {_farthest(of['fidelity'])}")
    if of["change"]:
        parts.append(f"farthest from the measured change from {scenario.change_from}: {_farthest(of['change'])}")
    return parts


def _farthest(verdicts: list[Verdict]) -> str:
    """The verdict that is farthest beyond what is tolerated, and how many there are beside it."""
    one, more = max(verdicts, key=_how_far), _and_more(len(verdicts))
    times = excess(one)
    if one.why:
        return f"{one.figure}, {one.why}{more}"
    if math.isinf(times):
        return _counted(one) + more
    return f"{_counted(one)}, {times:.3g} times the tolerance of {one.tolerance}{more}"


def _how_far(one: Verdict) -> tuple[float, float]:
    """By its tolerance, and where that is not told by itself."""
    return excess(one), math.inf if one.difference is None else abs(one.difference)


def _counted(one: Verdict) -> str:
    """A figure, what it was compared with, what it is, and the difference."""
    _, reference, simulated, off, *_ = cells(one)
    values = f" {reference or 'none'} -> {simulated or 'none'}" if reference or simulated else ""
    return f"{one.figure}{values}" + (f" ({off})" if off else "")


def _and_more(n: int) -> str:
    return f", and {n - 1} more" if n > 1 else ""


def excess(verdict: Verdict) -> float:
    """How many times its tolerance a figure is off; infinite where nothing but equality will do, or nothing is known.

    A tolerance in seconds is compared with the difference in seconds.
    """
    if verdict.difference is None or verdict.tolerance in (None, REPORT):
        return math.inf
    tolerance = parse_tolerance(str(verdict.tolerance), verdict.figure, verdict.figure)
    off = abs(verdict.difference) * (1.0 if tolerance.relative else abs(verdict.reference or 0.0))
    return off / tolerance.limit if tolerance.limit else math.inf
