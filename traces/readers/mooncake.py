"""Traces with hashed blocks of the prompt: Mooncake's (FAST '25), its supersets, and Bailian's of Qwen services.

JSON Lines with `timestamp`, `input_length`, `output_length` and `hash_ids`: an id for each block of the prompt, the
last of which may be partly filled. Mooncake's timestamps are milliseconds and its blocks 512 tokens, Bailian's seconds
and 16 tokens. A row of a superset may state `block_size`, and as aiperf's a `session_id` and a `delay` in milliseconds
after the end of the session's request before it; such a row needs no timestamp. Text is not read: it has no length
without a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from traces.errors import InputError
from traces.hashes import chained
from traces.readers.jsonl import Count, Ids, Time, keys, records
from traces.readers.source import Numbered, Source
from traces.trace import TraceRow

BLOCK_SIZE = 512
"""Tokens of a block of a Mooncake trace (its README)."""
BAILIAN_BLOCK_SIZE = 16

Name = str | int
BlockSize = Annotated[int, msgspec.Meta(ge=1, le=2**20)]


class _Row(msgspec.Struct):
    input_length: Count
    output_length: Count
    timestamp: Time | None = None
    hash_ids: Ids | None = None
    block_size: BlockSize | None = None
    session_id: Name | None = None
    delay: Time | None = None
    priority: int = 0


class _BailianRow(msgspec.Struct):
    chat_id: Name
    timestamp: Time
    input_length: Count
    output_length: Count
    hash_ids: Ids
    parent_chat_id: Name = -1


def is_mooncake(first_line: bytes) -> bool:
    """Whether a file that starts with this line is a Mooncake trace or a superset of it."""
    return {"input_length", "output_length"} <= keys(first_line).keys() and not is_bailian(first_line)


def is_bailian(first_line: bytes) -> bool:
    """Whether a file that starts with this line is a trace of Bailian's."""
    return {"chat_id", "input_length", "output_length"} <= keys(first_line).keys()


def rows(source: Source) -> Iterator[Numbered]:
    """Rows of a Mooncake trace; a request's id is the number of its row, from "0". Raises InputError."""
    source.notes.append("timestamp is taken as milliseconds since the trace began")
    size: int | None = None
    arrival_s: dict[str, float] = {}
    for number, (line, row) in enumerate(records(source, _Row)):
        if number == 0:
            size = row.block_size
            _say_blocks(source, size or BLOCK_SIZE, stated=size is not None)
        if row.block_size != size:
            accepted = f"{size}, as in the first row" if size else "none, as in the first row"
            raise InputError(file=source.path, line=line, field="block_size", found=row.block_size, accepted=accepted)
        session = None if row.session_id is None else str(row.session_id)
        if row.timestamp is not None:
            time_s = row.timestamp / 1e3
        elif session in arrival_s and row.delay is not None:
            time_s = arrival_s[session]
        else:
            accepted = "milliseconds, or a delay behind an earlier row of the same session_id"
            raise InputError("is missing", file=source.path, line=line, field="timestamp", accepted=accepted)
        delay_s = row.delay / 1e3 if row.delay is not None and session in arrival_s else None
        if row.delay and delay_s is None:
            source.counts["{n} requests have a delay but no request before them in a session: it was not read"] += 1
        if source.empty(line, row.input_length, row.output_length):
            continue
        if session is not None:
            arrival_s.setdefault(session, time_s)
        yield (
            line,
            TraceRow(
                request_id=str(number),
                arrival_s=time_s,
                prompt_tokens=row.input_length,
                output_tokens=row.output_length,
                block_hashes=_hashes(row.hash_ids, row.input_length, size or BLOCK_SIZE, source.path, line),
                session_id=session,
                delay_s=delay_s,
                priority=row.priority,
            ),
        )


def bailian_rows(source: Source) -> Iterator[Numbered]:
    """Rows of a Bailian trace; a request's id is its chat_id, a session's that of its first. Raises InputError."""
    source.notes.append("timestamp is taken as seconds since the trace began")
    _say_blocks(source, BAILIAN_BLOCK_SIZE, stated=False)
    root: dict[str, str] = {}
    for line, row in records(source, _BailianRow):
        name, parent = str(row.chat_id), str(row.parent_chat_id)
        session = root.get(parent, name if parent == "-1" else parent)
        root[name] = session
        if source.empty(line, row.input_length, row.output_length):
            continue
        yield (
            line,
            TraceRow(
                request_id=name,
                arrival_s=row.timestamp,
                prompt_tokens=row.input_length,
                output_tokens=row.output_length,
                block_hashes=_hashes(row.hash_ids, row.input_length, BAILIAN_BLOCK_SIZE, source.path, line),
                session_id=session,
            ),
        )


def _say_blocks(source: Source, size: int, *, stated: bool) -> None:
    source.hash_block_size = size
    says = f"hash_ids are of blocks of {size} tokens" + ("" if stated else ", as the format has it")
    source.notes.append(f"{says}; an id counts as equal where all ids before it are equal too")
    source.notes.append("the id of a prompt's last block was left out where the block is not full: engines cache none")


def _hashes(ids: Ids | None, prompt_tokens: int, size: int, file: Path, line: int) -> tuple[int, ...] | None:
    """Hashes of the full blocks. Raises InputError unless there is an id for each block of the prompt."""
    if ids is None:
        return None
    full, started = prompt_tokens // size, -(-prompt_tokens // size)
    if len(ids) not in (full, started):
        accepted = f"{started} ids, one for each block of {size} of the {prompt_tokens} tokens"
        raise InputError(file=file, line=line, field="hash_ids", found=f"{len(ids)} ids", accepted=accepted)
    return chained(ids[:full])
