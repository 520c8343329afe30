"""A file's format is told by what it holds; what is not known is refused with what is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from traces.capture import Capture, write_capture
from traces.errors import InputError
from traces.formats import import_capture, read_any_trace
from traces.outcome import Outcome
from traces.trace import write_trace

WORKLOAD = '{"arrival_time_ns": 0, "input_toks": 5, "output_toks": 3}\n'


@pytest.fixture
def capture(served: Callable[..., Outcome], captured: Callable[..., Capture]) -> Capture:
    return captured([served()])


def test_each_format_is_told_by_its_first_line(tmp_path: Path, capture: Capture) -> None:
    own, packed, other = tmp_path / "a.txt", tmp_path / "a.gz", tmp_path / "b.txt"
    write_trace(capture.trace, own)
    write_trace(capture.trace, packed)
    other.write_text("\n" + WORKLOAD)
    assert read_any_trace(own).rows == read_any_trace(packed).rows == capture.trace.rows
    assert read_any_trace(other).rows[0].prompt_tokens == 5
    assert read_any_trace(other, "llmservingsim") == read_any_trace(other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a,b,c\n", "1: is of no known format: accepted: a trace in one of the formats servetwin, llmservingsim"),
        ("a,b\n", "--map arrival_s=COLUMN --map prompt_tokens=COLUMN --map output_tokens=COLUMN; its columns are a, b"),
        ("a\tb\n1\t2\n", "its columns are a, b"),
        ('{"t": 1, "usage": {"in": 2, "out": 3}}\n', "its columns are t, usage.in, usage.out"),
        (",".join(map(str, range(25))), "its columns are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17"),
        (",".join(map(str, range(25))), "17, 18, 19 and 5 more"),
        ("prose of some kind\n", "--map output_tokens=COLUMN"),
        ('{"input_toks": 5}', "field 'output_toks': is missing"),
    ],
)
def test_an_unknown_trace_says_what_is_known(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_any_trace(path)
    assert said in str(caught.value)


def test_an_unknown_parquet_file_says_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"ts": 1, "in": 2, "out": 3}]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="its columns are ts, in, out"):
        read_any_trace(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1, and no more")
    with pytest.raises(InputError, match=r"--map output_tokens=COLUMN$"):
        read_any_trace(tmp_path / "b.parquet")


def test_a_misspelt_format_names_the_nearest(tmp_path: Path, capture: Capture) -> None:
    (tmp_path / "a.jsonl").write_text(WORKLOAD)
    with pytest.raises(InputError, match="'llmservingsim' is the nearest known name"):
        read_any_trace(tmp_path / "a.jsonl", "llmserving")
    with pytest.raises(InputError, match="'servetwin' is the nearest known name"):
        import_capture(tmp_path, "serve-twin")


def test_each_run_is_told_by_its_files(tmp_path: Path, capture: Capture) -> None:
    write_capture(capture, tmp_path / "own")
    assert import_capture(tmp_path / "own").outcomes == capture.outcomes
    other = tmp_path / "other"
    other.mkdir()
    times = dict.fromkeys(("arrival_time", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts"), 1.0)
    row = {"request_id": "bench-0", "input_toks": 5, "output_toks": 3, **times}
    (other / "requests.jsonl").write_text(json.dumps(row))
    (other / "meta.json").write_text('{"model": "m", "vllm_version": "0.19.0", "engine_kwargs": {}}')
    assert import_capture(other).meta.engine == "vllm 0.19.0"


def test_a_capture_takes_no_second_trace(tmp_path: Path, capture: Capture) -> None:
    write_capture(capture, tmp_path / "own")
    with pytest.raises(InputError, match="holds its own trace"):
        import_capture(tmp_path / "own", trace=capture.trace)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, said in (("none", "no such file"), ("file", "not what it served"), (".", "is a run of no known format")):
        with pytest.raises(InputError, match=said):
            import_capture(tmp_path / path)
    with pytest.raises(InputError, match="is not a folder: accepted: a folder, as llmservingsim has"):
        import_capture(tmp_path / "file", "llmservingsim")
