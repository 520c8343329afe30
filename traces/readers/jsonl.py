"""JSON Lines, line by line: each as a typed row, and which of its fields nobody reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import msgspec

from traces.decoding import decode_json
from traces.readers.source import Source

T = TypeVar("T", bound=msgspec.Struct)

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Time = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
"""A time since the trace began, in whatever unit the field's name or its format says."""
Ids = list[int]


def records(source: Source, kind: type[T]) -> Iterator[tuple[int, T]]:
    """Each line as `kind`, with its number. Fields of the first line that are not read are named in the notes.

    Raises InputError with file, line and field.
    """
    fields = {field.encode_name for field in msgspec.structs.fields(kind)}
    for index, (line, data) in enumerate(source.lines()):
        row = decode_json(data, kind, file=source.path, line=line)
        if index == 0:
            unread = sorted(set(msgspec.json.decode(data)) - fields)
            if unread:
                source.notes.append(f"fields that were not read: {', '.join(unread)}")
        yield line, row


def keys(first_line: bytes) -> dict[str, Any]:
    """The JSON object on a file's first line; empty when there is none."""
    try:
        value = msgspec.json.decode(first_line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
