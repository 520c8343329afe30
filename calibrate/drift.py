"""Whether a new capture still is what a calibration says: its residuals, when they changed, and which part moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import kolmogorov

from calibrate.calibration import Calibration, Residuals, residuals_of
from calibrate.causes import CALIBRATE_AGAIN, RE_PROFILE, capacity_causes, request_causes, step_causes
from calibrate.explain import OPERATORS, Cause, moved
from calibrate.fit_steps import relative_residuals
from calibrate.kv_transfer import transfer_causes
from calibrate.parameters import KV_TRANSFER, array_of, names_of
from calibrate.regression import robust_sd
from calibrate.repricing import all_priced
from calibrate.sensitivity import sensitivity
from calibrate.subject import Subject
from simulator.steps.correction import SCALES
from traces.errors import InputError
from traces.metrics import requests
from traces.steps import Floats

SIGNIFICANT = 0.01
"""A change is reported when residuals without one would show it less often than this."""

BLOCKS = 50
"""Blocks over which dependent residuals are averaged before a change is looked for."""

WINSOR_SD = 5.0


@dataclass(frozen=True, slots=True)
class Change:
    """A point in time at which residuals changed in a way that no cause explains.

    Attributes:
        time_s: when, on the capture's clock.
        before: mean relative residual before it.
        after: and after it.
        p: probability of as large a change by chance.
    """

    time_s: float
    before: float
    after: float
    p: float


@dataclass(frozen=True, slots=True)
class Drift:
    """What a capture says of a calibration.

    Attributes:
        drifted: whether anything exceeds the tolerance.
        reasons: what does, in words.
        tolerance: relative, of time.
        kind: the records that were looked at.
        time_error: measured time over the calibrated twin's, less 1, in total.
        expected: residuals of the calibration's own data; None where it kept none of this kind.
        found: residuals of this capture.
        change: where within the capture they changed beyond what the causes explain; None where they did not.
        causes: parameters that moved, the largest first; those of KV transfers, from their own records, behind them.
        measure_again: what to profile again because of them.
    """

    drifted: bool
    reasons: tuple[str, ...]
    tolerance: float
    kind: str
    time_error: float
    expected: Residuals | None
    found: Residuals
    change: Change | None
    causes: tuple[Cause, ...]
    measure_again: tuple[str, ...]


def drift(subject: Subject, calibration: Calibration, tolerance: float) -> Drift:
    """Hold a capture against a calibration of the same engine.

    Args:
        subject: the capture, with its uncorrected engine.
        calibration: fitted earlier.
        tolerance: relative change of time that is still no drift.
    """
    found = _by_steps(subject, calibration) if subject.has_batches else _by_requests(subject, calibration)
    change = change_point(found.time_s, found.unexplained)
    sent = subject.sent(np.ones(len(subject.measured.outcomes), dtype=bool))
    causes = [*found.causes, *([] if sent is None else transfer_causes(sent, calibration.values()))]
    reasons = _reasons(found.time_error, change, causes, tolerance)
    return Drift(
        drifted=bool(reasons),
        reasons=tuple(reasons),
        tolerance=tolerance,
        kind=found.kind,
        time_error=found.time_error,
        expected=calibration.residuals.get(found.kind),
        found=residuals_of([found.relative]),
        change=change,
        causes=tuple(causes),
        measure_again=tuple(dict.fromkeys(RE_PROFILE.get(c.parameter, CALIBRATE_AGAIN) for c in causes)),
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What records say, in order of time.

    Attributes:
        kind: of the records.
        time_s: [n] when.
        relative: [n] (measured - calibrated) / calibrated.
        unexplained: [n] the same once the causes are put in: a change of load changes what a cause makes.
        time_error: of all time together.
        causes: what explains the residuals.
    """

    kind: str
    time_s: Floats
    relative: Floats
    unexplained: Floats
    time_error: float
    causes: list[Cause]


def _by_steps(subject: Subject, calibration: Calibration) -> _Found:
    basis, values, asynchronous = calibration.basis(), calibration.values(), subject.asynchronous
    parts = all_priced(subject.measured, subject.engine.step_time, basis)
    causes = step_causes(parts, basis, values, asynchronous=asynchronous)
    end_s, cycle_s = (np.concatenate([getattr(part, name) for part in parts]) for name in ("end_s", "cycle_s"))
    order = np.argsort(end_s, kind="stable")
    relative, unexplained = (
        np.concatenate([relative_residuals(part, basis, each, asynchronous=asynchronous) for part in parts])
        for each in (values, moved(values, causes))
    )
    time_error = float(cycle_s.sum() / (cycle_s / (1 + relative)).sum()) - 1
    causes = [*capacity_causes(subject.measured, None, subject.engine.num_gpu_blocks), *causes]
    return _Found("steps", end_s[order], relative[order], unexplained[order], time_error, causes)


def _by_requests(subject: Subject, calibration: Calibration) -> _Found:
    basis, values, asynchronous = calibration.basis(), calibration.values(), subject.asynchronous
    served = subject.simulate(values, basis)
    outcomes = subject.outcomes(np.ones(len(subject.measured.outcomes), dtype=bool))
    own = served.twins(outcomes)
    causes = request_causes(outcomes, served, basis, values, asynchronous=asynchronous)
    rows = sensitivity(served, basis, basis.changes(values), asynchronous=asynchronous).e2el[own]
    after = moved(values, causes)
    measured_s = requests(outcomes).e2el_s
    calibrated_s = requests([served.capture.outcomes[i] for i in own]).e2el_s
    told = basis.with_front_end
    explained_s = calibrated_s + rows @ (array_of(told, after) - array_of(told, values))
    known = np.isfinite(measured_s) & np.isfinite(explained_s)
    if not known.any():
        raise InputError("no request finished in the capture and in its twin", found=subject.name)
    time_s = np.array([outcome.arrival_s for outcome in outcomes])[known]
    relative, unexplained = (measured_s[known] / each[known] - 1 for each in (calibrated_s, explained_s))
    time_error = float(measured_s[known].sum() / calibrated_s[known].sum()) - 1
    causes = [*capacity_causes(subject.measured, served.capture, subject.engine.num_gpu_blocks), *causes]
    return _Found("e2el_s", time_s, relative, unexplained, time_error, causes)


def change_point(time_s: Floats, relative: Floats) -> Change | None:
    """The most likely single change of the mean of residuals in order of time; None when none is significant.

    The largest excursion of the cumulated sums of block means, in units of their standard deviation, is that of a
    Brownian bridge where there is no change (Ploberger and Kraemer, Econometrica 60, 1992). The standard deviation is
    taken from differences of neighbouring blocks (von Neumann, Annals of Mathematical Statistics 12, 1941), which a
    single change hardly touches.
    """
    n_blocks = min(BLOCKS, len(relative) // 5)
    if n_blocks < 8:
        return None
    middle = float(np.median(relative))
    spread = max(robust_sd(relative, middle), 1e-12)
    calm = np.clip(relative, middle - WINSOR_SD * spread, middle + WINSOR_SD * spread)
    blocks = np.array_split(np.arange(len(calm)), n_blocks)
    means = np.array([calm[part].mean() for part in blocks])
    sd = float(np.sqrt(np.mean(np.diff(means) ** 2) / 2))
    if sd == 0:
        return None
    sums = np.cumsum(means - means.mean())[:-1]
    at = int(np.argmax(np.abs(sums)))
    p = float(kolmogorov(abs(sums[at]) / (sd * np.sqrt(n_blocks))))
    if p > SIGNIFICANT:
        return None
    first = int(blocks[at + 1][0])
    return Change(float(time_s[first]), float(calm[:first].mean()), float(calm[first:].mean()), p)


def _reasons(total: float, change: Change | None, causes: list[Cause], tolerance: float) -> list[str]:
    found = []
    if abs(total) > tolerance:
        found.append(f"measured times are {abs(total):.1%} {'longer' if total > 0 else 'shorter'} than calibrated ones")
    found += [text for cause in causes if (text := _moved(cause, tolerance)) is not None]
    if change is not None and abs(change.after - change.before) > tolerance:
        found.append(
            f"at {change.time_s:.1f} s residuals changed from {change.before:+.1%} to {change.after:+.1%} beside that"
        )
    return found


def _moved(cause: Cause, tolerance: float) -> str | None:
    """What to say of a cause that makes a difference; None of one that makes none.

    A part counts when what it makes of this capture's time exceeds the tolerance, and a class of operators also when
    it is itself surely off by more: another load may consist of it.
    """
    if cause.parameter == "num_gpu_blocks":
        if cause.change is None:
            return f"more requests are preempted than with {int(cause.was)} KV blocks"
        return f"the KV cache has about {int(cause.was + cause.change)} blocks, not {int(cause.was)}"
    assert cause.change is not None and cause.standard_error is not None  # noqa: PT018 (both, or neither)
    off = (
        cause.parameter in (*SCALES, OPERATORS.name, KV_TRANSFER[1].name)
        and abs(cause.change) - 2 * cause.standard_error > tolerance * cause.was
    )
    if abs(cause.share) <= tolerance and not off:
        return None
    alike = f" (or {', '.join(cause.alike)})" if cause.alike else ""
    whose = "of the KV transfers' time" if cause.parameter in names_of(KV_TRANSFER) else "of the time"
    return f"{cause.parameter}{alike} moved from {cause.was:.4g} by {cause.change:+.4g}: {cause.share:+.1%} {whose}"
