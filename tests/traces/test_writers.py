"""What is written in another tool's format is read back, shared blocks and sessions too; what is lost is said."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.errors import InputError
from traces.formats import read_any_trace
from traces.hashes import chained
from traces.trace import Trace, TraceRow
from traces.writers import TRACEV2_COLUMNS, WRITERS, trace_as

TICK_S = {"servetwin": 0, "azure": 1e-7, "mooncake": 1e-12, "llmservingsim": 1e-9, "tracev2": 1e-6, "vllm-bench": 1e-12}
KEEP_BLOCKS = {"servetwin": 1, "mooncake": 32, "llmservingsim": 1, "vllm-bench": 1}
"""Formats that hold blocks; each of theirs is so many of 16 tokens."""
READ_AS = {"vllm-bench": "mooncake"}


def trace_of(rows: list[TraceRow], hash_block_size: int | None = None) -> Trace:
    return Trace(tuple(rows), hash_block_size, "test", "sha256:0")


def row(number: int, **changed: object) -> TraceRow:
    usual = {"request_id": str(number), "arrival_s": number * 0.5, "prompt_tokens": 40, "output_tokens": 3}
    return TraceRow(**{**usual, **changed})  # type: ignore[arg-type]


def back(trace: Trace, to: str, folder: Path) -> Trace:
    path = folder / "trace"
    for ending, data in trace_as(trace, to).files.items():
        (folder / f"trace{ending}").write_bytes(data)
    found = read_any_trace(path)
    assert found.rows == read_any_trace(path, READ_AS.get(to, to)).rows
    return found


def sharing(trace: Trace, every: int = 1, prompts_only: bool = False) -> list[list[int]]:
    """For each request its blocks that others have too, numbered in order of appearance."""
    blocks = []
    for r in trace.rows:
        hashes = (r.block_hashes or ())[every - 1 :: every]
        most = r.prompt_tokens // ((trace.hash_block_size or 1) * every) if prompts_only else len(hashes)
        blocks.append(hashes[:most])
    seen: dict[int, int] = {}
    times: dict[int, int] = {}
    for hash_ in (h for b in blocks for h in b):
        times[hash_] = times.get(hash_, 0) + 1
    common = [[h for h in b if times[h] > 1] for b in blocks]
    return [[seen.setdefault(h, len(seen)) for h in b] for b in common]


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    rows = []
    arrivals = sorted(draw(st.lists(st.floats(0, 1e5), min_size=1, max_size=8)))
    for i, arrival_s in enumerate(arrivals):
        prompt = draw(st.integers(1, 2000))
        ids = draw(st.lists(st.integers(0, 1), max_size=3))
        known = [id_ for id_ in ids for _ in range(32)][: prompt // 16]
        rows.append(
            row(i, arrival_s=arrival_s - arrivals[0], prompt_tokens=prompt, block_hashes=chained(known) or None)
        )
    return trace_of(rows, 16 if any(r.block_hashes for r in rows) else None)


@pytest.mark.parametrize("to", WRITERS)
@given(trace=traces())
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, to: str, trace: Trace) -> None:
    found = back(trace, to, tmp_path_factory.mktemp("trace"))
    lengths = [(r.request_id, r.prompt_tokens, r.output_tokens) for r in trace.rows]
    assert [(r.request_id, r.prompt_tokens, r.output_tokens) for r in found.rows] == lengths
    for a, b in zip(found.rows, trace.rows, strict=True):
        assert a.arrival_s == pytest.approx(b.arrival_s, abs=TICK_S[to], rel=1e-15)
    if to in KEEP_BLOCKS and trace.hash_block_size:
        assert sharing(found, prompts_only=True) == sharing(trace, KEEP_BLOCKS[to])


def test_every_format_that_is_written_is_here() -> None:
    assert set(TICK_S) == set(WRITERS)


CHAIN = [
    row(0, session_id="s"),
    row(1, arrival_s=0.0, session_id="s", delay_s=0.25),
    row(2, arrival_s=0.0, session_id="s", delay_s=0.0),
    row(3),
]


@pytest.mark.parametrize("to", ["servetwin", "mooncake", "llmservingsim"])
def test_sessions_whose_requests_wait_are_kept(tmp_path: Path, to: str) -> None:
    trace = trace_of(sorted(CHAIN, key=lambda r: r.arrival_s))
    found = back(trace, to, tmp_path)
    assert [(r.session_id, r.delay_s) for r in found.rows] == [("s", None), ("s", 0.25), ("s", 0.0), (None, None)]


def test_a_chain_that_the_format_cannot_say_is_refused() -> None:
    trace = trace_of([CHAIN[0], row(1, session_id="s", delay_s=0.25)])
    with pytest.raises(InputError, match="request '1' waits for a time of its own within a session"):
        trace_as(trace, "llmservingsim")


def test_graphs_are_lost_or_refused() -> None:
    trace = trace_of([row(0), row(1), row(2, after=("0", "1"), delay_s=0.5)])
    with pytest.raises(InputError, match="request '2' waits for several others"):
        trace_as(trace, "llmservingsim")
    assert "after of 1 requests is lost: the format has no place for it" in trace_as(trace, "mooncake").notes
    assert b"delay" not in trace_as(trace, "mooncake").files[""]
    assert b'"after":["0","1"]' in trace_as(trace, "servetwin").files[""]


def test_what_is_lost_is_said() -> None:
    rows = [row(0, session_id="s", priority=2, block_hashes=(1, 2)), row(7, session_id="s", delay_s=1.0)]
    trace = trace_of(rows, 16)
    said = {to: "\n".join(trace_as(trace, to).notes) for to in WRITERS if to != "llmservingsim"}
    for name in ("session_id", "delay_s", "priority", "block_hashes"):
        assert f"{name} of 1 requests is lost" in said["azure"] or f"{name} of 2 requests is lost" in said["azure"]
    assert "request_id of 1 requests is lost" in said["azure"]
    assert "block_hashes of 1 requests is lost" in said["tracev2"]
    assert "session_id" not in said["tracev2"]
    assert said["servetwin"] == ""


def test_answers_blocks_and_sizes_that_do_not_fit_are_said() -> None:
    trace = trace_of([row(0, prompt_tokens=20, output_tokens=30, block_hashes=chained(range(3)))], 16)
    assert "1 requests have known blocks of the answer: not written" in trace_as(trace, "vllm-bench").notes
    odd = trace_of([row(0, block_hashes=(1,))], 24)
    with pytest.raises(InputError, match="hash_block_size': found 24: accepted: a divisor or a multiple of 512"):
        trace_as(odd, "mooncake")


def test_every_prompt_of_a_timed_trace_has_ids_for_all_its_tokens() -> None:
    """vLLM makes a prompt of the ids alone: TimedTrace._expand_prompt of its 0.32."""
    trace = trace_of([row(0, block_hashes=chained([4]), prompt_tokens=40), row(1, prompt_tokens=16)], 16)
    lines = [json.loads(line) for line in trace_as(trace, "vllm-bench").files[""].splitlines()]
    assert [line["hash_ids"] for line in lines] == [[0, 1, 2], [3]]
    assert "--timed-trace-chunk-hash-size 16 --num-prompts 2" in trace_as(trace, "vllm-bench").notes[0]


def test_tracev2_has_the_columns_that_its_reader_counts_off() -> None:
    files = trace_as(trace_of([row(0), row(1, priority=3)]), "tracev2").files
    header, *rows = csv.reader(io.StringIO(files[""].decode()))
    assert [name for name in header if name != "vllm_priority"] == list(TRACEV2_COLUMNS)
    assert header[4] == "vllm_priority"
    assert all(len(cells) == len(header) for cells in rows)
    assert rows[1][4] == "3"
    assert files[".yaml"].startswith(b"trace_version: ")
    with pytest.raises(InputError, match="priority below 0"):
        trace_as(trace_of([row(0, priority=-1)]), "tracev2")


def test_a_misspelt_format_names_the_nearest() -> None:
    with pytest.raises(InputError, match="'mooncake' is the nearest known name"):
        trace_as(trace_of([row(0)]), "moon-cake")
