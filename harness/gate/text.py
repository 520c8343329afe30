"""Verdicts in words and cells, the same in every output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.gate.drift import REPORT
from harness.gate.figures import is_time
from harness.gate.verdict import MEASURED, Checked, ScenarioCheck, Status, Verdict
from harness.terminal.words import interval, percent, seconds

COLUMNS = ("figure", "reference", "simulated", "difference", "95 % interval", "tolerance", "verdict")
"""The reference is the measured value (fidelity), or the stored one (drift, canary)."""

OF_CHANGES = (
    "change of",
    "measured",
    "95 % interval",
    "predicted",
    "points",
    "direction",
    "ratio off by",
    "95 % interval",
    "tolerance",
    "verdict",
)
"""Of changes: after over before, less 1; how many points above the predicted one is; how far its ratio is off."""

Laid = tuple[Sequence[str], Callable[[Verdict], tuple[str, ...]], list[Verdict]]


def laid_out(verdicts: Sequence[Verdict]) -> list[Laid]:
    """Tables of verdicts: the columns, how a verdict fills them, and the verdicts; one of changes where any is known.

    There is always a first one, though it may have no rows.
    """
    moved = [one for one in verdicts if one.change is not None]
    rest = [one for one in verdicts if one.change is None]
    return [(COLUMNS, cells, rest), *([(OF_CHANGES, change_cells, moved)] if moved else [])]


def headline(checked: Checked) -> str:
    """The result in one sentence, which names every scenario that failed."""
    failed = [scenario for scenario in checked.scenarios if not scenario.passed]
    n = len(checked.scenarios)
    scenarios = f"{n} scenario{'s' * (n != 1)}"
    if not failed:
        return f"PASSED: {scenarios}, {_tally(checked.scenarios)}."
    return f"FAILED: {len(failed)} of {scenarios}: {'; '.join(_worst(scenario) for scenario in failed)}."


def _worst(scenario: ScenarioCheck) -> str:
    """A scenario that failed, with the first thing that made it fail."""
    verdicts = scenario.of(Status.FAILED)
    others = f" and {len(verdicts) - 1} more" if len(verdicts) > 1 else ""
    return f"{scenario.name} ({verdicts[0].gate} {verdicts[0].figure}{others})"


def tally(scenario: ScenarioCheck) -> str:
    """How many figures of a scenario have each status: `40 passed, 2 inconclusive`."""
    return _tally([scenario])


def _tally(scenarios: list[ScenarioCheck] | tuple[ScenarioCheck, ...]) -> str:
    numbers = {status: sum(len(scenario.of(status)) for scenario in scenarios) for status in reversed(Status)}
    return ", ".join(f"{number} {status.value}" for status, number in numbers.items() if number)


def shown(scenario: ScenarioCheck) -> list[Verdict]:
    """What a short output shows of a scenario, what failed first: fidelity, and what else did not simply pass.

    Figures that the suite wants reported only, and that changed, are counted by `tally`; every long output has them.
    """
    some = [one for one in scenario.verdicts if _is_of_captures(one) or not _is_quiet(one)]
    return sorted(some, key=lambda verdict: verdict.status is not Status.FAILED)


def _is_of_captures(verdict: Verdict) -> bool:
    return verdict.gate in MEASURED and verdict.tolerance != REPORT


def _is_quiet(verdict: Verdict) -> bool:
    reported = verdict.status in (Status.CHANGED, Status.REPORTED) and verdict.tolerance == REPORT
    return verdict.status is Status.PASSED or reported


def cells(verdict: Verdict) -> tuple[str, ...]:
    """One row, by `COLUMNS`."""
    said = f"{verdict.status.value}: {verdict.why}" if verdict.why else verdict.status.value
    return (
        f"{verdict.gate} {verdict.figure}",
        _value(verdict, verdict.reference),
        _value(verdict, verdict.simulated),
        difference(verdict),
        "" if verdict.ci95 is None else interval(list(verdict.ci95)),
        verdict.tolerance or "",
        said,
    )


def change_cells(verdict: Verdict) -> tuple[str, ...]:
    """One row, by `OF_CHANGES`, of a change that is known."""
    assert verdict.change is not None
    _, measured, predicted, *judged = cells(verdict)
    change, points = verdict.change, f"{100 * verdict.change.points:+.1f}"
    bounds = "" if change.measured_ci95 is None else interval(list(change.measured_ci95))
    return (verdict.figure, measured, bounds, predicted, points, change.direction or "", *judged)


def difference(verdict: Verdict) -> str:
    """The difference in percent, finer where it is a drift."""
    if verdict.difference is None:
        return ""
    if verdict.figure.endswith(".mape"):
        return f"{verdict.difference:.1%}"
    return percent(verdict.difference) if verdict.gate in MEASURED else f"{verdict.difference:+.2%}"


def sentence(verdict: Verdict) -> str:
    """A verdict in one line."""
    if verdict.change is not None:
        return _sentence_of_change(verdict)
    _, reference, simulated, off, bounds, tolerance, said = cells(verdict)
    parts = [
        f"simulated {simulated}" if simulated else "",
        f"{'measured' if verdict.gate == 'fidelity' else 'stored'} {reference}" if reference else "",
        f"{off} {bounds}".strip(),
        f"tolerance {tolerance}" if tolerance else "",
    ]
    return f"{verdict.gate} {verdict.figure} {said}" + "".join(f"; {part}" for part in parts if part)


def _sentence_of_change(verdict: Verdict) -> str:
    figure, measured, bounds, predicted, points, direction, off, off_bounds, tolerance, said = change_cells(verdict)
    parts = [
        f"predicted {predicted}",
        f"measured {measured} {bounds}".strip(),
        f"{points} points",
        f"{direction} direction" if direction else "",
        f"ratio off by {off} {off_bounds}".strip(),
        f"tolerance {tolerance}",
    ]
    return f"change {figure} {said}" + "".join(f"; {part}" for part in parts if part)


def _value(verdict: Verdict, value: float | None) -> str:
    if value is None:
        return ""
    if verdict.gate == "change":
        return percent(value)
    if isinstance(value, int):
        return str(value)
    return seconds(value) if is_time(verdict.figure) else f"{value:.1f}"
