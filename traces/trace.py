"""A trace: the requests to serve, as a table of arrivals, lengths and prefix identity. No text, no token ids.

The file format is JSON Lines: a header line, then one row per request, in order of arrival.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec

from traces.decoding import decode_json, lines, read_bytes, sha256
from traces.errors import InputError

TRACE_SCHEMA = "servetwin.trace/1"
NO_FILE = "sha256:none"
"""In place of a digest, of requests that are from no file."""

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class TraceRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One request to serve.

    Attributes:
        request_id: unique in its trace.
        arrival_s: when it arrives, in seconds since the start of the trace.
        prompt_tokens: length of the prompt.
        output_tokens: length of the answer.
        block_hashes: identity of the request's full blocks of `Trace.hash_block_size` tokens, the prompt's first and
            then, as far as they are known, the answer's. Each hash covers everything before its block too, so equal
            hashes mean equal prefixes. None: unknown, nothing is shared.
        session_id: requests of one conversation carry the same.
        delay_s: it arrives so long after the request before it in its session has ended, and not before `arrival_s`;
            None: it arrives at `arrival_s`, whatever becomes of the others.
        priority: as vLLM's: lower is served first, under the priority policy only.
        after: ids of earlier rows that must all have ended before it arrives, in place of the row before it in its
            session; its `delay_s`, or none, counts from the last of them.
    """

    request_id: str
    arrival_s: Seconds
    prompt_tokens: Tokens
    output_tokens: Tokens
    block_hashes: tuple[int, ...] | None = None
    session_id: str | None = None
    delay_s: Seconds | None = None
    priority: int = 0
    after: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival, and where they came from.

    Attributes:
        rows: the requests, arrivals ascending.
        hash_block_size: tokens per entry of `TraceRow.block_hashes`; None when no row has any.
        source: the file or generator it came from.
        sha256: digest of that source's bytes.
        notes: what a reader assumed or left out.
    """

    rows: tuple[TraceRow, ...]
    hash_block_size: int | None
    source: str
    sha256: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def with_arrivals(self, arrivals_s: dict[str, float], note: str) -> Trace:
        """The same requests at other times (seconds by request id), which nothing delays any more.

        Raises InputError for a request without one.
        """
        missing = next((row.request_id for row in self.rows if row.request_id not in arrivals_s), None)
        if missing is not None:
            raise InputError(f"request {missing!r} has no measured arrival", file=self.source)
        rows = [
            msgspec.structs.replace(row, arrival_s=arrivals_s[row.request_id], delay_s=None, after=None)
            for row in self.rows
        ]
        rows.sort(key=lambda row: row.arrival_s)
        return replace(self, rows=tuple(rows), notes=(*self.notes, note))


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """First line of a trace file."""

    schema: str
    hash_block_size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    notes: tuple[str, ...] = ()


def checked_rows(rows: Sequence[TraceRow], file: str | Path, line_of: Sequence[int]) -> tuple[TraceRow, ...]:
    """The rows as they are, once arrivals ascend, ids are unique, delays follow something and there is at least one.

    `line_of` gives each row's line for the message. Raises InputError.
    """
    if not rows:
        raise InputError("holds no requests", file=file, accepted="at least one request")
    seen: set[str] = set()
    sessions: set[str] = set()
    previous_s = 0.0
    for row, line in zip(rows, line_of, strict=True):
        if row.arrival_s < previous_s:
            accepted = f"arrivals in ascending order, here at least {previous_s}"
            raise InputError(file=file, line=line, field="arrival_s", found=row.arrival_s, accepted=accepted)
        if row.request_id in seen:
            accepted = "an id that no earlier row has"
            raise InputError(file=file, line=line, field="request_id", found=row.request_id, accepted=accepted)
        if row.delay_s is not None and row.after is None and (row.session_id is None or row.session_id not in sessions):
            accepted = "a session_id that an earlier row has, when there is a delay_s"
            raise InputError(file=file, line=line, field="session_id", found=row.session_id, accepted=accepted)
        if (unknown := next((rid for rid in row.after or () if rid not in seen), None)) is not None:
            accepted = "ids that earlier rows have"
            raise InputError(file=file, line=line, field="after", found=unknown, accepted=accepted)
        previous_s = row.arrival_s
        seen.add(row.request_id)
        if row.session_id is not None:
            sessions.add(row.session_id)
    return tuple(rows)


def is_trace(first_line: bytes) -> bool:
    """Whether a file that starts with this line is in servetwin's own trace format."""
    return b'"servetwin.trace/' in first_line


def read_trace(path: Path, *, may_be_empty: bool = False) -> Trace:
    """Read servetwin's own trace format. Raises InputError with file, line and field.

    A trace of no requests is an error but where it `may_be_empty`, as in a capture of series alone.
    """
    data = read_bytes(path)
    numbered = list(lines(data))
    header = read_header(*next(iter(numbered), (0, b"")), file=path)
    rows = [decode_json(line, TraceRow, file=path, line=number) for number, line in numbered[1:]]
    for (number, _), row in zip(numbered[1:], rows, strict=True):
        checked_row(row, header.hash_block_size, path, number)
    if not rows and may_be_empty:
        checked: tuple[TraceRow, ...] = ()
    else:
        checked = checked_rows(rows, path, [number for number, _ in numbered[1:]])
    return Trace(checked, header.hash_block_size, str(path), sha256(data), header.notes)


def read_header(number: int, line: bytes, *, file: Path) -> Header:
    """The header on a file's first line, which has this number; b"": there is none. Raises InputError."""
    if not line:
        accepted = f"a header line with schema {TRACE_SCHEMA!r}, then one row a line"
        raise InputError("is empty", file=file, accepted=accepted)
    header = decode_json(line, Header, file=file, line=number)
    if header.schema != TRACE_SCHEMA:
        raise InputError(file=file, line=number, field="schema", found=header.schema, accepted=TRACE_SCHEMA)
    return header


def checked_row(row: TraceRow, hash_block_size: int | None, path: Path, line: int) -> TraceRow:
    """The row, once it has no more hashes than full blocks. Raises InputError."""
    if row.block_hashes is None:
        return row
    if hash_block_size is None:
        accepted = "no block hashes, or a header with hash_block_size"
        raise InputError(file=path, line=line, field="block_hashes", found=row.block_hashes, accepted=accepted)
    most = (row.prompt_tokens + row.output_tokens) // hash_block_size
    found = len(row.block_hashes)
    if found > most:
        accepted = f"at most {most} full blocks of {hash_block_size} tokens"
        raise InputError(file=path, line=line, field="block_hashes", found=f"{found} hashes", accepted=accepted)
    return row


def write_trace(trace: Trace, path: Path) -> None:
    """Write servetwin's own trace format; a `.gz` path is packed, to the same bytes every time."""
    data = trace_bytes(trace)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def trace_bytes(trace: Trace) -> bytes:
    """The trace in servetwin's own format."""
    return b"".join([header_bytes(trace), *map(row_bytes, trace.rows)])


def header_bytes(trace: Trace) -> bytes:
    """The first line of the trace's file."""
    header = Header(schema=TRACE_SCHEMA, hash_block_size=trace.hash_block_size, notes=trace.notes)
    return msgspec.json.encode(header) + b"\n"


def row_bytes(row: TraceRow) -> bytes:
    """A row's line."""
    return msgspec.json.encode(row) + b"\n"
