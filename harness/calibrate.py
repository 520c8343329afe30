"""A scenario and its captures to a fitted calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calibrate.calibration import Calibration, encode_calibration
from calibrate.drift import Drift
from calibrate.drift import drift as held_against
from calibrate.fit import Source, fit
from calibrate.split import parse_split
from calibrate.subject import Subject
from harness.deploy.asked import located
from harness.deploy.deployment import deploy
from harness.deploy.unprofiled import deploy_calibrated, deploy_unprofiled
from harness.descriptions.scenario import Scenario, read_scenario
from harness.files import new_file
from harness.running.requests import refuse_load
from harness.scoring.validate import at_measured_arrivals, digest
from traces.capture import Capture, read_capture
from traces.errors import InputError
from traces.formats import read_any_trace
from traces.trace import Trace


def calibrate(
    scenario_path: Path,
    capture_paths: Sequence[Path],
    fit_on: str = "all",
    overrides: Sequence[str] = (),
    *,
    source: Source = "auto",
) -> Calibration:
    """Fit what is between the scenario's step-time model and the captures.

    Args:
        scenario_path: what to simulate; a calibration that it names is left aside.
        capture_paths: measured runs of its engine.
        fit_on: which part of them is fitted, as `calibrate.split` describes.
        overrides: of the scenario's keys.
        source: step records, request records, or steps where there are; or step records without a profile.

    Raises:
        InputError: whatever cannot be read or simulated; the part is too small to fit; scenario and capture contradict
            each other.
    """
    scenario = read_scenario(scenario_path, overrides)
    refuse_load(scenario)
    split = parse_split(fit_on)
    subjects = [subject_of(scenario, path, whole_step=source == "whole-step") for path in capture_paths]
    with located(scenario):
        return fit(subjects, split, source)


def drift(
    scenario_path: Path,
    capture_path: Path,
    calibration_path: Path | None = None,
    tolerance: float = 0.05,
    overrides: Sequence[str] = (),
) -> Drift:
    """Hold a new capture against an old calibration.

    Args:
        scenario_path: the engine that was calibrated.
        capture_path: a measured run.
        calibration_path: the fitted file; None: the scenario's.
        tolerance: relative change of time that is still no drift.
        overrides: of the scenario's keys.

    Raises:
        InputError: whatever cannot be read or simulated; there is no calibration, or it is of something else.
    """
    scenario = read_scenario(scenario_path, overrides)
    refuse_load(scenario)
    path = calibration_path or scenario.calibration_path
    if path is None:
        raise InputError("is needed, since the scenario names none", field="--calibration")
    fitted = deploy_calibrated(scenario, read_capture(capture_path).meta, path).calibration
    assert fitted is not None
    subject = subject_of(scenario, capture_path, whole_step=fitted.kind == "whole-step")
    with located(scenario):
        return held_against(subject, fitted, tolerance)


def subject_of(scenario: Scenario, path: Path, *, whole_step: bool = False) -> Subject:
    """A capture, and the uncorrected engine that is to be its twin, without a profile for a whole-step model.

    Raises InputError.
    """
    measured = read_capture(path)
    if measured.meta.reasons:
        raise InputError(f"must not be fitted: {'; '.join(measured.meta.reasons)}", file=path)
    deployment = deploy_unprofiled(scenario, measured.meta) if whole_step else deploy(scenario, measured.meta)
    if deployment.mismatches:
        raise InputError("; ".join(deployment.mismatches), file=path)
    kinds = {(engine.model, engine.device) for engine in deployment.cluster.engines}
    if len(kinds) > 1:
        found = ", ".join(f"{model} on {device}" for model, device in sorted(kinds))
        raise InputError(file=scenario.path, field="cluster", found=found, accepted="engines of one kind")
    trace = _trace_of(scenario, measured)
    profile = deployment.provenance["profile"]
    return Subject(path.resolve().name, digest(path), measured, trace, deployment.cluster, profile)


def _trace_of(scenario: Scenario, measured: Capture) -> Trace:
    """The scenario's trace at the measured arrivals, where the capture served it; else the trace in the capture."""
    trace = read_any_trace(scenario.trace_path)
    served = {outcome.request_id for outcome in measured.outcomes}
    same = served == {row.request_id for row in trace.rows} and {
        (o.request_id, o.prompt_tokens) for o in measured.outcomes
    } == {(row.request_id, row.prompt_tokens) for row in trace.rows}
    return at_measured_arrivals(trace if same else measured.trace, measured)


def write_calibration(calibration: Calibration, out: Path) -> None:
    """Write the file, or nothing. Raises InputError when it exists."""
    with new_file(out) as file:
        file.write_bytes(encode_calibration(calibration))
