"""A scenario's load: the same as a trace that was written so, wherever it is run; refused where it is scored."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.calibrate import calibrate, drift
from harness.gate.observe import observe
from harness.gate.suite import read_suite
from harness.power_levels import fit_levels
from harness.running.simulate import simulate_scenario, write_simulation
from harness.running.stream import stream_scenario
from harness.scoring.aggregates import score_aggregates
from harness.scoring.steps import validate_steps
from harness.scoring.validate import validate
from harness.sweeps.points import read_inputs
from harness.sweeps.sweep import sweep
from tests.command_line import servetwin
from tests.harness.scenarios import EXAMPLES, write_scenario
from tests.harness.sweeps.studies import points_of, write_study
from traces.errors import InputError
from traces.formats import read_any_trace

LOADS = st.fixed_dictionaries(
    {},
    optional={
        "start_s": st.floats(0, 0.1),
        "end_s": st.floats(0.2, 0.5),
        "share": st.floats(0.3, 1),
        "speed": st.floats(0.1, 9),
        "prompt_scale": st.floats(0.1, 4),
        "output_scale": st.floats(0.1, 4),
    },
)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    return write_scenario(tmp_path)


def option(name: str) -> str:
    return "--" + name.removesuffix("_s").replace("_", "-")


@settings(max_examples=15, deadline=None)
@given(LOADS)
def test_a_load_is_what_import_makes_of_a_trace(load: dict[str, float]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenario = write_scenario(folder)
        words = [word for key, value in load.items() for word in (option(key), str(value))]
        done = servetwin("trace", "import", folder / "requests.jsonl", *words, "--out", folder / "other.jsonl")
        assert done.returncode == 0, done.stderr
        asked = [f"load.{key}={value!r}" for key, value in load.items()]
        write_simulation(*simulate_scenario(scenario, asked), folder / "under")
        write_simulation(*simulate_scenario(scenario, ["trace=other.jsonl"]), folder / "of")
        under, of = ((folder / run / "outcomes.parquet").read_bytes() for run in ("under", "of"))
        assert under == of
        kept = [gzip.decompress((folder / run / "trace.jsonl.gz").read_bytes()) for run in ("under", "of")]
        assert kept[0] == kept[1]


def test_twice_the_load_arrives_in_half_the_time_and_says_so(scenario: Path) -> None:
    (plain, before), (fast, after) = simulate_scenario(scenario), simulate_scenario(scenario, ["load.speed=2"])
    assert [o.arrival_s for o in fast.capture.outcomes] == [o.arrival_s / 2 for o in plain.capture.outcomes]
    assert after["requests_offered_per_s"] == pytest.approx(2 * before["requests_offered_per_s"])
    assert "arrivals at 2 times the rate" in fast.capture.meta.notes


def test_a_request_rate_is_what_is_offered(scenario: Path) -> None:
    _, figures = simulate_scenario(scenario, ["load.request_rate=7.5", "load.end_s=0.3"])
    assert figures["requests_offered_per_s"] == pytest.approx(7.5, rel=1e-12)
    assert figures["n_requests"] == 30


def test_what_is_shared_scales_with_the_prompts() -> None:
    path = EXAMPLES / "prefix_aware.yaml"
    rates = [simulate_scenario(path, (f"load.prompt_scale={by}",))[1]["prefix_hit_rate"] for by in (1.0, 2.0)]
    assert rates[1] == pytest.approx(rates[0], rel=0.2)
    assert rates[0] > 0.2


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ("{speed: 0}", "'load.speed': found 0.0: accepted: a factor above 0"),
        ("{speed: .nan}", "'load.speed': found nan: accepted: a finite number"),
        ("{speed: fast}", "'load.speed': found 'fast': accepted: float"),
        ("{sped: 2}", "'load.sped': is unknown: accepted: 'speed' is the nearest known name"),
        ("{start_s: 5, end_s: 2}", "'load.start_s': found '5 to 2': accepted: load.start_s from second 0"),
        ("{start_s: 5}", "'load.start_s': no request is left: requests from second 5 to inf, 0 of 40"),
        ("{share: 2}", "'load.share': found 2.0"),
        ("{speed: 2, request_rate: 8}", "'load.request_rate': found 'load.speed too': accepted: one of them"),
        ("{prompt_scale: 5000}", "'load.prompt_scale': found 5000.0: accepted: a factor from 0.001 to 1000"),
        ("{output_scale: -1}", "'load.output_scale': found -1.0"),
        ("{speed: 2}\nconcurrency: 4", "'load.speed': found 2: accepted: only without concurrency"),
        ("{request_rate: 2}\nconcurrency: 4", "'load.request_rate': found 2: accepted: only without concurrency"),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_key(scenario: Path, load: str, said: str) -> None:
    text = scenario.read_text()
    scenario.write_text(f"{text}load: {load}\n")
    with pytest.raises(InputError) as caught:
        simulate_scenario(scenario)
    assert f"{scenario}:{len(text.splitlines()) + 1}: field {said}" in str(caught.value)


def test_sessions_take_a_speed_and_no_rate() -> None:
    path = EXAMPLES / "sessions.yaml"
    (_, before), (_, after) = simulate_scenario(path), simulate_scenario(path, ["load.speed=4"])
    assert before["metrics"] != after["metrics"]
    with pytest.raises(InputError, match=r"sessions.yaml.*'load.request_rate': requests that wait for answers"):
        simulate_scenario(path, ["load.request_rate=4"])
    done = servetwin("trace", "import", EXAMPLES / "sessions.jsonl", "--request-rate", "4", "--out", "x")
    assert (done.returncode, Path("x").exists()) == (2, False)
    assert "'--request-rate': requests that wait for answers offer no rate: accepted: --speed" in done.stderr


def test_a_stream_comes_under_it_row_by_row(scenario: Path, tmp_path: Path) -> None:
    asked = [f"load.{text}" for text in ("start_s=0.05", "end_s=0.3", "speed=3", "prompt_scale=1.5", "output_scale=2")]
    write_simulation(*simulate_scenario(scenario, asked), tmp_path / "whole")
    stream_scenario(scenario, tmp_path / "streamed", asked)
    whole, streamed = tmp_path / "whole", tmp_path / "streamed"
    assert (streamed / "outcomes.parquet").read_bytes() == (whole / "outcomes.parquet").read_bytes()
    unpacked = [gzip.decompress((folder / "trace.jsonl.gz").read_bytes()) for folder in (whole, streamed)]
    assert unpacked[0] == unpacked[1]
    notes = json.loads((streamed / "meta.json").read_text())["notes"]
    assert "arrivals at 3 times the rate" in notes


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("share=0.5", "'load.share': takes all requests at once, which cannot be streamed"),
        ("request_rate=5", "'load.request_rate': takes all requests at once"),
        ("start_s=99", "'load.start_s': no request is left"),
    ],
)
def test_what_takes_the_whole_trace_is_not_streamed(scenario: Path, tmp_path: Path, asked: str, said: str) -> None:
    with pytest.raises(InputError, match=rf"scenario.yaml.*{said}"):
        stream_scenario(scenario, tmp_path / "out", [f"load.{asked}"])
    assert not (tmp_path / "out").exists()


SCORED: list[Callable[[Path, Path, list[str]], Any]] = [
    lambda scenario, capture, asked: validate(scenario, capture, asked),
    lambda scenario, capture, asked: validate_steps(scenario, capture, asked),
    lambda scenario, capture, asked: calibrate(scenario, [capture], overrides=asked),
    lambda scenario, capture, asked: drift(scenario, capture, overrides=asked),
    lambda scenario, capture, asked: fit_levels(scenario, capture, overrides=asked),
]


@pytest.mark.parametrize("score", SCORED)
def test_measured_requests_come_under_no_load(
    scenario: Path, tmp_path: Path, score: Callable[[Path, Path, list[str]], Any]
) -> None:
    write_simulation(*simulate_scenario(scenario), tmp_path / "capture")
    with pytest.raises(InputError, match=r"scenario.yaml:1: field 'load': makes requests that were not measured"):
        score(scenario, tmp_path / "capture", ["load.speed=2"])


def test_rows_of_means_come_under_no_load_either(scenario: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("isl,osl,batch_size,silicon_ttft_ms,silicon_tpot_ms\n64,8,2,5.5,2.25\n")
    with pytest.raises(InputError, match="'load': makes requests"):
        score_aggregates(tmp_path / "rows", scenario, overrides=["load.prompt_scale=2"])


def test_a_suite_takes_it_where_there_is_no_capture(scenario: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("baseline: b.json\nscenarios:\n  tiny: {scenario: scenario.yaml}\n")
    (entry,) = read_suite(suite).entries
    plain, under = observe(entry), observe(entry, ["load.output_scale=2"])
    assert under.stored.figures != plain.stored.figures
    assert under.stored.counts != plain.stored.counts
    assert "prompts at 1 times their length, answers at 2 times" in under.notes
    write_simulation(*simulate_scenario(scenario), tmp_path / "capture")
    with pytest.raises(InputError, match="'load': makes requests that were not measured"):
        observe(replace(entry, capture=tmp_path / "capture"), ["load.output_scale=2"])


def test_a_study_varies_it_and_reads_the_trace_once(scenario: Path, tmp_path: Path) -> None:
    study = write_study(
        tmp_path, "grid: {load.speed: [1, 4], load.output_scale: [1, 2]}\nobjectives: {e2el_s.mean: min}\n"
    )
    swept = points_of(sweep(study, tmp_path / "out", workers=1))
    for point in swept:
        asked = [f"{key}={value}" for key, value in point["overrides"].items()]
        alone = simulate_scenario(scenario, asked)[1]
        assert point["figures"]["metrics"] == alone["metrics"]
    assert len({point["figures"]["metrics"]["e2el_s"]["mean"] for point in swept}) == 4
    inputs = read_inputs(scenario)
    with patch("harness.sweeps.points.read_any_trace", wraps=read_any_trace) as read:
        for speed in (1, 2):
            inputs.requests(inputs.scenario({"load.speed": speed}))
    assert read.call_count == 1


def test_first_requests_are_those_of_the_load(scenario: Path) -> None:
    inputs = read_inputs(scenario)
    first = inputs.requests(inputs.scenario({"load.start_s": 0.1, "load.speed": 2}), first_requests=3)
    read = inputs.trace(scenario.parent / "requests.jsonl").rows[10:13]
    assert [row.request_id for row in first.rows] == [row.request_id for row in read]
    assert [row.arrival_s for row in first.rows] == [(row.arrival_s - 0.1) / 2 for row in read]
