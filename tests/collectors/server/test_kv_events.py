"""KV events over real sockets: blocks are kept by 8 bytes of their hashes, token ids are not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collectors.journal import Journal
from collectors.server.kv_events import SCHEMA, KVEvents, kv_subscriber, message_of, read_kv_events, vllm_binds
from tests.collectors.server.attached import free_port
from traces.errors import CollectorError, InputError

pytest.importorskip("zmq", reason="the extra attach is not installed")

TOKENS = [70_001, 70_002, 70_003]


def stored(*hashes: int | bytes, parent: int | bytes | None = None, **fields: Any) -> dict[str, Any]:
    """As vLLM 0.32 sends it."""
    return {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": parent,
        "token_ids": TOKENS,
        "block_size": 32,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": "secret-adapter",
        "extra_keys": [["secret-salt"]],
        "group_idx": 0,
        "session_id": "secret-session",
        **fields,
    }


def removed(*hashes: int | bytes) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", "group_idx": 0}


CLEARED = {"type": "AllBlocksCleared"}


def frames(seq: int, *events: Any, rank: int | None = 0) -> list[bytes]:
    """A message: topic, number, payload. A rank of None is left out, as msgspec leaves out defaults."""
    batch = [1_795_246_613.5, list(events), *([] if rank is None else [rank])]
    return [b"", seq.to_bytes(8, "big"), msgspec.msgpack.encode(batch)]


async def received(path: Path, messages: Sequence[Sequence[bytes]], *, server_binds: bool = False) -> KVEvents:
    """The messages, sent by a publisher as vLLM's, taken and read back."""
    import zmq
    import zmq.asyncio

    endpoint = f"tcp://127.0.0.1:{free_port()}"
    context = zmq.asyncio.Context()
    publisher = context.socket(zmq.XPUB)
    publisher.setsockopt(zmq.LINGER, 0)
    (publisher.bind if server_binds else publisher.connect)(endpoint)
    try:
        with Journal(path, SCHEMA) as journal:
            async with kv_subscriber(journal, [endpoint], connect=server_binds) as subscriber:
                running = asyncio.create_task(subscriber.run())
                assert await publisher.recv() == b"\x01"  # now it is subscribed
                for message in messages:
                    await publisher.send_multipart(list(message))
                journal.flush()
                while path.read_text().count("\n") < len(messages) + 1:
                    await asyncio.sleep(0.005)
                    journal.flush()
                running.cancel()
    finally:
        publisher.close()
        context.term()
    return read_kv_events(path)


async def test_blocks_are_followed(tmp_path: Path) -> None:
    events = await received(
        tmp_path / "kv",
        [
            frames(0, stored(1, 2, 3)),
            frames(1, stored(4, parent=3), removed(2)),
            frames(2, CLEARED, stored(5)),
        ],
    )
    assert events.counts == {"BlockStored": 3, "BlockRemoved": 1, "AllBlocksCleared": 1}
    assert (events.blocks_stored, events.blocks_removed, events.missing) == (5, 1, 0)
    assert events.cached_blocks.tolist() == [3, 3, 1]
    assert (events.time_s[1:] >= events.time_s[:-1]).all()
    assert events.notes == ()


async def test_a_server_that_binds_is_connected_to(tmp_path: Path) -> None:
    events = await received(tmp_path / "kv", [frames(0, stored(1))], server_binds=True)
    assert events.blocks_stored == 1


async def test_nothing_of_a_prompt_is_written(tmp_path: Path) -> None:
    await received(
        tmp_path / "kv",
        [
            frames(0, stored(1, medium="secret-medium"), {"type": "Other", "token_ids": TOKENS, "text": "secret"}),
            frames(1, ["BlockStored", [2], None, TOKENS, 32, None, "GPU", "secret-adapter", [["secret-salt"]], 0]),
            [b"secret-topic", (2).to_bytes(8, "big"), b"secret"],
        ],
    )
    written = (tmp_path / "kv").read_text()
    assert "7000" not in written
    assert "secret" not in written
    assert '"medium":"other"' in written


async def test_messages_that_are_missing_are_counted_for_each_engine(tmp_path: Path) -> None:
    events = await received(
        tmp_path / "kv",
        [
            frames(7, stored(1), rank=0),  # what came before 7 was before the recording
            frames(8, stored(2), rank=0),
            frames(0, stored(1), rank=1),
            frames(11, stored(3), rank=0),
            frames(1, removed(1), rank=1),
        ],
    )
    assert events.missing == 2
    assert events.cached_blocks.tolist() == [1, 2, 3, 4, 3]
    assert events.notes == ("2 messages with KV events were sent and not received",)


async def test_a_server_that_restarts_counts_from_zero(tmp_path: Path) -> None:
    events = await received(tmp_path / "kv", [frames(5, stored(1, 2)), frames(1, stored(3), rank=None)])
    assert events.missing == 1
    assert events.cached_blocks.tolist() == [2, 1]
    assert "1 times the numbers of KV messages began anew, as when a server restarts" in events.notes


async def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    events = await received(
        tmp_path / "kv",
        [
            frames(0, stored(1), {"type": "BlockFrozen"}, {"type": "BlockStored", "block_hashes": "x"}),
            [b"", (1).to_bytes(8, "big"), b"\xc1"],
            [b"only one frame"],
            frames(2, removed(9)),
        ],
    )
    assert events.missing == 0
    assert events.notes == (
        "4 KV events could not be read",
        "1 blocks were removed from the KV cache that had been stored before the recording",
    )


def test_both_forms_and_both_kinds_of_hashes_are_read() -> None:
    """vLLM sends structs as maps now and sent arrays before, and hashes as numbers of 8 bytes or whole."""
    digest = bytes(range(32))
    of_map = message_of(frames(0, stored(digest, 2**64 - 1, parent=digest), removed(digest), CLEARED), 5)
    of_row = message_of(
        frames(
            0,
            ["BlockStored", [digest, 2**64 - 1], digest, TOKENS, 32, None, "GPU", None, None, 0],
            ["BlockRemoved", [digest], "GPU", 0],
            ["AllBlocksCleared"],
        ),
        5,
    )
    assert of_map == of_row
    first = of_map.events[0]
    assert first.hashes == (0x0001020304050607, 2**64 - 1)
    assert (first.parent, first.block_size, first.medium, first.group) == (0x0001020304050607, 32, "GPU", 0)
    short = message_of(frames(0, ["BlockStored", [1], None, TOKENS, 16, None], ["BlockRemoved", [1]]), 5)
    assert [event.type for event in short.events] == ["BlockStored", "BlockRemoved"]
    assert short.events[0].medium is None
    assert short.unread == 0


def test_who_binds() -> None:
    assert not vllm_binds("tcp://127.0.0.1:5557")
    assert all(vllm_binds(endpoint) for endpoint in ("tcp://*:5557", "tcp://[::]:5557", "ipc:///tmp/kv"))


@pytest.mark.parametrize("endpoint", ["5557", "tcp://127.0.0.1", "udp://127.0.0.1:1", "tcp://192.0.2.1:5557"])
async def test_an_endpoint_that_cannot_be_used_says_what_to_do(tmp_path: Path, endpoint: str) -> None:
    with Journal(tmp_path / "kv", SCHEMA) as journal, pytest.raises(CollectorError, match="accepted: the endpoint in"):
        async with kv_subscriber(journal, [endpoint], connect=False):
            pass


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
sys.modules["zmq"] = None
from collectors.journal import Journal
from collectors.server.kv_events import kv_subscriber
async def main():
    with Journal(Path({str(tmp_path / "kv")!r}), "s") as journal:
        async with kv_subscriber(journal, ["tcp://127.0.0.1:1"], connect=True):
            pass
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "CollectorError: KV events need the extra attach: pip install '.[attach]'" in done.stderr


async def test_a_journal_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    await received(tmp_path / "kv", [frames(0, stored(1))])
    with (tmp_path / "kv").open("a") as stream:
        stream.write('{"kind":"events","received_ns":1')
    assert read_kv_events(tmp_path / "kv").blocks_stored == 1
    (tmp_path / "empty").write_text("")
    with pytest.raises(CollectorError, match="holds no header"):
        read_kv_events(tmp_path / "empty")
    (tmp_path / "bad").write_text('{"kind":"events","received_ns":1,"seq":"x"}\n')
    with pytest.raises(InputError, match="bad:1"):
        read_kv_events(tmp_path / "bad")
