"""From a scenario to an engine that can be simulated: options merged, profile found, KV capacity settled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from harness.cluster import InstanceSpec, read_cluster
from harness.scenario import Scenario
from profiles.catalog import find_device, find_model, find_profile, with_bundled
from profiles.model import ModelSpec, model_of
from profiles.profile import Profile
from simulator.memory import predicted_num_gpu_blocks
from simulator.operator_model import OperatorModel
from simulator.options import EngineOptions
from simulator.profile_overhead import profile_overhead
from simulator.simulate import Engine
from traces.capture import CaptureMeta
from traces.errors import InputError

KNOWN_OPTIONS = tuple(field.encode_name for field in msgspec.structs.fields(EngineOptions))


@dataclass(frozen=True, slots=True)
class Deployment:
    """An engine, and what a reader should know of how it came about.

    Attributes:
        engine: what serves the trace.
        notes: what was assumed, predicted or taken from the capture.
        mismatches: options in which scenario and capture contradict each other.
        provenance: digests by name.
    """

    engine: Engine
    notes: tuple[str, ...]
    mismatches: tuple[str, ...]
    provenance: dict[str, str | None]


def deploy(scenario: Scenario, measured: CaptureMeta | None = None) -> Deployment:
    """The scenario's engine. Raises InputError for whatever keeps it from being simulated.

    Args:
        scenario: what to simulate.
        measured: of the capture to compare with: what it recorded of its engine fills what the scenario leaves unsaid.
    """
    spec = read_cluster(scenario)
    said = {**scenario.said_options, **spec.said_options}
    notes = list(spec.notes)
    mismatches: list[str] = []
    if measured is not None:
        taken, mismatches = _from_capture(said, measured)
        said = {**taken, **said}
        if taken:
            stated = ", ".join(f"{name} {value}" for name, value in sorted(taken.items()))
            notes.append(f"engine options taken from the capture, since the scenario does not state them: {stated}")
    options = _options(said, scenario)
    folders = with_bundled(scenario.profile_folders)
    profile = find_profile(spec.device, spec.model, options.dtype, options.kv_cache_dtype, folders)
    model = _model(profile, spec, scenario)
    overhead = (
        scenario.file.overhead.overhead() if scenario.file.overhead else profile_overhead(profile, model.num_layers)
    )
    notes.append(f"time of a step beside its operators: {overhead.source}")
    num_gpu_blocks = _num_gpu_blocks(options, model, spec, scenario, notes)
    max_model_len = options.max_model_len or model.max_position_embeddings
    if max_model_len is None:
        raise InputError("is not said, and the model's config has none", field="engine.max_model_len")
    step_time = OperatorModel(profile, options, num_layers=model.num_layers, overhead=overhead)
    engine = Engine(spec.model, spec.device, options, num_gpu_blocks, max_model_len, step_time)
    return Deployment(engine, tuple(notes), tuple(mismatches), {"profile": profile.sha256, "calibration": None})


def _from_capture(said: dict[str, Any], measured: CaptureMeta) -> tuple[dict[str, Any], list[str]]:
    """What the capture recorded and the scenario leaves unsaid; and where the two contradict each other."""
    recorded = {name: value for name, value in measured.engine_options.items() if name in KNOWN_OPTIONS}
    if measured.num_gpu_blocks is not None:
        recorded["num_gpu_blocks"] = measured.num_gpu_blocks
    taken = {name: value for name, value in recorded.items() if name not in said and value is not None}
    mismatches = [
        f"configuration mismatch: {name} {said[name]} simulated, {value} measured"
        for name, value in sorted(recorded.items())
        if name in said and value is not None and said[name] is not None and said[name] != value
    ]
    return taken, mismatches


def _options(said: dict[str, Any], scenario: Scenario) -> EngineOptions:
    try:
        return msgspec.convert(said, EngineOptions)
    except msgspec.ValidationError as error:
        raise InputError(f"engine options cannot be used ({error})", file=scenario.path, field="engine") from None


def _model(profile: Profile, spec: InstanceSpec, scenario: Scenario) -> ModelSpec:
    """The model's dimensions: those the profile was measured with, else the catalogue's."""
    if profile.meta.model_config is not None:
        return model_of(profile.meta.model_config, spec.model, profile.path / "profile.json")
    return find_model(spec.model, with_bundled(scenario.profile_folders))


def _num_gpu_blocks(
    options: EngineOptions, model: ModelSpec, spec: InstanceSpec, scenario: Scenario, notes: list[str]
) -> int:
    if options.num_gpu_blocks is not None:
        return options.num_gpu_blocks
    if spec.memory_bytes is None:
        device = find_device(spec.device, with_bundled(scenario.profile_folders))
        memory_bytes, source = device.memory_bytes, f"the catalogue's {device.name}"
    else:
        memory_bytes, source = spec.memory_bytes, "the cluster description"
    blocks = predicted_num_gpu_blocks(model, spec.device, memory_bytes, options, tensor_parallel_size=1)
    notes.append(
        f"{blocks} KV blocks predicted from weights and the memory of {source}; activations, CUDA graphs and the "
        "context are not taken off, so that this is an upper bound"
    )
    return blocks


def with_run_notes(meta: CaptureMeta, deployment: Deployment) -> CaptureMeta:
    """A simulated capture's description with the deployment's notes and digests."""
    notes = (*deployment.notes, *meta.notes)
    return msgspec.structs.replace(meta, notes=notes, provenance={**meta.provenance, **deployment.provenance})
