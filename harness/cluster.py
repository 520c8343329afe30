"""What serves a trace: our own cluster description, and LLMServingSim's cluster JSON read as it is.

This version simulates one engine on one device. A file that asks for more is refused by the name of the field that
does; nothing it says is ignored without a note.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from harness.scenario import Scenario
from simulator.options import EngineOptions
from traces.decoding import Document, read_document

GIB = 2**30
Degree = Annotated[int, msgspec.Meta(ge=1)]


class InstanceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Engines of one kind, in our own cluster description.

    Attributes:
        model: its name in the catalogue.
        device: its name in the catalogue.
        tensor_parallel_size: devices that share each layer.
        count: engines of this kind.
        engine: options of these engines, over those of the scenario.
    """

    model: str
    device: str
    tensor_parallel_size: Degree = 1
    count: Degree = 1
    engine: EngineOptions = EngineOptions()


class ClusterFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Our own cluster description."""

    instances: Annotated[tuple[InstanceFile, ...], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """One engine to simulate.

    Attributes:
        model: name of its model.
        device: name of its device.
        said_options: engine options that the cluster description states.
        document: the description itself.
        at: where in it the engine stands.
        keys: how it spells `model` and `device`.
        memory_bytes: device memory that it states; None: the catalogue's.
        notes: what it states that this prediction does not use.
    """

    model: str
    device: str
    said_options: dict[str, Any]
    document: Document
    at: tuple[str | int, ...]
    keys: dict[str, str] = field(default_factory=dict)
    memory_bytes: float | None = None
    notes: tuple[str, ...] = ()

    def place_of(self, name: str | None) -> tuple[Path, int | None]:
        """File and line where its model or device stands; where it begins for anything else."""
        key = self.keys.get(name or "", name)
        return self.document.path, self.document.error([*self.at, *([key] if key else [])]).line


def read_cluster(scenario: Scenario) -> InstanceSpec:
    """The scenario's engine. Raises InputError with file, line and field for what is wrong or not modelled."""
    cluster = scenario.file.cluster
    if isinstance(cluster, dict):
        whole = read_document(scenario.path)
        node = next((v for k, v in getattr(whole.tree, "value", []) if k.value == "cluster"), whole.tree)
        document = Document(scenario.path, cluster, node)
    else:
        document = read_document(scenario.path.parent / cluster)
    if "nodes" in document.value:
        return _from_llmservingsim(document)
    return _from_own(document)


def _from_own(document: Document) -> InstanceSpec:
    cluster = document.convert(ClusterFile)
    if len(cluster.instances) > 1:
        raise document.error(["instances", 1], "more than one engine is not modelled in this version")
    (instance,) = cluster.instances
    if instance.count > 1:
        raise document.error(["instances", 0, "count"], accepted="1: more than one engine is not modelled yet")
    if instance.tensor_parallel_size > 1:
        accepted = "1: collectives between devices are not modelled in this version"
        raise document.error(["instances", 0, "tensor_parallel_size"], accepted=accepted)
    said = document.value["instances"][0].get("engine") or {}
    return InstanceSpec(instance.model, instance.device, dict(said), document, ("instances", 0))


# -- LLMServingSim 2.0 (serving/core/config_builder.py; its documentation reference/cluster-config.md) ---------------

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
    mem_size: Annotated[float, msgspec.Meta(gt=0)]
    mem_bw: float
    mem_latency: float
    mem_util: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9


class _Instance(msgspec.Struct, forbid_unknown_fields=True):
    model_name: str
    hardware: str
    npu_mem: _NpuMem
    num_npus: Degree = 1
    tp_size: Degree = 1
    pp_size: Degree = 1
    ep_size: Degree | None = None
    dp_group: str | int | None = None
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
    power: dict[str, Any] | None = None


class _Cluster(msgspec.Struct, forbid_unknown_fields=True):
    nodes: list[_Node]
    num_nodes: Degree = 1
    link_bw: float | list[float] | None = None
    link_latency: float | list[float] | None = None
    cxl_mem: dict[str, Any] | None = None


def _from_llmservingsim(document: Document) -> InstanceSpec:
    cluster = document.convert(_Cluster)
    _refuse_what_is_not_modelled(cluster, document)
    instance = cluster.nodes[0].instances[0]
    said = {
        ours: value for theirs, ours in _RUNTIME_OPTIONS.items() if (value := getattr(instance, theirs)) is not None
    }
    if said.get("max_num_seqs") == 0:
        raise document.error(
            ["nodes", 0, "instances", 0, "max_num_seqs"], accepted="1 or more; 0 (no limit) is not vLLM's"
        )
    said["gpu_memory_utilization"] = instance.npu_mem.mem_util
    unused = [name for name in ("link_bw", "link_latency") if getattr(cluster, name) is not None]
    unused += ["nodes[0].cpu_mem"] if cluster.nodes[0].cpu_mem is not None else []
    unused += ["npu_mem.mem_bw", "npu_mem.mem_latency"]
    note = f"{document.path.name}: not used by a prediction of one engine on one device: {', '.join(unused)}"
    return InstanceSpec(
        instance.model_name,
        instance.hardware,
        said,
        document,
        ("nodes", 0, "instances", 0),
        {"model": "model_name", "device": "hardware"},
        instance.npu_mem.mem_size * GIB,
        (note,),
    )


def _refuse_what_is_not_modelled(cluster: _Cluster, document: Document) -> None:
    """Raise InputError at the first field that asks for more than one engine on one device."""
    if not cluster.nodes or not cluster.nodes[0].instances:
        raise document.error(["nodes"], accepted="a node with an instance")
    node = cluster.nodes[0]
    instance = node.instances[0]
    at: list[str | int] = ["nodes", 0, "instances", 0]
    refused: list[tuple[bool, list[str | int]]] = [
        (len(cluster.nodes) > 1 or cluster.num_nodes > 1, ["num_nodes"]),
        (cluster.cxl_mem is not None, ["cxl_mem"]),
        (len(node.instances) > 1 or node.num_instances > 1, ["nodes", 0, "num_instances"]),
        (node.power is not None, ["nodes", 0, "power"]),
        (bool(node.cpu_mem) and "pim_config" in (node.cpu_mem or {}), ["nodes", 0, "cpu_mem", "pim_config"]),
        (instance.tp_size > 1, [*at, "tp_size"]),
        (instance.pp_size > 1, [*at, "pp_size"]),
        (instance.num_npus > 1, [*at, "num_npus"]),
        ((instance.ep_size or 1) > 1, [*at, "ep_size"]),
        (instance.dp_group is not None, [*at, "dp_group"]),
        (instance.pd_type is not None, [*at, "pd_type"]),
        (instance.placement is not None, [*at, "placement"]),
        (instance.enable_local_offloading, [*at, "enable_local_offloading"]),
        (instance.enable_attn_offloading, [*at, "enable_attn_offloading"]),
        (instance.enable_sub_batch_interleaving, [*at, "enable_sub_batch_interleaving"]),
    ]
    for asked, keys in refused:
        if asked:
            raise document.error(keys, "asks for what this version does not model")
