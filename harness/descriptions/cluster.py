"""What serves a trace: our own cluster description, and the one place that says what a description can ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from harness.descriptions.memories import Attention, NearMemoryFile, OffloadFile
from harness.descriptions.scenario import Routing, Scenario, VLLMVersion, check_routing
from harness.descriptions.source import Aiconfigurator, External, Source, SourceKind
from harness.descriptions.vllm_flags import check_engine_keys
from simulator.engine import Role
from simulator.fleet import AfterFailure, Autoscaling, Failure
from simulator.kv.tiers import LIKE, KVTierFile
from simulator.kv_transfer import KVTransfer
from simulator.network.topology import FabricFile, InterNodeFile, NodeFile, Place, PortFile, Topology, TopologyFile
from simulator.power.nodes import NodePower
from simulator.scheduling.options import EngineOptions
from simulator.steps.experts import Mode
from traces.decoding import Document, read_document

Degree = Annotated[int, msgspec.Meta(ge=1, le=65536)]
"""Of devices or engines: more than any cluster has is a slip of the pen, and would be simulated for days."""


class ExpertsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a mixture of experts is taken to be used.

    Attributes:
        gate: which experts tokens choose: `uniform`, `zipf:EXPONENT`, or a .csv file (`simulator.steps.gates`).
        placement: which device has which experts: `linear`, as vLLM, or `round_robin`.
        redundant: copies of experts beyond the model's own.
        mode: a layer takes its expected time, or one drawn for each layer of each step.
    """

    gate: str = "uniform"
    placement: str = "linear"
    redundant: Annotated[int, msgspec.Meta(ge=0)] = 0
    mode: Mode = "expected"


class CollectivesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine's devices take to talk to each other (`harness.deploy.collectives`).

    Attributes:
        source: `aiconfigurator`: its measured tables of this device; `links`: by the links, whatever the profile
            measured; None: as the profile measured them with as many ranks, else by the links.
        disable_custom_all_reduce: NCCL sums everything, and vLLM's own kernel nothing (vLLM's option of that name).
    """

    source: Literal["aiconfigurator", "links"] | None = None
    disable_custom_all_reduce: bool = False


class InstanceFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Engines of one kind, in our own cluster description; parallel sizes by vLLM's names.

    Attributes:
        model: its name in the catalogue.
        device: its name in the catalogue.
        source: where the times of operators are from (`harness.descriptions.source`).
        aiconfigurator, external: what a source of that name needs to know.
        count: engines of this kind.
        role: what they do of a request.
        tensor_parallel_size: devices that share each layer.
        pipeline_parallel_size: devices, or groups of them, that share the layers.
        data_parallel_size: copies behind one router; those of a mixture-of-experts model step together.
        enable_expert_parallel: each device of an engine holds whole experts, and not a part of each.
        experts: how a mixture of experts is used.
        collectives: what its devices take to talk.
        node: node that they stand on, counted from 0; engines on different nodes reach each other over `inter_node`.
        scheduling_order: a user's own order of requests, as `module:Class` (`simulator.scheduling.policies`).
        cache_eviction: a user's own rule of what the prefix cache evicts, as `module:Class`.
        engine_version: vLLM's version whose rules these engines follow, over the scenario's.
        near_memory: a memory that computes, of each rank (`harness.deploy.near_memory`); None: none.
        attention: where decodes attend; None: near memory where there is one.
        offload: weights in the hosts' memory (`harness.deploy.weight_offload`); None: as the engine's options say.
        host_link: each device's way to its host's memory; needed where weights stay there, or a tier's KV crosses it.
        engine: options of these engines, over those of the scenario.
    """

    model: str
    device: str
    source: SourceKind = "measured"
    aiconfigurator: Aiconfigurator | None = None
    external: External | None = None
    count: Degree = 1
    role: Role = "both"
    tensor_parallel_size: Degree = 1
    pipeline_parallel_size: Degree = 1
    data_parallel_size: Degree = 1
    enable_expert_parallel: bool = False
    experts: ExpertsFile = ExpertsFile()
    collectives: CollectivesFile = CollectivesFile()
    node: Annotated[int, msgspec.Meta(ge=0)] = 0
    scheduling_order: str | None = None
    cache_eviction: str | None = None
    engine_version: VLLMVersion | None = None
    near_memory: NearMemoryFile | None = None
    attention: Attention | None = None
    offload: OffloadFile | None = None
    host_link: PortFile | None = None
    engine: EngineOptions = EngineOptions()


class ClusterFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Our own cluster description.

    Attributes:
        instances: its engines.
        routing: by which rule a request finds its engine (`simulator.routing`); None: by vLLM's own between the ranks
            of one engine, in turn between engines.
        fabric: what ties the devices of a node together; needed where a model is spread over them, or KV is sent.
        inter_node: what ties nodes together; needed where there are several.
        kv_transfer: how KV goes from prefill to decode engines.
        failures: of engines.
        after_failure: what becomes of answers whose engine fails.
        autoscaling: of the engines, or of prefill and of decode engines; None: all are in use all the time.
        power: what each node draws (`simulator.power.nodes`); None: nothing is said of power.
        kv_tiers: behind the engines' prefix caches, the nearest first (`simulator.kv.tiers`).
    """

    instances: Annotated[tuple[InstanceFile, ...], msgspec.Meta(min_length=1)]
    routing: Routing | None = None
    fabric: FabricFile | None = None
    inter_node: InterNodeFile | None = None
    kv_transfer: KVTransfer = KVTransfer()
    failures: tuple[Failure, ...] = ()
    after_failure: AfterFailure = "start_over"
    autoscaling: Autoscaling | None = None
    power: NodePower | None = None
    kv_tiers: tuple[KVTierFile, ...] = ()


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """Engines of one kind to simulate.

    Attributes:
        model: name of their model.
        device: name of their device.
        said_options: engine options that the cluster description states.
        document: the description itself.
        at: where in it the engines stand.
        keys: how it spells `model` and `device`.
        memory_bytes: device memory that it states; None: the catalogue's.
        for_weights_and_kv: `gpu_memory_utilization` of that memory is for weights and KV alone, so that neither
            activations nor graphs are taken off.
        count: how many there are.
        role: what they do of a request.
        tensor_parallel_size, pipeline_parallel_size, data_parallel_size, enable_expert_parallel: as vLLM's.
        says_expert_parallel: whether the description says the last of them; else a capture may.
        nodes: node of each data-parallel rank of the first engine.
        experts: how a mixture of experts is used.
        collectives: what its devices take to talk.
        scheduling_order, cache_eviction: a user's own, as `module:Class`; None: vLLM's.
        engine_version: vLLM's version whose rules they follow; None: the scenario's.
        source: where the times of operators are from.
        near_memory: a memory that computes, of each rank; None: none.
        attention: where decodes attend; None: near memory where there is one.
        offload: weights that stay in the hosts' memory; None: as the engine's options say.
        host_link: each device's way to its host's memory; None: not said.
        tiers_cross_host_link: whether the KV of tiers behind them goes that way too.
    """

    model: str
    device: str
    said_options: dict[str, Any]
    document: Document
    at: tuple[str | int, ...]
    keys: dict[str, str] = field(default_factory=dict)
    memory_bytes: float | None = None
    for_weights_and_kv: bool = False
    count: int = 1
    role: Role = "both"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    says_expert_parallel: bool = True
    nodes: tuple[int, ...] = (0,)
    experts: ExpertsFile = field(default_factory=ExpertsFile)
    collectives: CollectivesFile = field(default_factory=CollectivesFile)
    scheduling_order: str | None = None
    cache_eviction: str | None = None
    engine_version: str | None = None
    source: Source = field(default_factory=Source)
    near_memory: NearMemoryFile | None = None
    attention: Attention | None = None
    offload: OffloadFile | None = None
    host_link: PortFile | None = None
    tiers_cross_host_link: bool = False

    def place_of(self, name: str | None) -> tuple[Path, int | None]:
        """File and line where its model or device stands; where it begins for anything else."""
        key = self.keys.get(name or "", name)
        return self.document.path, self.document.error([*self.at, *([key] if key else [])]).line

    @property
    def parallelism(self) -> dict[str, int | bool]:
        """How the model is spread over devices, by vLLM's names."""
        return {
            "tensor_parallel_size": self.tensor_parallel_size,
            "pipeline_parallel_size": self.pipeline_parallel_size,
            "data_parallel_size": self.data_parallel_size,
            "enable_expert_parallel": self.enable_expert_parallel,
        }


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """All engines to simulate, and what is between them.

    Attributes:
        instances: its engines, by kind.
        document: the description they are from.
        routing: by which rule a request finds its engine; None: not said.
        fabric: what ties the devices of a node together; None: not said.
        inter_node: what ties nodes together; None: not said.
        kv_transfer: how KV goes from prefill to decode engines.
        failures: of engines.
        after_failure: what becomes of answers whose engine fails.
        autoscaling: of the engines, or of prefill and of decode engines; None: all are in use all the time.
        notes: what the description states that no prediction uses.
        power: what the nodes draw, one for all or one for each; (): nothing is said of power.
        kv_tiers: behind the engines' prefix caches, the nearest first.
    """

    instances: tuple[InstanceSpec, ...]
    document: Document
    routing: Routing | None = None
    fabric: FabricFile | None = None
    inter_node: InterNodeFile | None = None
    kv_transfer: KVTransfer = field(default_factory=KVTransfer)
    failures: tuple[Failure, ...] = ()
    after_failure: AfterFailure = "start_over"
    autoscaling: Autoscaling | None = None
    notes: tuple[str, ...] = ()
    power: tuple[NodePower, ...] = ()
    kv_tiers: tuple[KVTierFile, ...] = ()

    def place_of(self, name: str | None) -> tuple[Path, int | None]:
        """The file, and the line where a key such as `fabric.kind` stands."""
        return self.document.path, self.document.error((name or "").split(".")).line


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the engines of a cluster stand, and the links between their devices.

    Attributes:
        places: devices of each engine of each kind, rank by rank and within a rank stage by stage.
        topology: the links; None where the description says none.
    """

    places: tuple[tuple[tuple[Place, ...], ...], ...]
    topology: Topology | None


def place(cluster: ClusterSpec, copies: Sequence[int]) -> Placed:
    """Give every engine devices of its own, node by node in the order of the description.

    Args:
        cluster: the description.
        copies: engines of each kind. Those of several ranks stand where the description puts each rank.
    """
    used: Counter[int] = Counter()
    places = []
    for spec, count in zip(cluster.instances, copies, strict=True):
        each = spec.tensor_parallel_size * spec.pipeline_parallel_size
        ranks_per_engine = len(spec.nodes) * spec.count // count
        nodes = [node for _ in range(spec.count) for node in spec.nodes]
        devices: list[Place] = []
        for node in nodes:
            devices += [Place(node, used[node] + i) for i in range(each)]
            used[node] += each
        size = each * ranks_per_engine
        places.append(tuple(tuple(devices[i * size : (i + 1) * size]) for i in range(count)))
    n_nodes = max(used) + 1
    if cluster.fabric is None and cluster.inter_node is None:
        return Placed(tuple(places), None)
    files = tuple(NodeFile(max(1, used[node]), cluster.fabric) for node in range(n_nodes))
    return Placed(tuple(places), Topology(TopologyFile(files, cluster.inter_node)))


def cluster_document(scenario: Scenario) -> Document:
    """The scenario's cluster description, from its own file or from within the scenario. Raises InputError."""
    cluster = scenario.file.cluster
    if isinstance(cluster, dict):
        whole = read_document(scenario.path)
        node = next((v for k, v in getattr(whole.tree, "value", []) if k.value == "cluster"), whole.tree)
        return Document(scenario.path, cluster, node)
    return read_document(scenario.path.parent / cluster)


def read_own_cluster(document: Document) -> ClusterSpec:
    """Our own description. Raises InputError with file, line and field for what is wrong or not modelled."""
    instances = document.value.get("instances")
    for number, instance in enumerate(instances if isinstance(instances, list) else ()):
        options = instance.get("engine") if isinstance(instance, dict) else None
        check_engine_keys(document, ["instances", number, "engine"], options)
    file = document.convert(ClusterFile)
    check_routing(document, file.routing)
    kinds = []
    for number, instance in enumerate(file.instances):
        at: tuple[str | int, ...] = ("instances", number)
        said = document.value["instances"][number].get("engine") or {}
        source = Source(instance.source, instance.aiconfigurator, instance.external)
        if (wrong := source.fault()) is not None:
            raise document.error([*at, wrong[0]], wrong[1])
        spec = InstanceSpec(
            instance.model,
            instance.device,
            dict(said),
            document,
            at,
            count=instance.count,
            role=instance.role,
            tensor_parallel_size=instance.tensor_parallel_size,
            pipeline_parallel_size=instance.pipeline_parallel_size,
            data_parallel_size=instance.data_parallel_size,
            enable_expert_parallel=instance.enable_expert_parallel,
            nodes=(instance.node,) * instance.data_parallel_size,
            experts=instance.experts,
            collectives=instance.collectives,
            scheduling_order=instance.scheduling_order,
            cache_eviction=instance.cache_eviction,
            engine_version=instance.engine_version,
            source=source,
            near_memory=instance.near_memory,
            attention=instance.attention,
            offload=instance.offload,
            host_link=instance.host_link,
            tiers_cross_host_link=instance.role != "decode" and any(tier.link == "host" for tier in file.kv_tiers),
        )
        kinds.append(spec)
    roles = {spec.role for spec in kinds}
    if len(roles) > 1 and "both" in roles:
        at = next(spec.at for spec in kinds if spec.role != "both")
        raise document.error([*at, "role"], accepted="roles prefill and decode, or both for every engine")
    for role, other in (("prefill", "decode"), ("decode", "prefill")):
        if role in roles and other not in roles:
            raise document.error(["instances"], f"has engines of role {role} and none of role {other}")
    if file.kv_transfer != KVTransfer() and roles == {"both"}:
        raise document.error(["kv_transfer"], "has no effect where no engine has role prefill or decode")
    return ClusterSpec(
        tuple(kinds),
        document,
        file.routing,
        file.fabric,
        file.inter_node,
        file.kv_transfer,
        file.failures,
        file.after_failure,
        file.autoscaling,
        power=() if file.power is None else (file.power,),
        kv_tiers=tuple(_tier(tier, document.value["kv_tiers"][i]) for i, tier in enumerate(file.kv_tiers)),
    )


def _tier(tier: KVTierFile, said: dict[str, Any]) -> KVTierFile:
    """The tier with what it has in common with what it is like, where nothing else is said."""
    return tier if tier.like is None else msgspec.convert({**LIKE[tier.like], **said}, KVTierFile)
