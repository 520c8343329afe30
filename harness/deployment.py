"""From a scenario to an engine that can be simulated: options merged, profile found, KV capacity settled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from harness.agreement import agree
from harness.cluster import InstanceSpec, read_cluster
from harness.scenario import Scenario
from profiles.catalog import find_device, find_model, find_profile, with_bundled
from profiles.model import ModelSpec, model_of
from profiles.profile import Profile
from simulator.memory import predicted_num_gpu_blocks
from simulator.operator_model import OperatorModel
from simulator.options import EngineOptions
from simulator.profile_overhead import profile_overhead
from simulator.rules import REFERENCE, Rules, rules_notes, rules_of, version_of
from simulator.simulate import Engine
from traces.capture import CaptureMeta
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class EngineAsked:
    """The engine that scenario and capture speak of, before it is known how long its steps take.

    Attributes:
        spec: its model and device.
        folders: where profiles, models and devices are looked up.
        options: its options.
        rules: of the vLLM version that its scheduler follows.
        notes: what was assumed or taken from the capture.
        mismatches: options in which scenario and capture contradict each other.
    """

    spec: InstanceSpec
    folders: list[Path]
    options: EngineOptions
    rules: Rules
    notes: tuple[str, ...]
    mismatches: tuple[str, ...]


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
    asked = engine_asked(scenario, measured)
    spec, folders, options = asked.spec, asked.folders, asked.options
    notes = list(asked.notes)
    with located(spec):
        profile = find_profile(spec.device, spec.model, options.dtype, options.kv_cache_dtype, folders)
        model = _model(profile, spec, folders)
        num_gpu_blocks = _num_gpu_blocks(options, model, spec, folders, notes)
    overhead = (
        scenario.file.overhead.overhead() if scenario.file.overhead else profile_overhead(profile, model.num_layers)
    )
    notes.append(f"time of a step beside its operators: {overhead.source}")
    max_model_len = options.max_model_len or model.max_position_embeddings
    if max_model_len is None:
        message = "is not said, and the model's config has none"
        raise InputError(message, file=scenario.path, field="engine.max_model_len")
    step_time = OperatorModel(profile, options, num_layers=model.num_layers, overhead=overhead)
    kind = scenario.file.scheduler
    engine = Engine(spec.model, spec.device, options, num_gpu_blocks, max_model_len, step_time, kind, asked.rules)
    return Deployment(engine, tuple(notes), asked.mismatches, {"profile": profile.sha256, "calibration": None})


def engine_asked(scenario: Scenario, measured: CaptureMeta | None = None) -> EngineAsked:
    """The engine that a scenario asks for; a capture fills what it leaves unsaid. Raises InputError."""
    spec = read_cluster(scenario)
    folders = with_bundled(scenario.profile_folders)
    said = {name: value for name, value in {**scenario.said_options, **spec.said_options}.items() if value is not None}
    notes = list(spec.notes)
    mismatches: list[str] = []
    version = version_of(scenario.file.engine_version)
    if measured is not None:
        agreement = agree(said, spec, measured, folders)
        said = {**agreement.taken, **said}
        notes += agreement.notes
        mismatches += agreement.mismatches
        measured_version = version_of(measured.engine)
        if version is not None and measured_version is not None and version != measured_version:
            said_version = scenario.file.engine_version
            mismatches.append(
                f"configuration mismatch: engine_version {said_version} simulated, {measured.engine} measured"
            )
        version = version or measured_version
    notes += rules_notes(version or REFERENCE)
    rules = rules_of(version or REFERENCE)
    return EngineAsked(spec, folders, _options(said, scenario), rules, tuple(notes), tuple(mismatches))


@contextmanager
def located(asked: InstanceSpec | Scenario) -> Iterator[None]:
    """An error that names no file says in which file and line it was asked for what cannot be had."""
    try:
        yield
    except InputError as error:
        if error.file is not None:
            raise
        file, line = asked.place_of(error.field)
        raise type(error)(str(error), file=file, line=line) from None


def _options(said: dict[str, Any], scenario: Scenario) -> EngineOptions:
    try:
        return msgspec.convert(said, EngineOptions)
    except msgspec.ValidationError as error:
        raise InputError(f"engine options cannot be used ({error})", file=scenario.path, field="engine") from None


def _model(profile: Profile, spec: InstanceSpec, folders: Sequence[Path]) -> ModelSpec:
    """The model's dimensions: those the profile was measured with, else the catalogue's."""
    if profile.meta.model_config is not None:
        return model_of(profile.meta.model_config, spec.model, profile.path / "profile.json")
    return find_model(spec.model, folders)


def _num_gpu_blocks(
    options: EngineOptions, model: ModelSpec, spec: InstanceSpec, folders: Sequence[Path], notes: list[str]
) -> int:
    if options.num_gpu_blocks is not None:
        return options.num_gpu_blocks
    if spec.memory_bytes is None:
        device = find_device(spec.device, folders)
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
