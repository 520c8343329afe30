"""Means measured at a concurrency: rows by the names of their columns, and a scenario's closed loops beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.running.simulate import simulate_scenario
from tests.harness.scenarios import write_scenario
from tests.traces.mutations import N_COPIES, read_copies
from traces.errors import InputError
from traces.readers.aggregates import Aggregate, read_aggregates
from traces.trace import read_trace, write_trace

SAMPLE = (
    "id,model_path,isl,osl,batch_size,tp_size,pp_size,silicon_ttft_ms,silicon_tpot_ms\n"
    "a,test/tiny,64,8,2,1,1,5.5,2.25\n"
    "b,test/tiny,100,12,4,1,,12.5,3\n"
    "c,test/tiny,100,12,4,2,1,12.5,3\n"
)
LINES = (
    '{"isl": 64, "osl": 8, "conc": 2, "tp": 1, "mean_ttft_ms": 5.5, "mean_tpot_ms": 2.25, "hw": "x"}\n'
    '{"isl": 100, "osl": 12, "conc": 4, "tp": null, "mean_ttft_ms": 12.5, "mean_tpot_ms": 3, "hw": "x"}\n'
)


def test_columns_are_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text(SAMPLE)
    rows, notes = read_aggregates(path, ["tp_size=1"])
    assert rows == [
        Aggregate(2, 64, 8, 2, 0.0055, 0.00225, "test/tiny", 1, 1),
        Aggregate(3, 100, 12, 4, 0.0125, 0.003, "test/tiny", 1, None),
    ]
    assert notes == ("columns that were not read: id", "1 rows were left out: not tp_size=1")
    path.write_text(LINES)
    rows, notes = read_aggregates(path)
    assert rows == [Aggregate(1, 64, 8, 2, 0.0055, 0.00225, None, 1), Aggregate(2, 100, 12, 4, 0.0125, 0.003)]
    assert notes == ("fields that were not read: hw",)


@pytest.mark.parametrize(
    ("old", "new", "where", "said"),
    [
        ("silicon_ttft_ms", "ttft", (), "rows:2: field 'mean_ttft_ms': is missing.*silicon_ttft_ms"),
        ("id,", "isl,", (), "stands twice"),
        ("id,", "prompt_tokens,", (), "rows:2: field 'isl, prompt_tokens': are two names"),
        ("64,8,2", "64,1,2", (), "rows:2: field 'osl': found '1': accepted: a whole number from 2"),
        ("5.5", "0", (), "rows:2: field 'silicon_ttft_ms': found '0'.*above 0"),
        ("5.5", "5.5", ("tp_size=8",), "no row is left"),
        ("5.5", "5.5", ("tp=8",), "rows:2: field 'tp': is missing"),
        ("5.5", "5.5", ("tp",), "--where.*column=value"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, where: tuple[str, ...], said: str) -> None:
    (tmp_path / "rows").write_text(SAMPLE.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        read_aggregates(tmp_path / "rows", where)
    caught.match(f"(?s).*{said}")


@pytest.mark.parametrize("text", [SAMPLE, LINES])
def test_a_damaged_copy_is_refused_where_it_is_damaged_or_read(tmp_path: Path, text: str) -> None:
    refused = 0
    for copy, found in read_copies(text.encode(), read_aggregates, tmp_path / "rows"):
        if isinstance(found, InputError):
            refused += 1
            assert found.line is not None or "holds no rows" in str(found), (copy, str(found))
            continue
        for row in found[0]:
            line = copy.splitlines()[row.line - 1].decode()
            stated = (row.prompt_tokens, row.output_tokens, row.concurrency)
            assert all(str(number) in line for number in stated), copy
            assert row.mean_ttft_s > 0
            assert row.mean_tpot_s > 0
    assert refused > N_COPIES / 4


def test_a_scenario_is_scored_by_its_closed_loops(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path)
    (tmp_path / "rows").write_text(SAMPLE)
    words = ["trace", "aggregate", str(tmp_path / "rows"), str(scenario)]
    result = CliRunner().invoke(app, [*words, "--where", "tp_size=1", "--rounds", "3", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert [row["line"] for row in found["rows"]] == [2, 3]
    row = found["rows"][1]
    rows = [{"request_id": str(i), "arrival_s": 0.0, "prompt_tokens": 100, "output_tokens": 12} for i in range(12)]
    lines = [{"schema": "servetwin.trace/1"}, *rows]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_trace(read_trace(tmp_path / "own.jsonl"), tmp_path / "requests.jsonl")
    _, figures = simulate_scenario(scenario, ["concurrency=4"])
    for name, measured_ms in (("ttft", 12.5), ("tpot", 3.0)):
        simulated_ms = figures["metrics"][f"{name}_s"]["mean"] * 1e3
        assert row[f"{name}_simulated_ms"] == pytest.approx(simulated_ms)
        assert row[f"{name}_error"] == pytest.approx(simulated_ms / measured_ms - 1)
    table = CliRunner().invoke(app, [*words, "--where", "tp_size=1"])
    assert table.exit_code == 0, table.output
    assert "tpot_median_abs_error" in table.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), r"rows:4: field 'tensor_parallel_size': found 2.*--where"),
        (("--where", "tp_size=1", "--set", "concurrency=4"), "concurrency.*stands in the rows"),
        (("--where", "tp_size=1", "--rounds", "0"), "--rounds"),
    ],
)
def test_rows_of_something_else_are_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "rows").write_text(SAMPLE)
    result = CliRunner().invoke(
        app, ["trace", "aggregate", str(tmp_path / "rows"), str(write_scenario(tmp_path)), *words]
    )
    with pytest.raises(InputError, match=said):
        raise result.exception or AssertionError(result.output)
