"""When requests arrive: gaps drawn from a law, and a rate that may change over time.

Arrivals of any process here come in two steps. Gaps of mean 1 add up to what the rate has brought so far, its integral
over time; the time at which the integral has that value is the arrival (time change of a renewal process; for
exponential gaps this is exactly the Poisson process of that rate, Cinlar, Introduction to Stochastic Processes, 4.7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from traces.errors import InputError
from traces.steps import Floats

LAWS = ("constant", "poisson", "gamma", "weibull")
"""Of gaps."""

MOST_REQUESTS = 10**8
"""Of a synthetic trace, which is made in memory."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Arrivals per second over time: a mean, changed by steps that repeat or stretch over the trace.

    Attributes:
        mean_per_s: over a whole period.
        period_s: after which it repeats.
        edges_s: [n + 1] from 0 to the period, ascending.
        per_s: [n] the rate between two edges.
    """

    mean_per_s: float
    period_s: float
    edges_s: Floats
    per_s: Floats

    @classmethod
    def steady(cls, per_s: float) -> Rate:
        """The same at all times. Raises InputError."""
        _check("--rate", per_s, "requests per second, above 0", per_s > 0)
        return cls(per_s, 1.0, np.array([0.0, 1.0]), np.array([per_s]))

    @classmethod
    def bursts(cls, mean_per_s: float, factor: float, burst_s: float, period_s: float) -> Rate:
        """In each period one burst, of `factor` times the rate outside it, from its beginning on. Raises InputError."""
        _check("--rate", mean_per_s, "requests per second, above 0", mean_per_s > 0)
        _check("--bursts", factor, "a factor of at least 1", factor >= 1)
        _check("--bursts", burst_s, f"seconds, above 0 and below the period of {period_s}", 0 < burst_s < period_s)
        calm_per_s = mean_per_s * period_s / (period_s + (factor - 1) * burst_s)
        return cls(
            mean_per_s, period_s, np.array([0.0, burst_s, period_s]), np.array([factor * calm_per_s, calm_per_s])
        )

    @classmethod
    def diurnal(cls, mean_per_s: float, amplitude: float, period_s: float, steps: int = 288) -> Rate:
        """A wave: mean * (1 + amplitude * sin), least a quarter of a period before the start; by steps of its mean.

        288 steps are five minutes of a day. Raises InputError.
        """
        _check("--rate", mean_per_s, "requests per second, above 0", mean_per_s > 0)
        _check("--diurnal", amplitude, "an amplitude from 0 to 1", 0 <= amplitude <= 1)
        _check("--diurnal", period_s, "a period in seconds, above 0", period_s > 0)
        edges = np.linspace(0.0, 1.0, steps + 1)
        wave = -np.diff(np.cos(2 * np.pi * edges)) / (2 * np.pi * np.diff(edges))  # mean of the sine in each step
        per_s = np.maximum(mean_per_s * (1 + amplitude * wave), 0.0)
        return cls(mean_per_s, period_s, edges * period_s, per_s)

    def times_s(self, brought: Floats) -> Floats:
        """When the rate has brought so many requests, [n] ascending."""
        per_period = self.mean_per_s * self.period_s
        so_far = np.concatenate([[0.0], np.cumsum(self.per_s * np.diff(self.edges_s))])
        periods, rest = np.divmod(brought, per_period)
        times: Floats = periods * self.period_s + np.interp(rest, so_far / so_far[-1] * per_period, self.edges_s)
        return times


def arrivals_s(n: int, rate: Rate, law: str, cv: float | None, rng: np.random.Generator) -> Floats:
    """[n] arrivals in seconds, ascending, the first at 0.

    Args:
        n: how many.
        rate: over time; second 0 of it is the first arrival.
        law: of the gaps.
        cv: standard deviation of the gaps over their mean, for gamma and weibull; above 1 they come in bunches.
        rng: what draws them.

    Raises:
        InputError: there is a cv for a law that has its own, none for one that needs it, or it is not to be had.
    """
    gaps = unit_gaps(n - 1, law, cv, rng)
    return rate.times_s(np.concatenate([[0.0], np.cumsum(gaps)]))


def unit_gaps(n: int, law: str, cv: float | None, rng: np.random.Generator) -> Floats:
    """[n] gaps of mean 1. Raises InputError."""
    if law not in LAWS:
        raise InputError(field="--arrivals", found=law, accepted=", ".join(LAWS))
    if law in ("constant", "poisson"):
        if cv is not None:
            raise InputError(field="--cv", found=cv, accepted=f"none: gaps of {law} arrivals have a cv of their own")
        return np.ones(n) if law == "constant" else rng.exponential(1.0, n)
    if cv is None:
        raise InputError("is missing", field="--cv", accepted=f"a number above 0: {law} needs one")
    if law == "gamma":
        _check("--cv", cv, "a number from 0.01 to 100", 0.01 <= cv <= 100)
        shape = 1 / cv**2
        return rng.gamma(shape, 1 / shape, n)
    _check("--cv", cv, "a number from 0.01 to 20 for weibull", 0.01 <= cv <= 20)
    shape = weibull_shape(cv)
    return rng.weibull(shape, n) / math.gamma(1 + 1 / shape)


def weibull_shape(cv: float) -> float:
    """The shape k of the Weibull law with this cv: cv^2 + 1 = G(1 + 2/k) / G(1 + 1/k)^2, solved by bisection."""
    low, high = math.log(0.05), math.log(200.0)
    for _ in range(100):
        middle = (low + high) / 2
        k = math.exp(middle)
        spread = math.exp(math.lgamma(1 + 2 / k) - 2 * math.lgamma(1 + 1 / k)) - 1
        low, high = (middle, high) if spread > cv**2 else (low, middle)
    return math.exp(low)


def _check(field: str, found: float, accepted: str, fine: bool) -> None:
    if not (fine and math.isfinite(found)):
        raise InputError(field=field, found=found, accepted=accepted)
