"""A deployment simulated with what its calibration says: how sure its latencies are, and where errors come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibrate.attribution import Attribution, attribute
from calibrate.calibration import Calibration
from calibrate.draws import Drawn, drawn_latencies
from calibrate.intervals import CONFIDENCE, LATENCIES, Intervals, intervals, intervals_of_draws
from calibrate.kv_transfer import sent_in
from calibrate.parameters import RESIDUAL
from calibrate.served import Served, serve
from harness.deploy.deployment import Deployment
from simulator.cluster import Cluster
from simulator.front_end import FrontEnd, simulate_behind
from simulator.simulate import Simulation
from traces.capture import Capture
from traces.errors import InputError
from traces.metrics import requests
from traces.trace import Trace


def run(
    deployment: Deployment, trace: Trace, *, explain: bool = False, record_batches: bool = False
) -> tuple[Simulation, Served | None]:
    """Simulate; where there is a calibration or an explanation is wanted, keeping what the steps are made of.

    `record_batches` keeps which requests were in each step; not where the steps are kept.
    """
    if explain and not _steps_alone(deployment.cluster):
        accepted = "engines without stages, failures or autoscaling"
        raise InputError("errors are not explained in this version", field="--explain", accepted=accepted)
    if not explain and (deployment.calibration is None or not is_plain(deployment.cluster)):
        return simulate_behind(deployment.front_end, trace, deployment.cluster, record_batches=record_batches), None
    basis = RESIDUAL if deployment.calibration is None else deployment.calibration.basis()
    served = serve(trace, deployment.cluster, deployment.front_end, basis)
    return served.simulation, served


def is_plain(cluster: Cluster) -> bool:
    """Whether each request is served by one engine, and that by one step after another."""
    return _steps_alone(cluster) and not cluster.is_disaggregated


def _steps_alone(cluster: Cluster) -> bool:
    """Whether each engine takes one step after another, from the first request to the last."""
    stages = max(engine.pipeline_parallel_size for engine in cluster.engines)
    return not (cluster.failures or cluster.autoscaling) and stages == 1


def interval_notes(deployment: Deployment) -> list[str]:
    """Why one calibrated simulation has no intervals."""
    if deployment.calibration is None or is_plain(deployment.cluster):
        return []
    return [
        "no intervals: with prefill and decode apart, stages, failures or autoscaling they take several simulations"
    ]


def predicted(
    served: Served, calibration: Calibration, floor: Mapping[str, float | None], ids: Sequence[str], *, seed: int
) -> Intervals:
    """Intervals of every request, and of the statistics of those with these ids; as `calibrate.intervals.intervals`."""
    own = _places([outcome.request_id for outcome in served.capture.outcomes], ids)
    return intervals(served, calibration, _known(floor), own, seed=seed)


def predicted_by_draws(
    drawn: Drawn, calibration: Calibration, floor: Mapping[str, float | None], ids: Sequence[str], *, seed: int
) -> Intervals:
    """As `predicted`, out of several simulations instead of one."""
    return intervals_of_draws(drawn.latencies, calibration, _known(floor), _places(drawn.ids, ids), seed=seed)


def _places(all_ids: Sequence[str], ids: Sequence[str]) -> list[int]:
    """Where the ids stand among all."""
    place = {request_id: i for i, request_id in enumerate(all_ids)}
    return [place[request_id] for request_id in ids]


def _known(floor: Mapping[str, float | None]) -> dict[str, float]:
    """The metrics whose floor was measured."""
    return {metric: value for metric, value in floor.items() if value is not None}


def draws_of(deployment: Deployment, trace: Trace, n: int, *, seed: int) -> Drawn | None:
    """Each request's latencies in n simulations, as `calibrate.draws`; None without a calibration."""
    if deployment.calibration is None or n < 2:
        return None

    def simulate(cluster: Cluster, front_end: FrontEnd) -> Capture:
        return simulate_behind(front_end, trace, cluster).capture

    return drawn_latencies(deployment.cluster, deployment.calibration, simulate, n, seed=seed)


def add_intervals(
    result: dict[str, Any],
    found: Intervals,
    measured: Capture,
    simulated: Capture,
    ids: Sequence[str],
    *,
    n_recordings: int,
    n_draws: int,
) -> None:
    """Put intervals of statistics, and the share of scored requests within theirs, into validation.json's figures."""
    for metric in LATENCIES:
        for name, figure in (result["metrics"][metric] or {}).items():
            if figure is not None:
                figure["pi90"] = found.statistics[metric][name]
    place = {outcome.request_id: i for i, outcome in enumerate(simulated.outcomes)}
    by_id = {outcome.request_id: outcome for outcome in measured.outcomes}
    columns, own = requests([by_id[request_id] for request_id in ids]), [place[request_id] for request_id in ids]
    covered: dict[str, Any] = {}
    for metric in LATENCIES:
        share = found.coverage(metric, getattr(columns, metric), own)
        covered[metric] = None if share is None else {"share": share[0], "n": share[1]}
    result["prediction"] = {"confidence": CONFIDENCE, "coverage": covered, "draws": n_draws}
    if not n_recordings:
        note = "no further recording was given: the intervals know the engine's wandering from the fitted data alone"
        result["notes"].append(note)


def attributed(deployment: Deployment, measured: Capture, served: Served, ids: Sequence[str]) -> Attribution:
    """Where the error of the requests with these ids comes from."""
    calibration = deployment.calibration
    basis = RESIDUAL if calibration is None else calibration.basis()
    neutral = {parameter.name: parameter.prior for parameter in basis.with_front_end}
    values = neutral if calibration is None else calibration.values()
    sent = None
    if measured.transfers is not None and deployment.cluster.is_disaggregated:
        wanted = set(ids)
        mask = np.array([outcome.request_id in wanted for outcome in measured.outcomes])
        sent = sent_in(measured.transfers, mask, deployment.cluster)
    return attribute(measured, served, ids, deployment.cluster.engines[0], basis, values, sent)


def intervals_csv(found: Intervals, simulated: Capture) -> str:
    """A line per request: its latencies as simulated and their bounds, seconds; empty where there is none."""
    columns = requests(simulated.outcomes)
    lines = ["request_id," + ",".join(f"{name},{name[:-2]}_low_s,{name[:-2]}_high_s" for name in LATENCIES)]
    for i, outcome in enumerate(simulated.outcomes):
        values = [v for name in LATENCIES for v in (getattr(columns, name)[i], found.low[name][i], found.high[name][i])]
        lines.append(f"{outcome.request_id}," + ",".join("" if np.isnan(value) else f"{value:.6g}" for value in values))
    return "\n".join(lines) + "\n"
