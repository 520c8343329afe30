"""Several simulations of the same requests, each with parameters that the fit allows: what may befall a request.

Where in a step a request arrives, which rank a balancer sends it to, who gets the seat that comes free: such things
turn on milliseconds, and a fit that is off by a thousandth has lost them after some seconds. One simulation then
guesses them, as one recording is one of many that could have been. The median of several does not guess: the measured
value is as likely to be above it as below.

Each draw takes the parameters that the data told from their covariance, given the values at which the others are held,
and has one pace for all of its steps, as far as stretches of the fitted data or whole recordings wander apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from calibrate.calibration import Calibration, front_end_of
from calibrate.intervals import LATENCIES, root
from calibrate.kv_transfer import kv_residual_of
from calibrate.parameters import names_of
from simulator.cluster import Cluster
from simulator.front_end import FrontEnd
from simulator.steps.correction import CorrectedModel
from traces.capture import Capture
from traces.errors import InputError
from traces.metrics import requests
from traces.steps import Floats

N_DRAWS = 16
"""A calibrated validation takes so many times as long."""

MOST_IN_VAIN = 20
"""Draws one after another that leave some step no time, until the calibration is taken not to fit the load."""

Simulate = Callable[[Cluster, FrontEnd], Capture]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Latencies of the same requests in several simulations.

    Attributes:
        ids: of the requests.
        latencies: by metric, [n_draws, n_requests] seconds; NaN where a request has none.
    """

    ids: tuple[str, ...]
    latencies: Mapping[str, Floats]

    def medians(self) -> dict[str, dict[str, float]]:
        """The median over the draws in which a request has a latency, by metric and request id."""
        found = {}
        for metric, runs in self.latencies.items():
            known = ~np.isnan(runs).all(axis=0)
            medians = np.nanmedian(runs[:, known], axis=0).tolist()
            found[metric] = dict(zip((self.ids[i] for i in np.flatnonzero(known)), medians, strict=True))
        return found


def drawn_latencies(cluster: Cluster, calibration: Calibration, simulate: Simulate, n: int, *, seed: int) -> Drawn:
    """Simulate with n draws of the parameters.

    Args:
        cluster: with the calibration in its engines' step times.
        calibration: what was fitted.
        simulate: serves the requests with a cluster behind a front end.
        n: draws.
        seed: of them.

    Raises:
        InputError: whatever `simulate` raises, also when hardly any draw leaves every step some time.
    """
    runs: dict[str, list[Floats]] = {metric: [] for metric in LATENCIES}
    ids: tuple[str, ...] = ()
    draws = _draws(calibration, seed)
    for _ in range(n):
        capture = _run(cluster, calibration, simulate, draws)
        ids = tuple(outcome.request_id for outcome in capture.outcomes)
        columns = requests(capture.outcomes)
        for metric in LATENCIES:
            runs[metric].append(getattr(columns, metric))
    return Drawn(ids, {metric: np.array(values) for metric, values in runs.items()})


def _run(
    cluster: Cluster, calibration: Calibration, simulate: Simulate, draws: Iterator[tuple[Mapping[str, float], float]]
) -> Capture:
    """The simulation of the next draw that is possible: one that leaves each step some time."""
    for failed, (values, pace) in enumerate(draws):
        engines = tuple(
            replace(engine, step_time=_with(engine.step_time, values, pace, calibration)) for engine in cluster.engines
        )
        try:
            drawn = replace(cluster, engines=engines, kv_residual=kv_residual_of(values))
            return simulate(drawn, front_end_of(values))
        except InputError as error:
            if error.field != "calibration" or failed == MOST_IN_VAIN:
                raise
    raise AssertionError("draws have no end")


def _draws(calibration: Calibration, seed: int) -> Iterator[tuple[Mapping[str, float], float]]:
    """Values of all parameters, and the pace, of one draw after another."""
    rng = np.random.default_rng(seed)
    every = calibration.every_parameter()
    names = names_of(every)
    least = np.array([parameter.least for parameter in every])
    middle = np.array([calibration.values()[name] for name in names])
    told = np.array([calibration.parameters[name].identified for name in names])
    spread = root(_given_held(calibration.covariance_matrix(names), told))
    tpot = calibration.residuals.get("tpot_s")
    while True:
        values = np.maximum(middle + spread @ rng.standard_normal(len(names)), np.minimum(least, middle))
        common = 0.0 if tpot is None else tpot.common
        yield dict(zip(names, values.tolist(), strict=True)), float(np.exp(common * rng.standard_normal()))


def _given_held(covariance: Floats, told: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Floats:
    """Covariance of the parameters that the data told, [k, k], the others being what they are held at."""
    inside = np.zeros_like(covariance)
    across = covariance[np.ix_(told, ~told)]
    held = np.linalg.pinv(covariance[np.ix_(~told, ~told)], hermitian=True)
    inside[np.ix_(told, told)] = covariance[np.ix_(told, told)] - across @ held @ across.T
    return inside


def _with(model: object, values: Mapping[str, float], pace: float, calibration: Calibration) -> CorrectedModel:
    """The model that is corrected, with other values."""
    assert isinstance(model, CorrectedModel)
    basis = calibration.basis()
    return CorrectedModel(model.model, {name: values[name] for name in basis.names}, basis.terms, pace=pace)
