"""Any table as a trace, by a mapping that says which column is what, in which unit.

    servetwin trace import log.csv --map arrival_unix_ms=ts --map prompt_tokens=in --map output_tokens=out

The left side is one of `TARGETS`; its name holds the unit. The file is CSV (or tabs) with a header, JSON Lines or
Parquet; what stands in an object of a JSON line is named with dots, as `usage.prompt_tokens`. Nothing is guessed: a
column that is not mapped is not read, and is named in the notes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from traces.decoding import decode_json
from traces.errors import InputError, nearest
from traces.hashes import chained
from traces.readers.jsonl import keys
from traces.readers.source import Numbered, Source, since_first, whole
from traces.readers.table import Cells, cells
from traces.trace import Trace, TraceRow

RELATIVE = {"arrival_s": 1, "arrival_ms": 10**3, "arrival_us": 10**6, "arrival_ns": 10**9}
"""Time since the trace began: parts of a second."""
UNIX_NS = {"arrival_unix_s": 10**9, "arrival_unix_ms": 10**6, "arrival_unix_us": 10**3, "arrival_unix_ns": 1}
"""Time since 1970: nanoseconds of its unit."""
DATE = "arrival_datetime"
ARRIVALS = (*RELATIVE, *UNIX_NS, DATE)
DELAYS = {"delay_s": 1, "delay_ms": 10**3}
COUNTS = ("prompt_tokens", "output_tokens")
HASHES = "block_hashes"
TARGETS = (*ARRIVALS, *COUNTS, "request_id", "session_id", *DELAYS, "priority", HASHES)


def parse_mapping(options: Sequence[str]) -> dict[str, str]:
    """Columns by target, of `target=column` texts. Raises InputError."""
    mapping: dict[str, str] = {}
    for option in options:
        target, equals, column = option.partition("=")
        if not equals or not column:
            raise InputError(field="--map", found=option, accepted="a target and a column, as arrival_s=timestamp")
        if target not in TARGETS:
            raise InputError("is unknown", field="--map", found=target, accepted=nearest(target, TARGETS))
        if target in mapping:
            raise InputError("stands twice", field="--map", found=target)
        mapping[target] = column
    if sum(target in mapping for target in ARRIVALS) != 1:
        raise InputError(
            field="--map", found=", ".join(mapping) or "nothing", accepted=f"one arrival, of {', '.join(ARRIVALS)}"
        )
    if missing := [name for name in COUNTS if name not in mapping]:
        raise InputError(f"{' and '.join(missing)} must be mapped", field="--map", found=", ".join(mapping))
    if sum(target in mapping for target in DELAYS) > 1:
        raise InputError(field="--map", found="delay_s and delay_ms", accepted="one of them")
    return mapping


def read_mapped(path: Path, mapping: Mapping[str, str], hash_block_size: int | None = None) -> Trace:
    """Read a table by a mapping of `parse_mapping`.

    `hash_block_size` is the number of tokens that an entry of block_hashes stands for. Raises InputError.
    """
    if (HASHES in mapping) != (hash_block_size is not None):
        accepted = "both --hash-block-size and a column mapped to block_hashes, or neither"
        raise InputError(field="--hash-block-size", found=hash_block_size, accepted=accepted)
    if hash_block_size is not None and hash_block_size < 1:
        raise InputError(field="--hash-block-size", found=hash_block_size, accepted="at least 1")
    return whole(path, partial(rows, mapping=mapping, hash_block_size=hash_block_size))


def rows(source: Source, mapping: Mapping[str, str], hash_block_size: int | None) -> Iterator[Numbered]:
    """The rows of the table; ids are the numbers of rows, from "0", unless one is mapped. Raises InputError."""
    source.notes.append("columns by mapping: " + ", ".join(f"{target}={name}" for target, name in mapping.items()))
    source.hash_block_size = hash_block_size
    arrival = next(target for target in ARRIVALS if target in mapping)
    found = _found(source, mapping, arrival, hash_block_size)
    if arrival in RELATIVE:
        return ((line, row) for line, _, row in found)
    source.notes.append(f"arrivals are counted from the first row's {mapping[arrival]}")
    return since_first(found)


def _found(
    source: Source, mapping: Mapping[str, str], arrival: str, hash_block_size: int | None
) -> Iterator[tuple[int, int, TraceRow]]:
    delay = next((target for target in DELAYS if target in mapping), None)
    zoned: bool | None = None
    sessions: set[str] = set()
    for number, row in enumerate(_table(source, list(mapping.values()))):
        text = {target: row.text[column] for target, column in mapping.items()}
        prompt_tokens, output_tokens = (row.count(mapping[name]) for name in COUNTS)
        arrival_ns, arrival_s = 0, 0.0
        if arrival in RELATIVE:
            arrival_s = row.seconds(mapping[arrival], RELATIVE[arrival])
        elif arrival in UNIX_NS:
            arrival_ns = _unix_ns(row, mapping[arrival], UNIX_NS[arrival])
        else:
            arrival_ns, has_zone = row.instant_ns(mapping[arrival])
            zoned = has_zone if zoned is None else zoned
            if has_zone != zoned:
                raise row.error(mapping[arrival], "a zone in every row, or in none")
        hashes = _hashes(row, mapping, prompt_tokens + output_tokens, hash_block_size)
        session = text.get("session_id") or None
        delay_s = row.seconds(mapping[delay], DELAYS[delay]) if delay and text[delay] else None
        if delay_s is not None and session not in sessions:
            if delay_s:
                source.counts["{n} requests have a delay but no request before them in a session: it was not read"] += 1
            delay_s = None
        if source.empty(row.line, prompt_tokens, output_tokens):
            continue
        if session is not None:
            sessions.add(session)
        request = TraceRow(
            request_id=text.get("request_id", str(number)),
            arrival_s=arrival_s,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            block_hashes=hashes,
            session_id=session,
            delay_s=delay_s,
            priority=row.signed(mapping["priority"]) if text.get("priority") else 0,
        )
        yield row.line, arrival_ns, request


def _unix_ns(row: Cells, column: str, unit_ns: int) -> int:
    """A number of some unit since 1970 as nanoseconds, exactly. Raises InputError."""
    row.seconds(column, per_second=10**12)  # a number, and below 10^21 of them
    time_ns = int(Decimal(row.text[column]) * unit_ns)
    if not 0 <= time_ns < 2**63:
        raise row.error(column, f"a time since 1970 in units of {unit_ns} ns, before the year 2262")
    return time_ns


def _hashes(row: Cells, mapping: Mapping[str, str], tokens: int, hash_block_size: int | None) -> tuple[int, ...] | None:
    """Hashes of full blocks, of a JSON list of ids. Raises InputError."""
    if hash_block_size is None or not row.text[mapping[HASHES]]:
        return None
    try:
        ids = msgspec.json.decode(row.text[mapping[HASHES]], type=list[int | str])
    except (msgspec.DecodeError, RecursionError):
        raise row.error(mapping[HASHES], "a list of ids, as [17, 4, 9]") from None
    most = tokens // hash_block_size
    if len(ids) > most + 1:
        raise row.error(mapping[HASHES], f"at most {most + 1} ids, one for each block of {hash_block_size} tokens")
    return chained(ids[:most])


def _table(source: Source, columns: list[str]) -> Iterator[Cells]:
    """The table's rows as texts, told by what the file holds."""
    with source.opened() as stream:
        head = stream.read(64).lstrip()
    if head.startswith(b"PAR1"):
        return _parquet(source, columns)
    return _json_lines(source, columns) if head.startswith(b"{") else cells(source, columns)


def _json_lines(source: Source, columns: list[str]) -> Iterator[Cells]:
    for index, (line, data) in enumerate(source.lines()):
        value = decode_json(data, dict[str, Any], file=source.path, line=line)
        if index == 0:
            _say_unread(source, _names(value), columns)
        text = {}
        for name in columns:
            if (cell := _inside(value, name)) is _ABSENT:
                accepted = nearest(name, _names(value))
                raise InputError("is missing", file=source.path, line=line, field=name, accepted=accepted)
            text[name] = _as_text(cell)
        yield Cells(source.path, line, text)


_ABSENT = object()


def _inside(value: dict[str, Any], name: str) -> Any:
    """What stands at a name, or at a name with dots inside of objects; `_ABSENT` where nothing does."""
    if name in value:
        return value[name]
    inner: Any = value
    for part in name.split("."):
        if not isinstance(inner, dict) or part not in inner:
            return _ABSENT
        inner = inner[part]
    return inner


def _names(value: dict[str, Any]) -> list[str]:
    """Names of all that a JSON line holds but objects, those in objects with dots."""
    names: list[str] = []
    stack = [("", value)]
    while stack:
        prefix, holder = stack.pop()
        for key, item in holder.items():
            if isinstance(item, dict):
                stack.append((f"{prefix}{key}.", item))
            else:
                names.append(prefix + key)
    return names


def how_to_map(path: Path, first_line: bytes) -> str:
    """What to say of a file of no known format: that it may be mapped, and which columns are in it, as far as told."""
    example = "any table with --map, as " + " ".join(f"--map {name}=COLUMN" for name in ("arrival_s", *COUNTS))
    found = _columns(path, first_line)
    shown = ", ".join(found[:MOST_SHOWN]) + (f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else "")
    return f"{example}; its columns are {shown}" if found else example


MOST_SHOWN = 20
"""Columns that an error names."""


def _columns(path: Path, first_line: bytes) -> list[str]:
    """Names of a table's columns; none where the file is no table, which only one who reads it can say for sure."""
    if first_line.startswith(b"PAR1"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.ParquetFile(path).schema_arrow.names)
        except (OSError, pa.ArrowException):
            return []
    if line := keys(first_line):
        return _names(line)
    try:
        text = first_line.decode("utf-8-sig")
        header = next(csv.reader([text], delimiter="\t" if "\t" in text else ",", strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return []
    return [name.strip() for name in header] if len(header) > 1 else []


def _parquet(source: Source, columns: list[str]) -> Iterator[Cells]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source.path)
        names = file.schema_arrow.names
        for name in columns:
            if name not in names:
                raise InputError("is missing", file=source.path, field=name, accepted=nearest(name, names))
        _say_unread(source, names, columns)
        source.digest_whole()
        line = 0
        for batch in file.iter_batches(columns=sorted(set(columns))):
            for value in batch.to_pylist():
                line += 1
                yield Cells(source.path, line, {name: _as_text(value[name]) for name in columns})
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot be read as Parquet ({str(error).splitlines()[0]})", file=source.path) from None


def _say_unread(source: Source, names: list[str], columns: list[str]) -> None:
    if unread := [name for name in names if name not in columns]:
        source.notes.append(f"columns that were not read: {', '.join(unread)}")


def _as_text(value: Any) -> str:
    """A cell as it would stand in a CSV file; what is absent is empty."""
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return value.isoformat(sep=" ") if hasattr(value, "isoformat") else str(value)
