"""The commands of `servetwin trace` and `capture import`: what they write, what they say, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from tests.traces.samples import SAMPLES
from traces.errors import InputError
from traces.formats import read_any_trace
from traces.trace import Trace

TEXT = {sample.name: sample.text for sample in SAMPLES}


def run(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    path = tmp_path / "azure.csv"
    path.write_text(TEXT["azure"])
    return path


def test_import_says_what_was_assumed_and_keeps_it(azure: Path, tmp_path: Path) -> None:
    said = run("trace", "import", azure, "--out", tmp_path / "own.jsonl.gz")
    trace = read_any_trace(tmp_path / "own.jsonl.gz")
    assert len(trace) == 3
    assert any("no zone" in note for note in trace.notes)
    assert "were left out: there is nothing to serve" in said
    assert json.loads(run("trace", "show", tmp_path / "own.jsonl.gz", "--json"))["requests"] == 3


def test_parts_rates_and_names(azure: Path, tmp_path: Path) -> None:
    run("trace", "import", azure, "--end", "60", "--speed", "2", "--anonymise", "--salt", "s", "--out", tmp_path / "a")
    run("trace", "import", azure, "--end", "60", "--speed", "2", "--anonymise", "--salt", "s", "--out", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [row.arrival_s for row in read_any_trace(tmp_path / "a").rows] == [0.0, 0.02600005]
    assert b"azure" not in (tmp_path / "a").read_bytes()


def test_a_table_by_mapping(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('t,a,b,h\n0,40,1,"[1, 2]"\n')
    targets = [f"--map={m}" for m in ("arrival_s=t", "prompt_tokens=a", "output_tokens=b", "block_hashes=h")]
    run("trace", "import", tmp_path / "log", *targets, "--hash-block-size", "16", "--out", tmp_path / "own")
    assert len(read_any_trace(tmp_path / "own").rows[0].block_hashes or ()) == 2


def test_two_files_of_tracev2(azure: Path, tmp_path: Path) -> None:
    assert "arrivals are to a microsecond" in run(
        "trace", "import", azure, "--to", "tracev2", "--out", tmp_path / "t.csv"
    )
    assert (tmp_path / "t.yaml").exists()
    assert not any("no t.yaml" in note for note in read_any_trace(tmp_path / "t.csv").notes)
    (tmp_path / "u.yaml").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        run("trace", "import", azure, "--to", "tracev2", "--out", tmp_path / "u.csv")
    assert not (tmp_path / "u.csv").exists()


def test_synthetic_traces_and_twins(tmp_path: Path) -> None:
    run("trace", "synth", "--requests", "200", "--arrivals", "gamma", "--cv", "2", "--out", tmp_path / "s")
    said = run("trace", "synth", "--like", tmp_path / "s", "--requests", "50", "--rate", "3", "--out", tmp_path / "t")
    assert "synthetic twin of" in said
    assert len(read_any_trace(tmp_path / "t")) == 50
    assert "0/0" in {row.request_id for row in _mix(tmp_path).rows}


def _mix(folder: Path) -> Trace:
    run("trace", "mix", folder / "s", folder / "t", "--out", folder / "m")
    return read_any_trace(folder / "m")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("import", "{0}", "--salt", "x"), "--salt.*only with --anonymise"),
        (("import", "{0}", "--hash-block-size", "16"), "--hash-block-size.*only with --map"),
        (("import", "{0}", "--map", "arrival_s=x", "--format", "azure"), "--map.*one of them"),
        (("import", "{0}", "--to", "csv"), "--to.*unknown format to write"),
        (("import", "{0}", "--start", "1000000"), "no request is left"),
        (("synth", "--like", "{0}", "--cv", "2"), "--like.*--cv too"),
        (("synth", "--bursts", "2:1:9", "--diurnal", "0.5:60"), "--bursts.*one of them"),
        (("synth", "--bursts", "2:1"), "--bursts.*FACTOR:BURST_S:PERIOD_S"),
        (("synth", "--diurnal", "x:60"), "--diurnal.*AMPLITUDE:PERIOD_S"),
        (("synth", "--arrivals", "pareto"), "--arrivals.*poisson"),
        (("synth", "--cv", "2"), "--cv.*of their own"),
        (("synth", "--requests", "0"), "--requests"),
        (("synth", "--requests", "99999999999999999999"), "--requests.*1 to 100000000"),
        (("synth", "--like", "{0}", "--requests", "99999999999999999999"), "--requests.*1 to 100000000"),
        (("mix", "{0}"), "two traces or more"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    azure: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        run("trace", *(word.format(azure) for word in words), "--out", tmp_path / "out")
    caught.match(f"(?s).*{said}")
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_tool_becomes_a_capture(tmp_path: Path) -> None:
    result = {"input_lens": [4], "output_lens": [2], "ttfts": [0.5], "itls": [[0.25]], "start_times": [7.0]}
    (tmp_path / "r.json").write_text(json.dumps(result))
    said = run("capture", "import", tmp_path / "r.json", "--out", tmp_path / "capture")
    assert "measured by vllm bench serve" in said
    with pytest.raises(InputError, match="--part"):
        run("capture", "import", tmp_path / "r.json", "--part", "1", "--out", tmp_path / "other")
