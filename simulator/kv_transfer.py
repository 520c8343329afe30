"""How KV goes from prefill to decode engines: what is said of it, which blocks are sent, and over which links.

Whole blocks are sent, the prompt's last one too, however few of its slots are filled.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from simulator.network.links import Path
from simulator.network.topology import Place, Topology
from traces.errors import InputError


class KVTransfer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How KV goes from prefill to decode engines.

    Attributes:
        when: all of it when the decode engine asks for it, or each layer's as it is computed in the step that ends the
            prompt.
        failure_probability: that the KV of a prompt is lost on the way.
        kv_load_failure_policy: what becomes of a request whose KV cannot be had: its decode engine computes the prompt,
            or it is sent again through a prefill engine. vLLM's default was `recompute` and is `fail` in 0.32
            (`config/kv_transfer.py`), which ends the request with an error; sending it again is the router's.
    """

    when: Literal["at_end", "layer_by_layer"] = "at_end"
    failure_probability: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    kv_load_failure_policy: Literal["recompute", "fail"] = "recompute"


@dataclass(frozen=True, slots=True)
class KVResidual:
    """What a calibration found between the links' figures and how long engines take to send KV over them.

    Attributes:
        kv_transfer_s: seconds of each transfer beside its links' latency: the two engines agree on it, post it, see it.
        kv_transfer: how many times as long as the links' bandwidth says its bytes take; 1 corrects nothing.
        handover_s: a request's way from its prefill to its decode engine, before any KV is asked for: the answer to the
            proxy, and its question to the next server.
    """

    kv_transfer_s: float = 0.0
    kv_transfer: float = 1.0
    handover_s: float = 0.0


NO_RESIDUAL = KVResidual()


def blocks_of(n_tokens: int, block_size: int) -> int:
    """Blocks that so many tokens take."""
    return -(-n_tokens // block_size)


def sent_blocks(prompt_tokens: int, cached_tokens: int, source_size: int, target_size: int) -> int:
    """Blocks of the source that the target reads of a prompt, of which `cached_tokens` are in its prefix cache.

    vLLM 0.32 `nixl/pull_scheduler.py::update_state_after_alloc`, as many as the target's blocks that have no hash yet
    (`get_unhashed_block_ids_all_groups`); `nixl/base_worker.py::_map_block_ids_for_block_size_ratio` and
    `_apply_prefix_caching`: where the source's blocks are smaller, so many of them as fill the target's, and no more
    than the prompt has. Its NixlPushConnector and its MooncakeConnector cut them alike.

    Args:
        prompt_tokens: of the prompt.
        cached_tokens: whole blocks of the target.
        source_size: tokens of a block of the source.
        target_size: likewise of the target, a multiple (`check_block_sizes`).
    """
    missing = blocks_of(prompt_tokens, target_size) - cached_tokens // target_size
    return min(missing * (target_size // source_size), blocks_of(prompt_tokens, source_size))


def check_block_sizes(sources: Collection[int], targets: Collection[int], *, is_layer_by_layer: bool) -> None:
    """Raise InputError for blocks that vLLM cannot send: its NixlConnector maps one onto several of the source's.

    vLLM 0.32 `kv_transfer/kv_connector/utils.py::TransferTopology.block_size_ratio`; its P2pNcclConnector copies block
    by block.

    Args:
        sources: tokens of a block, of all prefill engines.
        targets: likewise of all decode engines.
        is_layer_by_layer: whether they are pushed as they are computed.
    """
    for source in sorted(set(sources)):
        for target in sorted(set(targets)):
            if target % source or (is_layer_by_layer and target != source):
                accepted = f"{source}, as the prefill engines have"
                if not is_layer_by_layer:
                    accepted = f"a multiple of {source}, which the prefill engines have"
                message = "vLLM cannot send KV from prefill to decode engines of these block sizes"
                raise InputError(message, field="block_size", found=target, accepted=accepted)


def paths_between(topology: Topology, senders: Sequence[Place], receivers: Sequence[Place]) -> list[Path]:
    """From each device of one rank to the one of another that needs its part.

    The side with more devices has the smaller parts.
    """
    parts = max(len(senders), len(receivers))
    return [
        topology.path(senders[i * len(senders) // parts], receivers[i * len(receivers) // parts]) for i in range(parts)
    ]
