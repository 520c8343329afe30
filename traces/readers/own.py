"""servetwin's own trace format, row by row: what `traces.trace.read_trace` reads whole.

Not checked, since it takes the whole file: that ids are unique, and that what a row waits for is in a row before it.
"""

from __future__ import annotations

from collections.abc import Iterator

from traces.decoding import decode_json
from traces.errors import InputError
from traces.readers.source import Numbered, Source
from traces.trace import TraceRow, checked_row, read_header


def rows(source: Source) -> Iterator[Numbered]:
    """The rows, arrivals ascending. Raises InputError."""
    numbered = source.lines()
    header = read_header(*next(numbered, (0, b"")), file=source.path)
    source.hash_block_size = header.hash_block_size
    source.notes += header.notes
    previous_s = 0.0
    for line, data in numbered:
        row = decode_json(data, TraceRow, file=source.path, line=line)
        checked_row(row, header.hash_block_size, source.path, line)
        if row.arrival_s < previous_s:
            accepted = f"arrivals in ascending order, here at least {previous_s}"
            raise InputError(file=source.path, line=line, field="arrival_s", found=row.arrival_s, accepted=accepted)
        previous_s = row.arrival_s
        yield line, row
