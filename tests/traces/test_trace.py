"""The project's own trace format: what is written is read, what is wrong is refused where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.errors import InputError
from traces.trace import Trace, TraceRow, read_trace, write_trace

HEADER = '{"schema": "servetwin.trace/1", "hash_block_size": 4}'
ROW = '{"request_id": "a", "arrival_s": 1.5, "prompt_tokens": 6, "output_tokens": 2, "block_hashes": [11, 12]}'


def row(**changed: object) -> str:
    import json

    return json.dumps({**json.loads(ROW), **changed})


BAD_FILES = [
    ("empty", "", None, None),
    ("no header", ROW, 1, "request_id"),
    ("wrong header", '{"schema": "servetwin.trace/9"}\n' + ROW, 1, "schema"),
    ("header alone", HEADER, None, None),
    ("truncated line", f"{HEADER}\n{ROW}\n{ROW[:40]}", 3, None),
    ("negative prompt", f"{HEADER}\n{row(prompt_tokens=-1)}", 2, "prompt_tokens"),
    ("no output", f"{HEADER}\n{row(output_tokens=0)}", 2, "output_tokens"),
    ("count of 10^30", f"{HEADER}\n{row(output_tokens=10**30)}", 2, "output_tokens"),
    ("fraction of a token", f"{HEADER}\n{row(output_tokens=2.5)}", 2, "output_tokens"),
    ("NaN arrival", f"{HEADER}\n{row(arrival_s=float('nan'))}", 2, "arrival_s"),
    ("infinite arrival", f"{HEADER}\n\n{row(arrival_s=float('inf'))}", 3, "arrival_s"),
    ("negative arrival", f"{HEADER}\n{row(arrival_s=-0.1)}", 2, "arrival_s"),
    ("unsorted", f"{HEADER}\n{ROW}\n{row(request_id='b', arrival_s=1.4)}", 3, "arrival_s"),
    ("same id twice", f"{HEADER}\n{ROW}\n{ROW}", 3, "request_id"),
    ("hash without block size", '{"schema": "servetwin.trace/1"}\n' + ROW, 2, "block_hashes"),
    ("a hash too many", f"{HEADER}\n{row(block_hashes=[1, 2, 3])}", 2, "block_hashes"),
    ("unknown field", f"{HEADER}\n{row(prompt_token=3)}", 2, "prompt_token"),
    ("text for a number", f"{HEADER}\n{row(arrival_s='1.5')}", 2, "arrival_s"),
    ("after a later row", f"{HEADER}\n{row(after=['b'])}\n{row(request_id='b')}", 2, "after"),
    ("after nothing", f"{HEADER}\n{row(after=[])}", 2, "after"),
    ("a delay after nobody", f"{HEADER}\n{row(delay_s=1.0)}", 2, "session_id"),
    ("block size 0", '{"schema": "servetwin.trace/1", "hash_block_size": 0}\n' + ROW, 1, "hash_block_size"),
]


@pytest.mark.parametrize(
    ("text", "line", "field"), [case[1:] for case in BAD_FILES], ids=[case[0] for case in BAD_FILES]
)
def test_a_wrong_trace_is_refused_where_it_is_wrong(tmp_path: Path, text: str, line: int | None, field: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(path), line, field)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        read_trace(tmp_path / "none.jsonl")


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    arrivals = sorted(draw(st.lists(st.floats(0, 1e6), min_size=1, max_size=20)))
    rows = []
    for i, arrival_s in enumerate(arrivals):
        prompt, output = draw(st.tuples(st.integers(1, 100), st.integers(1, 100)))
        hashes = st.lists(st.integers(0, 2**64 - 1), max_size=(prompt + output) // 4).map(tuple)
        rows.append(
            TraceRow(
                request_id=str(i),
                arrival_s=arrival_s,
                prompt_tokens=prompt,
                output_tokens=output,
                block_hashes=draw(st.none() | hashes),
                session_id=draw(st.none() | st.text(max_size=5)),
                priority=draw(st.integers(-5, 5)),
                after=(str(draw(st.integers(0, i - 1))),) if i and draw(st.booleans()) else None,
            )
        )
    return Trace(tuple(rows), 4, "test", "sha256:0", tuple(draw(st.lists(st.text(max_size=5), max_size=2))))


@given(traces(), st.sampled_from(["trace.jsonl", "trace.jsonl.gz"]))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, trace: Trace, name: str) -> None:
    path = tmp_path_factory.mktemp("trace") / name
    write_trace(trace, path)
    first = path.read_bytes()
    back = read_trace(path)
    assert (back.rows, back.hash_block_size, back.notes) == (trace.rows, trace.hash_block_size, trace.notes)
    write_trace(back, path)
    assert path.read_bytes() == first


def test_the_same_requests_at_other_times() -> None:
    rows = [TraceRow(request_id=i, arrival_s=0.0, prompt_tokens=1, output_tokens=1) for i in ("a", "b")]
    trace = Trace(tuple(rows), None, "test", "sha256:0", ("first",))
    moved = trace.with_arrivals({"a": 2.0, "b": 1.0}, "moved")
    assert [(row.request_id, row.arrival_s) for row in moved.rows] == [("b", 1.0), ("a", 2.0)]
    assert moved.notes == ("first", "moved")
    with pytest.raises(InputError, match="'b' has no measured arrival"):
        trace.with_arrivals({"a": 2.0}, "moved")
