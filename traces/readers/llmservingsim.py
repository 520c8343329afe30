"""LLMServingSim's workloads: JSON Lines with nanosecond arrivals and, if they have them, token ids.

The ids are content: they are hashed to prefix identity and dropped. A line is a request, or an agent's session: calls
in a chain, each sent when the one before it has ended and a tool has run for the time that the file states.

The format is that of LLMServingSim's `workloads/` as of its vLLM 0.19 support (2026).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from traces.decoding import decode_json
from traces.errors import InputError
from traces.hashes import token_hashes
from traces.readers.source import Numbered, Source
from traces.trace import Tokens, Trace, TraceRow, checked_rows

TokenIds = list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]]
Nanoseconds = Annotated[float, msgspec.Meta(ge=0)]


class _WorkloadRow(msgspec.Struct):
    input_toks: Tokens
    output_toks: Tokens
    arrival_time_ns: Nanoseconds
    input_tok_ids: TokenIds | None = None
    output_tok_ids: TokenIds | None = None


class _Call(msgspec.Struct):
    """One request of an agent's session."""

    input_toks: Tokens
    output_toks: Tokens
    tool_duration_ns: Nanoseconds = 0.0
    input_tok_ids: TokenIds | None = None
    output_tok_ids: TokenIds | None = None


class _SessionRow(msgspec.Struct):
    session_id: Annotated[str, msgspec.Meta(min_length=1)]
    arrival_time_ns: Nanoseconds
    sub_requests: Annotated[list[_Call], msgspec.Meta(min_length=1)]


def read_workload(path: Path, block_size: int = 16) -> Trace:
    """Read a workload, flat, agentic or both.

    A request's id is the number of its row, from "0"; that of a session's call is the session's and the number of the
    call, as in "session_0/2". A call but the first has the tool time after the call before it as its `delay_s`.

    Args:
        path: the JSON Lines file.
        block_size: tokens per block hash, where rows carry token ids.

    Raises:
        InputError: with file, line and field.
    """
    with Source(path) as source:
        numbered = list(rows(source, block_size))
    checked = checked_rows([row for _, row in numbered], path, [line for line, _ in numbered])
    return Trace(checked, source.hash_block_size, str(path), source.sha256(), tuple(source.notes))


def rows(source: Source, block_size: int = 16) -> Iterator[Numbered]:
    """The requests of a workload, a session's calls one after another. Raises InputError.

    The source has a hash_block_size until all are read, and then where a row had token ids.
    """
    source.hash_block_size = block_size
    first_line, previous_ns = b"", 0.0
    n_rows = n_hashed = n_unread = 0
    sessions: set[str] = set()
    for index, (line, data) in enumerate(source.lines()):
        first_line = first_line or data
        row = _workload_row(data, source.path, line)
        if row.arrival_time_ns < previous_ns:
            accepted = f"arrivals in ascending order, here at least {previous_ns:.0f}"
            found = row.arrival_time_ns
            raise InputError(file=source.path, line=line, field="arrival_time_ns", found=found, accepted=accepted)
        previous_ns = row.arrival_time_ns
        if isinstance(row, _SessionRow):
            if row.session_id in sessions:
                accepted, found_id = "an id that no earlier line has", row.session_id
                raise InputError(file=source.path, line=line, field="session_id", found=found_id, accepted=accepted)
            sessions.add(row.session_id)
            n_unread += row.sub_requests[-1].tool_duration_ns > 0
        own = _calls(row, block_size) if isinstance(row, _SessionRow) else [_request(row, str(index), block_size)]
        n_rows += len(own)
        n_hashed += sum(one.block_hashes is not None for one in own)
        yield from ((line, one) for one in own)
    source.notes.append(f"{n_hashed} of {n_rows} requests have token ids; the others share no prefix")
    if n_unread:
        of_all = f"{n_unread} of {len(sessions)} sessions"
        source.notes.append(f"{of_all} state a tool time after their last call: nothing waits for it")
    if ignored := _unread_fields(first_line or b"{}"):
        source.notes.append(f"fields of {source.path.name} that were not read: {ignored}")
    if not n_hashed:
        source.hash_block_size = None


def _request(row: _WorkloadRow, request_id: str, block_size: int) -> TraceRow:
    return TraceRow(
        request_id=request_id,
        arrival_s=row.arrival_time_ns / 1e9,
        prompt_tokens=row.input_toks,
        output_tokens=row.output_toks,
        block_hashes=_row_hashes(row, block_size),
    )


def _calls(session: _SessionRow, block_size: int) -> list[TraceRow]:
    """The session's calls in order; all but the first arrive when the one before has ended and its tool has run."""
    delays_s = [None, *(call.tool_duration_ns / 1e9 for call in session.sub_requests)]
    return [
        TraceRow(
            request_id=f"{session.session_id}/{i}",
            arrival_s=session.arrival_time_ns / 1e9,
            prompt_tokens=call.input_toks,
            output_tokens=call.output_toks,
            block_hashes=_row_hashes(call, block_size),
            session_id=session.session_id,
            delay_s=delays_s[i],
        )
        for i, call in enumerate(session.sub_requests)
    ]


def is_workload(first_line: bytes) -> bool:
    """Whether a file that starts with this line is meant as an LLMServingSim workload, flat or agentic."""
    return any(name in first_line for name in (b'"input_toks"', b'"arrival_time_ns"', b'"sub_requests"'))


def _workload_row(line: bytes, path: Path, number: int) -> _WorkloadRow | _SessionRow:
    if b'"sub_requests"' not in line:
        row = decode_json(line, _WorkloadRow, file=path, line=number)
        _check_ids(row, "", path, number)
        return row
    session = decode_json(line, _SessionRow, file=path, line=number)
    for i, call in enumerate(session.sub_requests):
        _check_ids(call, f"sub_requests[{i}].", path, number)
    return session


def _check_ids(row: _WorkloadRow | _Call, at: str, path: Path, number: int) -> None:
    """Raise InputError when there are not as many token ids as tokens."""
    for field, ids, count in (
        ("input_tok_ids", row.input_tok_ids, row.input_toks),
        ("output_tok_ids", row.output_tok_ids, row.output_toks),
    ):
        if ids is not None and len(ids) != count:
            accepted = f"{count} ids, as {field.replace('_tok_ids', '_toks')} says"
            raise InputError(file=path, line=number, field=at + field, found=f"{len(ids)} ids", accepted=accepted)


def _row_hashes(row: _WorkloadRow | _Call, block_size: int) -> tuple[int, ...] | None:
    """None without the prompt's ids; the answer's blocks are known only where its ids are."""
    if row.input_tok_ids is None:
        return None
    return token_hashes(row.input_tok_ids + (row.output_tok_ids or []), block_size)


def _unread_fields(line: bytes) -> str:
    """Names of a line's fields that no reader looks at."""
    found = msgspec.json.decode(line)
    calls = found.get("sub_requests")
    kind: type[msgspec.Struct] = _WorkloadRow if calls is None else _SessionRow
    unread = set(found) - set(kind.__struct_fields__)
    unread |= {f"sub_requests.{name}" for call in calls or () for name in set(call) - set(_Call.__struct_fields__)}
    return ", ".join(sorted(unread))
