"""Our own format and LLMServingSim's, row by row: the rows of the whole file, and never all of them at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from traces.errors import InputError
from traces.formats import TraceStream, read_any_trace
from traces.trace import Trace, TraceRow, write_trace

ROWS = tuple(
    TraceRow(
        request_id=f"r{i}",
        arrival_s=0.5 * i,
        prompt_tokens=40 + i,
        output_tokens=7,
        block_hashes=(1, i) if i % 2 else None,
        priority=i % 3,
    )
    for i in range(50)
)
WORKLOAD = "".join(
    json.dumps(
        {
            "input_toks": 33,
            "output_toks": 4,
            "arrival_time_ns": 1e9 * i,
            "more": 1,
            **({"input_tok_ids": [5] * 32 + [i]} if i % 2 else {}),
        }
    )
    + "\n"
    for i in range(9)
)


def assert_streamed(path: Path) -> None:
    whole, stream = read_any_trace(path), TraceStream(path)
    assert tuple(stream) == whole.rows
    assert stream.trace() == Trace((), whole.hash_block_size, whole.source, whole.sha256, whole.notes)


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_our_own_format(tmp_path: Path, name: str) -> None:
    write_trace(Trace(ROWS, 16, "made", "sha256:0", ("a note",)), tmp_path / name)
    assert_streamed(tmp_path / name)


@pytest.mark.parametrize("lines", [slice(None), slice(0, 1)])  # with token ids, and without
def test_a_workload_of_llmservingsim(tmp_path: Path, lines: slice) -> None:
    path = tmp_path / "workload.jsonl"
    path.write_text("".join(WORKLOAD.splitlines(keepends=True)[lines]))
    assert_streamed(path)
    assert "fields of workload.jsonl that were not read: more" in read_any_trace(path).notes


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_a_row_is_there_before_the_file_is_read(tmp_path: Path, name: str) -> None:
    rows = tuple(
        TraceRow(
            request_id=f"{hash((i, 'salt')):x}", arrival_s=float(i), prompt_tokens=1 + i * 7919 % 9973, output_tokens=1
        )
        for i in range(20_000)
    )
    write_trace(Trace(rows, None, "made", "sha256:0"), tmp_path / name)
    stream = TraceStream(tmp_path / name)
    assert stream.share_read == 0
    left = iter(stream)
    assert next(left) == rows[0]
    assert 0 < stream.share_read < 0.5
    assert sum(1 for _ in left) == len(rows) - 1
    assert stream.share_read == 1


def refused(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(InputError) as error:
        list(TraceStream(path))
    return str(error.value)


def test_what_is_wrong_is_told_by_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    header, *rows = trace_lines(tmp_path)
    found = refused(path, "".join([header, rows[3], rows[2]]))
    assert f"{path}:3: field 'arrival_s'" in found
    found = refused(path, header.replace("trace/1", "trace/9"))
    assert f"{path}:1: field 'schema'" in found
    found = refused(path, "".join([header.replace("16", "64"), *rows]))
    assert f"{path}:3: field 'block_hashes'" in found
    first, *others = WORKLOAD.splitlines(keepends=True)
    assert f"{path}:3: field 'arrival_time_ns'" in refused(path, "".join([first, *others[2:0:-1]]))


def trace_lines(folder: Path) -> list[str]:
    write_trace(Trace(ROWS, 16, "made", "sha256:0"), folder / "made")
    return (folder / "made").read_text().splitlines(keepends=True)
