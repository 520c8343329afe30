"""Memory of an engine's devices: how many KV blocks there are, and line by line where all else goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.deploy.asked import EngineAsked, engines_asked, located, read_cluster
from harness.deploy.near_memory import check_room, near_blocks, near_memory_notes
from harness.deploy.partitioning import check_degrees
from harness.deploy.speculation import refuse_unknown_memory
from harness.deploy.weight_offload import offload_of
from harness.descriptions.scenario import read_scenario
from profiles.catalog import find_device, find_model, known_device
from profiles.device import DeviceSpec
from profiles.model import ModelSpec
from simulator.memory import MemoryAccount, memory_account
from simulator.scheduling.options import EngineOptions
from simulator.steps.near_memory import NearMemory
from simulator.steps.partition import Partition
from simulator.steps.weight_offload import WeightOffload
from traces.errors import InputError


def engine_memory(
    asked: EngineAsked, model: ModelSpec, partition: Partition, offload: WeightOffload | None = None
) -> MemoryAccount:
    """Where the memory of one device goes. Raises InputError for a device that nobody describes, or CapacityError."""
    refuse_unknown_memory(asked.options)
    spec, memory_bytes, multiprocessors = asked.spec, asked.spec.memory_bytes, None
    if memory_bytes is None and asked.options.kv_cache_memory_bytes is None:
        device = _described(spec.device, asked.folders)
        memory_bytes, multiprocessors = device.memory_bytes, device.multiprocessors
    if (reported := _less_memory(asked)) is not None:
        memory_bytes = reported

    def account(options: EngineOptions) -> MemoryAccount:
        return memory_account(
            model,
            spec.device,
            memory_bytes,
            options,
            partition,
            version=asked.version,
            multiprocessors=multiprocessors,
            offload=offload,
        )

    options = asked.options
    if spec.for_weights_and_kv and memory_bytes is not None and options.kv_cache_memory_bytes is None:
        share = int(options.gpu_memory_utilization * memory_bytes)
        weights = account(msgspec.structs.replace(options, kv_cache_memory_bytes=share)).weight_bytes
        if (left := int(share - weights)) > 0:
            return account(msgspec.structs.replace(options, kv_cache_memory_bytes=left))
    return account(options)


def _memory_notes(asked: EngineAsked) -> list[str]:
    """What was made of the memory that a cluster description states."""
    spec, utilization = asked.spec, asked.options.gpu_memory_utilization
    gib = (spec.memory_bytes or 0.0) / 2**30
    if spec.for_weights_and_kv:
        of = f"{utilization:g} of {gib:g} GiB"
        return [f"{of} is for weights and KV, as LLMServingSim reads it: nothing else is taken off"]
    if (reported := _less_memory(asked)) is not None:
        return [f"{gib:g} GiB of memory are stated, and {spec.device} reports {reported / 2**30:.2f}, which is taken"]
    return []


def _less_memory(asked: EngineAsked) -> float | None:
    """What a described device's runtime reports, where its box, and so a description of a cluster, says more."""
    spec = asked.spec
    if spec.memory_bytes is None or spec.for_weights_and_kv:
        return None
    device = known_device(spec.device, asked.folders)
    return None if device is None or device.memory_bytes >= spec.memory_bytes else device.memory_bytes


def num_gpu_blocks(
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
    if asked.options.kv_cache_memory_bytes is None:
        notes += _memory_notes(asked)
    return account.num_gpu_blocks


def _described(name: str, folders: Sequence[Path]) -> DeviceSpec:
    """The device whose memory holds the KV blocks. Raises InputError, which says that stated blocks would do."""
    try:
        return find_device(name, folders)
    except InputError as error:
        message = "its memory is not described, so that KV blocks cannot be predicted"
        accepted = f"engine.num_gpu_blocks, or a device that is: {error.accepted}"
        raise InputError(message, field="device", found=name, accepted=accepted) from None


def scenario_memory(path: Path, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The memory of one device of each kind of engine, as facts. Needs no profile. Raises InputError, CapacityError."""
    scenario = read_scenario(path, overrides)
    return [_facts(asked) for asked in engines_asked(scenario, read_cluster(scenario))]


def _facts(asked: EngineAsked) -> dict[str, Any]:
    spec = asked.spec
    with located(spec):
        model = find_model(spec.model, asked.folders)
        check_degrees(spec, model)
        partition = Partition(
            spec.tensor_parallel_size,
            spec.pipeline_parallel_size,
            spec.data_parallel_size if model.num_experts else 1,
            spec.enable_expert_parallel,
        )
        offload = offload_of(spec, model, asked.options, partition)
        facts = memory_facts(asked, engine_memory(asked, model, partition, offload))
        near = spec.near_memory
        if near is not None and not near.kv_on_device and spec.attention != "device":
            room = near_blocks(near, model, asked.options)
            facts["notes"].append(f"KV is near memory, which has room for {room} blocks")
        return facts


def memory_facts(asked: EngineAsked, account: MemoryAccount) -> dict[str, Any]:
    """A memory account as named numbers, bytes as they are; None where a number is unknown."""
    spec, options = asked.spec, asked.options
    return {
        "model": spec.model,
        "device": spec.device,
        "vllm": f"{asked.version[0]}.{asked.version[1]}",
        "memory_bytes": account.memory_bytes,
        "gpu_memory_utilization": None if account.memory_bytes is None else options.gpu_memory_utilization,
        "requested_bytes": account.requested_bytes,
        "weight_bytes": {name: int(n_bytes) for name, n_bytes in account.weights.items()},
        "activation_bytes": account.peak.total_bytes,
        "activation_peak": account.peak.of,
        "peaks": dataclasses.asdict(account.peak),
        "graph_bytes": account.graph_bytes,
        "context_bytes": None,
        "kv_bytes": int(account.kv_bytes),
        "block_bytes": account.block_bytes,
        "num_gpu_blocks": account.num_gpu_blocks,
        "num_gpu_blocks_stated": options.num_gpu_blocks,
        "kv_tokens": account.kv_tokens,
        "max_model_len": account.max_model_len,
        "requests_of_max_model_len": account.longest_requests,
        "notes": [*asked.notes, *account.notes()[1:]],
    }


def memory_lines(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts for the terminal: GiB with their sign in the sum that ends at the KV cache."""

    def gib(name: str, sign: str = "") -> str:
        value = facts[name]
        return "unknown" if value is None else f"{sign}{value / 2**30:.4f} GiB"

    weights = facts["weight_bytes"]
    lines: dict[str, Any] = {"model": facts["model"], "device": facts["device"], "vLLM": facts["vllm"]}
    if facts["memory_bytes"] is None:
        lines["KV cache, as stated"] = gib("kv_bytes")
    else:
        lines["memory"] = gib("memory_bytes")
        lines[f"x utilization {facts['gpu_memory_utilization']:g}"] = gib("requested_bytes")
        lines["weights"] = f"-{sum(weights.values()) / 2**30:.4f} GiB"
        lines.update({f"  {name}": f"{n_bytes / 2**30:.4f} GiB" for name, n_bytes in weights.items()})
        lines["activations"] = f"{gib('activation_bytes', '-')} ({facts['activation_peak']})"
        lines["CUDA graphs"] = gib("graph_bytes", "-")
        lines["context, libraries"] = gib("context_bytes")
        lines["KV cache"] = gib("kv_bytes")
    stated = facts["num_gpu_blocks_stated"]
    lines["KV blocks"] = f"{facts['num_gpu_blocks']} of {facts['block_bytes']} bytes"
    lines["KV blocks, as stated"] = "not stated" if stated is None else stated
    lines["KV tokens"] = facts["kv_tokens"]
    longest = facts["requests_of_max_model_len"]
    if longest is not None:
        lines[f"requests of {facts['max_model_len']} tokens"] = f"{longest:.2f}"
    lines["notes"] = facts["notes"]
    return lines
