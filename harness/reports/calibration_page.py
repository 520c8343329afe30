"""The page of a calibration: what was fitted, how surely, and what it leaves."""

from __future__ import annotations

import msgspec
import numpy as np

from calibrate.calibration import RESIDUAL_QUANTILES, Calibration, FittedParameter
from harness.reports.chart import Chart, Intervals, Role
from harness.reports.page import Page, Section, chart_places, facts, folded, notes, prose, table, tiles, verdict_line
from harness.terminal.words import interval, percent, seconds

LOW, MEDIAN, HIGH = (RESIDUAL_QUANTILES.index(q) for q in (0.05, 0.5, 0.95))


def calibration_page(name: str, calibration: Calibration) -> Page:
    """The page."""
    n = sum(part.n_requests for part in calibration.fitted_on)
    captures = ", ".join(part.capture for part in calibration.fitted_on)
    told = sum(parameter.identified for parameter in calibration.parameters.values())
    sentence = f"Fitted from {calibration.kind} of {captures}, part {calibration.fit_on}: {n} requests. "
    sentence += f"The data tell {told} of {len(calibration.parameters)} parameters; the others are held."
    head = verdict_line(good=True, mark="", sentence=sentence) + tiles(_tiles(calibration))
    residuals, shifts = _residuals(calibration), _shifts(calibration)
    sections = (
        Section("Parameters", _parameters(calibration) + chart_places([shifts], "wide"), (shifts,)),
        Section("What is left", chart_places([residuals], "wide") + _residual_table(calibration), (residuals,)),
        Section("What was fitted", fitted_table(calibration)),
        Section("Notes", notes(calibration.notes)),
        Section("Configuration", configuration(calibration)),
    )
    return Page(f"Calibration {name}: {calibration.model} on {calibration.device}", head, sections)


def _tiles(calibration: Calibration) -> list[tuple[str, str, list[str]]]:
    return [
        (f"left of {what}", percent(left.mean), [f"5 to 95 % {interval([left.quantiles[LOW], left.quantiles[HIGH]])}"])
        for what, left in calibration.residuals.items()
    ]


def show(parameter: FittedParameter, value: float) -> str:
    """A value in the parameter's unit."""
    return f"{value:.4g}" if parameter.unit == "1" else seconds(value)


def _parameters(calibration: Calibration) -> str:
    meanings = {parameter.name: parameter.meaning for parameter in calibration.every_parameter()}
    rows = []
    for name, one in calibration.parameters.items():
        error = "held" if one.standard_error is None else show(one, one.standard_error)
        prior = f"{show(one, one.prior)} ± {show(one, one.prior_sd)}"
        rows.append((name, show(one, one.value), error, prior, one.note or "", meanings[name]))
    return table(["parameter", "value", "standard error", "before any data", "why it was held", "meaning"], rows)


def _shifts(calibration: Calibration) -> Chart:
    caption = (
        "Each parameter's way from what was plausible before any data, with its 95 % interval; held ones have none."
    )
    marks = (shift_marks("value", "simulated", calibration),)
    return Chart("parameters", caption, "standard deviations of the prior", "", marks)


def shift_marks(name: str, role: Role, calibration: Calibration) -> Intervals:
    """How far each parameter is from what it was taken to be before, in standard deviations of that."""
    fitted = [(name, one) for name, one in calibration.parameters.items() if one.prior_sd > 0]
    value = np.array([(one.value - one.prior) / one.prior_sd for _, one in fitted])
    error = np.array([np.nan if one.standard_error is None else one.standard_error / one.prior_sd for _, one in fitted])
    labels = tuple(name for name, _ in fitted)
    return Intervals(name, role, labels, value, value - 1.96 * error, value + 1.96 * error)


def _residuals(calibration: Calibration) -> Chart:
    marks = (residual_marks("residual", "simulated", calibration),)
    caption = "Measured over calibrated, less 1: the median, and where nine of ten are."
    return Chart("residuals", caption, "residual", "", marks, percent=True)


def residual_marks(name: str, role: Role, calibration: Calibration) -> Intervals:
    """What is left of each kind of measurement: the median, and where nine of ten are."""
    left = list(calibration.residuals.values())
    value, low, high = (np.array([one.quantiles[i] for one in left]) for i in (MEDIAN, LOW, HIGH))
    return Intervals(name, role, tuple(calibration.residuals), value, low, high)


def _residual_table(calibration: Calibration) -> str:
    rows = [
        (what, str(left.n), percent(left.mean), *(percent(q) for q in left.quantiles), f"{left.common:.1%}")
        for what, left in calibration.residuals.items()
    ]
    quantiles = ["least", *(f"p{100 * q:g}" for q in RESIDUAL_QUANTILES[1:-1]), "most"]
    return table(["measured over calibrated, less 1", "n", "mean", *quantiles, "in common"], rows)


def fitted_table(calibration: Calibration) -> str:
    """What it was fitted to."""
    rows = [
        (
            part.capture,
            str(part.n_requests),
            str(part.n_steps or "–"),
            seconds(part.from_s),
            seconds(part.to_s),
            part.sha256,
        )
        for part in calibration.fitted_on
    ]
    body = table(["capture", "requests", "steps", "from", "to", "digest"], rows, f"Part {calibration.fit_on}")
    ranges = [(name, f"{low:g}", f"{high:g}") for name, (low, high) in calibration.ranges.items()]
    said = prose("Steps outside these ranges are flagged when the calibration is used.")
    return body + table(["", "least", "most"], ranges, "What the fitted steps held") + said


def configuration(calibration: Calibration) -> str:
    """What it is of, and the whole file."""
    known = {
        "model": calibration.model,
        "device": calibration.device,
        "engine": calibration.engine,
        "asynchronous scheduling": "yes" if calibration.async_scheduling else "no",
        "profile": calibration.profile,
        **calibration.versions,
    }
    return facts(known) + folded("The file", msgspec.to_builtins(calibration))
