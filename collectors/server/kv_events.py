"""Takes the events of vLLM's prefix cache (ZMQ) into a journal, and reads the journal back.

The events carry the token ids of every block; they are passed over when a message is decoded. Blocks are identified by
8 bytes of their hashes: the last 8, as vLLM sends them unless VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES is 0; then the
first 8, as the step recorder writes them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from collectors.journal import Journal, read_journal
from traces.decoding import decode_json
from traces.errors import CollectorError, installs
from traces.steps import Floats, Ints

if TYPE_CHECKING:
    from zmq.asyncio import Socket

SCHEMA = "servetwin.kv_events/1"

MEDIA = ("GPU", "CPU", "STORAGE")
"""vLLM 0.32 distributed/kv_events.py; another medium is journalled as `other`."""

Hash = int | bytes


class _Batch(msgspec.Struct, array_like=True):
    """A message of vLLM: KVEventBatch. Its events are read one by one, as a version may know others."""

    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class _Stored(msgspec.Struct, tag="BlockStored"):
    """As vLLM has sent it since its structs are maps (0.32 distributed/kv_events.py), without the token ids."""

    block_hashes: list[Hash]
    parent_block_hash: Hash | None = None
    block_size: int | None = None
    medium: str | None = None
    group_idx: int | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[Hash]
    medium: str | None = None
    group_idx: int | None = None


class _Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _StoredRow(msgspec.Struct, tag="BlockStored", array_like=True):
    """As vLLM sent it before, as an array; the token ids stand between and are passed over as raw bytes."""

    block_hashes: list[Hash]
    parent_block_hash: Hash | None
    token_ids: msgspec.Raw
    block_size: int
    lora_id: msgspec.Raw = msgspec.Raw(b"\xc0")
    medium: str | None = None
    lora_name: msgspec.Raw = msgspec.Raw(b"\xc0")
    extra_keys: msgspec.Raw = msgspec.Raw(b"\xc0")
    group_idx: int | None = None


class _RemovedRow(msgspec.Struct, tag="BlockRemoved", array_like=True):
    block_hashes: list[Hash]
    medium: str | None = None
    group_idx: int | None = None


class _ClearedRow(msgspec.Struct, tag="AllBlocksCleared", array_like=True):
    pass


_batch = msgspec.msgpack.Decoder(_Batch)
_map = msgspec.msgpack.Decoder(_Stored | _Removed | _Cleared)
_row = msgspec.msgpack.Decoder(_StoredRow | _RemovedRow | _ClearedRow)


class KVHeader(msgspec.Struct, frozen=True, kw_only=True, tag="header", tag_field="kind"):
    """First line of the journal."""

    wall_ns: int
    monotonic_ns: int


class KVEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event as it is kept: its type by vLLM's name, and blocks by 8 bytes of their hashes."""

    type: str
    hashes: tuple[int, ...] = ()
    parent: int | None = None
    block_size: int | None = None
    medium: str | None = None
    group: int | None = None


class KVMessage(msgspec.Struct, frozen=True, kw_only=True, tag="events", tag_field="kind", omit_defaults=True):
    """A message of one engine.

    Attributes:
        received_ns: when it came, monotonic clock of this host.
        sent_s: when the engine says it was made (Unix seconds); None when the message could not be read.
        seq: its number; every engine counts its own from 0.
        rank: data-parallel rank of the engine.
        events: in order.
        unread: events of unknown type or form.
    """

    received_ns: int
    sent_s: float | None = None
    seq: int
    rank: int = 0
    events: tuple[KVEvent, ...] = ()
    unread: int = 0


@dataclass(frozen=True, slots=True)
class KVEvents:
    """What was read of a journal of KV events.

    Attributes:
        counts: events by type.
        blocks_stored: blocks in the events BlockStored.
        blocks_removed: blocks in the events BlockRemoved.
        missing: messages that were sent and not received, told by gaps in their numbers.
        time_s: [n] when each message came, on the monotonic clock.
        cached_blocks: [n] blocks known to be in the cache after it: stored since recording began and not removed.
        wall_minus_monotonic_s: between the host's two clocks.
        notes: what was missing, unreadable or begun before.
    """

    counts: dict[str, int]
    blocks_stored: int
    blocks_removed: int
    missing: int
    time_s: Floats
    cached_blocks: Ints
    wall_minus_monotonic_s: float
    notes: tuple[str, ...]


@dataclass(slots=True)
class KVSubscriber:
    """Takes messages into a journal.

    Attributes:
        socket: what they come by.
        journal: where they go.
        n_blocks: blocks stored so far.
    """

    socket: Socket
    journal: Journal
    n_blocks: int = 0

    async def run(self) -> None:
        """Take messages until cancelled."""
        while True:
            frames = await self.socket.recv_multipart()
            message = message_of(frames, time.monotonic_ns())
            self.journal.append(message)
            self.n_blocks += sum(len(event.hashes) for event in message.events if event.type == "BlockStored")


@asynccontextmanager
async def kv_subscriber(journal: Journal, endpoints: Sequence[str], *, connect: bool) -> AsyncIterator[KVSubscriber]:
    """Subscribe to KV events until the block ends.

    Args:
        journal: where they go.
        endpoints: as in the servers' --kv-events-config, one for each data-parallel rank.
        connect: connect to all of them; else bind those that vLLM connects to.

    Raises:
        CollectorError: the extra `attach` is not installed, or an endpoint cannot be used.
    """
    try:
        from zmq.asyncio import Context
        from zmq.constants import LINGER, RCVHWM, SUB
        from zmq.error import ZMQError
    except ImportError:
        raise CollectorError(f"KV events need the extra attach: {installs('attach')}") from None
    context = Context()
    socket = context.socket(SUB)
    try:
        socket.setsockopt(LINGER, 0)
        socket.setsockopt(RCVHWM, 0)  # keep what comes faster than it is taken
        socket.subscribe(b"")
        for endpoint in endpoints:
            try:
                if connect or vllm_binds(endpoint):
                    socket.connect(_reachable(endpoint))
                else:
                    socket.bind(endpoint)
            except ZMQError as error:
                raise CollectorError(
                    f"KV events cannot be received at {endpoint} ({error}); accepted: the endpoint in the server's "
                    "--kv-events-config, as tcp://127.0.0.1:5557, not in use by another; or --kv-events-connect and "
                    "where the server can be reached, when the server binds it"
                ) from None
        yield KVSubscriber(socket, journal)
    finally:
        socket.close()
        context.term()


def vllm_binds(endpoint: str) -> bool:
    """Whether vLLM binds an endpoint; it connects to the others (0.32 kv_events.py _is_bind_endpoint)."""
    return "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://"))


def _reachable(endpoint: str) -> str:
    """An address on this host for an endpoint that a server binds on all of its interfaces."""
    return endpoint.replace("//*:", "//127.0.0.1:").replace("//[::]:", "//127.0.0.1:")


def message_of(frames: Sequence[bytes], received_ns: int) -> KVMessage:
    """What is kept of a message: three frames, of which the last is its payload. One that is none counts as unread."""
    if len(frames) != 3:
        return KVMessage(received_ns=received_ns, seq=-1, unread=1)
    seq = int.from_bytes(frames[1], "big")
    try:
        batch = _batch.decode(frames[2])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return KVMessage(received_ns=received_ns, seq=seq, unread=1)
    events = [event for raw in batch.events if (event := _event(raw)) is not None]
    return KVMessage(
        received_ns=received_ns,
        sent_s=batch.ts,
        seq=seq,
        rank=batch.data_parallel_rank or 0,
        events=tuple(events),
        unread=len(batch.events) - len(events),
    )


def _event(raw: msgspec.Raw) -> KVEvent | None:
    """An event in either form; None when it is of neither."""
    data = bytes(raw)
    is_row = data[:1] in b"\xdc\xdd" or 0x90 <= data[0] <= 0x9F  # the three kinds of arrays of msgpack
    try:
        event: Any = (_row if is_row else _map).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    match event:
        case _Stored() | _StoredRow():
            return KVEvent(
                type="BlockStored",
                hashes=tuple(_short(block) for block in event.block_hashes),
                parent=None if event.parent_block_hash is None else _short(event.parent_block_hash),
                block_size=event.block_size,
                medium=_medium(event.medium),
                group=event.group_idx,
            )
        case _Removed() | _RemovedRow():
            hashes = tuple(_short(block) for block in event.block_hashes)
            return KVEvent(type="BlockRemoved", hashes=hashes, medium=_medium(event.medium), group=event.group_idx)
    return KVEvent(type="AllBlocksCleared")


def _short(block: Hash) -> int:
    """8 bytes of a hash: the first of a whole one; one that is a number has 8."""
    return int.from_bytes(block[:8], "big") if isinstance(block, bytes) else block & 0xFFFF_FFFF_FFFF_FFFF


def _medium(medium: str | None) -> str | None:
    return medium if medium is None or medium in MEDIA else "other"


@dataclass(slots=True)
class _Cache:
    """The blocks of one engine that are known to be cached, and what of its messages is missing."""

    known: set[tuple[str | None, int | None, int]] = field(default_factory=set)
    next_seq: int | None = None
    missing: int = 0
    restarts: int = 0
    unknown_removed: int = 0

    def take(self, message: KVMessage) -> None:
        if self.next_seq is not None and message.seq < self.next_seq:
            self.restarts += 1
            self.known.clear()
            self.next_seq = 0
        if self.next_seq is not None:
            self.missing += message.seq - self.next_seq
        self.next_seq = message.seq + 1
        for event in message.events:
            blocks = {(event.medium, event.group, block) for block in event.hashes}
            match event.type:
                case "BlockStored":
                    self.known |= blocks
                case "BlockRemoved":
                    self.unknown_removed += len(blocks - self.known)
                    self.known -= blocks
                case "AllBlocksCleared":
                    self.known.clear()


def read_kv_events(path: Path) -> KVEvents:
    """Read a journal of KV events, whole or cut off. Raises InputError, or CollectorError when it has no header."""
    header: KVHeader | None = None
    messages: list[KVMessage] = []
    for number, line in read_journal(path):
        match decode_json(line, KVHeader | KVMessage, file=path, line=number):  # type: ignore[arg-type]
            case KVHeader() as record:
                header = header or record
            case KVMessage() as record:
                messages.append(record)
    if header is None:
        raise CollectorError(f"{path}: holds no header")
    caches: dict[int, _Cache] = {}
    counts: Counter[str] = Counter()
    blocks: Counter[str] = Counter()
    cached = []
    for message in messages:
        if message.seq >= 0:
            caches.setdefault(message.rank, _Cache()).take(message)
        for event in message.events:
            counts[event.type] += 1
            blocks[event.type] += len(event.hashes)
        cached.append(sum(len(cache.known) for cache in caches.values()))
    return KVEvents(
        counts=dict(counts),
        blocks_stored=blocks["BlockStored"],
        blocks_removed=blocks["BlockRemoved"],
        missing=sum(cache.missing for cache in caches.values()),
        time_s=np.array([message.received_ns / 1e9 for message in messages]),
        cached_blocks=np.array(cached, dtype=np.int64),
        wall_minus_monotonic_s=(header.wall_ns - header.monotonic_ns) / 1e9,
        notes=tuple(_notes(messages, list(caches.values()))),
    )


def _notes(messages: Sequence[KVMessage], caches: Sequence[_Cache]) -> list[str]:
    counted = {
        "messages with KV events were sent and not received": sum(cache.missing for cache in caches),
        "KV events could not be read": sum(message.unread for message in messages),
        "blocks were removed from the KV cache that had been stored before the recording": sum(
            cache.unknown_removed for cache in caches
        ),
        "times the numbers of KV messages began anew, as when a server restarts": sum(c.restarts for c in caches),
    }
    return [f"{count} {what}" for what, count in counted.items() if count]
