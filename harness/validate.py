"""Simulated against measured: the same requests at the same arrivals, paired by id, with an interval on every error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from calibrate.draws import N_DRAWS
from harness.compare import Validation, compare, noise_floor, over_floor, scored_ids
from harness.deploy.calibrated import fitted_requests
from harness.deploy.deployment import Deployment, located, with_run_notes
from harness.deploy.power import energy_of, with_power
from harness.deploy.unprofiled import deploy_calibrated
from harness.descriptions.scenario import read_scenario
from harness.predicted import (
    add_intervals,
    attributed,
    interval_notes,
    intervals_csv,
    median_of_draws,
    predicted,
    run,
)
from harness.reports.validation_page import Compared, validation_page
from simulator.simulate import Simulation
from traces.capture import Capture, new_folder, read_capture, write_capture
from traces.decoding import read_bytes, sha256
from traces.errors import InputError
from traces.formats import read_any_trace
from traces.series import grid_like
from traces.trace import Trace


def validate(
    scenario_path: Path,
    capture_path: Path,
    overrides: Sequence[str] = (),
    *,
    calibration: Path | None = None,
    score_fitted: bool = False,
    repeats: Sequence[Path] = (),
    explain: bool = False,
    draws: int | None = None,
) -> Validation:
    """Simulate the scenario at a capture's measured arrivals and compare the two.

    Args:
        scenario_path: what to simulate.
        capture_path: the measured run.
        overrides: of the scenario's keys.
        calibration: file of a fitted residual; None: the scenario's.
        score_fitted: also score requests that the calibration was fitted to.
        repeats: further recordings of the same requests, for the noise floor.
        explain: also say where the error comes from.
        draws: simulations whose median is paired with a measured request; None: `N_DRAWS` with a calibration, else 1.

    Raises:
        InputError: whatever cannot be read or simulated; no request of the trace was measured; all were fitted.
    """
    started = time.perf_counter()
    scenario = read_scenario(scenario_path, overrides)
    measured = read_capture(capture_path)
    recordings = [_recording(path, capture_path) for path in repeats]
    trace = at_measured_arrivals(read_any_trace(scenario.trace_path), measured)
    deployment = deploy_calibrated(scenario, measured.meta, calibration or scenario.calibration_path)
    fitted = fitted_requests(deployment.calibration, measured, digest(capture_path))
    if score_fitted and deployment.calibration is None:
        raise InputError("means nothing without a calibration", field="--score-fitted")
    n_draws = _n_draws(deployment, draws)
    if fitted and not score_fitted and len(fitted) == len(measured.outcomes):
        message = "every request of this capture was fitted by the calibration"
        raise InputError(message, file=capture_path, accepted="another capture, or --score-fitted")
    unscored = frozenset() if score_fitted else fitted
    loaded = time.perf_counter()
    keeps = deployment.power is not None and bool(deployment.power.memories)
    with located(scenario):
        simulation, served = run(deployment, trace, explain=explain, record_batches=keeps)
        simulated = time.perf_counter()
        medians = median_of_draws(deployment, trace, n_draws, seed=scenario.file.seed)
    twin = _twin(simulation, deployment, trace, measured)
    seed, reasons = scenario.file.seed, deployment.mismatches
    result = compare(measured, twin, seed=seed, reasons=reasons, unscored=unscored, predicted=medians)
    result["fitted"] = {"n_requests": len(fitted), "scored": score_fitted and bool(fitted)}
    result["notes"] = [
        *_fitted_notes(len(fitted), scored=score_fitted),
        *_draw_notes(n_draws),
        *interval_notes(deployment),
        *twin.meta.notes,
        *measured.meta.notes,
    ]
    if recordings:
        result["noise_floor"] = noise_floor(measured, recordings, unscored)
        result["error_over_floor"] = over_floor(result["paired"], result["noise_floor"])
    scored = scored_ids(measured, twin, unscored)
    found = None
    if served is not None and deployment.calibration is not None:
        floor = result["noise_floor"]["common"] if recordings else {}
        found = predicted(served, deployment.calibration, floor, scored, seed=seed)
        add_intervals(result, found, measured, twin, scored, n_recordings=len(recordings), n_draws=n_draws)
    result["provenance"] = {
        "trace": trace.sha256,
        "capture": digest(capture_path),
        **deployment.provenance,
        "version": version("servetwin"),
    }
    result["scenario"] = scenario.requested
    result["steps"], result["events"] = simulation.n_steps, simulation.n_sweeps
    result["wall_s"] = {
        "load": loaded - started,
        "simulate": simulated - loaded,
        "total": time.perf_counter() - started,
    }
    where = attributed(deployment, measured, served, scored) if explain and served is not None else None
    return Validation(result, measured, twin, scenario, found, where)


def _twin(simulation: Simulation, deployment: Deployment, trace: Trace, measured: Capture) -> Capture:
    """The simulated capture as it is compared: of the whole trace, with its notes, and with power where it is told."""
    twin = Capture(
        with_run_notes(simulation.capture.meta, deployment),
        trace,
        simulation.capture.outcomes,
        simulation.capture.steps,
        dict(simulation.capture.series),
    )
    if deployment.power is None:
        return twin
    said = measured.series.get("power_w")
    return with_power(twin, energy_of(simulation, deployment.power), None if said is None else grid_like(said))


def write_validation(validation: Validation, out: Path) -> None:
    """Write validation.json, both captures under measured/ and simulated/, and report.html; all of it or nothing.

    Beside them, where there are any: intervals.csv, each request's, and attribution.json.
    """
    attribution = None if validation.attribution is None else msgspec.to_builtins(validation.attribution)
    compared = Compared(validation.result, validation.measured, validation.simulated, attribution)
    with new_folder(out) as folder:
        (folder / "validation.json").write_bytes(_pretty(validation.result))
        write_capture(validation.measured, folder / "measured")
        write_capture(validation.simulated, folder / "simulated")
        (folder / "report.html").write_text(validation_page(compared).html(), encoding="utf-8")
        if validation.intervals is not None:
            (folder / "intervals.csv").write_text(intervals_csv(validation.intervals, validation.simulated))
        if attribution is not None:
            (folder / "attribution.json").write_bytes(_pretty(attribution))


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _recording(path: Path, of: Path) -> Capture:
    """A further recording. Raises InputError when it is the capture itself, or must not be scored."""
    if digest(path) == digest(of):
        raise InputError("is the capture itself", file=path, field="--noise-floor", accepted="another recording")
    recording = read_capture(path)
    if recording.meta.reasons:
        raise InputError(f"must not be scored: {'; '.join(recording.meta.reasons)}", file=path)
    return recording


def digest(capture: Path) -> str:
    """Digest of a capture's description and outcomes: what a comparison scores."""
    return sha256(b"".join(read_bytes(capture / name) for name in ("meta.json", "outcomes.parquet")))


def _fitted_notes(n_fitted: int, *, scored: bool) -> list[str]:
    """What a reader must know of requests that were fitted."""
    if not n_fitted:
        return []
    if scored:
        return [f"{n_fitted} of the scored requests were fitted by the calibration: their error says little"]
    return [f"{n_fitted} requests were fitted by the calibration and are not scored"]


def _n_draws(deployment: Deployment, asked: int | None) -> int:
    """Simulations whose median is paired. Raises InputError for several without a calibration to draw from."""
    if deployment.calibration is not None:
        return N_DRAWS if asked is None else asked
    if asked is not None and asked > 1:
        raise InputError("means nothing without a calibration", field="--draws", found=asked)
    return 1


def _draw_notes(n_draws: int) -> list[str]:
    """What the paired errors are of, where that is not the simulated capture."""
    if n_draws == 1:
        return []
    return [f"paired by request with the median of {n_draws} simulations, whose parameters are drawn from the fit"]


def at_measured_arrivals(trace: Trace, measured: Capture) -> Trace:
    """The trace's requests at the times at which they really arrived; as they are where only series were measured."""
    if not measured.outcomes:
        return trace
    arrivals_s = {outcome.request_id: outcome.arrival_s for outcome in measured.outcomes}
    known = [row for row in trace.rows if row.request_id in arrivals_s]
    if not known:
        raise InputError("has no request in common with the capture", file=trace.source, field="request_id")
    late_s = max(abs(arrivals_s[row.request_id] - row.arrival_s) for row in known)
    note = f"served at the measured arrivals, which differ from the trace's by {late_s * 1e3:.1f} ms at most"
    return trace.with_arrivals(arrivals_s, note)
