"""Several calibrations on one page: what each found, and which of their parameters are apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calibrate.calibration import Calibration, FittedParameter, Residuals
from harness.reports.calibration_page import MEDIAN, configuration, fitted_table, residual_marks, shift_marks, show
from harness.reports.chart import Chart
from harness.reports.colours import ROLES
from harness.reports.page import Page, Section, chart_places, heading, notes, prose, table, verdict_line
from harness.terminal.words import percent

APART = 1.96
"""Standard errors of a difference from which on two values are called apart: 5 % of equal ones are."""


def calibrations_page(calibrations: Mapping[str, Calibration]) -> Page:
    """Calibrations by name; each is set against the first."""
    apart = [name for name in _parameters(calibrations) if any(_is_apart(c) for c in _changes(calibrations, name))]
    sentence = f"{len(calibrations)} calibrations side by side. "
    first = next(iter(calibrations))
    sentence += f"Apart from {first}: {', '.join(apart)}." if apart else f"No parameter is apart from {first}'s."
    runs = [(name, f"run{i % ROLES}", one) for i, (name, one) in enumerate(calibrations.items())]
    shifts = Chart(
        "parameters",
        "Each parameter's way from what was plausible before any data, with its 95 % interval; held ones have none.",
        "standard deviations of the prior",
        "",
        tuple(shift_marks(name, role, one) for name, role, one in runs),
    )
    left = Chart(
        "residuals",
        "Measured over calibrated, less 1: the median, and where nine of ten are.",
        "residual",
        "",
        tuple(residual_marks(name, role, one) for name, role, one in runs),
        percent=True,
    )
    said = prose(
        f"Value ± standard error. In brackets: from {first}'s, in standard errors of the difference. Where one file "
        "holds a parameter that another fits, others of that file may have taken over its part."
    )
    sections = (
        Section("Parameters", said + _table(calibrations) + chart_places([shifts], "wide"), (shifts,)),
        Section("What is left", chart_places([left], "wide") + _left(calibrations), (left,)),
        Section("What was fitted", "".join(heading(name) + fitted_table(one) for name, one in calibrations.items())),
        Section("Notes", "".join(heading(name) + notes(one.notes) for name, one in calibrations.items() if one.notes)),
        Section("Configuration", "".join(heading(name) + configuration(one) for name, one in calibrations.items())),
    )
    return Page("Calibrations side by side", verdict_line(good=not apart, mark="", sentence=sentence), sections)


def _parameters(calibrations: Mapping[str, Calibration]) -> list[str]:
    """Parameters of any of them, in the order in which they come."""
    return list(dict.fromkeys(name for one in calibrations.values() for name in one.parameters))


def _changes(calibrations: Mapping[str, Calibration], name: str) -> list[float | None]:
    """How far each value is from the first's, in standard errors of the difference; None where one of them is held."""
    values = [one.parameters.get(name) for one in calibrations.values()]
    return [_change(values[0], value) for value in values]


def _change(before: FittedParameter | None, after: FittedParameter | None) -> float | None:
    if before is None or after is None or before is after:
        return None
    if before.standard_error is None or after.standard_error is None:
        return None
    error = float(np.hypot(before.standard_error, after.standard_error))
    return (after.value - before.value) / error if error > 0 else None


def _is_apart(change: float | None) -> bool:
    return change is not None and abs(change) > APART


def _table(calibrations: Mapping[str, Calibration]) -> str:
    rows = []
    for name in _parameters(calibrations):
        values = (one.parameters.get(name) for one in calibrations.values())
        changes = _changes(calibrations, name)
        rows.append((name, *(_cell(value, change) for value, change in zip(values, changes, strict=True))))
    return table(["parameter", *calibrations], rows, "Fitted parameters")


def _cell(value: FittedParameter | None, change: float | None) -> str:
    if value is None:
        return "–"
    error = "held" if value.standard_error is None else f"± {show(value, value.standard_error)}"
    return f"{show(value, value.value)} {error}" + ("" if change is None else f" [{change:+.1f}]")


def _left(calibrations: Mapping[str, Calibration]) -> str:
    kinds = dict.fromkeys(kind for one in calibrations.values() for kind in one.residuals)
    rows = []
    for kind in kinds:
        left = [one.residuals.get(kind) for one in calibrations.values()]
        rows.append((kind, *("–" if one is None else _residual(one) for one in left)))
    return table(["measured over calibrated, less 1", *calibrations], rows, "What is left of each, in the mean")


def _residual(left: Residuals) -> str:
    return f"{percent(left.mean)}, median {percent(left.quantiles[MEDIAN])}"
