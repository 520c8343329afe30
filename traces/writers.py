"""Traces in other tools' formats, and what each cannot hold.

No format but servetwin's own holds everything: what is lost is counted and said, never left out in silence. Written
files are read back by `traces.formats` with the same arrivals (to the unit of the format), lengths and shared blocks.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from traces.errors import InputError, nearest
from traces.hashes import mixed, resized
from traces.trace import Trace, TraceRow, trace_bytes

MOONCAKE_BLOCK_SIZE = 512
VLLM_BLOCK_SIZE = 16
"""Tokens of a chunk of vLLM's timed traces, where the trace has no blocks of its own."""
VOCAB_SIZE = 30_000
"""Made-up token ids are below it; tokenizers of the models at hand have more."""
AZURE_ZERO = datetime(2000, 1, 1)
_TRACEV2_HEADER = """
    request_id client_id tenant_id slo_class session_id round_index prefix_group prefix_length streaming input_tokens
    output_tokens text_tokens image_tokens audio_tokens video_tokens reason_ratio model deadline_us server_input_tokens
    arrival_time_us send_time_us first_chunk_time_us last_chunk_time_us num_chunks status error_message finish_reason
"""
TRACEV2_COLUMNS = tuple(_TRACEV2_HEADER.split())
"""In the order that BLIS reads them in (sim/workload/tracev2.go)."""


@dataclass(frozen=True, slots=True)
class Written:
    """A trace in some format.

    Attributes:
        files: the bytes of each file, by its ending; that of the file itself is "".
        notes: what the format cannot hold, or how it is to be used.
    """

    files: dict[str, bytes]
    notes: tuple[str, ...]


def trace_as(trace: Trace, format: str) -> Written:
    """The trace in a format of `WRITERS`. Raises InputError when the format is unknown, or cannot hold the trace."""
    if format not in WRITERS:
        raise InputError("unknown format to write", field="--to", found=format, accepted=nearest(format, WRITERS))
    return WRITERS[format](trace)


def _own(trace: Trace) -> Written:
    return Written({"": trace_bytes(trace)}, ())


def _azure(trace: Trace) -> Written:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for row in trace.rows:
        ticks = round(row.arrival_s * 10**7)
        when = AZURE_ZERO + timedelta(seconds=ticks // 10**7)
        text = f"{when:%Y-%m-%d %H:%M:%S}.{ticks % 10**7:07d}"
        lines.append(f"{text},{row.prompt_tokens},{row.output_tokens}")
    notes = [f"second 0 is written as {AZURE_ZERO:%Y-%m-%d}; arrivals are to 100 ns"]
    notes += _lost(trace, "request_id", "session_id", "delay_s", "after", "priority", "block_hashes")
    return Written({"": ("\n".join(lines) + "\n").encode()}, tuple(notes))


def _mooncake(trace: Trace) -> Written:
    lines, answers = _block_lines(trace, MOONCAKE_BLOCK_SIZE)
    notes = ["arrivals are in milliseconds; blocks of 512 tokens, those that nobody shares with an id of their own"]
    if trace.hash_block_size not in (None, MOONCAKE_BLOCK_SIZE):
        notes.append(f"blocks of {trace.hash_block_size} tokens became blocks of {MOONCAKE_BLOCK_SIZE}")
    return Written({"": lines}, (*notes, *answers, *_lost(trace, "request_id", "after")))


def _vllm_bench(trace: Trace) -> Written:
    size = trace.hash_block_size or VLLM_BLOCK_SIZE
    lines, answers = _block_lines(trace, size, stated=True)
    use = (
        "for vllm bench serve --backend vllm --dataset-name timed_trace --dataset-path FILE "
        f"--timed-trace-sec-multiplier 0.001 --timed-trace-chunk-hash-size {size} --num-prompts {len(trace)} "
        "--ignore-eos"
    )
    return Written(
        {"": lines}, (use, *answers, *_lost(trace, "request_id", "session_id", "delay_s", "after", "priority"))
    )


def _block_lines(trace: Trace, size: int, *, stated: bool = False) -> tuple[bytes, list[str]]:
    """Rows with an id for every block of the prompt, numbered as they appear; and what is said of the answers' blocks.

    Blocks that the trace knows nothing of get ids of their own, so that readers which make prompts out of ids make
    whole ones. `stated`: rows state the block size. Raises InputError when the trace's blocks do not fit.
    """
    number_of: dict[int, int] = {}
    n_ids, answers = 0, 0
    lines = []
    for row in trace.rows:
        hashes = _hashes(trace, row, size)
        full, started = row.prompt_tokens // size, -(-row.prompt_tokens // size)
        answers += len(hashes) > full
        ids = []
        for hash_ in hashes[:full]:
            if hash_ not in number_of:
                number_of[hash_], n_ids = n_ids, n_ids + 1
            ids.append(number_of[hash_])
        own = started - len(ids)
        ids += range(n_ids, n_ids + own)
        n_ids += own
        lengths = {"timestamp": _milliseconds(row.arrival_s), "input_length": row.prompt_tokens}
        line = {**lengths, "output_length": row.output_tokens, "hash_ids": ids, **_session(row)}
        lines.append(json.dumps({**line, "block_size": size} if stated else line))
    said = [f"{answers} requests have known blocks of the answer: not written"] if answers else []
    return ("\n".join(lines) + "\n").encode(), said


def _hashes(trace: Trace, row: TraceRow, size: int) -> tuple[int, ...]:
    if row.block_hashes is None or trace.hash_block_size is None:
        return ()
    hashes = resized(row.block_hashes, trace.hash_block_size, size)
    if hashes is None:
        accepted = f"a divisor or a multiple of {size}"
        raise InputError(file=trace.source, field="hash_block_size", found=trace.hash_block_size, accepted=accepted)
    return hashes


def _session(row: TraceRow) -> dict[str, object]:
    """Fields of supersets of Mooncake: aiperf's session and delay, and the priority that servetwin reads."""
    fields: dict[str, object] = {}
    if row.session_id is not None:
        fields["session_id"] = row.session_id
    if row.delay_s is not None and row.after is None:
        fields["delay"] = _milliseconds(row.delay_s)
    if row.priority:
        fields["priority"] = row.priority
    return fields


def _milliseconds(time_s: float) -> float:
    """To a picosecond; a whole number where it is one."""
    time_ms = round(time_s * 1e3, 9)
    return int(time_ms) if time_ms.is_integer() else time_ms


def _llmservingsim(trace: Trace) -> Written:
    notes = ["arrivals are to a nanosecond"]
    if trace.hash_block_size is not None:
        notes.append(
            f"token ids were made up of the block hashes, below {VOCAB_SIZE}: the same where blocks are the same"
        )
    lines = [json.dumps(line) for line in _llmservingsim_lines(trace)]
    return Written({"": ("\n".join(lines) + "\n").encode()}, (*notes, *_lost(trace, "request_id", "priority")))


def _llmservingsim_lines(trace: Trace) -> Iterator[dict[str, object]]:
    """A line per request; sessions whose requests wait for each other are agentic lines. Raises InputError."""
    if graph := next((row for row in trace.rows if row.after is not None), None):
        message = f"request {graph.request_id!r} waits for several others, which the format cannot say"
        raise InputError(message, file=trace.source, field="--to", accepted="servetwin's own format")
    waits = {row.session_id for row in trace.rows if row.delay_s is not None and row.after is None}
    sessions: dict[str | None, list[TraceRow]] = {name: [] for name in waits}
    for row in trace.rows:
        if row.session_id in waits:
            sessions[row.session_id].append(row)
    for row in trace.rows:
        arrival = {"arrival_time_ns": round(row.arrival_s * 1e9)}
        if row.session_id not in waits:
            yield {**_lengths(trace, row), **arrival}
        elif row is sessions[row.session_id][0]:
            chain = sessions[row.session_id]
            _check_chain(chain, trace)
            calls = [_lengths(trace, call) for call in chain]
            for call, after in zip(calls, chain[1:], strict=False):
                call["tool_duration_ns"] = round((after.delay_s or 0.0) * 1e9)
            yield {"session_id": row.session_id, **arrival, "sub_requests": calls}


def _check_chain(chain: list[TraceRow], trace: Trace) -> None:
    """Raise InputError unless each request but the first waits for nothing but the one before it."""
    first, *rest = chain
    if bad := next((row for row in rest if row.delay_s is None or row.arrival_s > first.arrival_s), None):
        message = (
            f"request {bad.request_id!r} waits for a time of its own within a session, which the format cannot say"
        )
        raise InputError(message, file=trace.source, field="--to", accepted="servetwin's own format, or mooncake")


def _lengths(trace: Trace, row: TraceRow) -> dict[str, object]:
    line: dict[str, object] = {"input_toks": row.prompt_tokens, "output_toks": row.output_tokens}
    if row.block_hashes is not None and trace.hash_block_size is not None:
        ids = _token_ids(row, trace.hash_block_size)
        line["input_tok_ids"], line["output_tok_ids"] = ids[: row.prompt_tokens], ids[row.prompt_tokens :]
    return line


def _token_ids(row: TraceRow, size: int) -> list[int]:
    """A token id for each token of prompt and answer: those of a known block by its hash, the rest by the request."""
    blocks = np.array([hash_ % 2**64 for hash_ in row.block_hashes or ()], dtype=np.uint64)
    known = mixed(np.add(mixed(blocks)[:, None], np.arange(size, dtype=np.uint64), dtype=np.uint64)).ravel()
    key = int.from_bytes(row.request_id.encode()[-8:], "little") + 2**63
    rest = row.prompt_tokens + row.output_tokens - len(known)
    with np.errstate(over="ignore"):
        own = mixed(
            np.add(mixed(np.array([key % 2**64], dtype=np.uint64)), np.arange(rest, dtype=np.uint64), dtype=np.uint64)
        )
    ids: list[int] = (np.concatenate([known, own]) % np.uint64(VOCAB_SIZE)).tolist()
    return ids


def _tracev2(trace: Trace) -> Written:
    numbered = all(row.request_id.isascii() and row.request_id.isdigit() for row in trace.rows)
    with_priority = any(row.priority for row in trace.rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = TRACEV2_COLUMNS
    writer.writerow([*columns[:4], "vllm_priority", *columns[4:]] if with_priority else columns)
    rounds: Counter[str | None] = Counter()
    for number, row in enumerate(trace.rows):
        if row.priority < 0:
            message = f"request {row.request_id!r} has a priority below 0, which TraceV2 cannot hold"
            raise InputError(message, file=trace.source, field="priority", found=row.priority, accepted="0 or more")
        arrival_us = round(row.arrival_s * 1e6)
        cells: dict[str, object] = dict.fromkeys(columns, 0)
        cells |= dict.fromkeys(("client_id", "tenant_id", "slo_class", "prefix_group", "model"), "")
        cells |= {"error_message": "", "finish_reason": "", "streaming": "true", "status": "ok"}
        cells |= {"request_id": int(row.request_id) if numbered else number, "session_id": row.session_id or ""}
        cells |= {
            "input_tokens": row.prompt_tokens,
            "text_tokens": row.prompt_tokens,
            "output_tokens": row.output_tokens,
        }
        cells |= {"arrival_time_us": arrival_us, "send_time_us": arrival_us, "round_index": rounds[row.session_id]}
        if row.session_id is not None:
            rounds[row.session_id] += 1
        values = [cells[name] for name in columns]
        writer.writerow([*values[:4], row.priority, *values[4:]] if with_priority else values)
    header = "trace_version: 3\ntime_unit: us\nmode: generated\nwarm_up_requests: 0\n"
    lost = [] if numbered else list(_lost(trace, "request_id"))
    notes = ["arrivals are to a microsecond", *lost, *_lost(trace, "delay_s", "after", "block_hashes")]
    return Written({"": text.getvalue().encode(), ".yaml": header.encode()}, tuple(notes))


def _lost(trace: Trace, *names: str) -> Iterator[str]:
    """What is said of fields that a format does not have."""
    for name in names:
        if name == "request_id":
            n = sum(row.request_id != str(number) for number, row in enumerate(trace.rows))
        else:
            n = sum(getattr(row, name) not in (None, 0) for row in trace.rows)
        if n:
            yield f"{name} of {n} requests is lost: the format has no place for it"


WRITERS: dict[str, Callable[[Trace], Written]] = {
    "servetwin": _own,
    "azure": _azure,
    "mooncake": _mooncake,
    "llmservingsim": _llmservingsim,
    "tracev2": _tracev2,
    "vllm-bench": _vllm_bench,
}
"""By name: what makes a trace's files of it."""
