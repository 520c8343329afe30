"""A scenario's device memory, line by line: what the engines' KV caches are left with, and what was taken off."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.deploy.deployment import EngineAsked, engine_memory, engines_asked, located
from harness.deploy.near_memory import near_blocks
from harness.deploy.partitioning import check_degrees
from harness.deploy.weight_offload import offload_of
from harness.descriptions.scenario import read_scenario
from profiles.catalog import find_model
from simulator.memory import MemoryAccount
from simulator.steps.partition import Partition


def scenario_memory(path: Path, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The memory of one device of each kind of engine, as facts. Needs no profile. Raises InputError, CapacityError."""
    return [_facts(asked) for asked in engines_asked(read_scenario(path, overrides))]


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
        "notes": list(account.notes()[1:]),
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
