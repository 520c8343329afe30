"""A scenario to a simulated capture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness.deploy.asked import located
from harness.deploy.deployment import Deployment, with_run_notes
from harness.deploy.power import device_figures, energy_of, request_energy_csv, with_power
from harness.deploy.unprofiled import deploy_calibrated
from harness.descriptions.scenario import Scenario, read_scenario
from harness.descriptions.written import written
from harness.running.arrivals import arrival_figures
from harness.running.predicted import interval_notes, predicted
from harness.running.predicted import run as simulate_deployed
from harness.running.priced import priced
from harness.running.requests import read_requests
from harness.terminal.progress import Watch
from simulator.simulate import Simulation
from traces.capture import new_folder, write_capture
from traces.errors import InputError
from traces.metrics import summary
from traces.outcome import Outcome
from traces.trace import Trace


def simulate_scenario(
    scenario_path: Path, overrides: Sequence[str] = (), *, batches: bool = False, watch: Watch | None = None
) -> tuple[Simulation, dict[str, Any]]:
    """Simulate a scenario. Returns the simulation and its summary, in the shape of summary.json.

    Args:
        scenario_path: what to simulate.
        overrides: of the scenario's keys.
        batches: keep which requests were in each step.
        watch: told of the service before it runs, for a display of progress.

    Raises:
        InputError: whatever cannot be read or simulated; batches are asked for with a calibration, which keeps none.
    """
    started = time.perf_counter()
    scenario = read_scenario(scenario_path, overrides)
    simulation, figures = simulate_trace(scenario, read_requests(scenario), started, batches=batches, watch=watch)
    return simulation, figures | {"scenario": written(scenario)}


def simulate_trace(
    scenario: Scenario,
    trace: Trace,
    started: float | None = None,
    *,
    deployment: Deployment | None = None,
    batches: bool = False,
    watch: Watch | None = None,
) -> tuple[Simulation, dict[str, Any]]:
    """As `simulate_scenario`, of requests that have been read, and of engines that have been made, where they have.

    `started` is when that began, by `time.perf_counter`.
    """
    started = time.perf_counter() if started is None else started
    if deployment is None:
        deployment = deploy_calibrated(scenario, None, scenario.calibration_path)
    deployment = replace(deployment, cluster=replace(deployment.cluster, watch=watch))
    loaded = time.perf_counter()
    with located(scenario):
        run, served = simulate_deployed(deployment, trace, record_batches=batches or deployment.power is not None)
    simulated = time.perf_counter()
    meta = with_run_notes(run.capture.meta, deployment)
    meta = msgspec.structs.replace(meta, notes=(*meta.notes, *interval_notes(deployment)))
    steps = run.capture.steps
    if batches and (steps is None or steps.batches is None):
        raise InputError("are not kept with a calibration", field="--batches")
    if steps is not None and not batches:
        steps = replace(steps, batches=None)
    capture = replace(run.capture, meta=meta, trace=trace, steps=steps, series=dict(run.capture.series))
    energy = None if deployment.power is None else energy_of(run, deployment.power)
    if energy is not None:
        capture = with_power(capture, energy)
    figures = summary(capture) | _arrivals(capture.outcomes, trace, deployment)
    figures |= device_figures(deployment.cluster.engines)
    figures |= priced(scenario, capture, energy, deployment.cluster.engines)
    if served is not None and deployment.calibration is not None:
        ids = [outcome.request_id for outcome in capture.outcomes]
        figures["intervals"] = predicted(served, deployment.calibration, {}, ids, seed=scenario.file.seed).statistics
    figures["speculation"] = None if run.speculation is None else run.speculation.figures()
    figures["steps"], figures["events"] = run.n_steps, run.n_sweeps
    figures["wall_s"] = {
        "load": loaded - started,
        "simulate": simulated - loaded,
        "total": time.perf_counter() - started,
    }
    request_j = None if energy is None else energy.request_j
    return replace(run, capture=capture, request_j=request_j), figures


def _arrivals(outcomes: Sequence[Outcome], trace: Trace, deployment: Deployment) -> dict[str, Any]:
    follows = deployment.cluster.concurrency is not None or any(
        row.after is not None or row.delay_s is not None for row in trace.rows
    )
    return arrival_figures(
        np.array([outcome.arrival_s for outcome in outcomes], dtype=np.float64),
        np.array([outcome.finish_s for outcome in outcomes], dtype=np.float64),  # None becomes NaN
        is_open=not follows,
    )


def write_simulation(simulation: Simulation, figures: dict[str, Any], out: Path) -> None:
    """Write the simulated capture and summary.json beside it, and energy.csv where power is told; all or nothing.

    Everything but summary.json's `wall_s` is the same, byte for byte, every time.
    """
    with new_folder(out) as folder:
        folder.rmdir()
        write_capture(simulation.capture, folder)
        (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
        if simulation.request_j is not None:
            (folder / "energy.csv").write_text(request_energy_csv(simulation.capture, simulation.request_j))
