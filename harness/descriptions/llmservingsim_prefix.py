"""LLMServingSim's second tier of the prefix cache: its command line says which, its cluster file how large and fast.

Facts from its `serving/__main__.py` (`--prefix-storage`, `--enable-prefix-sharing`) and `core/memory_model.py`: chunks
of 256 tokens, written through, in a node's `cpu_mem` or in `cxl_mem`; each instance has its own, or all of a node (CPU)
or of the cluster (CXL) share one. It gives every instance all of the memory; here instances have as much each.
"""

from __future__ import annotations

from typing import Any

import msgspec

from harness.descriptions.llmservingsim_placement import CxlMemory
from harness.descriptions.memories import PrefixFile
from simulator.kv.tiers import LIKE, KVTierFile
from simulator.network.topology import llmservingsim_memory
from traces.decoding import Document

GIB = 2**30


def prefix_tiers(asked: PrefixFile, document: Document) -> tuple[KVTierFile, ...]:
    """The tier behind every instance of a LLMServingSim cluster. Raises InputError where no memory is described."""
    nodes = document.value["nodes"]
    counts = {len(node["instances"]) for node in nodes}
    if asked.storage == "cxl":
        if "cxl_mem" not in document.value:
            raise document.error(["cxl_mem"], "is missing", accepted="the memory that prefixes are to be kept in")
        cxl = msgspec.convert(document.value["cxl_mem"], CxlMemory)
        size_gb, speed, latency = cxl.mem_size * cxl.num_devices, cxl.mem_bw, cxl.mem_latency
        sharers = sum(len(node["instances"]) for node in nodes)
    else:
        memories = {_memory(node, i, document) for i, node in enumerate(nodes)}
        if len(memories) > 1 or len(counts) > 1:
            raise document.error(["nodes"], "differ in cpu_mem or in instances", accepted="nodes that are alike")
        ((size_gb, speed, latency),) = memories
        sharers = counts.pop()
    memory = llmservingsim_memory(speed, latency)
    tier = KVTierFile(
        name=asked.storage,
        capacity_bytes=size_gb * GIB / (1 if asked.sharing else sharers),
        bandwidth_bytes_per_s=memory.bandwidth_bytes_per_s,
        latency_s=memory.latency_s,
        memory="host" if asked.storage == "cpu" else "cxl",
        like="LLMServingSim",
    )
    shared = "node" if asked.sharing and asked.storage == "cpu" else asked.sharing
    return (msgspec.structs.replace(tier, **{**LIKE["LLMServingSim"], "shared": shared}),)


def _memory(node: dict[str, Any], number: int, document: Document) -> tuple[float, float, float]:
    """GB, GB/s and ns of a node's memory."""
    memory = node.get("cpu_mem") or {}
    size, speed, latency = (memory.get(name) for name in ("mem_size", "mem_bw", "mem_latency"))
    numbers = [value for value in (size, speed, latency) if isinstance(value, int | float)]
    if len(numbers) < 3 or min(numbers[:2]) <= 0 or numbers[2] < 0:
        accepted = "mem_size, mem_bw and mem_latency of the memory that prefixes are to be kept in"
        raise document.error(["nodes", number, "cpu_mem"], accepted=accepted)
    return numbers[0], numbers[1], numbers[2]
