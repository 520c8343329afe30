"""Simulated against measured: the same requests at the same arrivals, paired by id, with an interval on every error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calibrate.draws import N_DRAWS, Drawn
from calibrate.intervals import Intervals
from calibrate.served import Served
from harness.deploy.asked import located
from harness.deploy.calibrated import fitted_requests
from harness.deploy.deployment import Deployment, with_run_notes
from harness.deploy.power import energy_of, with_power
from harness.deploy.unprofiled import deploy_calibrated
from harness.descriptions.scenario import Scenario, read_scenario
from harness.running.predicted import (
    add_intervals,
    attributed,
    draws_of,
    interval_notes,
    is_plain,
    predicted,
    predicted_by_draws,
    run,
)
from harness.running.requests import read_requests, refuse_load
from harness.scoring.compare import (
    Validation,
    compare,
    measured_power,
    noise_floor,
    over_floor,
    power_notes,
    scored_ids,
)
from simulator.simulate import Simulation
from traces.capture import Capture, read_capture
from traces.decoding import read_bytes, sha256
from traces.errors import InputError
from traces.trace import Trace

LATE_S = 1.0
"""How far a measured arrival may be from its load's: a client is late by milliseconds, another load by seconds."""


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
    under_load: bool = False,
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
        under_load: where the scenario has a load, serve the requests as that has them come, and not at the measured
            arrivals; else a load is refused.

    Raises:
        InputError: whatever cannot be read or simulated; no request of the trace was measured; all were fitted.
    """
    started = time.perf_counter()
    asked = calibration, repeats, draws
    case = _read(scenario_path, capture_path, overrides, *asked, score_fitted=score_fitted, under_load=under_load)
    loaded = time.perf_counter()
    ran = _simulate(case, explain=explain)
    result = _compared(case, ran)
    found = _expected(case, ran, result)
    result["provenance"] = {
        "trace": case.trace.sha256,
        "capture": digest(capture_path),
        **case.deployment.provenance,
        "version": version("servetwin"),
    }
    result["scenario"] = case.scenario.requested
    result["steps"], result["events"] = ran.simulation.n_steps, ran.simulation.n_sweeps
    result["wall_s"] = {
        "load": loaded - started,
        "simulate": ran.wall_s,
        "total": time.perf_counter() - started,
    }
    where, scored = None, _scored(case, ran)
    if explain and ran.served is not None:
        where = attributed(case.deployment, case.measured, ran.served, scored)
    return Validation(result, case.measured, ran.twin, case.scenario, found, where, tuple(scored))


@dataclass(frozen=True, slots=True)
class _Case:
    """What is to be scored, read and deployed.

    Attributes:
        scenario: what is simulated.
        measured: the run that it is compared with.
        recordings: further ones of the same requests.
        trace: the requests at their measured arrivals.
        deployment: the scenario, ready to run.
        fitted: ids of the requests that the calibration was fitted to.
        unscored: those of them that are not scored.
        n_draws: simulations whose median is paired with a measured request.
    """

    scenario: Scenario
    measured: Capture
    recordings: list[Capture]
    trace: Trace
    deployment: Deployment
    fitted: frozenset[str]
    unscored: frozenset[str]
    n_draws: int


@dataclass(frozen=True, slots=True)
class _Ran:
    """The twin's run.

    Attributes:
        simulation: as it came out.
        twin: its capture as it is compared.
        served: what its steps are made of; None where nothing asks for it.
        drawn: latencies of further simulations, whose medians are paired; None: those of `twin` are.
        wall_s: what one simulation took.
    """

    simulation: Simulation
    twin: Capture
    served: Served | None
    drawn: Drawn | None
    wall_s: float


def _read(
    scenario_path: Path,
    capture_path: Path,
    overrides: Sequence[str],
    calibration: Path | None,
    repeats: Sequence[Path],
    draws: int | None,
    *,
    score_fitted: bool,
    under_load: bool,
) -> _Case:
    """Read and deploy what `validate` is asked for. Raises InputError."""
    scenario = read_scenario(scenario_path, overrides)
    if not under_load:
        refuse_load(scenario)
    measured = read_capture(capture_path)
    recordings = [_recording(path, capture_path) for path in repeats]
    trace = read_requests(scenario)
    if scenario.file.load is None:
        trace = at_measured_arrivals(trace, measured)
    else:
        trace = at_arrivals_of_load(trace, measured, scenario)
    deployment = deploy_calibrated(scenario, measured.meta, calibration or scenario.calibration_path)
    fitted = fitted_requests(deployment.calibration, measured, digest(capture_path))
    if score_fitted and deployment.calibration is None:
        raise InputError("means nothing without a calibration", field="--score-fitted")
    n_draws = _n_draws(deployment, draws)
    if fitted and not score_fitted and len(fitted) == len(measured.outcomes):
        message = "every request of this capture was fitted by the calibration"
        raise InputError(message, file=capture_path, accepted="another capture, or --score-fitted")
    unscored = frozenset() if score_fitted else fitted
    return _Case(scenario, measured, recordings, trace, deployment, fitted, unscored, n_draws)


def _simulate(case: _Case, *, explain: bool) -> _Ran:
    """Simulate the case once, and as often as its draws ask for."""
    deployment, started = case.deployment, time.perf_counter()
    keeps = deployment.power is not None and bool(deployment.power.memories)
    with located(case.scenario):
        simulation, served = run(deployment, case.trace, explain=explain, record_batches=keeps)
        wall_s = time.perf_counter() - started
        drawn = draws_of(deployment, case.trace, case.n_draws, seed=case.scenario.file.seed)
    return _Ran(simulation, _twin(simulation, deployment, case.trace, case.measured), served, drawn, wall_s)


def _compared(case: _Case, ran: _Ran) -> dict[str, Any]:
    """The figures of validation.json, with notes and, where there are further recordings, the noise floor."""
    measured, deployment, n_fitted = case.measured, case.deployment, len(case.fitted)
    scored = bool(case.fitted) and not case.unscored
    result = compare(
        measured,
        ran.twin,
        seed=case.scenario.file.seed,
        reasons=deployment.mismatches,
        unscored=case.unscored,
        predicted=None if ran.drawn is None else ran.drawn.medians(),
    )
    result["fitted"] = {"n_requests": n_fitted, "scored": scored}
    result["notes"] = [
        *_fitted_notes(n_fitted, scored=scored),
        *_draw_notes(case.n_draws),
        *(interval_notes(deployment) if ran.drawn is None else []),
        *power_notes(measured),
        *ran.twin.meta.notes,
        *measured.meta.notes,
    ]
    if case.recordings:
        result["noise_floor"] = noise_floor(measured, case.recordings, case.unscored)
        result["error_over_floor"] = over_floor(result["paired"], result["noise_floor"])
    return result


def _expected(case: _Case, ran: _Ran, result: dict[str, Any]) -> Intervals | None:
    """Where the measured latencies were to be expected, which is put into `result`; None without a calibration."""
    calibration, seed = case.deployment.calibration, case.scenario.file.seed
    floor = result["noise_floor"]["common"] if case.recordings else {}
    scored, n = _scored(case, ran), len(case.recordings)
    if calibration is not None and ran.served is not None and is_plain(case.deployment.cluster):
        found = predicted(ran.served, calibration, floor, scored, seed=seed)
    elif calibration is not None and ran.drawn is not None:
        found = predicted_by_draws(ran.drawn, calibration, floor, scored, seed=seed)
    else:
        return None
    add_intervals(result, found, case.measured, ran.twin, scored, n_recordings=n, n_draws=case.n_draws)
    return found


def _scored(case: _Case, ran: _Ran) -> list[str]:
    """Ids of the requests that are scored."""
    return scored_ids(case.measured, ran.twin, case.unscored)


def _twin(simulation: Simulation, deployment: Deployment, trace: Trace, measured: Capture) -> Capture:
    """The simulated capture as it is compared: of the whole trace, with its notes, and with power where it is told."""
    twin = Capture(
        with_run_notes(simulation.capture.meta, deployment),
        trace,
        simulation.capture.outcomes,
        simulation.capture.steps,
        dict(simulation.capture.series),
        simulation.capture.transfers,
    )
    if deployment.power is None:
        return twin
    return with_power(twin, energy_of(simulation, deployment.power), measured_power(measured))


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


def at_arrivals_of_load(trace: Trace, measured: Capture, scenario: Scenario) -> Trace:
    """The requests of a scenario's load as they come under it, once it is sure that the capture is of that load.

    Raises InputError where the capture has other requests, or arrivals that are more than `LATE_S` away.
    """
    arrivals_s = {outcome.request_id: outcome.arrival_s for outcome in measured.outcomes}
    late_s = [abs(arrivals_s[row.request_id] - row.arrival_s) for row in trace.rows if row.request_id in arrivals_s]
    if not len(late_s) == len(trace.rows) == len(arrivals_s):
        found = f"{len(trace.rows)} requests, {len(late_s)} of them among the {len(arrivals_s)} of the capture"
        raise scenario.document.error(["load"], f"makes {found}", accepted="the requests that were measured")
    if max(late_s) > LATE_S:
        found = f"requests up to {max(late_s):.3g} s from their measured arrivals"
        raise scenario.document.error(["load"], f"makes {found}", accepted=f"the load of the capture, to {LATE_S:g} s")
    note = f"served as the load has requests come, {max(late_s) * 1e3:.1f} ms at most from their measured arrivals"
    return replace(trace, notes=(*trace.notes, note))
