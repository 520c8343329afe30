"""A calibration put into a deployment, once it is sure that it speaks of the same thing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibrate.calibration import Calibration, front_end_of, read_calibration
from calibrate.kv_transfer import kv_residual_of
from calibrate.split import parse_split
from simulator.front_end import DIRECT, FrontEnd
from simulator.kv_transfer import NO_RESIDUAL, KVResidual
from simulator.scheduling.options import EngineOptions
from simulator.steps.step_time import StepTimeModel
from traces.capture import Capture
from traces.decoding import read_bytes, sha256
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A step-time model with its residual put back, and what goes with it.

    Attributes:
        step_time: the corrected model.
        front_end: the way of requests to the engine.
        calibration: what was fitted; None without one.
        sha256: digest of its file.
        notes: what a reader should know.
        kv_residual: of KV from prefill to decode engines.
    """

    step_time: StepTimeModel
    front_end: FrontEnd = DIRECT
    calibration: Calibration | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()
    kv_residual: KVResidual = NO_RESIDUAL


def calibrated(
    step_time: StepTimeModel, path: Path | None, *, model: str, device: str, profile: str | None, options: EngineOptions
) -> Calibrated:
    """Correct a step-time model by a calibration file; the model as it is where there is none.

    Args:
        step_time: to be corrected.
        path: the file.
        model: name of the model that is simulated.
        device: name of its device.
        profile: digest of the profile behind `step_time`; None where it has none.
        options: of the engine.

    Raises:
        InputError: the file cannot be read, or is the residual of something else.
    """
    if path is None:
        return Calibrated(step_time)
    found = read_calibration(path)
    for field, ours, theirs in (
        ("model", model, found.model),
        ("device", device, found.device),
        ("profile", profile, found.profile),
        ("async_scheduling", options.async_scheduling, found.async_scheduling),
    ):
        if ours != theirs:
            message = "the calibration is the residual of something else"
            raise InputError(message, file=path, field=field, found=theirs, accepted=f"{ours}, as is simulated")
    captures = ", ".join(f"{fitted.capture} ({fitted.n_requests} requests)" for fitted in found.fitted_on)
    notes = [f"calibrated from {found.kind} of {captures}, part {found.fit_on}"]
    held = sorted(name for name, parameter in found.parameters.items() if not parameter.identified)
    if held:
        notes.append(f"parameters that the calibration could not tell and holds at their priors: {', '.join(held)}")
    front_end, residual = front_end_of(found.values()), kv_residual_of(found.values())
    return Calibrated(found.corrected(step_time), front_end, found, sha256(read_bytes(path)), tuple(notes), residual)


def fitted_requests(calibration: Calibration | None, measured: Capture, sha256: str) -> frozenset[str]:
    """Ids of the capture's requests that the calibration was fitted to; none when it saw other captures."""
    if calibration is None:
        return frozenset()
    seen = [fitted for fitted in calibration.fitted_on if fitted.sha256 == sha256]
    split = parse_split(calibration.fit_on)
    ids: set[str] = set()
    for fitted in seen:
        mask = split.requests(measured, fitted.capture)
        ids |= {outcome.request_id for outcome, own in zip(measured.outcomes, mask, strict=True) if own}
    return frozenset(ids)
