"""What scenario, cluster description and capture ask for: engines, before it is known how long their steps take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec

from harness.deploy.defaults import with_defaults
from harness.descriptions.agreement import agree, default_note, version_defaults, with_recorded_experts
from harness.descriptions.cluster import ClusterSpec, InstanceSpec, cluster_document, read_own_cluster
from harness.descriptions.llmservingsim_cluster import read_llmservingsim_cluster
from harness.descriptions.llmservingsim_prefix import prefix_tiers
from harness.descriptions.scenario import Scenario
from profiles.catalog import with_bundled
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.rules import REFERENCE, REFERENCE_RULES, Rules, rules_notes, rules_of, version_of
from traces.capture import CaptureMeta
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class EngineAsked:
    """The engines of one kind that scenario and capture speak of, before it is known how long their steps take.

    Attributes:
        spec: their model and device, and how many there are.
        folders: where profiles, models and devices are looked up.
        options: their options.
        rules: of the vLLM version that their schedulers follow.
        version: vLLM's, whose start decides how many KV blocks there are.
        notes: what was assumed or taken from the capture.
        mismatches: options in which scenario and capture contradict each other.
    """

    spec: InstanceSpec
    folders: list[Path]
    options: EngineOptions
    rules: Rules
    version: tuple[int, int]
    notes: tuple[str, ...]
    mismatches: tuple[str, ...]


class Asking(Protocol):
    """A description that knows where it says what."""

    def place_of(self, name: str | None) -> tuple[Path, int | None]:
        """File and line of a field, or of the whole."""
        ...


@contextmanager
def located(asking: Asking) -> Iterator[None]:
    """An error that names no file says in which file and line it was asked for what cannot be had."""
    try:
        yield
    except InputError as error:
        if error.file is not None:
            raise
        file, line = asking.place_of(error.field)
        raise type(error)(str(error), file=file, line=line) from None


def read_cluster(scenario: Scenario) -> ClusterSpec:
    """The scenario's cluster. Raises InputError with file, line and field for what is wrong or not modelled."""
    document, prefix = cluster_document(scenario), scenario.file.prefix
    if "nodes" not in document.value:
        if prefix is not None:
            accepted = "kv_tiers of the cluster description, which is not LLMServingSim's"
            raise scenario.document.error(["prefix"], "has no effect", accepted=accepted)
        return read_own_cluster(document)
    read = read_llmservingsim_cluster(document)
    return read if prefix is None else replace(read, kv_tiers=prefix_tiers(prefix, document))


def engines_asked(scenario: Scenario, cluster: ClusterSpec, measured: CaptureMeta | None = None) -> list[EngineAsked]:
    """The engines of a scenario's cluster by kind; a capture fills what is left unsaid. Raises InputError."""
    return [_asked(scenario, spec, measured) for spec in cluster.instances]


def engine_asked(scenario: Scenario, measured: CaptureMeta | None = None) -> EngineAsked:
    """The only engine that a scenario asks for, likewise. Raises InputError."""
    cluster = read_cluster(scenario)
    if len(cluster.instances) > 1 or cluster.instances[0].count > 1:
        raise cluster.document.error([], "describes several engines", accepted="one: this asks what a single one does")
    return _asked(scenario, cluster.instances[0], measured)


def _asked(scenario: Scenario, spec: InstanceSpec, measured: CaptureMeta | None) -> EngineAsked:
    folders = with_bundled(scenario.profile_folders)
    said = {name: value for name, value in {**scenario.said_options, **spec.said_options}.items() if value is not None}
    notes: list[str] = []
    mismatches: list[str] = []
    version = version_of(spec.engine_version or scenario.file.engine_version)
    if measured is not None:
        spec = with_recorded_experts(spec, measured)
        agreement = agree(said, spec, measured, folders, version)
        said = {**agreement.taken, **said}
        notes += agreement.notes
        mismatches += agreement.mismatches
        measured_version = version_of(measured.engine)
        if version is not None and measured_version is not None and version != measured_version:
            said_version = spec.engine_version or scenario.file.engine_version
            mismatches.append(
                f"configuration mismatch: engine_version {said_version} simulated, {measured.engine} measured"
            )
        version = version or measured_version
    elif version is not None and (by_version := version_defaults(version, said)):
        said |= by_version
        notes.append(default_note(version, by_version))
    notes += rules_notes(version or REFERENCE)
    rules = rules_of(version or REFERENCE)
    if spec.pipeline_parallel_size > 1:
        notes.append(_plan_stages(said, rules, scenario.path))
    options, chosen = with_defaults(_options(said, scenario), said, spec, version or REFERENCE, folders)
    notes += chosen
    return EngineAsked(spec, folders, options, rules, version or REFERENCE, tuple(notes), tuple(mismatches))


def _plan_stages(said: dict[str, Any], rules: Rules, path: Path) -> str:
    """How pipeline stages are planned: one batch for each, unless it is said that outputs are not waited for.

    vLLM 0.32 does the latter with its second model runner, which is the default where Triton is there
    (`config/vllm.py`: `use_v2_model_runner`). Returns a note; raises InputError for other versions.
    """
    if not said.setdefault("async_scheduling", False):
        return "pipeline stages run without asynchronous scheduling"
    if rules.version < REFERENCE:
        accepted = f"false with pipeline_parallel_size above 1 before {REFERENCE_RULES.name}"
        raise InputError(file=path, field="engine.async_scheduling", found=True, accepted=accepted)
    return f"pipeline stages are planned ahead of outputs, as {REFERENCE_RULES.name} does with its second model runner"


def _options(said: dict[str, Any], scenario: Scenario) -> EngineOptions:
    try:
        return msgspec.convert(said, EngineOptions)
    except msgspec.ValidationError as error:
        raise InputError(f"engine options cannot be used ({error})", file=scenario.path, field="engine") from None
