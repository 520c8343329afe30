"""How long requests take to their engine, from when they arrived and when its scheduler saw them.

An engine looks at its input between two steps, so that `queued - arrival` is an upper bound of the way, and the last
look that did not find the request a lower one. A request that finds the engine without work is seen at once: its way
is known. The ways are normal with a mean that may grow with the prompt; the likelihood of exact and of interval-
censored observations is maximised (Lawless, Statistical Models and Methods for Lifetime Data, 2nd edition, 2.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm

from calibrate.parameters import FRONT_END, Parameter, names_of
from calibrate.regression import IDENTIFIED_BELOW, TOLD_FROM_ZERO, Estimate, robust_sd
from traces.capture import Capture
from traces.steps import Floats, Mask

FEWEST = 5
"""Requests from which a mean and a spread are told."""

LEAST_S = 1e-6
"""What clocks tell apart: a spread of less is none."""

SHORT = 0.05
"""Quantile of the times between arrival and queue stamp that no way is longer than."""

OUTLIER_SD = 5.0
"""Exact observations beyond so many robust standard deviations are disturbances and are left out."""


@dataclass(frozen=True, slots=True)
class Ways:
    """Bounds of each request's way, seconds, [n] each: exact where the two are equal."""

    least_s: Floats
    most_s: Floats
    prompt_tokens: Floats


@dataclass(frozen=True, slots=True)
class FrontEndFit:
    """The fitted way.

    Attributes:
        estimate: of the parameters of `FRONT_END`.
        spread_s: standard deviation between requests; None when nothing was told.
    """

    estimate: Estimate
    spread_s: float | None


def ways(capture: Capture, chosen: Mask) -> Ways:
    """Bounds of the chosen requests' ways, of those that have a queue stamp.

    Without step records a way is known only where no other request was under way, and else is longer than nothing.
    """
    steps = capture.steps
    ends_s = np.array([np.inf if o.finish_s is None else o.finish_s for o in capture.outcomes])
    arrivals_s = np.array([outcome.arrival_s for outcome in capture.outcomes])
    rows = []
    for outcome, own in zip(capture.outcomes, chosen, strict=True):
        if not own or outcome.queued_s is None:
            continue
        most_s = outcome.queued_s - outcome.arrival_s
        if steps is None:
            others = (arrivals_s <= outcome.queued_s) & (ends_s >= outcome.arrival_s)
            least_s = 0.0 if np.count_nonzero(others) > 1 else most_s
        else:
            before = int(np.searchsorted(steps.scheduled_s, outcome.queued_s)) - 1
            waited = before >= 0 and steps.end_s[before] > outcome.arrival_s
            least_s = max(steps.scheduled_s[before] - outcome.arrival_s, 0.0) if waited else most_s
        if most_s >= least_s >= 0:
            rows.append((least_s, most_s, float(outcome.prompt_tokens)))
    return Ways(*np.array(rows, dtype=np.float64).reshape(-1, 3).T)


def front_end_prior(parts: Sequence[Ways]) -> tuple[Parameter, ...]:
    """What is known of the way from queue stamps that do not tell it: it is not longer than nearly all of them."""
    most_s = np.concatenate([part.most_s for part in parts])
    if len(most_s) < FEWEST:
        return FRONT_END
    bound_s = max(float(np.quantile(most_s, SHORT)), LEAST_S)
    request, token = FRONT_END
    return replace(request, prior_sd=min(request.prior_sd, bound_s)), token


def fit_front_end(parts: Sequence[Ways]) -> FrontEndFit:
    """The way's mean, its growth with the prompt, and its spread, over all captures."""
    least_s, most_s, tokens = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("least_s", "most_s", "prompt_tokens")
    )
    prior = np.array([parameter.prior for parameter in FRONT_END])
    prior_sd = np.array([parameter.prior_sd for parameter in FRONT_END])
    exact = least_s == most_s
    if exact.sum() < FEWEST:
        why = f"{int(exact.sum())} requests found the engine without work, fewer than {FEWEST}"
        held = dict.fromkeys(names_of(FRONT_END), why)
        return FrontEndFit(Estimate(prior, np.full(2, np.nan), np.diag(prior_sd**2), held), None)
    middle = float(np.median(most_s[exact]))
    spread = max(robust_sd(most_s[exact], middle), LEAST_S)
    kept = ~exact | (np.abs(most_s - middle) < OUTLIER_SD * spread)
    observed = Ways(least_s[kept], most_s[kept], tokens[kept])
    (way_s, token_s, log_spread), error = _maximise(observed, np.array([middle, 0.0, np.log(spread)]), per_token=True)
    if error[1] < IDENTIFIED_BELOW * prior_sd[1] and token_s > TOLD_FROM_ZERO * error[1]:
        estimate = Estimate(np.array([way_s, token_s]), error[:2], np.diag(error[:2] ** 2), {})
        return FrontEndFit(estimate, float(np.exp(log_spread)))
    (way_s, log_spread), alone = _maximise(observed, np.array([middle, np.log(spread)]), per_token=False)
    held = {FRONT_END[1].name: "the data do not tell it from 0"}
    open_s = np.array([alone[0], min(error[1], prior_sd[1])])
    estimate = Estimate(np.array([way_s, prior[1]]), np.array([alone[0], np.nan]), np.diag(open_s**2), held)
    return FrontEndFit(estimate, float(np.exp(log_spread)))


def _maximise(observed: Ways, start: Floats, *, per_token: bool) -> tuple[Floats, Floats]:
    """Maximum likelihood and standard errors, from the curvature; the last entry is log(spread)."""
    scale = np.array([max(abs(start[0]), LEAST_S), *([1e-6] if per_token else []), 1.0])

    def cost(x: Floats) -> float:
        values = x * scale
        mean = values[0] + (values[1] * observed.prompt_tokens if per_token else 0.0)
        sd = max(np.exp(values[-1]), LEAST_S)
        low, high = (observed.least_s - mean) / sd, (observed.most_s - mean) / sd
        exact = observed.least_s == observed.most_s
        inside = norm.cdf(high) - norm.cdf(low)
        return -float(np.where(exact, norm.logpdf(high) - np.log(sd), np.log(np.maximum(inside, 1e-12))).sum())

    found = minimize(cost, start / scale, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-8, "maxiter": 4000})
    covariance = np.linalg.pinv(_hessian(cost, found.x))
    return found.x * scale, np.sqrt(np.maximum(np.diag(covariance), 0.0)) * np.abs(scale)


def _hessian(function: Callable[[Floats], float], at: Floats) -> Floats:
    """Second differences of a function of [k], [k, k]."""
    steps = 1e-3 * np.maximum(np.abs(at), 1.0) * np.eye(len(at))
    return np.array(
        [
            [
                (function(at + a + b) - function(at + a - b) - function(at - a + b) + function(at - a - b))
                / (4 * a.max() * b.max())
                for b in steps
            ]
            for a in steps
        ]
    )
