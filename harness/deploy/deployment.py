"""From a scenario to an engine that can be simulated: options merged, profile found, KV capacity settled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from calibrate.calibration import Calibration
from harness.deploy.calibrated import Calibrated, calibrated
from harness.deploy.drafter import Drafter, drafter_kv_bytes, drafter_kv_notes, drafter_of
from harness.deploy.near_memory import (
    attention_of,
    channel_power,
    check_room,
    near_blocks,
    near_memory_notes,
    near_memory_of,
)
from harness.deploy.partitioning import experts_of, partition_of, talk_of
from harness.deploy.power import EngineMade, PowerPlan, plan_power
from harness.deploy.weight_offload import host_link_of, offload_of
from harness.descriptions.agreement import agree
from harness.descriptions.cluster import ClusterSpec, InstanceSpec, cluster_document, place, read_own_cluster
from harness.descriptions.llmservingsim_cluster import read_llmservingsim_cluster
from harness.descriptions.llmservingsim_prefix import prefix_tiers
from harness.descriptions.scenario import Routing, Scenario
from harness.descriptions.source import model_from, profile_from, source_notes
from profiles.catalog import find_device, with_bundled
from profiles.device import DeviceSpec
from profiles.model import ModelSpec, compute_dtype, kv_dtype
from profiles.profile import Profile
from simulator.cluster import Cluster
from simulator.engine import Engine, check_options
from simulator.front_end import DIRECT, FrontEnd
from simulator.memory import MemoryAccount, block_bytes, device_weight_bytes, memory_account
from simulator.network.topology import Place, Topology
from simulator.power.beside import Memories
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.rules import REFERENCE, REFERENCE_RULES, Rules, rules_notes, rules_of, version_of
from simulator.steps.contention import Exchange, exchanges
from simulator.steps.near_memory import NearMemory
from simulator.steps.near_memory_steps import NearMemoryModel
from simulator.steps.operator_model import OperatorModel
from simulator.steps.partition import Partition
from simulator.steps.profile_overhead import profile_overhead
from simulator.steps.speculative_steps import (
    SpeculativeModel,
    refuse_beside_drafts,
    refuse_unknown_memory,
    row_times,
    speculation_notes,
)
from simulator.steps.step_time import StepTimeModel
from simulator.steps.weight_offload import OffloadedModel, WeightOffload
from traces.capture import CaptureMeta
from traces.decoding import Document
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


@dataclass(frozen=True, slots=True)
class Deployment:
    """What serves the trace, and what a reader should know of how it came about.

    Attributes:
        cluster: its engines.
        notes: what was assumed, predicted or taken from the capture.
        mismatches: options in which scenario and capture contradict each other.
        provenance: digests by name.
        front_end: the way of requests to the engines.
        calibration: the fitted residual that is in all this; None without one.
        power: what it takes to say what all this draws; None where the cluster does not say.
    """

    cluster: Cluster
    notes: tuple[str, ...]
    mismatches: tuple[str, ...]
    provenance: dict[str, str | None]
    front_end: FrontEnd = DIRECT
    calibration: Calibration | None = None
    power: PowerPlan | None = None

    @property
    def engine(self) -> Engine:
        """The only engine. Raises InputError when there are several."""
        if len(self.cluster.engines) > 1:
            found = f"{len(self.cluster.engines)} engines"
            raise InputError(field="cluster", found=found, accepted="one engine: this asks what a single one does")
        return self.cluster.engines[0]


@dataclass(frozen=True, slots=True)
class _Kind:
    """Engines of one kind, what they run and what it costs there.

    Attributes:
        asked: what scenario and capture say of them.
        profile: of their device and model.
        model: its dimensions.
    """

    asked: EngineAsked
    profile: Profile
    model: ModelSpec

    @property
    def ranks(self) -> int:
        """Data-parallel ranks that step together: those of a mixture of experts."""
        return self.asked.spec.data_parallel_size if self.model.num_experts else 1

    @property
    def copies(self) -> int:
        """Engines of this kind; copies of a dense model have nothing in common but the router."""
        return self.asked.spec.count * self.asked.spec.data_parallel_size // self.ranks


@dataclass(frozen=True, slots=True)
class _Engines:
    """Engines of one kind as they are simulated, and the memories beside their devices'."""

    engines: tuple[Engine, ...]
    notes: tuple[str, ...]
    fitted: Calibrated
    memories: Memories | None


def deploy(scenario: Scenario, measured: CaptureMeta | None = None, calibration: Path | None = None) -> Deployment:
    """What the scenario asks for. Raises InputError for whatever keeps it from being simulated.

    Args:
        scenario: what to simulate.
        measured: of the capture to compare with: what it recorded of its engine fills what the scenario leaves unsaid.
        calibration: file of a fitted residual to put in; None: none, whatever the scenario says.
    """
    spec = read_cluster(scenario)
    kinds = [_kind(_asked(scenario, one, measured)) for one in spec.instances]
    with _located_in(spec.document):
        placed = place(spec, [kind.copies for kind in kinds])
    moves_kv = bool(spec.kv_tiers) or any(one.role != "both" for one in spec.instances)
    made = [
        _engines(scenario, kind, places, placed.topology, calibration, moves_kv=moves_kv)
        for kind, places in zip(kinds, placed.places, strict=True)
    ]
    notes = [
        *spec.notes,
        *(note for kind, one in zip(kinds, made, strict=True) for note in kind.asked.notes + one.notes),
    ]
    of_kinds = zip(kinds, made, strict=True)
    each = [
        EngineMade(engine, kind.asked.spec, kind.model, one.memories)
        for kind, one in of_kinds
        for engine in one.engines
    ]
    engines, power = plan_power(spec, each, with_bundled(scenario.profile_folders))
    fitted = made[0].fitted
    return Deployment(
        replace(cluster_of(scenario, spec, engines, placed.topology), kv_residual=fitted.kv_residual),
        tuple(dict.fromkeys(notes)),
        tuple(dict.fromkeys(mismatch for kind in kinds for mismatch in kind.asked.mismatches)),
        {"profile": ", ".join(dict.fromkeys(kind.profile.sha256 for kind in kinds)), "calibration": fitted.sha256},
        fitted.front_end,
        fitted.calibration,
        power,
    )


def cluster_of(
    scenario: Scenario, spec: ClusterSpec, engines: tuple[Engine, ...], topology: Topology | None
) -> Cluster:
    """The engines with all that scenario and cluster description say beside them. Raises InputError."""
    return Cluster(
        engines,
        *_routing(scenario.file.routing or spec.routing or _usual_routing(engines)),
        scenario.file.seed,
        topology,
        spec.kv_transfer,
        deadline_s=scenario.file.deadline_s,
        concurrency=scenario.file.concurrency,
        think_s=scenario.file.think_s,
        think=scenario.file.think,
        failures=spec.failures,
        after_failure=spec.after_failure,
        autoscaling=spec.autoscaling,
        kv_tiers=spec.kv_tiers,
    )


@contextmanager
def _located_in(document: Document) -> Iterator[None]:
    """An error that names no file is about the cluster description."""
    try:
        yield
    except InputError as error:
        if error.file is not None:
            raise
        line = document.error((error.field or "").split(".")).line
        raise type(error)(str(error), file=document.path, line=line) from None


def _usual_routing(engines: Sequence[Engine]) -> Routing:
    """Between the ranks of one engine, vLLM's own; between engines, in turn."""
    return "vllm_dp" if len(engines) == 1 and engines[0].ranks > 1 else "round_robin"


def _routing(said: Routing) -> tuple[str, dict[str, Any]]:
    """The router's name and its options. Raises InputError for a mapping without a name."""
    if isinstance(said, str):
        return said, {}
    options = dict(said)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InputError(field="routing.name", found=name, accepted="a router's name, its options beside it")
    return name, options


def _kind(asked: EngineAsked) -> _Kind:
    """The profile and the model that are asked for. Raises InputError."""
    spec, options = asked.spec, asked.options
    with located(spec):
        profile = profile_from(
            spec.source,
            spec.device,
            spec.model,
            options,
            spec.tensor_parallel_size,
            asked.folders,
            spec.document.path.parent,
            expert_parallel=spec.enable_expert_parallel,
        )
        return _Kind(asked, profile, model_from(profile, spec.model, asked.folders))


def _engines(
    scenario: Scenario,
    kind: _Kind,
    places: Sequence[tuple[Place, ...]],
    topology: Topology | None,
    calibration: Path | None,
    *,
    moves_kv: bool,
) -> _Engines:
    """Engines of one kind: KV capacity settled, steps priced; `moves_kv`: sent or kept elsewhere. Raises InputError."""
    spec, options, model, profile = kind.asked.spec, kind.asked.options, kind.model, kind.profile
    notes: list[str] = list(source_notes(spec.source, profile))
    with located(spec):
        partition = partition_of(spec, model, profile, places[0], topology)
        attention = attention_of(spec, scenario.file.attention)
        near = near_memory_of(spec, attention, model, options, kind.asked.folders)
        offload = offload_of(spec, model, options, partition)
        if options.speculative_config is not None:
            with located(scenario):
                refuse_beside_drafts(near_memory=near is not None)
        num_gpu_blocks = _num_gpu_blocks(kind.asked, model, partition, near, offload, notes)
        stages = spec.pipeline_parallel_size
        channels = channel_power(spec.near_memory, spec.document.path, kind.asked.folders, stages)
    notes += partition.notes()
    max_model_len = options.max_model_len or model.max_position_embeddings
    if max_model_len is None:
        message = "is not said, and the model's config has none"
        raise InputError(message, file=scenario.path, field="engine.max_model_len")
    bare = _operators(scenario, kind, partition)
    notes.append(f"time of a step beside its operators: {bare.overhead.source}")
    step_time: StepTimeModel = bare if near is None else NearMemoryModel(bare, near)
    drafter = None
    if options.speculative_config is not None:
        with located(scenario):
            check_options(options, max_model_len, kind.asked.rules)
            drafter = drafter_of(options.speculative_config, spec, options, kind.asked.folders, places[0], topology)
        rows = row_times(profile, model, partition, options)
        step_time = SpeculativeModel(
            bare, options.speculative_config, rows, None if drafter is None else drafter.passes
        )
        notes += speculation_notes(kind.asked.rules)
    step_time = step_time if offload is None else OffloadedModel(step_time, offload)
    fitted = calibrated(
        step_time, calibration, model=spec.model, device=spec.device, profile=profile.sha256, options=options
    )
    kv_bytes, kept_bytes = (_kv_bytes(kind, drafter, devices) for devices in (1, spec.tensor_parallel_size))
    if moves_kv:
        with located(scenario):
            notes += drafter_kv_notes(options.speculative_config, drafter)
    engine = Engine(
        spec.model,
        spec.device,
        options,
        num_gpu_blocks,
        max_model_len,
        fitted.step_time,
        scenario.file.scheduler,
        kind.asked.rules,
        ranks=kind.ranks,
        pipeline_parallel_size=spec.pipeline_parallel_size,
        role=spec.role,
        kv_bytes_per_token=kv_bytes,
        kv_copies=kept_bytes / kv_bytes,
        weight_bytes=device_weight_bytes(model, options, partition, offload),
        kv_block_bytes=block_bytes(model, options, partition) if spec.pipeline_parallel_size == 1 else None,
        num_layers=model.num_layers,
        scheduling_order=spec.scheduling_order,
        cache_eviction=spec.cache_eviction,
        host_link=host_link_of(spec, near, offload, len(places[0]) // kind.ranks),
        offload=offload,
        seed=scenario.file.seed,
    )
    memories = None
    if spec.near_memory is not None or offload is not None:
        has_link = spec.near_memory is not None and spec.near_memory.link is not None
        memories = Memories(fitted.step_time, near, channels, has_link, offload, len(places[0]) // kind.ranks)
    of_places = [replace(engine, places=own, exchanges=_exchanges(kind, own, topology)) for own in places]
    return _Engines(tuple(of_places), (*notes, *fitted.notes), fitted, memories)


def _kv_bytes(kind: _Kind, drafter: Drafter | None, devices: int) -> int:
    """Bytes of one token's KV on so many devices that share each layer, with those of a drafter's own layers."""
    options = kind.asked.options
    of_kv = kv_dtype(options.dtype, options.kv_cache_dtype)
    of_drafter = drafter_kv_bytes(options.speculative_config, drafter, kind.model, of_kv, devices)
    return devices * (kind.model.kv_bytes_per_token(of_kv, devices) + (of_drafter or 0))


def _operators(scenario: Scenario, kind: _Kind, partition: Partition) -> OperatorModel:
    """Steps of measured operators, of what devices say to each other, and of what the host takes beside them."""
    spec, options, model, profile = kind.asked.spec, kind.asked.options, kind.model, kind.profile
    experts = experts_of(partition, model, profile, spec.experts, scenario.file.seed)
    stated = scenario.file.overhead
    return OperatorModel(
        profile,
        options,
        num_layers=model.num_layers,
        partition=partition,
        talk=talk_of(partition, model, options),
        experts=experts,
        overhead=stated.overhead()
        if stated
        else profile_overhead(profile, model.num_layers, spec.tensor_parallel_size, experts),
    )


def _exchanges(kind: _Kind, places: Sequence[Place], topology: Topology | None) -> tuple[Exchange, ...]:
    """What devices of an engine send each other, where KV or other engines may share their links."""
    spec = kind.asked.spec
    tensor, stages = spec.tensor_parallel_size, spec.pipeline_parallel_size
    if len(places) == 1 or topology is None:
        return ()
    dtype = compute_dtype(kind.asked.options.dtype)
    return exchanges(topology, places, kind.model, dtype, tensor=tensor, stages=stages)


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


def engines_asked(scenario: Scenario, measured: CaptureMeta | None = None) -> list[EngineAsked]:
    """The engines that a scenario asks for, one for each kind. Raises InputError."""
    return [_asked(scenario, spec, measured) for spec in read_cluster(scenario).instances]


def engine_asked(scenario: Scenario, measured: CaptureMeta | None = None) -> EngineAsked:
    """The only engine that a scenario asks for; a capture fills what it leaves unsaid. Raises InputError."""
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
    if spec.pipeline_parallel_size > 1:
        notes.append(_plan_stages(said, rules, scenario.path))
    options = _options(said, scenario)
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


def _described(name: str, folders: Sequence[Path]) -> DeviceSpec:
    """The device whose memory holds the KV blocks. Raises InputError, which says that stated blocks would do."""
    try:
        return find_device(name, folders)
    except InputError as error:
        message = "its memory is not described, so that KV blocks cannot be predicted"
        accepted = f"engine.num_gpu_blocks, or a device that is: {error.accepted}"
        raise InputError(message, field="device", found=name, accepted=accepted) from None


def engine_memory(
    asked: EngineAsked, model: ModelSpec, partition: Partition, offload: WeightOffload | None = None
) -> MemoryAccount:
    """Where the memory of one device goes. Raises InputError for a device that nobody describes, or CapacityError."""
    refuse_unknown_memory(asked.options)
    spec, memory_bytes, multiprocessors = asked.spec, asked.spec.memory_bytes, None
    if memory_bytes is None and asked.options.kv_cache_memory_bytes is None:
        device = _described(spec.device, asked.folders)
        memory_bytes, multiprocessors = device.memory_bytes, device.multiprocessors
    return memory_account(
        model,
        spec.device,
        memory_bytes,
        asked.options,
        partition,
        version=asked.version,
        multiprocessors=multiprocessors,
        offload=offload,
    )


def _num_gpu_blocks(
    asked: EngineAsked,
    model: ModelSpec,
    partition: Partition,
    near: NearMemory | None,
    offload: WeightOffload | None,
    notes: list[str],
) -> int:
    """As stated, as the device's memory has room for, or as near memory has where KV is only there."""
    file, options = asked.spec.near_memory, asked.options
    if near is None or file is None:
        return _device_blocks(asked, model, partition, offload, notes)
    stages = asked.spec.pipeline_parallel_size
    notes += near_memory_notes(asked.spec, model, options, near)
    if file.kv_on_device or options.num_gpu_blocks is not None:
        blocks = _device_blocks(asked, model, partition, offload, notes)
        check_room(file, model, options, blocks, stages)
        return blocks
    blocks = near_blocks(file, model, options, stages)
    notes.append(f"{blocks} KV blocks in {file.capacity_bytes / 2**30:.2f} GiB of near memory, none on the device")
    return blocks


def _device_blocks(
    asked: EngineAsked, model: ModelSpec, partition: Partition, offload: WeightOffload | None, notes: list[str]
) -> int:
    if asked.options.num_gpu_blocks is not None:
        return asked.options.num_gpu_blocks
    account = engine_memory(asked, model, partition, offload)
    notes += account.notes()
    return account.num_gpu_blocks


def with_run_notes(meta: CaptureMeta, deployment: Deployment) -> CaptureMeta:
    """A simulated capture's description with the deployment's notes and digests."""
    notes = (*deployment.notes, *meta.notes)
    return msgspec.structs.replace(meta, notes=notes, provenance={**meta.provenance, **deployment.provenance})
