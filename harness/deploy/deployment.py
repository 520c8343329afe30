"""From what is asked for to engines that can be simulated: profiles found, KV capacity settled, steps priced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from calibrate.calibration import Calibration
from harness.deploy.asked import EngineAsked, engines_asked, located, read_cluster
from harness.deploy.calibrated import Calibrated, calibrated
from harness.deploy.memory import num_gpu_blocks
from harness.deploy.near_memory import attention_of, channel_power, near_memory_of
from harness.deploy.partitioning import experts_of, partition_of, talk_of
from harness.deploy.power import EngineMade, PowerPlan, plan_power
from harness.deploy.speculation import Drafter, drafter_kv_bytes, drafter_kv_notes, drafter_of, speculation_notes
from harness.deploy.weight_offload import host_link_of, offload_of
from harness.descriptions.cluster import ClusterSpec, place
from harness.descriptions.scenario import Routing, Scenario
from harness.descriptions.source import model_from, profile_from, source_notes
from profiles.catalog import known_device, with_bundled
from profiles.flash_attention import FlashAttention2, flash_attention_2
from profiles.model import ModelSpec, compute_dtype, kv_dtype
from profiles.profile import Profile
from simulator.cluster import Cluster
from simulator.engine import Engine, check_options
from simulator.front_end import DIRECT, FrontEnd
from simulator.memory import block_bytes, device_weight_bytes
from simulator.network.topology import Place, Topology
from simulator.power.beside import Memories
from simulator.scheduling.speculation import FIELD
from simulator.steps.contention import Exchange, exchanges
from simulator.steps.near_memory_steps import NearMemoryModel
from simulator.steps.operator_model import OperatorModel
from simulator.steps.partition import Partition, use_sequence_parallel_moe
from simulator.steps.profile_overhead import profile_overhead
from simulator.steps.speculative_steps import SpeculativeModel, row_times
from simulator.steps.step_time import StepTimeModel
from simulator.steps.weight_offload import OffloadedModel
from traces.capture import CaptureMeta
from traces.errors import InputError


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

    @property
    def split(self) -> bool:
        """The devices of a rank split its tokens before the experts. Raises InputError for an unread family."""
        spec = self.asked.spec
        tensor, whole = spec.tensor_parallel_size, spec.enable_expert_parallel
        return use_sequence_parallel_moe(
            self.model, self.asked.version, tensor=tensor, data=self.ranks, expert_parallel=whole
        )


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
    kinds = [_kind(asked) for asked in engines_asked(scenario, spec, measured)]
    with located(spec):
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
        EngineMade(engine, kind.asked.spec, kind.model, one.memories, kind.split)
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
        *_routing(scenario.file.routing or spec.routing or _usual_routing(spec, engines)),
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


def _usual_routing(spec: ClusterSpec, engines: Sequence[Engine]) -> Routing:
    """Between the ranks of one engine, vLLM's own, whether they step together or not; between engines, in turn."""
    first, *others = spec.instances
    step_together = len(engines) == 1 and engines[0].ranks > 1
    is_one = not others and first.count == 1 and spec.autoscaling is None and not spec.failures
    return "vllm_dp" if step_together or (is_one and first.data_parallel_size > 1) else "round_robin"


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
        partition = partition_of(spec, model, profile, places[0], topology, kind.asked.folders, split=kind.split)
        attention = attention_of(spec, scenario.file.attention)
        near = near_memory_of(spec, attention, model, options, kind.asked.folders)
        offload = offload_of(spec, model, options, partition)
        if near is not None and options.speculative_config is not None:
            with located(scenario):
                raise InputError(f"is not modelled where tokens are drafted ({FIELD})", field="near_memory")
        blocks = num_gpu_blocks(kind.asked, model, partition, near, offload, notes)
        stages = spec.pipeline_parallel_size
        channels = channel_power(spec.near_memory, spec.document.path, kind.asked.folders, stages)
    notes += partition.notes()
    max_model_len = options.max_model_len or model.max_position_embeddings
    if max_model_len is None:
        message = "is not said, and the model's config has none"
        raise InputError(message, file=scenario.path, field="engine.max_model_len")
    bare = _operators(scenario, kind, partition)
    notes.append(bare.overhead.note())
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
    kv_bytes, kept_bytes = (_kv_bytes(kind, drafter, shared_by) for shared_by in (1, spec.tensor_parallel_size))
    if moves_kv:
        with located(scenario):
            notes += drafter_kv_notes(options.speculative_config, drafter)
    devices = len(places[0]) // kind.ranks
    engine = Engine(
        spec.model,
        spec.device,
        options,
        blocks,
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
        host_link=host_link_of(spec, near, offload, devices),
        offload=offload,
        seed=scenario.file.seed,
    )
    memories = None
    if spec.near_memory is not None or offload is not None:
        has_link = spec.near_memory is not None and spec.near_memory.link is not None
        memories = Memories(fitted.step_time, near, channels, has_link, offload, devices)
    of_places = [replace(engine, places=own, exchanges=_exchanges(kind, own, topology)) for own in places]
    return _Engines(tuple(of_places), (*notes, *fitted.notes), fitted, memories)


def _kv_bytes(kind: _Kind, drafter: Drafter | None, shared_by: int) -> int:
    """Bytes of one token's KV on so many devices that share each layer, with those of a drafter's own layers."""
    options = kind.asked.options
    of_kv = kv_dtype(options.dtype, options.kv_cache_dtype)
    of_drafter = drafter_kv_bytes(options.speculative_config, drafter, kind.model, of_kv, shared_by)
    return shared_by * (kind.model.kv_bytes_per_token(of_kv, shared_by) + (of_drafter or 0))


def _operators(scenario: Scenario, kind: _Kind, partition: Partition) -> OperatorModel:
    """Steps of measured operators, of what devices say to each other, and of what the host takes beside them."""
    spec, options, model, profile = kind.asked.spec, kind.asked.options, kind.model, kind.profile
    experts = experts_of(partition, model, profile, spec.experts, scenario.file.seed)
    if (stated := scenario.file.overhead) is not None:
        overhead = stated.overhead()
    else:
        overhead = profile_overhead(profile, model.num_layers, spec.tensor_parallel_size, experts)
    return OperatorModel(
        profile,
        options,
        num_layers=model.num_layers,
        partition=partition,
        talk=talk_of(partition, model, options),
        experts=experts,
        overhead=overhead,
        kernel=_kernel_of(kind),
    )


def _kernel_of(kind: _Kind) -> FlashAttention2 | None:
    """The engine's attention kernel; None where it is not known, and where drafts make several queries of a decode."""
    spec, options = kind.asked.spec, kind.asked.options
    if options.speculative_config is not None:
        return None
    device = known_device(spec.device, kind.asked.folders)
    dtype = kv_dtype(options.dtype, options.kv_cache_dtype)
    return None if device is None else flash_attention_2(device, kind.model, spec.tensor_parallel_size, dtype)


def _exchanges(kind: _Kind, places: Sequence[Place], topology: Topology | None) -> tuple[Exchange, ...]:
    """What devices of an engine send each other, where KV or other engines may share their links."""
    spec = kind.asked.spec
    tensor, stages = spec.tensor_parallel_size, spec.pipeline_parallel_size
    if len(places) == 1 or topology is None:
        return ()
    dtype = compute_dtype(kind.asked.options.dtype)
    return exchanges(topology, places, kind.model, dtype, tensor=tensor, stages=stages, split=kind.split)


def with_run_notes(meta: CaptureMeta, deployment: Deployment) -> CaptureMeta:
    """A simulated capture's description with the deployment's notes and digests."""
    notes = (*deployment.notes, *meta.notes)
    return msgspec.structs.replace(meta, notes=notes, provenance={**meta.provenance, **deployment.provenance})
