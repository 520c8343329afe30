"""KV tiers behind the GPU's prefix cache: host memory, or a store that engines share.

Blocks whose hash is known are written through: when a block becomes findable on the GPU, each tier takes a copy, chunk
by chunk, and evicts another. A tier may instead be written back: it takes what the tier before it evicts. A request
that finds more of its prompt there than on the GPU gets blocks for its whole prompt, and its KV is loaded meanwhile
(vLLM: `WAITING_FOR_REMOTE_KVS`). Loads of a tier follow each other on its link, and so do writes, on the way back or on
the same; a chunk can be loaded when it has been written.

Not modelled: copies of answers' blocks, whose hashes a trace does not know.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from profiles.device import Above0, Bandwidth, Latency
from simulator.kv.host_link import HostWay
from simulator.kv.kv_cache import BlockHash
from simulator.kv.tier_links import NicWay, Way
from traces.capture import Series
from traces.errors import InputError
from traces.steps import Floats

Memory = Literal["host", "cxl", "remote", "storage"]
"""Where a tier's content is."""

CROSSES: dict[Memory, tuple[str, str]] = {
    "host": ("links", "dram"),
    "cxl": ("links", "cxl"),
    "remote": ("nic", "remote"),
    "storage": ("links", "storage"),
}
"""What each byte between a device and a tier crosses, the way and the memory, as `simulator.power` calls components.

What no description of power knows is `cxl`, the memory behind the link, and `remote`, the store beyond the NIC.
"""

LIKE: dict[str, dict[str, Any]] = {
    "OffloadingConnector": {"chunk_tokens": None, "shared": False, "eviction": "lru", "memory": "host"},
    "LMCache host": {"chunk_tokens": 256, "shared": False, "eviction": "lru", "memory": "host"},
    "LMCache store": {"chunk_tokens": 256, "shared": True, "eviction": "lru", "memory": "remote"},
    "LLMServingSim": {"chunk_tokens": 256, "shared": False, "eviction": "lru"},
}
"""What a tier has that is like one of these, where its description does not say otherwise; all write through.

vLLM 0.32's `OffloadingConnector` (v1/kv_offload/cpu/spec.py): chunks of a block unless `block_size` is said, LRU,
prompts alone (`offload_prompt_only`). LMCache's defaults: chunks of 256 tokens, in host memory and in a remote store
behind it. LLMServingSim: `LOWER_TIER_CHUNK_TOKENS` of 256 (`core/memory_model.py`); writing takes no time there.
"""


class KVTierFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tier of a cluster description.

    Attributes:
        name: for the record.
        capacity_bytes: of KV that it holds.
        bandwidth_bytes_per_s: from it to the engine, or to all engines together when it is shared.
        latency_s: from the start of a load until its first byte.
        chunk_tokens: tokens that are stored and evicted together; None: the engine's block.
        shared: one store for all engines, and one link; or `node`: one for all of a node; else each rank has its own.
        write: `through`: everything, at once; `back`: what the tier before it evicts.
        eviction: `lru`: what was used least recently; `fifo`: what was written first.
        duplex: `full`: writes have a way of their own, as fast; `half`: they share one with loads.
        link: `own`: nothing else is on its way; `host`: it crosses the host_link of each device, as weights of the
            host's memory do, and the bandwidth here is of what is behind that.
        memory: what it is in, for the energy of what moves (`CROSSES`); None: not said, and the energy is not known.
        like: one of `LIKE`, for what is not said; None: the defaults here.
    """

    name: Annotated[str, msgspec.Meta(min_length=1)]
    capacity_bytes: Above0
    bandwidth_bytes_per_s: Bandwidth
    latency_s: Latency = 0.0
    chunk_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    shared: bool | Literal["node"] = False
    write: Literal["through", "back"] = "through"
    eviction: Literal["lru", "fifo"] = "lru"
    duplex: Literal["full", "half"] = "full"
    link: Literal["own", "host"] = "own"
    memory: Memory | None = None
    like: Literal["OffloadingConnector", "LMCache host", "LMCache store", "LLMServingSim"] | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Bytes that moved to or from a tier, at an even rate.

    Attributes:
        tier: its name.
        node: of the rank that they moved from or to.
        begin_s, end_s: when, its latency apart.
        n_bytes: how many.
        crosses: the components that carry them (`CROSSES`); None: not said.
    """

    tier: str
    node: int
    begin_s: float
    end_s: float
    n_bytes: float
    crosses: tuple[str, ...] | None


@dataclass(slots=True)
class Tier:
    """One store of chunks, and the link that loads come over.

    Attributes:
        file: what it is.
        chunk_blocks: blocks of a chunk.
        chunk_bytes: bytes of one.
        capacity_chunks: how many fit.
        node: that the rank stands on for which it was made.
        chunks: those it holds, the next to be evicted first, by the hash of their last block, which says all before;
            and when each can be loaded.
        hit_tokens: tokens loaded from it.
        loaded_bytes: over its link.
        stored_bytes: written to it.
        num_evicted: chunks.
        times_s, held_bytes, hits: the record: at which time, bytes held and tokens loaded so far.
        moves: the record of what moved to and from it.
    """

    file: KVTierFile
    chunk_blocks: int
    chunk_bytes: float
    capacity_chunks: int
    node: int = 0
    chunks: OrderedDict[BlockHash, float] = field(default_factory=OrderedDict)
    hit_tokens: int = 0
    loaded_bytes: float = 0.0
    stored_bytes: float = 0.0
    num_evicted: int = 0
    times_s: list[float] = field(default_factory=list)
    held_bytes: list[float] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    _link_free_s: float = 0.0
    _way_back_free_s: float = 0.0

    def serves(self, file: KVTierFile, node: int) -> bool:
        """Whether a rank on this node finds this store behind it."""
        return self.file is file and (file.shared is True or (file.shared == "node" and self.node == node))

    def reach(self, hashes: Sequence[BlockHash], first: int, most: int) -> int:
        """Blocks of a prompt that can be had with this tier's chunks, when `first` are there and `most` are of use."""
        end = first // self.chunk_blocks
        while (end + 1) * self.chunk_blocks <= most and hashes[(end + 1) * self.chunk_blocks - 1] in self.chunks:
            end += 1
        return max(first, end * self.chunk_blocks)

    def load(
        self,
        hashes: Sequence[BlockHash],
        first: int,
        end: int,
        block_size: int,
        now_s: float,
        node: int = 0,
        way: Way | None = None,
    ) -> float:
        """Load blocks `first` to `end` of a prompt to a rank on a node, over its NICs. Returns when they are there."""
        self.touch(hashes[:end])
        n_bytes = (end - first) * self.chunk_bytes / self.chunk_blocks
        ends = range((first // self.chunk_blocks + 1) * self.chunk_blocks, end + 1, self.chunk_blocks)
        start_s = max(now_s, self._link_free_s, *(self.chunks[hashes[last - 1]] for last in ends))
        takes_s = n_bytes / self.file.bandwidth_bytes_per_s
        if way is not None:
            takes_s = max(takes_s, way.takes_s(n_bytes, "in"))
        self._link_free_s = start_s + takes_s
        if way is not None:
            way.moves(start_s, self._link_free_s, n_bytes, "in")
        self.moves.append(Move(self.file.name, node, start_s, self._link_free_s, n_bytes, self._crosses))
        self.hit_tokens += (end - first) * block_size
        self.loaded_bytes += n_bytes
        self._note(now_s)
        return self._link_free_s + self.file.latency_s

    def touch(self, hashes: Sequence[BlockHash]) -> None:
        """A prompt is used: its chunks are the last to be evicted, and of them the first the very last."""
        if self.file.eviction == "fifo":
            return
        for last in range(len(hashes) // self.chunk_blocks * self.chunk_blocks, 0, -self.chunk_blocks):
            if hashes[last - 1] in self.chunks:
                self.chunks.move_to_end(hashes[last - 1])

    def store(
        self, hashes: Sequence[BlockHash], block: int, now_s: float, node: int = 0, way: Way | None = None
    ) -> BlockHash | None:
        """Take a copy of the chunk that block number `block` ends, if it ends one. Returns as `put`."""
        return None if (block + 1) % self.chunk_blocks else self.put(hashes[block], now_s, node, way=way)

    def put(
        self,
        key: BlockHash,
        now_s: float,
        node: int = 0,
        source: Tier | None = None,
        way: Way | None = None,
    ) -> BlockHash | None:
        """Take a copy of a chunk, if it is not here yet. Returns the chunk that is evicted for it; None: none is.

        Args:
            key: of the chunk.
            now_s: when it can begin to move.
            node: of the rank whose chunk it is.
            source: the tier that it comes from, out of whose memory it is read; None: the device.
            way: NICs that it crosses; None: none that others use.
        """
        if key in self.chunks:
            return None
        takes_s = self.chunk_bytes / self.file.bandwidth_bytes_per_s
        if way is not None:
            takes_s = max(takes_s, way.takes_s(self.chunk_bytes, "out"))
        begin_s = max(now_s, self._way_back_free_s if self.file.duplex == "full" else self._link_free_s)
        end_s = self.chunks[key] = begin_s + takes_s
        if self.file.duplex == "full":
            self._way_back_free_s = end_s
        else:
            self._link_free_s = end_s
        if way is not None:
            way.moves(begin_s, end_s, self.chunk_bytes, "out")
        self.moves.append(Move(self.file.name, node, begin_s, end_s, self.chunk_bytes, self._crosses))
        if source is not None:
            read = None if source._crosses is None else source._crosses[1:]
            source.moves.append(Move(source.file.name, node, begin_s, end_s, self.chunk_bytes, read))
        self.stored_bytes += self.chunk_bytes
        evicted = None
        if len(self.chunks) > self.capacity_chunks:
            evicted, _ = self.chunks.popitem(last=False)
            self.num_evicted += 1
        self._note(now_s)
        return evicted

    @property
    def _crosses(self) -> tuple[str, ...] | None:
        return None if self.file.memory is None else CROSSES[self.file.memory]

    def forget(self) -> None:
        """Lose all content."""
        self.chunks.clear()

    def _note(self, now_s: float) -> None:
        self.times_s.append(now_s)
        self.held_bytes.append(len(self.chunks) * self.chunk_bytes)
        self.hits.append(self.hit_tokens)


class KVTiers:
    """The tiers that one rank can reach, the nearest first.

    Attributes:
        tiers: them.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        block_size: int,
        node: int = 0,
        way: NicWay | None = None,
        host_way: HostWay | None = None,
    ) -> None:
        """Tiers of a rank with blocks of `block_size` tokens, which stands on a node.

        `way`: NICs to remote ones; `host_way`: links to the host.

        Raises InputError for a tier that is written back and has none of the same chunks before it.
        """
        for before, tier in zip([None, *tiers], tiers, strict=False):
            if tier.file.write == "back" and (before is None or before.chunk_blocks != tier.chunk_blocks):
                accepted = "through, unless a tier of the same chunk_tokens stands before it"
                raise InputError(field="kv_tiers.write", found="back", accepted=accepted)
        self.tiers = tuple(tiers)
        self._block_size = block_size
        self._node = node
        self._way = way
        self._host_way = host_way

    def _way_to(self, tier: Tier) -> Way | None:
        if tier.file.link == "host":
            return self._host_way
        return self._way if tier.file.memory == "remote" else None

    def reach(self, hashes: Sequence[BlockHash], first: int, most: int, *, drops_last: bool = False) -> int:
        """Blocks of a prompt that can be had, the first of which are on the GPU.

        `drops_last`: but for the last chunk, which is computed again.
        """
        begin, end, chunk_blocks = first, first, 0
        for tier in self.tiers:
            reached = tier.reach(hashes, end, most)
            if reached > end:
                begin, end, chunk_blocks = end, reached, tier.chunk_blocks
        return max(begin, end - chunk_blocks) if drops_last else end

    def load(self, hashes: Sequence[BlockHash], first: int, most: int, now_s: float) -> float:
        """Load what `reach` says. Returns when all of it is there."""
        done_s = now_s
        for tier in self.tiers:
            end = tier.reach(hashes, first, most)
            if end > first:
                at_s = tier.load(hashes, first, end, self._block_size, now_s, self._node, self._way_to(tier))
                done_s = max(done_s, at_s)
                first = end
        return done_s

    def touch(self, hashes: Sequence[BlockHash]) -> None:
        """A prompt is used (vLLM 0.32 v1/kv_offload/: a manager's `touch`, last block first)."""
        for tier in self.tiers:
            tier.touch(hashes)

    def store(self, hashes: Sequence[BlockHash], block: int, now_s: float) -> None:
        """Write a block through to every tier, and what one evicts back to the next, where that is written back."""
        evicted: BlockHash | None = None
        before: Tier | None = None
        for tier in self.tiers:
            if tier.file.write == "through":
                evicted = tier.store(hashes, block, now_s, self._node, self._way_to(tier))
            elif evicted is not None:
                evicted = tier.put(evicted, now_s, self._node, before, self._way_to(tier))
            before = tier

    def forget(self) -> None:
        """The engine fails: what is its own is lost, and what it shares is not."""
        for tier in self.tiers:
            if not tier.file.shared:
                tier.forget()


def new_tier(file: KVTierFile, block_size: int, kv_bytes_per_token: float, node: int = 0) -> Tier:
    """An empty tier of a rank on this node.

    Raises InputError when its chunks are no whole number of blocks, or not one fits.
    """
    if file.link == "host" and file.memory == "remote":
        raise InputError(
            field="kv_tiers.link", found="host", accepted="own with memory remote, which is beyond the NIC"
        )
    tokens = file.chunk_tokens or block_size
    if tokens % block_size:
        accepted = f"a multiple of block_size {block_size}"
        raise InputError(field="kv_tiers.chunk_tokens", found=tokens, accepted=accepted)
    chunk_bytes = tokens * kv_bytes_per_token
    if file.capacity_bytes < chunk_bytes:
        accepted = f"at least one chunk, {chunk_bytes:.0f} bytes"
        raise InputError(field="kv_tiers.capacity_bytes", found=file.capacity_bytes, accepted=accepted)
    return Tier(file, tokens // block_size, chunk_bytes, int(file.capacity_bytes // chunk_bytes), node)


def tier_notes(tiers: Sequence[Tier]) -> list[str]:
    """What each tier did, all of one name together."""
    notes = []
    for name, own in _by_name(tiers).items():
        loaded, stored = sum(tier.loaded_bytes for tier in own), sum(tier.stored_bytes for tier in own)
        notes.append(
            f"KV tier {name}: {sum(tier.hit_tokens for tier in own)} tokens loaded ({loaded / 1e9:.3f} GB), "
            f"{stored / 1e9:.3f} GB written, {sum(tier.num_evicted for tier in own)} chunks evicted"
        )
    return notes


def tier_series(tiers: Sequence[Tier], ends_s: Floats) -> dict[str, Series]:
    """Bytes held and tokens loaded so far at the given moments, all tiers of one name together."""
    series: dict[str, Series] = {}
    for name, own in _by_name(tiers).items():
        held, hits = np.zeros(len(ends_s)), np.zeros(len(ends_s))
        for tier in own:
            last = np.searchsorted(np.array(tier.times_s), ends_s, side="right")
            held += np.array([0.0, *tier.held_bytes])[last]
            hits += np.array([0.0, *tier.hits])[last]
        series[f"kv_tier_{name}_bytes"] = Series(ends_s, held)
        series[f"kv_tier_{name}_hit_tokens"] = Series(ends_s, hits)
    return series


def _by_name(tiers: Sequence[Tier]) -> dict[str, list[Tier]]:
    named: dict[str, list[Tier]] = {}
    for tier in tiers:
        named.setdefault(tier.file.name, []).append(tier)
    return named
