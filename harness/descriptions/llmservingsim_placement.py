"""`placement` and `cxl_mem` of LLMServingSim's cluster JSON: weights that are not on the device, read as they are.

Facts from its `serving/core/config_builder.py` (`get_device`) and its documentation of placement. A location is `npu`,
`cpu` (the node's `cpu_mem`) or `cxl:i` (device i of `cxl_mem`). Its loads of a step depend on nothing but the memory
that they come from; here a layer's weights are fetched while the one before it computes, into one of two buffers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from harness.descriptions.memories import End, OffloadFile
from simulator.network.topology import PortFile, llmservingsim_memory
from traces.decoding import Document

Keys = list[str | int]
ENDS: tuple[End, ...] = ("embedding", "lm_head")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


class CxlMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Memories that all nodes reach: GB, GB/s and ns of each."""

    mem_size: Annotated[float, msgspec.Meta(gt=0)]
    mem_bw: Annotated[float, msgspec.Meta(gt=0)]
    mem_latency: Annotated[float, msgspec.Meta(ge=0)]
    num_devices: Annotated[int, msgspec.Meta(ge=1)] = 1


def offloaded(
    placement: dict[str, Any] | None,
    cpu_mem: dict[str, Any] | None,
    cxl: CxlMemory | None,
    at: Keys,
    document: Document,
) -> tuple[OffloadFile, PortFile] | None:
    """The weights that a placement leaves to other memories, and the way to them; None: all are on the device.

    Args:
        placement: of an instance.
        cpu_mem: of its node.
        cxl: of the cluster.
        at: where the placement stands in the file.
        document: the file.

    Raises:
        InputError: KV elsewhere, parts of layers, memories of different speeds, or a location that nothing describes.
    """
    said = placement or {}
    for keys, place in _places(said):
        if place.get("kv_loc", "npu") != "npu":
            accepted = "npu: KV in use is on the device; LLMServingSim reads this and uses it for nothing"
            raise document.error([*at, *keys, "kv_loc"], accepted=accepted)
    default = _weights(said.get("default"))
    layers = {i: _weights(block, default) for block, own in _blocks(said, at, document) for i in own}
    apart = said.get("layers") or {}
    for name in apart:
        if name not in (*ENDS, "final_layernorm"):
            accepted = f"{', '.join(ENDS)} or final_layernorm: layers are moved as a whole"
            raise document.error([*at, "layers", name], "is a part of a layer", accepted=accepted)
    ends = {name: _weights(apart.get(name), default) for name in ENDS}
    used = {place for place in (default, *layers.values(), *ends.values()) if place != "npu"}
    if not used:
        return None
    ways = {_way(place, cpu_mem, cxl, at, document) for place in sorted(used)}
    if len(ways) > 1:
        raise document.error(at, "has weights in memories of different speeds", accepted="memories of one speed")
    chosen = _layers(layers, elsewhere=default != "npu")
    off_device = tuple(name for name in ENDS if ends[name] != "npu")
    if chosen is None:
        return OffloadFile(ends=off_device), ways.pop()
    buffers = 1 if chosen.isdecimal() else 2
    return OffloadFile(layers=chosen, ends=off_device, way="prefetch", buffers=buffers), ways.pop()


def reads_cpu(placement: dict[str, Any] | None) -> bool:
    """Whether any weights are in the node's memory."""
    return any(_weights(place) == "cpu" for _, place in _places(placement or {}))


def _places(placement: dict[str, Any]) -> Iterator[tuple[Keys, dict[str, Any]]]:
    """Every place of a placement, and where in it it stands."""
    yield ["default"], placement.get("default") or {}
    for number, block in enumerate(placement.get("blocks") or []):
        yield ["blocks", number], block
    for name, layer in (placement.get("layers") or {}).items():
        yield ["layers", name], layer


def _weights(place: dict[str, Any] | None, default: str = "npu") -> str:
    return str((place or {}).get("weights", default))


def _blocks(placement: dict[str, Any], at: Keys, document: Document) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Each entry of `blocks`, and the layers it is about."""
    for number, block in enumerate(placement.get("blocks") or []):
        own: list[int] = []
        for part in str(block.get("blocks", "")).split(","):
            match = _RANGE.fullmatch(part.strip())
            if match is None or int(match[2] or match[1]) < int(match[1]):
                raise document.error([*at, "blocks", number, "blocks"], accepted="numbers and ranges, such as 0-3,7")
            own += range(int(match[1]), int(match[2] or match[1]) + 1)
        yield block, own


def _layers(layers: dict[int, str], *, elsewhere: bool) -> str | None:
    """The layers off the device as a list of ranges; those that are not named too where they are `elsewhere`."""
    last = max(layers, default=-1)
    ranges = [str(i) for i in sorted(layers) if layers[i] != "npu"]
    if elsewhere:
        ranges = [str(i) for i in range(last + 1) if layers.get(i, "elsewhere") != "npu"] + [f"{last + 1}-"]
    return ",".join(ranges) or None


def _way(place: str, cpu_mem: dict[str, Any] | None, cxl: CxlMemory | None, at: Keys, document: Document) -> PortFile:
    """The way to a memory: as fast as it is itself, as there."""
    if place == "cpu":
        speed, latency = (cpu_mem or {}).get("mem_bw"), (cpu_mem or {}).get("mem_latency")
        if not isinstance(speed, int | float) or not isinstance(latency, int | float) or speed <= 0 or latency < 0:
            raise document.error(at, "has weights at cpu", accepted="mem_bw and mem_latency of cpu_mem")
    elif cxl is not None and place in [f"cxl:{i}" for i in range(cxl.num_devices)]:
        speed, latency = cxl.mem_bw, cxl.mem_latency
    else:
        there = "" if cxl is None else f", or cxl:0 to cxl:{cxl.num_devices - 1}"
        raise document.error(at, f"has weights at '{place}'", accepted=f"npu, cpu{there}")
    memory = llmservingsim_memory(speed, latency)
    return PortFile(memory.bandwidth_bytes_per_s, memory.latency_s)
