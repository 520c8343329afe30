"""The page of a check: what failed and by how much, what moved, and how it went before where that was kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.gate.causes import TITLE, baseline_line, in_a_line
from harness.gate.drift import REPORT
from harness.gate.result import Kept
from harness.gate.text import difference, headline, laid_out, shown, tally
from harness.gate.tolerance import parse_tolerance
from harness.gate.verdict import MEASURED, Checked, ScenarioCheck, Status, Verdict
from harness.reports.chart import Chart, Intervals, Line
from harness.reports.colours import ROLES
from harness.reports.page import (
    Page,
    Section,
    chart_places,
    facts,
    heading,
    notes,
    prose,
    table,
    tiles,
    unfolded,
    verdict_line,
)

MOST_MOVED = 40
"""Figures in the chart of what moved, those that moved farthest; the tables have all."""


def check_page(name: str, results: Sequence[Kept]) -> Page:
    """The page of the last of the results, with those before it as its history, oldest first."""
    checked = [result.checked for result in results]
    last = checked[-1]
    mark, _, sentence = headline(last).partition(": ")
    head = verdict_line(good=last.passed, mark=mark, sentence=sentence) + tiles(_tiles(last))
    sections = (
        _changed(last),
        _failed(checked),
        _fidelity(last),
        _changes(last),
        _moved(last),
        Section("Figures", "".join(_figures(scenario) for scenario in last.scenarios)),
        _history(results, checked),
        Section("Notes", "".join(heading(one.name) + notes(one.notes) for one in last.scenarios if one.notes)),
        Section("Configuration", _configuration(results[-1])),
    )
    return Page(f"Check {name}: {last.suite}", head, sections)


def _tiles(checked: Checked) -> list[tuple[str, str, list[str]]]:
    """How many scenarios passed, and how many figures did not simply pass."""
    passed = sum(scenario.passed for scenario in checked.scenarios)
    counts = [(status, _count(checked, status)) for status in Status if status is not Status.PASSED]
    figures: list[tuple[str, str, list[str]]] = [(f"figures {of.value}", str(n), []) for of, n in counts if n]
    return [("scenarios passed", f"{passed} of {len(checked.scenarios)}", []), *figures]


def _count(checked: Checked, status: Status) -> int:
    return sum(len(scenario.of(status)) for scenario in checked.scenarios)


def _changed(checked: Checked) -> Section:
    """Whether a tolerance, an input or the simulator is another, and what moved farthest by it."""
    if not (told := in_a_line(checked)):
        return Section(TITLE, "")
    inputs = [
        (scenario.name, one.name, one.before or "–", one.now or "–")
        for scenario in checked.scenarios
        for one in (*scenario.tolerances, *scenario.inputs)
    ]
    since = "" if checked.since is None else prose(f"{baseline_line(checked.since)}.")
    columns = ["scenario", "input", "baseline", "now"]
    listed = table(columns, inputs, "Tolerances and inputs that are not the baseline's") if inputs else ""
    return Section(TITLE, since + facts(told) + listed)


def _failed(history: Sequence[Checked]) -> Section:
    """All that blocks, and since when where a history says so."""
    failed = [(one.name, verdict) for one in history[-1].scenarios for verdict in one.of(Status.FAILED)]
    body = ""
    for columns, cells, verdicts in laid_out([verdict for _, verdict in failed]):
        rows = [
            (name, *cells(verdict), _since(history, name, verdict))
            for name, verdict in failed
            if any(verdict is one for one in verdicts)
        ]
        if len(history) == 1:
            rows = [row[:-1] for row in rows]
        last = [] if len(history) == 1 else ["failed"]
        body += table(["scenario", *columns, *last], rows, "What blocks") if rows else ""
    return Section("What failed", body)


def _since(history: Sequence[Checked], scenario: str, verdict: Verdict) -> str:
    """In how many of the last checks the figure failed without a break."""
    n = 0
    for checked in reversed(history):
        found = _verdict(checked, scenario, verdict.gate, verdict.figure)
        if found is None or found.status is not Status.FAILED:
            break
        n += 1
    return "now for the first time" if n == 1 else f"in the last {n} checks"


def _verdict(checked: Checked, scenario: str, gate: str, figure: str) -> Verdict | None:
    """A figure's verdict in a result; None where that did not judge it."""
    for one in checked.scenarios:
        if one.name == scenario:
            return next((v for v in one.verdicts if v.gate == gate and v.figure == figure), None)
    return None


def _fidelity(checked: Checked) -> Section:
    """Each scenario's errors against what was measured, on what its suite tolerates."""
    charts = tuple(
        chart for i, scenario in enumerate(checked.scenarios) if (chart := _fidelity_chart(scenario, i)) is not None
    )
    said = prose("Simulated less measured, over measured. What is tolerated in one direction alone ends at 0.")
    return Section("Fidelity", said + chart_places(charts, "wide") if charts else "", charts)


def _fidelity_chart(scenario: ScenarioCheck, number: int) -> Chart | None:
    judged = [one for one in scenario.verdicts if one.gate == "fidelity" and one.difference is not None]
    if not judged:
        return None
    labels = tuple(one.figure for one in judged)
    off = np.array([one.difference for one in judged], dtype=np.float64)
    low, high = np.array([one.ci95 or (np.nan, np.nan) for one in judged]).T
    least, most = np.array([_tolerated(one) for one in judged]).T
    marks = (
        Intervals("tolerated", "reference", labels, np.where(np.isnan(most), np.nan, 0.0), least, most),
        Intervals("error", "simulated", labels, off, low, high),
    )
    caption = f"{scenario.name}: each error with its 95 % interval, below what is tolerated; mape is a mean of sizes."
    return Chart(f"fidelity-{number}", caption, "error", "", marks, percent=True)


def _changes(checked: Checked) -> Section:
    """What each change did as measured, and what it was predicted to do."""
    found = enumerate(scenario for scenario in checked.scenarios if scenario.change_from is not None)
    charts = tuple(chart for i, scenario in found if (chart := _change_chart(scenario, i)) is not None)
    said = prose(
        "After over before, less 1. A predicted change is held to the measured one by the quotient of the ratios."
    )
    return Section("Changes", said + chart_places(charts, "wide") if charts else "", charts)


def _change_chart(scenario: ScenarioCheck, number: int) -> Chart | None:
    told = [(one.figure, one.change) for one in scenario.verdicts if one.change is not None]
    if not told:
        return None
    labels = tuple(figure for figure, _ in told)
    measured = np.array([change.measured_change for _, change in told])
    low, high = np.array([change.measured_ci95 or (np.nan, np.nan) for _, change in told]).T
    predicted, unknown = np.array([change.predicted_change for _, change in told]), np.full(len(told), np.nan)
    marks = (
        Intervals("measured", "measured", labels, measured, low, high),
        Intervals("predicted", "simulated", labels, predicted, unknown, unknown),
    )
    caption = (
        f"{scenario.name}: each measured change from {scenario.change_from} with its 95 % interval, and the twin's."
    )
    return Chart(f"change-{number}", caption, "change", "", marks, percent=True)


def _tolerated(verdict: Verdict) -> tuple[float, float]:
    """What a figure's error may be, as shares of the measured value; NaN where that is not known."""
    if verdict.tolerance is None:
        return np.nan, np.nan
    tolerance = parse_tolerance(verdict.tolerance, verdict.figure, verdict.figure)
    if not tolerance.relative and not verdict.reference:
        return np.nan, np.nan
    limit = tolerance.limit if tolerance.relative else tolerance.limit / (verdict.reference or 1.0)
    return -limit if tolerance.below else 0.0, limit if tolerance.above else 0.0


def _moved(checked: Checked) -> Section:
    """What is not as the baseline has it, farthest first."""
    moved = [
        (f"{scenario.name} {one.figure}", one)
        for scenario in checked.scenarios
        for one in scenario.verdicts
        if one.gate not in MEASURED and one.difference
    ]
    if not moved:
        return Section("What moved", "")
    moved.sort(key=lambda entry: -abs(entry[1].difference or 0.0))
    drawn = moved[:MOST_MOVED]
    value = np.array([one.difference for _, one in drawn], dtype=np.float64)
    unknown = np.full(len(drawn), np.nan)
    labels = tuple(f"{label} ({one.gate})" for label, one in drawn)
    cut = f" The {MOST_MOVED} that moved farthest, of {len(moved)}." if len(moved) > MOST_MOVED else ""
    caption = f"This version's figure over the baseline's, less 1.{cut}"
    marks = (Intervals("moved", "simulated", labels, value, unknown, unknown),)
    chart = Chart("moved", caption, "difference", "", marks, percent=True)
    rows = [(label, one.gate, difference(one), one.tolerance or "", one.status.value) for label, one in moved]
    columns = ["figure", "gate", "difference", "tolerance", "verdict"]
    return Section("What moved", chart_places([chart], "wide") + table(columns, rows, "From the baseline"), (chart,))


def _figures(scenario: ScenarioCheck) -> str:
    """A scenario's verdicts, what simply passed folded away."""
    first = shown(scenario)
    rest = [one for one in scenario.verdicts if one not in first]
    title = f"{scenario.name}: {'PASSED' if scenario.passed else 'FAILED'}, {tally(scenario)}"
    body = heading(title) + _tables(first, scenario.name)
    return body + (unfolded(f"{len(rest)} more", _tables(rest, "the rest")) if rest else "")


def _tables(verdicts: Sequence[Verdict], caption: str) -> str:
    return "".join(table(columns, map(cells, own), caption) for columns, cells, own in laid_out(verdicts) if own)


def _history(results: Sequence[Kept], history: Sequence[Checked]) -> Section:
    """How each check ended, and how the errors went from one to the next."""
    if len(history) == 1:
        return Section("History", "")
    rows = [
        (
            str(number),
            kept.at or "–",
            (kept.commit or "–")[:10],
            kept.version,
            "passed" if checked.passed else "FAILED",
            str(_count(checked, Status.FAILED)),
            ", ".join(scenario.name for scenario in checked.scenarios if not scenario.passed),
        )
        for number, (kept, checked) in enumerate(zip(results, history, strict=True), start=1)
    ]
    columns = ["check", "when", "commit", "servetwin", "result", "figures failed", "in"]
    charts = tuple(
        chart
        for i, scenario in enumerate(history[-1].scenarios)
        if (chart := _curves(scenario.name, i, history)) is not None
    )
    body = chart_places(charts) + table(columns, rows[::-1], "The checks, the last one first")
    return Section("History", body, charts)


def _curves(scenario: str, number: int, history: Sequence[Checked]) -> Chart | None:
    """The size of each fidelity error of a scenario, and of each change's, from check to check."""
    found = [_verdicts(checked, scenario) for checked in history]
    figures = [figure for figure, one in found[-1].items() if one is not None]
    if not figures:
        return None
    x = np.arange(1, len(history) + 1, dtype=np.float64)
    lines = []
    for i, figure in enumerate(figures):
        sizes = [one.get(figure) for one in found]
        y = np.array([np.nan if size is None else 100 * abs(size) for size in sizes])
        lines.append(Line(figure, f"run{i % ROLES}", x, y, dots=True))
    caption = f"{scenario}: the size of each error from check to check; a gap where it was not judged."
    return Chart(f"history-{number}", caption, "check", "size of the error, %", tuple(lines))


def _verdicts(checked: Checked, scenario: str) -> dict[str, float | None]:
    """The errors of a scenario against what was measured, by figure; not those that are only reported."""
    found = (one for one in checked.scenarios if one.name == scenario)
    judged = (v for one in found for v in one.verdicts if v.gate in MEASURED and v.tolerance != REPORT)
    return {v.name: v.difference for v in judged}


def _configuration(kept: Kept) -> str:
    known = {"suite": kept.suite, "servetwin": kept.version, "checked": kept.at, "commit": kept.commit}
    return facts({**known, "baseline updated because": kept.reason})
