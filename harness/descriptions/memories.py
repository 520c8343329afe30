"""What descriptions say of memories beside the devices' own: some compute, some hold weights, some keep prefixes."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from profiles.near_memory import AttentionRate
from simulator.network.topology import PortFile
from simulator.steps.near_memory import Placing
from simulator.steps.weight_offload import Way

Attention = Literal["device", "near_memory", "interleaved"]
"""Where decodes attend: on the device, near memory, or near memory with two halves of a batch in turn."""


class NearMemoryFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A memory that computes, of each rank of an engine.

    Attributes:
        timing: a DRAM timing file (`profiles.dram`): its path, or its name without `.ini` in a folder of profiles.
        capacity_bytes: of the memory, 16 TiB at most, in channels as the timing file describes one.
        attention: how long a channel attends; None: what is known of the timing file's name.
        link: the device's way to it; None: the channels' own buses.
        placing: how requests come to channels (`simulator.steps.near_memory.NearMemory.groups_of`).
        min_prompt_tokens: requests with a shorter prompt attend on the device.
        kv_on_device: the device keeps all KV too, as LLMServingSim counts it; else KV is near memory only, the memory's
            capacity says how many blocks there are, and chunks of prompts read their history from there.
    """

    timing: Annotated[str, msgspec.Meta(min_length=1)]
    capacity_bytes: Annotated[float, msgspec.Meta(gt=0, le=2**44)]
    attention: AttentionRate | None = None
    link: PortFile | None = None
    placing: Placing = "balanced"
    min_prompt_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    kv_on_device: bool = True


End = Literal["embedding", "lm_head"]
"""What stands before and behind the layers."""


class OffloadFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights of an engine that live in its hosts' memory.

    Attributes:
        layers: whole layers, as `0-3,7,12-`, the last of which has no end; None: none.
        experts: these experts of every layer, likewise; None: none.
        ends: what stands before and behind the layers: `embedding`, `lm_head`, or both.
        way: what overlaps with what (`simulator.steps.weight_offload`).
        buffers: layers that are fetched ahead with `prefetch`, as vLLM's `offload_prefetch_step`.
    """

    layers: str | None = None
    experts: str | None = None
    ends: tuple[End, ...] = ()
    way: Way = "copy"
    buffers: Annotated[int, msgspec.Meta(ge=1)] = 1


PrefixStorage = Literal["cpu", "cxl"]


class PrefixFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A scenario's way to say what LLMServingSim's command line does.

    Attributes:
        storage: the memory that prefixes are kept in.
        sharing: one for all instances, and not one each.
    """

    storage: PrefixStorage
    sharing: bool = False
