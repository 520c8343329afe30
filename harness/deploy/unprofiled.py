"""Engines without a profile: steps are timed by a whole-step model, which is fitted from step records alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from calibrate.calibration import read_calibration
from calibrate.whole_step import Unpriced
from harness.deploy.asked import EngineAsked, engines_asked, read_cluster
from harness.deploy.calibrated import calibrated
from harness.deploy.deployment import Deployment, cluster_of, deploy
from harness.deploy.power import EngineMade, plan_power
from harness.descriptions.cluster import ClusterSpec, place
from harness.descriptions.scenario import Scenario
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
    """The scenario's engines, all of one kind, without a profile; without a calibration steps take no time.

    Raises InputError, also when neither scenario nor capture say the KV blocks or the longest request.
    """
    described = read_cluster(scenario)
    asked = _asked(scenario, described, measured)
    spec, options = asked.spec, asked.options
    if options.speculative_config is not None:
        message = "needs a profile: a whole-step model knows nothing of drafted tokens"
        raise InputError(message, file=scenario.path, field="engine.speculative_config")
    if options.num_gpu_blocks is None or options.max_model_len is None:
        name = "num_gpu_blocks" if options.num_gpu_blocks is None else "max_model_len"
        message = "is needed without a profile, and neither scenario nor capture says it"
        raise InputError(message, file=scenario.path, field=f"engine.{name}")
    fitted = calibrated(Unpriced(), calibration, model=spec.model, device=spec.device, profile=None, options=options)
    placed = place(described, [spec.count])
    engine = Engine(
        spec.model,
        spec.device,
        options,
        options.num_gpu_blocks,
        options.max_model_len,
        fitted.step_time,
        scenario.file.scheduler,
        asked.rules,
        scheduling_order=spec.scheduling_order,
        cache_eviction=spec.cache_eviction,
    )
    made = [EngineMade(replace(engine, places=own), spec, None) for own in placed.places[0]]
    notes = (*asked.notes, "no profile: steps are timed by a whole-step model", *fitted.notes)
    provenance = {"profile": None, "calibration": fitted.sha256}
    engines, power = plan_power(described, made, asked.folders)
    cluster = cluster_of(scenario, described, engines, placed.topology)
    return Deployment(cluster, notes, asked.mismatches, provenance, fitted.front_end, fitted.calibration, power)


UNSEEN = {
    "role": "both",
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "near_memory": None,
    "attention": None,
    "offload": None,
    "host_link": None,
}
"""Keys of an instance of which a whole-step model knows nothing, and what they are where nothing is asked of them."""


def _asked(scenario: Scenario, described: ClusterSpec, measured: CaptureMeta | None) -> EngineAsked:
    """The kind of engine. Raises InputError for whatever a whole-step model knows nothing of."""
    message = "needs a profile: a whole-step model does not tell the parts of a step apart"
    if len(described.instances) > 1:
        accepted = "one, with a count: a whole-step model is of one kind of engine"
        raise described.document.error(["instances"], "describes several kinds of engines", accepted=accepted)
    spec = described.instances[0]
    for field, nothing in UNSEEN.items():
        if getattr(spec, field) != nothing:
            raise spec.document.error([*spec.at, field], message)
    if spec.source.kind != "measured":
        raise spec.document.error([*spec.at, "source"], "has no effect: steps are timed by a whole-step model")
    if described.kv_tiers:
        raise described.document.error(
            ["kv_tiers"], "needs a profile: without one the bytes of a KV block are not known"
        )
    (asked,) = engines_asked(scenario, described, measured)
    return asked
