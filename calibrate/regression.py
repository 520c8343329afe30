"""Robust linear regression with priors, clustered standard errors, and a judgement of what the data identify.

Huber's estimator by iterated reweighting (Huber, Robust Statistics, 1981, section 7.8), with a Gaussian prior on each
parameter. The threshold is five robust standard deviations and not the usual 1.345: a request's time is the *sum* of
its steps, so that the mean of a skewed residual counts and not its median; what lies beyond is a disturbance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.parameters import Parameter
from profiles.spread import NORMAL
from traces.steps import Floats, Ints

THRESHOLD_SD = 5.0
"""Residuals beyond so many robust standard deviations lose weight."""

IDENTIFIED_BELOW = 0.9
"""A parameter is told by the data when its standard error is below this share of its prior's. Parameters that the data
tell only together are each told a little, and share what there is in proportion to their priors' variances; to hold one
of them would put all of it on the others."""

MOST_ITERATIONS = 50

TOLD_FROM_ZERO = 3.0
"""Standard errors that what is to be told from 0 must exceed."""

FAR = 3.0
"""How far from the measured time an expected one may be believed, as a factor, while a fit is still on its way."""


@dataclass(frozen=True, slots=True)
class Equations:
    """`target = design @ parameters` up to noise of standard deviation proportional to `scale`.

    Attributes:
        target: [n].
        design: [n, k] one column per parameter.
        scale: [n] size of the noise, up to a common factor of its group.
        group: [n] index of each equation's group; every group has a noise factor of its own.
        cluster: [n] index of each equation's cluster; noise may be dependent inside one.
    """

    target: Floats
    design: Floats
    scale: Floats
    group: Ints
    cluster: Ints


@dataclass(frozen=True, slots=True)
class Estimate:
    """Fitted parameters.

    Attributes:
        values: [k] of all parameters: fitted, or the prior where the data do not tell it.
        errors: [k] standard error of each that was fitted; NaN of those that were held.
        covariance: [k, k] of what data and priors leave open. A parameter held at its prior is as unsure as the two
            together leave it; one that was not to be fitted at all has no uncertainty of its own.
        held: why parameters were held at their priors, by name.
    """

    values: Floats
    errors: Floats
    covariance: Floats
    held: dict[str, str]


Linearised = Callable[[Floats], Equations]
"""Equations around parameters [k]; a problem that is linear gives the same ones everywhere."""


def joined(parts: Sequence[Equations]) -> Equations:
    """Equations over the same parameters as one."""
    return Equations(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in Equations.__slots__})


def stretches(n: int, pieces: int, capture: int) -> Ints:
    """The cluster of each of n equations in order of time, [n]: the capture of this number is cut into `pieces`."""
    return pieces * capture + np.arange(n) * pieces // max(n, 1)


def robust_sd(values: Floats, middle: float) -> float:
    """Standard deviation around `middle` that a disturbed half of the values cannot move: 1.4826 * median |deviation|.

    Of normal values it is their standard deviation.
    """
    return NORMAL * float(np.median(np.abs(values - middle)))


def identify(
    equations: Linearised, parameters: Sequence[Parameter], never: dict[str, str], held: dict[str, str] | None = None
) -> Estimate:
    """Fit all parameters, and drop one by one those that the data do not tell, the least told first.

    Args:
        equations: over all `parameters`, in their order.
        parameters: all there are.
        never: those that are no question of the data, and why: they are not fitted, and none is unsure.
        held: those that are held at their priors beside them, and why.
    """
    held = {**never, **(held or {})}
    prior = np.array([parameter.prior for parameter in parameters])
    prior_sd = np.array([parameter.prior_sd for parameter in parameters])
    kept = [i for i, parameter in enumerate(parameters) if parameter.name not in held]
    while True:
        values, covariance, last = fit_kept(equations, prior, prior_sd, kept)
        below = [
            (values[i] - parameters[i].least) / sd for i, sd in zip(kept, np.sqrt(np.diag(covariance)), strict=True)
        ]
        if kept and min(below) < 0:
            low = kept[int(np.argmin(below))]
            least = parameters[low].least
            held[parameters[low].name] = f"the data ask for {values[low]:.3g}, and it cannot be below {least:.3g}"
            kept.remove(low)
            continue
        told = np.sqrt(np.diag(covariance)) / prior_sd[kept]
        if not len(kept) or told.max() < IDENTIFIED_BELOW:
            break
        worst = int(np.argmax(told))
        held[parameters[kept[worst]].name] = _why(parameters, kept, worst, covariance, last, float(told[worst]))
        del kept[worst]
    errors = np.full(len(parameters), np.nan)
    errors[kept] = np.sqrt(np.diag(covariance))
    free = [i for i, parameter in enumerate(parameters) if parameter.name not in never]
    full = np.zeros((len(parameters), len(parameters)))
    full[np.ix_(free, free)] = _posterior(last, values, free, np.diag(1 / prior_sd[free] ** 2))
    full[np.ix_(kept, kept)] += _jackknife(last, values, kept, np.diag(1 / prior_sd[kept] ** 2))
    return Estimate(values, errors, full, held)


def fit_kept(
    equations: Linearised, prior: Floats, prior_sd: Floats, kept: list[int]
) -> tuple[Floats, Floats, Equations]:
    """Fit some of the parameters, the others at their priors: all values [k], covariance [kept, kept], equations there.

    Args:
        equations: over all parameters.
        prior: [k] their priors.
        prior_sd: [k] standard deviations of the priors.
        kept: indices of those that are fitted.
    """
    values = prior.copy()
    precision = np.diag(1 / prior_sd[kept] ** 2)
    now = equations(values)
    for _ in range(MOST_ITERATIONS):
        weights, design = _weights(now, values), now.design[:, kept]
        target = now.target - now.design @ np.where(np.isin(np.arange(len(prior)), kept), 0.0, values)
        information = design.T @ (weights[:, None] * design) + precision
        found = np.linalg.solve(information, design.T @ (weights * target) + precision @ prior[kept])
        moved = np.abs(found - values[kept]) / prior_sd[kept]
        values[kept] = found
        now = equations(values)
        if moved.max(initial=0.0) < 1e-6:
            break
    return values, _covariance(now, values, kept, precision), now


def _noise(residuals: Floats, group: Ints) -> Floats:
    """Robust standard deviation around zero of each group's residuals, never 0."""
    noise = [robust_sd(residuals[group == i], 0.0) for i in range(int(group.max(initial=-1)) + 1)]
    return np.maximum(np.array(noise, dtype=np.float64), 1e-9)


def _weights(equations: Equations, values: Floats) -> Floats:
    """Precision of each equation, [n], lowered by Huber's rule where it is an outlier."""
    residuals = (equations.target - equations.design @ values) / equations.scale
    noise = _noise(residuals, equations.group)[equations.group]
    far = np.abs(residuals) / (THRESHOLD_SD * noise)
    weights: Floats = 1 / ((noise * equations.scale) ** 2 * np.maximum(far, 1.0))
    return weights


def robust_cost(equations: Equations, values: Floats, reference: Equations, reference_values: Floats) -> float:
    """Huber's cost of the residuals at `values`, in units of the noise at the reference."""
    reference_residuals = (reference.target - reference.design @ reference_values) / reference.scale
    noise = _noise(reference_residuals, reference.group)[equations.group]
    far = np.abs((equations.target - equations.design @ values) / (equations.scale * noise))
    return float(np.where(far < THRESHOLD_SD, far**2 / 2, THRESHOLD_SD * (far - THRESHOLD_SD / 2)).sum())


def _posterior(equations: Equations, values: Floats, kept: list[int], precision: Floats) -> Floats:
    """Covariance with independent noise, [kept, kept]."""
    weights, design = _weights(equations, values), equations.design[:, kept]
    return np.asarray(np.linalg.inv(design.T @ (weights[:, None] * design) + precision), dtype=np.float64)


def _jackknife(equations: Equations, values: Floats, kept: list[int], precision: Floats) -> Floats:
    """Covariance with noise that is dependent within clusters, [kept, kept]: the fit without each of them in turn.

    Efron and Stein, Annals of Statistics 9, 1981; of the estimators for few clusters the one that errs on the safe side
    (MacKinnon, Nielsen and Webb, Journal of Econometrics 232, 2023).
    """
    if not kept:
        return np.zeros((0, 0))
    weights, design = _weights(equations, values), equations.design[:, kept]
    weighted = weights[:, None] * design
    information = design.T @ weighted + precision
    off = equations.target - equations.design @ values
    moved = []
    for cluster in np.unique(equations.cluster):
        own = equations.cluster == cluster
        without = information - design[own].T @ weighted[own]
        moved.append(np.linalg.solve(without, -weighted[own].T @ off[own]))
    covariance: Floats = np.cov(np.array(moved).T, bias=True).reshape(len(kept), len(kept)) * (len(moved) - 1)
    return covariance


def _covariance(equations: Equations, values: Floats, kept: list[int], precision: Floats) -> Floats:
    """Covariance of a fit: the jackknife's and what the prior leaves open, never below what independent noise gives."""
    posterior = _posterior(equations, values, kept, precision)
    covariance = _jackknife(equations, values, kept, precision) + posterior @ precision @ posterior
    larger = np.sqrt(np.maximum(np.diag(posterior) / np.maximum(np.diag(covariance), 1e-300), 1.0))
    covariance *= np.outer(larger, larger)
    return covariance


def _why(
    parameters: Sequence[Parameter], kept: list[int], worst: int, covariance: Floats, last: Equations, told: float
) -> str:
    """Why the data do not tell a parameter, for the reader of the file."""
    column = last.design[:, kept[worst]]
    if not np.any(column):
        return "nothing in the data depends on it"
    sd = np.sqrt(np.diag(covariance))
    correlation = covariance[worst] / (sd * sd[worst])
    correlation[worst] = 0.0
    other = int(np.argmax(np.abs(correlation)))
    if len(kept) > 1 and abs(correlation[other]) > 0.7:
        return f"the data do not tell it apart from {parameters[kept[other]].name}"
    return f"the data hardly tell it: standard error {told:.0%} of its prior's"
