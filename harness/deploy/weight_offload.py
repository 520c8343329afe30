"""Weights in the host's memory: what a description or vLLM's own options say of them, and what a device then holds."""

from __future__ import annotations

import re

from harness.descriptions.cluster import InstanceSpec
from profiles.model import ModelSpec, part_bytes
from simulator.kv.host_link import HostLink
from simulator.memory import weights_by_part
from simulator.scheduling.options import EngineOptions
from simulator.steps.gates import new_gate
from simulator.steps.near_memory import NearMemory
from simulator.steps.partition import Partition
from simulator.steps.weight_offload import (
    OffloadedExperts,
    Way,
    WeightOffload,
    first_layers,
    last_of_groups,
    whole_layers,
)
from traces.errors import InputError

GIB = 2**30
_RANGE = re.compile(r"(\d+)(-(\d*))?")


def offload_of(
    spec: InstanceSpec, model: ModelSpec, options: EngineOptions, partition: Partition
) -> WeightOffload | None:
    """What the devices of an engine leave to their hosts; None: nothing. Raises InputError for what is not modelled."""
    asked = _asked(spec, model, options, _layer_bytes(model, options, partition))
    if asked is None:
        if spec.host_link is not None and not spec.tiers_cross_host_link:
            message = "has no effect where no weights are in the host's memory, and no tier of link host is behind it"
            raise InputError(message, field="host_link")
        return None
    layer_bytes, way, buffers = asked
    if spec.host_link is None:
        accepted = "bandwidth_bytes_per_s and latency_s of each device's way to its host"
        raise InputError("is missing", field="host_link", accepted=accepted)
    if partition.pipeline_parallel_size > 1:
        raise InputError("is not modelled with pipeline stages", field="offload")
    held = sum(1 for n_bytes in layer_bytes if n_bytes)
    ends = () if spec.offload is None else spec.offload.ends
    if way == "prefetch" and buffers > max(held, 1):
        raise InputError(field="offload.buffers", found=buffers, accepted=f"at most the {held} layers to be fetched")
    experts = _experts(spec, model, options, partition, way)
    if experts is None and not held and not ends:
        raise InputError("moves nothing", field="offload", accepted="layers, experts or ends")
    parts = weights_by_part(model, options.dtype, partition)
    if ends and model.tie_word_embeddings:
        raise InputError("shares its weights with the other end", field="offload.ends", accepted="layers or experts")
    in_host = {name: parts[name] if name in ends else 0.0 for name in ("embedding", "lm_head")}
    row_bytes = model.hidden_size * part_bytes("embedding", options.dtype) if "embedding" in ends else 0.0
    link = spec.host_link
    return WeightOffload(
        layer_bytes,
        way,
        link.bandwidth_bytes_per_s,
        link.latency_s,
        buffers,
        experts,
        in_host["lm_head"],
        in_host["embedding"],
        row_bytes,
    )


def host_link_of(
    spec: InstanceSpec, near: NearMemory | None, offload: WeightOffload | None, devices: int
) -> HostLink | None:
    """The links of a rank's devices to their host; None: not said. Raises InputError for what is not modelled.

    Args:
        spec: what is said of them.
        near: memory that attends for decodes; None: none does.
        offload: weights that come over them; None: none do.
        devices: of the rank.
    """
    if spec.host_link is None:
        return None
    if spec.tiers_cross_host_link and near is not None and offload is not None:
        message = "is not modelled beside near memory and weights of the host's memory"
        raise InputError(message, field="kv_tiers.link", found="host", accepted="own")
    return HostLink(spec.host_link.bandwidth_bytes_per_s, max(devices, 1))


def _asked(
    spec: InstanceSpec, model: ModelSpec, options: EngineOptions, layer_bytes: float
) -> tuple[tuple[float, ...], Way, int] | None:
    """Bytes of each layer, the way, and buffers, from the one of three places that says it; None: none does."""
    by_group = options.offload_group_size > 0
    said = [spec.offload is not None, options.cpu_offload_gb > 0, by_group]
    if sum(said) > 1:
        accepted = "one of offload, cpu_offload_gb and offload_group_size"
        raise InputError("is said twice", field="offload", accepted=accepted)
    _check_group(options, by_group=by_group)
    layers = model.num_layers
    if spec.offload is not None:
        file = spec.offload
        if file.way != "prefetch" and file.buffers != 1:
            raise InputError(field="offload.buffers", found=file.buffers, accepted="1 without prefetch")
        chosen = _numbers(file.layers, layers, "layers") if file.layers else ()
        return whole_layers(layer_bytes, layers, chosen), file.way, file.buffers
    if options.cpu_offload_gb > 0:
        return first_layers(layer_bytes, layers, options.cpu_offload_gb * GIB), "in_place", 1
    if by_group:
        moved = last_of_groups(layers, options.offload_group_size, options.offload_num_in_group)
        return whole_layers(layer_bytes, layers, moved), "prefetch", options.offload_prefetch_step
    return None


def _check_group(options: EngineOptions, *, by_group: bool) -> None:
    """As vLLM 0.32 `config/offload.py` does; and an option that would have no effect is an error here."""
    for name in ("offload_num_in_group", "offload_prefetch_step"):
        if not by_group and getattr(options, name) != 1:
            accepted = "1 without offload_group_size"
            raise InputError(field=f"engine.{name}", found=getattr(options, name), accepted=accepted)
    if by_group and options.offload_num_in_group > options.offload_group_size:
        accepted = f"at most offload_group_size {options.offload_group_size}"
        raise InputError(field="engine.offload_num_in_group", found=options.offload_num_in_group, accepted=accepted)


def _layer_bytes(model: ModelSpec, options: EngineOptions, partition: Partition) -> float:
    """Weights of one layer on one device; experts included, norms too."""
    parts = weights_by_part(model, options.dtype, partition)
    final_norm = model.hidden_size * (2 if model.norm_bias else 1) * part_bytes("norms", options.dtype)
    in_layers = sum(parts.get(name, 0.0) for name in ("attention", "mlp", "experts", "norms"))
    return (in_layers - final_norm) / model.num_layers


def _experts(
    spec: InstanceSpec, model: ModelSpec, options: EngineOptions, partition: Partition, way: Way
) -> OffloadedExperts | None:
    file = spec.offload
    if file is None or file.experts is None:
        return None
    if not model.num_experts:
        raise InputError(f"{model.name} has no experts", field="offload.experts", accepted="layers alone")
    if file.layers is not None:
        raise InputError("is said beside offload.experts", field="offload.layers", accepted="one of the two")
    if way == "prefetch":
        accepted = "copy or in_place: which experts a step needs is not known beforehand"
        raise InputError(field="offload.way", found=way, accepted=accepted)
    if partition.enable_expert_parallel or partition.data_parallel_size > 1:
        raise InputError("is not modelled where ranks hold different experts", field="offload.experts")
    router = model.num_layers * model.num_experts * model.hidden_size * part_bytes("experts", options.dtype)
    all_bytes = weights_by_part(model, options.dtype, partition)["experts"] - router
    chosen = _numbers(file.experts, model.num_experts, "experts")
    gate = new_gate(spec.experts.gate, model.num_experts, model.num_experts_per_tok)
    return OffloadedExperts(gate, chosen, all_bytes / model.num_layers / model.num_experts)


def _numbers(text: str, count: int, what: str) -> tuple[int, ...]:
    """Numbers of `0-3,7,12-`, ascending. Raises InputError for what is no such list, or not below `count`."""
    chosen: set[int] = set()
    accepted = f"numbers and ranges of 0 to {count - 1}, such as 0-3,7"
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise InputError(field=f"offload.{what}", found=text, accepted=accepted)
        first = int(match[1])
        last = int(match[3] or count - 1) if match[2] else first
        goes_on = match[2] == "-" and first == count  # all from the last on: none
        if not goes_on and not first <= last < count:
            raise InputError(field=f"offload.{what}", found=text, accepted=accepted)
        chosen |= set(range(first, last + 1))
    return tuple(sorted(chosen))
