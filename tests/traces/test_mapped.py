"""Any table as a trace: columns are named, units too, and nothing is guessed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.traces.mutations import N_COPIES, read_copies
from tests.traces.samples import Says, count, json_lines, served, table
from traces.errors import InputError
from traces.readers.mapped import TARGETS, parse_mapping, read_mapped
from traces.trace import Trace

CSV = "ts,in,out,who\n1700000000.25,5,3,a\n1700000001,6,4,b\n1700000001.75,7,5,a\n"
JSON = '{"ts": 250, "in": 5, "out": 3}\n{"ts": 1250.0, "in": 6, "out": 4}\n{"ts": 2000, "in": 7, "out": 5}\n'
COUNTS = {"prompt_tokens": "in", "output_tokens": "out"}


def written(folder: Path, text: str, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("target", "cells"),
    [
        ("arrival_s", ("0", "0.75", "1.5")),
        ("arrival_ms", ("0", "750", "1500")),
        ("arrival_us", ("0", "75e4", "1500000.0")),
        ("arrival_ns", ("0", "750000000", "1500000000")),
        ("arrival_unix_s", ("1700000000.25", "1700000001", "1700000001.75")),
        ("arrival_unix_ms", ("1700000000250", "1700000001000", "1700000001750")),
        ("arrival_unix_us", ("1700000000250000", "1700000001000000", "1700000001750000")),
        ("arrival_unix_ns", ("1700000000250000001", "1700000001000000001", "1700000001750000001")),
        ("arrival_datetime", ("2024-02-28T23:59:59.25Z", "2024-02-29T00:00:00Z", "2024-02-29T01:00:00.750000+01:00")),
    ],
)
def test_every_unit_gives_the_same_seconds(tmp_path: Path, target: str, cells: tuple[str, ...]) -> None:
    path = written(tmp_path, "ts,in,out\n" + "".join(f"{cell},5,3\n" for cell in cells))
    trace = read_mapped(path, {target: "ts", **COUNTS})
    assert [row.arrival_s for row in trace.rows] == [0.0, 0.75, 1.5]
    assert f"columns by mapping: {target}=ts" in trace.notes[0]


def test_csv_json_lines_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows = [{"ts": 250.0, "in": 5, "out": 3, "ids": [1, 2]}, {"ts": 1250.5, "in": 6, "out": 4, "ids": [1, 3]}]
    mapping = {"arrival_ms": "ts", **COUNTS, "block_hashes": "ids"}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    json_path = written(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "log.jsonl")
    csv_path = written(tmp_path, 'ts,out,in,ids\n250,3,5,"[1, 2]"\n1250.5,4,6,"[1,3]"\n')
    packed = tmp_path / "log.csv.gz"
    packed.write_bytes(gzip.compress(csv_path.read_bytes()))
    read = [read_mapped(p, mapping, 4) for p in (tmp_path / "log.parquet", json_path, csv_path, packed)]
    assert read[0].rows == read[1].rows == read[2].rows == read[3].rows
    assert read[2].sha256 == read[3].sha256 != read[0].sha256
    first, second = read[0].rows
    assert first.block_hashes is not None
    assert second.block_hashes is not None
    assert first.block_hashes[0] == second.block_hashes[0] != second.block_hashes[1]


def test_what_stands_in_objects_is_named_with_dots(tmp_path: Path) -> None:
    line = '{"t": {"s": %d}, "usage": {"in": 5, "out": 3, "all": 8}, "a.b": "x"}\n'
    path = written(tmp_path, line % 0 + line % 2, "log.jsonl")
    mapping = {"arrival_s": "t.s", "prompt_tokens": "usage.in", "output_tokens": "usage.out", "session_id": "a.b"}
    trace = read_mapped(path, mapping)
    assert [(row.arrival_s, row.prompt_tokens, row.output_tokens, row.session_id) for row in trace.rows] == [
        (0.0, 5, 3, "x"),
        (2.0, 5, 3, "x"),
    ]
    assert "columns that were not read: usage.all" in trace.notes
    with pytest.raises(InputError, match=r"log.jsonl:1: field 'usage.inn': is missing: accepted: 'usage.in' is the"):
        read_mapped(path, {**mapping, "prompt_tokens": "usage.inn"})
    with pytest.raises(InputError, match=r"field 'usage.in.x': is missing"):
        read_mapped(path, {**mapping, "prompt_tokens": "usage.in.x"})


def test_a_date_is_said_to_count_from_its_column(tmp_path: Path) -> None:
    trace = read_mapped(written(tmp_path, "ts,in,out\n1700000000,5,3\n"), {"arrival_unix_s": "ts", **COUNTS})
    assert "arrivals are counted from the first row's ts" in trace.notes


def test_sessions_delays_priorities_and_ids(tmp_path: Path) -> None:
    text = "id,ts,in,out,s,d,p\nx,0,5,3,s1,,1\ny,0,6,4,s1,500,-2\nz,0,7,5,,250,\n"
    mapping = {"request_id": "id", "arrival_s": "ts", **COUNTS, "session_id": "s", "delay_ms": "d", "priority": "p"}
    trace = read_mapped(written(tmp_path, text), mapping)
    assert [(r.request_id, r.session_id, r.delay_s, r.priority) for r in trace.rows] == [
        ("x", "s1", None, 1),
        ("y", "s1", 0.5, -2),
        ("z", None, None, 0),
    ]
    assert "1 requests have a delay but no request before them" in trace.notes[-1]


def test_rows_out_of_order_are_sorted_and_said(tmp_path: Path) -> None:
    path = written(tmp_path, "ts,in,out\n9,5,3\n7,6,4\n8,7,5\n")
    trace = read_mapped(path, {"arrival_unix_s": "ts", **COUNTS})
    assert [(row.request_id, row.arrival_s) for row in trace.rows] == [("1", 0.0), ("2", 1.0), ("0", 2.0)]
    assert "not in order of arrival (1 rows arrive before the row above them): sorted" in trace.notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "accepted: one arrival, of arrival_s"),
        (["arrival_s"], "a target and a column"),
        (["arrival_s="], "a target and a column"),
        (["arrivals=ts"], "'arrival_s' is the nearest known name"),
        (["arrival_s=a", "arrival_s=b"], "stands twice"),
        (["arrival_s=a", "arrival_ms=b"], "one arrival"),
        (["arrival_s=a", "prompt_tokens=b"], "output_tokens must be mapped"),
        (["arrival_s=a", "prompt_tokens=b", "output_tokens=c", "delay_s=d", "delay_ms=e"], "one of them"),
    ],
)
def test_a_wrong_mapping_is_named(options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=r"--map") as caught:
        parse_mapping(options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "mapping", "message"),
    [
        (CSV, {"arrival_s": "ts", **COUNTS}, "log.csv:2: field 'ts': found '1700000000.25': accepted: a number from 0"),
        (CSV, {"arrival_unix_s": "time", **COUNTS}, "field 'time': is missing"),
        (CSV.replace("who", "in"), {"arrival_unix_s": "ts", **COUNTS}, "field 'in': stands twice"),
        (CSV, {"arrival_datetime": "ts", **COUNTS}, "accepted: a date and time"),
        (CSV, {"arrival_unix_ns": "ts", **COUNTS, "request_id": "who"}, "field 'request_id': found 'a'"),
        (JSON, {"arrival_ms": "ts", "prompt_tokens": "in", "output_tokens": "tokens"}, "field 'tokens': is missing"),
        (
            "ts,in,out\n2024-01-01 00:00:00,1,1\n2024-01-01 00:00:01Z,1,1\n",
            {"arrival_datetime": "ts", **COUNTS},
            "zone",
        ),
        ("", {"arrival_s": "ts", **COUNTS}, "holds no requests"),
        ("ts,in,out\n", {"arrival_s": "ts", **COUNTS}, "holds no requests"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, mapping: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_mapped(written(tmp_path, text), mapping)
    assert message in str(caught.value)


def test_hashes_need_their_block_size(tmp_path: Path) -> None:
    mapping = {"arrival_unix_s": "ts", **COUNTS}
    path = written(tmp_path, CSV)
    for more, size in (({}, 16), ({"block_hashes": "who"}, None), ({"block_hashes": "who"}, 0)):
        with pytest.raises(InputError, match="--hash-block-size"):
            read_mapped(path, {**mapping, **more}, size)
    with pytest.raises(InputError, match=r"field 'who': found 'a': accepted: a list of ids"):
        read_mapped(path, {**mapping, "block_hashes": "who"}, 16)


def test_what_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_mapped(tmp_path / "log", {"arrival_s": "ts", **COUNTS})
    with pytest.raises(InputError, match="no such file"):
        read_mapped(tmp_path / "none", {"arrival_s": "ts", **COUNTS})


def naive(text: str) -> Says:
    if text.lstrip().startswith("{"):
        return served([(float(r["ts"]) / 1e3, count(r["in"]), count(r["out"])) for r in json_lines(text)])
    return served([(float(r["ts"]) / 1e3, count(r["in"]), count(r["out"])) for r in table(text)])


@pytest.mark.parametrize("text", ["ts,in,out\n250,5,3\n1250,6,4\n2000.5,7,5\n", JSON], ids=["csv", "jsonl"])
def test_a_damaged_copy_is_refused_where_it_is_damaged_or_read_aright(tmp_path: Path, text: str) -> None:
    refused = 0
    path = tmp_path / "log"
    for copy, found in read_copies(text.encode(), lambda path: read_mapped(path, {"arrival_ms": "ts", **COUNTS}), path):
        if isinstance(found, InputError):
            refused += 1
            assert found.file == str(path)
            assert found.line is not None or "holds no requests" in str(found), (copy, str(found))
        else:
            assert said(found) == naive(copy.decode()), copy
    assert refused > N_COPIES / 4


def test_a_damaged_parquet_file_is_refused_or_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"ts": 250.0, "in": 5, "out": 3}]), tmp_path / "log.parquet")

    def read(path: Path) -> Trace:
        path.write_bytes(b"PAR1" + path.read_bytes()[4:])
        return read_mapped(path, {"arrival_ms": "ts", **COUNTS})

    path = tmp_path / "log"
    refused = 0
    for copy, found in read_copies((tmp_path / "log.parquet").read_bytes(), read, path, text=False):
        if isinstance(found, InputError):
            refused += 1
            assert found.file == str(path)
        else:
            assert all(time_s >= 0 and prompt and output for time_s, prompt, output in said(found)), copy
    assert refused > N_COPIES / 4


def said(trace: Trace) -> Says:
    return served([(row.arrival_s, row.prompt_tokens, row.output_tokens) for row in trace.rows])


def test_every_target_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "traces.md").read_text()
    assert [target for target in TARGETS if f"`{target}`" not in page] == []
