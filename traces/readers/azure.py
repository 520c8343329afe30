"""Azure's LLM inference traces: CSV with TIMESTAMP, ContextTokens, GeneratedTokens (2023 and 2024).

Of a chat and a code service, by date and time to 100 ns (2023: no zone stated; 2024: with one). The multimodal trace of
2025 has NumImages besides, which is not read. From Azure/AzurePublicDataset, CC-BY-4.0.
"""

from __future__ import annotations

from collections.abc import Iterator

from traces.readers.source import Numbered, Source, since_first
from traces.readers.table import cells, has_columns
from traces.trace import TraceRow

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def is_azure(first_line: bytes) -> bool:
    """Whether a file that starts with this line is one of Azure's traces."""
    return has_columns(first_line, COLUMNS)


def rows(source: Source) -> Iterator[Numbered]:
    """A request's id is the number of its row, from "0". Raises InputError."""
    source.notes.append("arrivals are counted from the first row's TIMESTAMP")
    return since_first(_dated(source))


def _dated(source: Source) -> Iterator[tuple[int, int, TraceRow]]:
    zoned: bool | None = None
    for number, row in enumerate(cells(source, COLUMNS)):
        arrival_ns, has_zone = row.instant_ns("TIMESTAMP")
        if zoned is None:
            zoned = has_zone
            if not zoned:
                source.notes.append("TIMESTAMP states no zone: taken as one clock that nobody set meanwhile")
        if has_zone != zoned:
            accepted = f"a time {'with' if zoned else 'without'} a zone, as in the first row"
            raise row.error("TIMESTAMP", accepted)
        prompt_tokens, output_tokens = row.count("ContextTokens"), row.count("GeneratedTokens")
        if not source.empty(row.line, prompt_tokens, output_tokens):
            request = TraceRow(
                request_id=str(number), arrival_s=0.0, prompt_tokens=prompt_tokens, output_tokens=output_tokens
            )
            yield row.line, arrival_ns, request
