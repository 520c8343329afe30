"""An engine without a profile: its steps are timed by a whole-step model, which is fitted from step records alone."""

from __future__ import annotations

from pathlib import Path

from calibrate.calibration import read_calibration
from calibrate.whole_step import Unpriced
from harness.calibrated import calibrated
from harness.deployment import Deployment, deploy, engine_asked, read_cluster
from harness.power import EngineMade, plan_power
from harness.scenario import Scenario
from simulator.cluster import Cluster
from simulator.engine import Engine
from traces.capture import CaptureMeta
from traces.errors import InputError


def deploy_calibrated(scenario: Scenario, measured: CaptureMeta | None, calibration: Path | None) -> Deployment:
    """The scenario's cluster under a calibration, which may be a whole-step model. Raises InputError as `deploy`."""
    if calibration is not None and read_calibration(calibration).kind == "whole-step":
        return deploy_unprofiled(scenario, measured, calibration)
    return deploy(scenario, measured, calibration)


def deploy_unprofiled(
    scenario: Scenario, measured: CaptureMeta | None = None, calibration: Path | None = None
) -> Deployment:
    """The scenario's only engine, without a profile; without a calibration its steps take no time, and only a fit runs.

    Raises InputError, also when neither scenario nor capture say the KV blocks or the longest request.
    """
    asked = engine_asked(scenario, measured)
    spec, options = asked.spec, asked.options
    if options.num_gpu_blocks is None or options.max_model_len is None:
        name = "num_gpu_blocks" if options.num_gpu_blocks is None else "max_model_len"
        message = "is needed without a profile, and neither scenario nor capture says it"
        raise InputError(message, file=scenario.path, field=f"engine.{name}")
    for field in ("near_memory", "offload", "host_link"):
        if getattr(spec, field) is not None:
            message = "needs a profile: a whole-step model does not tell the parts of a step apart"
            raise InputError(message, file=scenario.path, field=field)
    fitted = calibrated(Unpriced(), calibration, model=spec.model, device=spec.device, profile=None, options=options)
    engine = Engine(
        spec.model,
        spec.device,
        options,
        options.num_gpu_blocks,
        options.max_model_len,
        fitted.step_time,
        scenario.file.scheduler,
        asked.rules,
    )
    notes = (*asked.notes, "no profile: steps are timed by a whole-step model", *fitted.notes)
    provenance = {"profile": None, "calibration": fitted.sha256}
    engines, power = plan_power(read_cluster(scenario), [EngineMade(engine, spec, None)], asked.folders)
    cluster = Cluster(engines, seed=scenario.file.seed)
    return Deployment(cluster, notes, asked.mismatches, provenance, fitted.front_end, fitted.calibration, power)
