"""How sure simulated latencies are: draws of what they could have been measured as.

Each draw takes the parameters from their covariance and carries them to first order through the simulated steps,
scales all requests by one factor for the engine's wandering between stretches of time or recordings, and gives each
request a residual like those that the fit left. What the quantiles of the draws enclose is the interval. Where a
request's time is no sum of steps (stages, prefill and decode apart, failures, pools that grow), nothing can be carried
to first order, and the draws are whole simulations (`draws.py`), taken again and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.calibration import RESIDUAL_QUANTILES, Calibration, Residuals
from calibrate.parameters import names_of
from calibrate.sensitivity import sensitivity
from calibrate.served import Served
from traces.metrics import requests
from traces.statistics import STATISTICS, enough, statistic
from traces.steps import Floats

CONFIDENCE = 0.9
"""Probability that an interval is to hold what is measured."""

N_DRAWS = 1000

LATENCIES = ("ttft_s", "tpot_s", "e2el_s")

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Intervals:
    """Intervals of a simulation's latencies.

    Attributes:
        low: by metric, [n_requests] in the order of the outcomes; NaN where the metric has no value.
        high: the same.
        statistics: by metric, of each statistic of those requests that were asked for; None where there are too few.
    """

    low: dict[str, Floats]
    high: dict[str, Floats]
    statistics: dict[str, dict[str, Range | None]]

    def coverage(self, metric: str, measured_s: Floats, own: Sequence[int]) -> tuple[float, int] | None:
        """Share of measured values, [n], within the intervals of requests `own`, and of how many; None of none."""
        low, high = self.low[metric][list(own)], self.high[metric][list(own)]
        known = np.isfinite(measured_s) & np.isfinite(low)
        if not known.any():
            return None
        inside = (measured_s[known] >= low[known]) & (measured_s[known] <= high[known])
        return float(inside.mean()), int(known.sum())


def intervals(
    served: Served, calibration: Calibration, floor: Mapping[str, float], own: Sequence[int], *, seed: int
) -> Intervals:
    """Intervals of a calibrated simulation.

    Args:
        served: the simulation.
        calibration: whose correction is in it.
        floor: by metric, by how much repeated recordings of the same requests differ as a whole, relative; metrics
            without one have the calibration's own.
        own: indices of the requests whose statistics are wanted.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    basis, values = calibration.basis(), calibration.values()
    names = names_of(basis.with_front_end)
    changes = basis.changes(values)
    rows = sensitivity(served, basis, changes, asynchronous=calibration.async_scheduling)
    moved = rng.standard_normal((N_DRAWS, len(names))) @ root(calibration.covariance_matrix(names)).T
    wandered = rng.standard_normal(N_DRAWS)
    columns = requests(served.capture.outcomes)
    gaps = np.array([max(outcome.output_tokens - 1, 1) for outcome in served.capture.outcomes], dtype=np.float64)
    design = {"ttft_s": rows.ttft, "tpot_s": rows.decode / gaps[:, None], "e2el_s": rows.e2el}
    drawn = {metric: getattr(columns, metric) + moved @ design[metric].T for metric in LATENCIES}
    common = {metric: max(floor.get(metric, 0.0), _common(calibration, metric)) for metric in LATENCIES}
    return _enclosing(drawn, calibration, {metric: of * wandered for metric, of in common.items()}, own, rng)


def intervals_of_draws(
    latencies: Mapping[str, Floats],
    calibration: Calibration,
    floor: Mapping[str, float],
    own: Sequence[int],
    *,
    seed: int,
) -> Intervals:
    """Intervals of a calibrated simulation out of several, each with parameters and a pace that the fit allows.

    Args:
        latencies: by metric, [n_draws, n_requests] seconds, as `calibrate.draws.Drawn`.
        calibration: that the draws were made of.
        floor: as in `intervals`; what of it exceeds the pace that is in the draws already is added.
        own: indices of the requests whose statistics are wanted.
        seed: of which draw is taken how often, and of the residuals.
    """
    rng = np.random.default_rng(seed)
    taken = rng.integers(len(latencies["e2el_s"]), size=N_DRAWS)
    wandered = rng.standard_normal(N_DRAWS)
    paced = _common(calibration, "tpot_s")
    drawn = {metric: latencies[metric][taken] for metric in LATENCIES}
    beyond = {}
    for metric in LATENCIES:
        common = max(floor.get(metric, 0.0), _common(calibration, metric))
        beyond[metric] = np.sqrt(max(common**2 - paced**2, 0.0)) * wandered
    return _enclosing(drawn, calibration, beyond, own, rng)


def _common(calibration: Calibration, metric: str) -> float:
    """Relative standard deviation of what the requests of a stretch or a recording have in common."""
    residual = calibration.residuals.get(metric)
    return 0.0 if residual is None else residual.common


def _enclosing(
    drawn: Mapping[str, Floats],
    calibration: Calibration,
    wandered: Mapping[str, Floats],
    own: Sequence[int],
    rng: np.random.Generator,
) -> Intervals:
    """Intervals around draws, [N_DRAWS, n] each, once they wander, [N_DRAWS], and have residuals of their own."""
    low, high, statistics = {}, {}, {}
    for metric, latency in drawn.items():
        residual = _own(calibration.residuals.get(metric), latency.shape, rng)
        varied = np.maximum(latency * np.exp(wandered[metric])[:, None] * (1 + residual), 0.0)
        low[metric], high[metric] = _bounds(varied)
        statistics[metric] = {name: _range(varied[:, list(own)], name) for name in STATISTICS}
    return Intervals(low, high, statistics)


def _bounds(drawn: Floats) -> tuple[Floats, Floats]:
    """Bounds of each request, [n] each; NaN where no draw has the latency."""
    low, high = np.full(drawn.shape[1], np.nan), np.full(drawn.shape[1], np.nan)
    known = ~np.isnan(drawn).all(axis=0)
    quantiles = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    low[known], high[known] = np.nanquantile(drawn[:, known], quantiles, axis=0)
    return low, high


def root(covariance: Floats) -> Floats:
    """A matrix whose product with its transpose is the covariance, which rounding may have left slightly indefinite."""
    values, vectors = np.linalg.eigh(covariance)
    root: Floats = vectors * np.sqrt(np.maximum(values, 0.0))
    return root


def _own(residual: Residuals | None, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Relative residuals of single requests, drawn from the quantiles that the fit left; 0 where it kept none."""
    if residual is None:
        return np.zeros(shape)
    return np.interp(rng.random(shape), RESIDUAL_QUANTILES, residual.quantiles)


def _range(drawn: Floats, name: str) -> Range | None:
    """Interval of one statistic of draws, [n_draws, n]; requests without a value are left out."""
    known = drawn[:, np.isfinite(drawn).all(axis=0)]
    if not enough(known.shape[1], name):
        return None
    found = np.array([statistic(row, name) for row in known], dtype=np.float64)
    low, high = np.quantile(found, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)
