"""LLMServingSim's cluster JSON, of its versions 1 and 2, read as it is.

Facts from its `serving/core/config_builder.py` and its documentation (reference/cluster-config.md). What a file asks
for and we do not model is refused by the name of the field; nothing it says is ignored without a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec

from harness.descriptions.cluster import ClusterSpec, Degree, InstanceSpec
from harness.descriptions.llmservingsim_placement import CxlMemory, offloaded, reads_cpu
from harness.descriptions.llmservingsim_power import NodeSaid, Power, powers_of
from harness.descriptions.memories import Attention, NearMemoryFile
from simulator.engine import Role
from simulator.network.topology import LINK_GB, NS, FabricFile, InterNodeFile
from traces.decoding import Document

GIB = 2**30
Above0 = Annotated[float, msgspec.Meta(gt=0)]
AtLeast0 = Annotated[float, msgspec.Meta(ge=0)]

USUAL_UTILISATION = 0.9
"""vLLM's default of `gpu_memory_utilization`, and LLMServingSim's of `mem_util`."""

_RUNTIME_OPTIONS = {
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "long_prefill_token_threshold": "long_prefill_token_threshold",
    "block_size": "block_size",
    "enable_prefix_caching": "enable_prefix_caching",
    "enable_chunked_prefill": "enable_chunked_prefill",
    "reserve_full_isl": "scheduler_reserve_full_isl",
    "dtype": "dtype",
    "kv_cache_dtype": "kv_cache_dtype",
}
"""Its names of engine options, and vLLM's."""


class _NpuMem(msgspec.Struct, forbid_unknown_fields=True):
    mem_size: Above0
    mem_bw: float
    mem_latency: float
    mem_util: Annotated[float, msgspec.Meta(gt=0, le=1)] = USUAL_UTILISATION


class _Instance(msgspec.Struct, forbid_unknown_fields=True):
    model_name: str
    hardware: str
    npu_mem: _NpuMem
    num_npus: Degree | None = None
    tp_size: Degree | None = None
    pp_size: Degree = 1
    ep_size: Degree | None = None
    dp_group: str | int | None = None
    npu_num: Degree | None = None
    npu_group: Degree | None = None
    pd_type: Literal["prefill", "decode"] | None = None
    placement: dict[str, Any] | None = None
    enable_local_offloading: bool = False
    enable_attn_offloading: bool = False
    enable_sub_batch_interleaving: bool = False
    enable_block_copy: bool = True
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    long_prefill_token_threshold: int | None = None
    block_size: int | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    reserve_full_isl: bool | None = None
    dtype: str | None = None
    kv_cache_dtype: str | None = None


class _Node(msgspec.Struct, forbid_unknown_fields=True):
    instances: list[_Instance]
    num_instances: Degree = 1
    cpu_mem: dict[str, Any] | None = None
    power: Power | None = None


class _Cluster(msgspec.Struct, forbid_unknown_fields=True):
    nodes: list[_Node]
    num_nodes: Degree = 1
    link_bw: Above0 | list[Above0] | None = None
    link_latency: AtLeast0 | list[AtLeast0] | None = None
    cxl_mem: CxlMemory | None = None


def read_llmservingsim_cluster(document: Document) -> ClusterSpec:
    """Its description of a cluster. Raises InputError with file, line and field for what is wrong or not modelled."""
    cluster = document.convert(_Cluster)
    _check_counts(cluster, document)
    _refuse_what_is_not_modelled(cluster, document)
    groups: dict[str | int, list[InstanceSpec]] = {}
    kinds: list[list[InstanceSpec]] = []
    for node, at, instance in _instances(cluster):
        spec = _instance(instance, node, at, document)
        spec = _with_near_memory(spec, instance, cluster.nodes[node], document)
        cpu_mem, placement_at = cluster.nodes[node].cpu_mem, [*at, "placement"]
        if found := offloaded(instance.placement, cpu_mem, cluster.cxl_mem, placement_at, document):
            spec = replace(spec, offload=found[0], host_link=found[1])
        if instance.dp_group is None:
            kinds.append([spec])
        elif instance.dp_group in groups:
            _check_alike(groups[instance.dp_group][0], spec, document)
            groups[instance.dp_group].append(spec)
        else:
            groups[instance.dp_group] = [spec]
            kinds.append(groups[instance.dp_group])
    specs = tuple(_engine(ranks, cluster, document) for ranks in kinds)
    fabric, inter_node = _links(cluster, document)
    unused = ["cxl_mem"] if cluster.cxl_mem is not None and not any(spec.offload for spec in specs) else []
    for i, memory in enumerate([node.cpu_mem for node in cluster.nodes]):
        read = any(reads_cpu(instance.placement) for instance in cluster.nodes[i].instances)
        if memory is not None and not read:
            # A memory that computes has the speed of its timing file, there as here.
            computes = "pim_config" in memory
            unused += [f"nodes[{i}].cpu_mem" + part for part in ((".mem_bw", ".mem_latency") if computes else ("",))]
    unused += ["npu_mem.mem_bw", "npu_mem.mem_latency"]
    note = f"{document.path.name}: stated, and used by no prediction of engines on their devices: {', '.join(unused)}"
    power, notes = powers_of([_said(node) for node in cluster.nodes], document)
    return ClusterSpec(specs, document, None, fabric, inter_node, notes=(note, *notes), power=power)


def _said(node: _Node) -> NodeSaid:
    return NodeSaid(node.power, tuple(instance.hardware for instance in node.instances), node.cpu_mem)


def _instances(cluster: _Cluster) -> Iterator[tuple[int, tuple[str | int, ...], _Instance]]:
    for i, node in enumerate(cluster.nodes):
        for j, instance in enumerate(node.instances):
            yield i, ("nodes", i, "instances", j), instance


def _check_counts(cluster: _Cluster, document: Document) -> None:
    if not cluster.nodes or not any(node.instances for node in cluster.nodes):
        raise document.error(["nodes"], accepted="a node with an instance")
    if cluster.num_nodes != len(cluster.nodes):
        raise document.error(["num_nodes"], accepted=f"{len(cluster.nodes)}, as many as there are under nodes")
    for i, node in enumerate(cluster.nodes):
        if node.num_instances != len(node.instances):
            accepted = f"{len(node.instances)}, as many as there are under instances"
            raise document.error(["nodes", i, "num_instances"], accepted=accepted)


def _instance(instance: _Instance, node: int, at: tuple[str | int, ...], document: Document) -> InstanceSpec:
    tensor, pipeline = _degrees(instance, at, document)
    names = _RUNTIME_OPTIONS.items()
    said = {ours: value for theirs, ours in names if (value := getattr(instance, theirs)) is not None}
    if said.get("max_num_seqs") == 0:
        raise document.error([*at, "max_num_seqs"], accepted="1 or more; 0 (no limit) is not vLLM's")
    if said.get("max_num_batched_tokens") == 0:
        # No limit of its own: a decode step never computes more tokens than requests.
        if instance.pd_type != "decode" or "max_num_seqs" not in said:
            accepted = "1 or more; 0 (no limit) is known only for decode instances that state max_num_seqs"
            raise document.error([*at, "max_num_batched_tokens"], accepted=accepted)
        said["max_num_batched_tokens"] = said["max_num_seqs"]
    if instance.pd_type == "decode":
        # Prompts arrive computed, so that there is nothing to chunk.
        said["enable_chunked_prefill"] = True
    said["gpu_memory_utilization"] = instance.npu_mem.mem_util
    roles: dict[str | None, Role] = {None: "both", "prefill": "prefill", "decode": "decode"}
    return InstanceSpec(
        instance.model_name,
        instance.hardware,
        said,
        document,
        at,
        {"model": "model_name", "device": "hardware"},
        instance.npu_mem.mem_size * GIB,
        # Its `serving/core/memory_model.py` takes weights off and nothing else, so that authors who know an engine's
        # blocks put them into mem_util. Its default is vLLM's, of which vLLM takes off all the rest.
        for_weights_and_kv=instance.npu_mem.mem_util != USUAL_UTILISATION,
        role=roles[instance.pd_type],
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        nodes=(node,),
    )


def _with_near_memory(spec: InstanceSpec, instance: _Instance, node: _Node, document: Document) -> InstanceSpec:
    """The engine with its part of its node's memory, where that computes (`pim_config`), and with where it attends.

    Every instance of a node has all of its channels there, as if it were alone; here they have as many each.
    """
    at, memory = list(spec.at), node.cpu_mem or {}
    name, size_gb = memory.get("pim_config"), memory.get("mem_size")
    if instance.enable_sub_batch_interleaving and not instance.enable_attn_offloading:
        raise document.error([*at, "enable_sub_batch_interleaving"], accepted="true with enable_attn_offloading alone")
    if name is None:
        if instance.enable_attn_offloading:
            raise document.error([*at, "enable_attn_offloading"], accepted="true where cpu_mem has a pim_config")
        return spec
    memory_at: list[str | int] = ["nodes", spec.nodes[0], "cpu_mem"]
    if not isinstance(name, str):
        raise document.error([*memory_at, "pim_config"], accepted="the name of a timing file, without .ini")
    if not isinstance(size_gb, int | float) or size_gb <= 0:
        raise document.error([*memory_at, "mem_size"], accepted="a number above 0: it says how many channels there are")
    attention: Attention = "device"
    if instance.enable_attn_offloading:
        attention = "interleaved" if instance.enable_sub_batch_interleaving else "near_memory"
    file = NearMemoryFile(timing=name, capacity_bytes=size_gb * GIB / len(node.instances))
    return replace(spec, near_memory=file, attention=attention)


def _degrees(instance: _Instance, at: tuple[str | int, ...], document: Document) -> tuple[int, int]:
    """Tensor and pipeline parallel sizes; version 1 states devices and groups of them instead."""
    if instance.npu_num is not None:
        groups = instance.npu_group or 1
        if instance.num_npus is not None or instance.tp_size is not None:
            raise document.error([*at, "npu_num"], accepted="npu_num and npu_group, or num_npus and tp_size")
        if instance.npu_num % groups:
            raise document.error([*at, "npu_group"], accepted=f"a divisor of npu_num {instance.npu_num}")
        return instance.npu_num // groups, groups
    tensor = instance.tp_size or (instance.num_npus or 1) // instance.pp_size
    if instance.num_npus is not None and instance.num_npus != tensor * instance.pp_size:
        accepted = f"tp_size {tensor} times pp_size {instance.pp_size}"
        raise document.error([*at, "num_npus"], accepted=accepted)
    return tensor, instance.pp_size


def _check_alike(first: InstanceSpec, other: InstanceSpec, document: Document) -> None:
    names = ("model", "device", "said_options", "memory_bytes", "role", "tensor_parallel_size")
    for name in (*names, "pipeline_parallel_size", "near_memory", "attention", "offload", "host_link"):
        if getattr(first, name) != getattr(other, name):
            raise document.error([*other.at, "dp_group"], f"has instances that differ in {name}")


def _engine(ranks: list[InstanceSpec], cluster: _Cluster, document: Document) -> InstanceSpec:
    """The instances of one data-parallel group as one engine with as many ranks."""
    first = ranks[0]
    at = list(first.at)
    instance = cluster.nodes[first.nodes[0]].instances[int(first.at[-1])]
    devices = len(ranks) * first.tensor_parallel_size
    experts = instance.ep_size or 1
    whole = experts > 1
    if whole and experts not in (devices, devices * first.pipeline_parallel_size):
        accepted = (
            f"1, or tp_size times the instances of its dp_group: {devices} (vLLM has no other expert parallelism)"
        )
        raise document.error([*at, "ep_size"], accepted=accepted)
    nodes = tuple(rank.nodes[0] for rank in ranks)
    says = instance.ep_size is not None
    return replace(
        first, data_parallel_size=len(ranks), enable_expert_parallel=whole, says_expert_parallel=says, nodes=nodes
    )


def _links(cluster: _Cluster, document: Document) -> tuple[FabricFile | None, InterNodeFile | None]:
    """What ties devices and nodes together: links of one kind, or of one within nodes and another between them."""
    if cluster.link_bw is None or cluster.link_latency is None:
        return None, None
    speeds = cluster.link_bw if isinstance(cluster.link_bw, list) else [cluster.link_bw]
    latencies = cluster.link_latency if isinstance(cluster.link_latency, list) else [cluster.link_latency]
    if len(set(map(len, (speeds, latencies)))) > 1 or len(speeds) > 1 + (len(cluster.nodes) > 1):
        accepted = "one value, or with several nodes one within them and one between; as many as link_latency has"
        raise document.error(["link_bw"], accepted=accepted)
    fabric = FabricFile("full_mesh", speeds[0] * LINK_GB, latencies[0] * NS)
    between = InterNodeFile("full_mesh", speeds[-1] * LINK_GB, latencies[-1] * NS)
    return fabric, between if len(cluster.nodes) > 1 else None


def _refuse_what_is_not_modelled(cluster: _Cluster, document: Document) -> None:
    """Raise InputError at the first field that asks for what is not modelled."""
    for _, at, instance in _instances(cluster):
        if instance.enable_local_offloading:
            raise document.error([*at, "enable_local_offloading"], "asks for what this version does not model")
