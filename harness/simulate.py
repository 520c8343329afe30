"""A scenario to a simulated capture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.deployment import located, with_run_notes
from harness.predicted import interval_notes, predicted
from harness.predicted import run as simulate_deployed
from harness.scenario import read_scenario
from harness.unprofiled import deploy_calibrated
from simulator.simulate import Simulation
from traces.capture import Capture, new_folder, write_capture
from traces.formats import read_any_trace
from traces.metrics import summary


def simulate_scenario(scenario_path: Path, overrides: Sequence[str] = ()) -> tuple[Simulation, dict[str, Any]]:
    """Simulate a scenario. Returns the simulation and its summary, in the shape of summary.json."""
    started = time.perf_counter()
    scenario = read_scenario(scenario_path, overrides)
    trace = read_any_trace(scenario.trace_path)
    deployment = deploy_calibrated(scenario, None, scenario.calibration_path)
    loaded = time.perf_counter()
    with located(scenario):
        run, served = simulate_deployed(deployment, trace)
    simulated = time.perf_counter()
    meta = with_run_notes(run.capture.meta, deployment)
    meta = msgspec.structs.replace(meta, notes=(*meta.notes, *interval_notes(deployment)))
    capture = Capture(meta, trace, run.capture.outcomes, run.capture.steps)
    figures = summary(capture)
    if served is not None and deployment.calibration is not None:
        ids = [outcome.request_id for outcome in capture.outcomes]
        figures["intervals"] = predicted(served, deployment.calibration, {}, ids, seed=scenario.file.seed).statistics
    figures["steps"], figures["events"] = run.n_steps, run.n_sweeps
    figures["wall_s"] = {
        "load": loaded - started,
        "simulate": simulated - loaded,
        "total": time.perf_counter() - started,
    }
    return Simulation(capture, run.n_steps, run.n_sweeps), figures


def write_simulation(simulation: Simulation, figures: dict[str, Any], out: Path) -> None:
    """Write the simulated capture and summary.json beside it; all of it or nothing.

    Everything but summary.json's `wall_s` is the same, byte for byte, every time.
    """
    with new_folder(out) as folder:
        folder.rmdir()
        write_capture(simulation.capture, folder)
        (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
