"""TraceV2 of BLIS (inference-sim): a CSV of requests in microseconds, and a YAML header beside it.

    trace.csv     request_id, session_id, round_index, prefix_group, prefix_length, input_tokens, output_tokens,
                  arrival_time_us, status and more (sim/workload/tracev2.go)
    trace.yaml    trace_version, time_unit, mode, server and more; may be absent

A prompt is the group's shared prefix of `prefix_length` tokens and `input_tokens` of its own (replay.go); where there
is no group and the server counted, `server_input_tokens` is its length. Of the times only arrivals are read: what a
run did is no part of a trace.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from traces.decoding import decode_yaml
from traces.errors import InputError
from traces.hashes import chained
from traces.readers.source import Numbered, Source
from traces.readers.table import Cells, cells, has_columns
from traces.trace import TraceRow

NEEDED = ("request_id", "input_tokens", "output_tokens", "arrival_time_us")
KNOWN = (
    "session_id",
    "round_index",
    "prefix_group",
    "prefix_length",
    "server_input_tokens",
    "vllm_priority",
    "status",
    "streaming",
)
BLOCK_SIZE = 16
"""Tokens per block of a prefix, where the header states none: vLLM's default."""


class _Server(msgspec.Struct):
    block_size: int | None = None


class _Header(msgspec.Struct):
    trace_version: int
    time_unit: str
    warm_up_requests: int = 0
    server: _Server | None = None


def is_tracev2(first_line: bytes) -> bool:
    """Whether a file that starts with this line is the CSV of a TraceV2."""
    return has_columns(first_line, NEEDED)


def rows(source: Source) -> Iterator[Numbered]:
    """A request's id is its request_id. Raises InputError."""
    block_size = _read_header(source)
    for row in cells(source, NEEDED, KNOWN):
        prompt_tokens, shared = _prompt(row)
        output_tokens = row.count("output_tokens")
        if (status := row.text.get("status", "")) not in ("", "ok"):
            source.counts[f"{{n}} requests ended with status {status!r}; they are part of the load"] += 1
        if source.empty(row.line, prompt_tokens, output_tokens):
            continue
        group = row.text.get("prefix_group") or None
        hashes = chained(range(shared // block_size), seed=group) if group is not None else None
        if hashes:
            source.hash_block_size = block_size
        yield (
            row.line,
            TraceRow(
                request_id=row.text["request_id"],
                arrival_s=row.seconds("arrival_time_us", per_second=10**6),
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                block_hashes=hashes or None,
                session_id=row.text.get("session_id") or None,
                priority=row.signed("vllm_priority") if row.text.get("vllm_priority") else 0,
            ),
        )


def _prompt(row: Cells) -> tuple[int, int]:
    """Tokens of the prompt, and those of the prefix that its group shares."""
    own = row.count("input_tokens")
    if not row.text.get("prefix_group"):
        counted = row.count("server_input_tokens") if row.text.get("server_input_tokens") else 0
        return counted or own, 0
    if "prefix_length" not in row.text:
        accepted = "a header with prefix_length, where there is a prefix_group"
        raise InputError("is missing", file=row.file, line=1, field="prefix_length", accepted=accepted)
    shared = row.count("prefix_length")
    return own + shared, shared


def _read_header(source: Source) -> int:
    """Tokens per block, from the header beside the file. Raises InputError."""
    name = source.path.name.removesuffix(".gz").removesuffix(".csv")
    path = source.path.with_name(f"{name}.yaml")
    if not path.is_file():
        source.notes.append(f"no {path.name} beside it: times are taken as microseconds, as the columns' names say")
        source.notes.append(f"shared prefixes are counted in blocks of {BLOCK_SIZE} tokens")
        return BLOCK_SIZE
    header = decode_yaml(path, _Header)
    if header.time_unit not in ("us", "microseconds"):
        raise InputError(file=path, field="time_unit", found=header.time_unit, accepted="us, or microseconds")
    if header.warm_up_requests:
        source.notes.append(f"the first {header.warm_up_requests} requests were warm-up: they are part of the trace")
    size = header.server.block_size if header.server is not None else None
    if size is not None and size < 1:
        raise InputError(file=path, field="server.block_size", found=size, accepted="at least 1")
    source.notes.append(f"shared prefixes are counted in blocks of {size or BLOCK_SIZE} tokens")
    return size or BLOCK_SIZE
