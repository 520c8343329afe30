"""`calibrate`, `validate --calibration` and `drift` from outside, on bundled captures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.demo import BUNDLED
from tests.command_line import ok, servetwin
from traces.capture import read_capture

LIGHT, PREFIX, SATURATED = (BUNDLED / f"{load}.yaml" for load in ("light", "prefix", "saturated"))
CAPTURES = BUNDLED / "captures"
AS_RECORDED = [f"engine.{option}" for option in ("num_gpu_blocks=1024", "async_scheduling=false", "block_size=32")]
RECORDED = [argument for option in AS_RECORDED for argument in ("--set", option)]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration on the whole of one low-load recording."""
    out = tmp_path_factory.mktemp("calibrations") / "light.json"
    printed = ok("calibrate", LIGHT, "--capture", CAPTURES / "light-1", "--out", out)
    assert "fitted from steps of light-1, part all: 90 requests" in printed
    return out


def validated(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    ok("validate", *arguments, "--out", tmp_path / "check")
    result: dict[str, Any] = json.loads((tmp_path / "check" / "validation.json").read_text())
    return result


def test_the_file_says_what_was_fitted_on_what_and_how_surely(fitted: Path) -> None:
    found = json.loads(fitted.read_text())
    assert found["fitted_on"][0]["sha256"].startswith("sha256:")
    assert found["fitted_on"][0]["n_steps"] > 3000
    assert found["profile"].startswith("sha256:")
    assert found["versions"]["servetwin"]
    assert found["ranges"]["tokens per step"] == [1.0, 512.0]
    parameters = found["parameters"]
    assert parameters["dense"]["standard_error"] > 0
    for parameter in parameters.values():
        assert parameter["identified"] == (parameter["note"] is None) == (parameter["standard_error"] is not None)
        assert parameter["identified"] or parameter["value"] == parameter["prior"]


def test_the_same_capture_gives_the_same_bytes(fitted: Path, tmp_path: Path) -> None:
    ok("calibrate", LIGHT, "--capture", CAPTURES / "light-1", "--out", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == fitted.read_bytes()


def test_a_low_load_calibrates_a_high_one_with_preemptions(fitted: Path, tmp_path: Path) -> None:
    """E2EL and TPOT within one and a half times the noise floor or 5 %, whichever is larger."""
    for number, other in ((1, 2), (2, 1)):
        capture, repeat = (CAPTURES / f"saturated-{i}" for i in (number, other))
        arguments = [SATURATED, "--capture", capture, "--calibration", fitted, "--noise-floor", repeat]
        result = validated(tmp_path / str(number), *arguments)
        assert result["n_scored"] == 132
        for metric in ("tpot_s", "e2el_s"):
            error, floor = (of[metric]["mape"] for of in (result["paired"], result["noise_floor"]["paired"]))
            assert error <= max(1.5 * floor, 0.05)
            assert result["error_over_floor"][metric] == pytest.approx(error / floor)
            assert 0.65 <= result["prediction"]["coverage"][metric]["share"] <= 1.0
        low, high = result["metrics"]["e2el_s"]["mean"]["pi90"]
        assert low < result["metrics"]["e2el_s"]["mean"]["simulated"] < high
        assert any("outside the range that the calibration was fitted on" in note for note in result["notes"])
        assert "90\N{NO-BREAK SPACE}% prediction" in (tmp_path / str(number) / "check" / "report.html").read_text()
        lines = (tmp_path / str(number) / "check" / "intervals.csv").read_text().splitlines()
        assert lines[0].startswith("request_id,ttft_s,ttft_low_s,ttft_high_s")
        assert len(lines) == 133


def test_fitted_requests_are_not_scored_unless_asked_for(tmp_path: Path) -> None:
    capture = CAPTURES / "saturated-1"
    part = tmp_path / "third.json"
    ok("calibrate", SATURATED, "--capture", capture, "--fit-on", "first:0.33", "--out", part)
    result = validated(tmp_path / "a", SATURATED, "--capture", capture, "--calibration", part)
    assert (result["n_requests"], result["n_scored"]) == (132, 88)
    assert result["fitted"] == {"n_requests": 44, "scored": False}
    assert "44 requests were fitted by the calibration and are not scored" in result["notes"]
    result = validated(tmp_path / "b", SATURATED, "--capture", capture, "--calibration", part, "--score-fitted")
    assert result["n_scored"] == 132
    assert any("44 of the scored requests were fitted" in note for note in result["notes"])
    other = validated(tmp_path / "c", SATURATED, "--capture", CAPTURES / "saturated-2", "--calibration", part)
    assert other["n_scored"] == 132


def test_a_capture_that_was_fitted_whole_is_not_scored(fitted: Path, tmp_path: Path) -> None:
    arguments = [LIGHT, "--capture", CAPTURES / "light-1", "--calibration", fitted, "--out", tmp_path / "check"]
    ran = servetwin("validate", *arguments)
    assert ran.returncode == 2
    assert "every request of this capture was fitted" in ran.stderr
    assert "--score-fitted" in ran.stderr
    assert not (tmp_path / "check").exists()


def test_a_calibration_in_the_scenario_changes_a_simulation_and_gives_it_intervals(
    fitted: Path, tmp_path: Path
) -> None:
    ok("simulate", LIGHT, *RECORDED, "--out", tmp_path / "bare")
    ok("simulate", LIGHT, *RECORDED, "--set", f"calibration={fitted}", "--out", tmp_path / "fitted")
    bare, calibrated = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("bare", "fitted"))
    assert calibrated["metrics"]["e2el_s"]["mean"] > 1.01 * bare["metrics"]["e2el_s"]["mean"]
    low, high = calibrated["intervals"]["e2el_s"]["p50"]
    assert low < calibrated["metrics"]["e2el_s"]["p50"] < high
    assert "intervals" not in bare


def test_where_a_request_is_no_sum_of_steps_the_draws_give_the_intervals(fitted: Path, tmp_path: Path) -> None:
    """An engine that fails and comes back."""
    down = ["--set", "cluster.failures=[{instance: 0, at_s: 12.0, for_s: 2.0}]"]
    arguments = [LIGHT, *down, "--capture", CAPTURES / "light-2", "--calibration", fitted]
    result = validated(tmp_path / "sixteen", *arguments)
    assert not any("no intervals" in note for note in result["notes"])
    low, high = result["metrics"]["e2el_s"]["mean"]["pi90"]
    assert low < result["metrics"]["e2el_s"]["mean"]["simulated"] < high
    lines = (tmp_path / "sixteen" / "check" / "intervals.csv").read_text().splitlines()
    assert len(lines) == 91
    result = validated(tmp_path / "one", *arguments, "--draws", 1)
    assert any("no intervals" in note for note in result["notes"])
    assert "prediction" not in result


def test_drift_exits_1_beyond_the_tolerance_and_0_within_it(fitted: Path) -> None:
    arguments = [LIGHT, "--capture", CAPTURES / "light-1", "--calibration", fitted]
    assert "NOT STALE" in ok("drift", *arguments)
    ran = servetwin("drift", LIGHT, "--capture", CAPTURES / "light-2", "--calibration", fitted)
    assert ran.returncode == 1
    assert "STALE, beyond the tolerance of 5%" in ran.stdout
    assert "measured times are" in ran.stdout
    ran = servetwin("drift", LIGHT, "--capture", CAPTURES / "light-2", "--calibration", fitted, "--json")
    found = json.loads(ran.stdout)
    assert found["drifted"] is True
    assert found["measure_again"]
    assert servetwin("drift", LIGHT, "--capture", CAPTURES / "light-1").returncode == 2


def test_explain_says_where_the_error_comes_from(fitted: Path, tmp_path: Path) -> None:
    arguments = [SATURATED, "--capture", CAPTURES / "saturated-1", "--calibration", fitted, "--explain"]
    printed = ok("validate", *arguments, "--out", tmp_path / "check")
    assert "Error of the mean by stage" in printed
    assert "worst requests" in printed
    found = json.loads((tmp_path / "check" / "attribution.json").read_text())
    assert set(found["steps"]) == {"kind", "requests", "tokens", "history per request"}
    assert len(found["worst"]) == 10
    assert found["worst"][0]["measured"]["finish_s"] > 0


def test_a_whole_step_model_needs_no_profile(tmp_path: Path) -> None:
    """The scenario's device has no profile at all; the model is fitted and scored on recordings of other loads."""
    text = LIGHT.read_text().replace("AMD-EPYC-2vCPU", "some-unknown-device")
    for load in ("light", "saturated"):
        trace = CAPTURES / f"{load}-1" / "trace.jsonl.gz"
        (tmp_path / f"{load}.yaml").write_text(text.replace("captures/light-1/trace.jsonl.gz", str(trace)))
    out = tmp_path / "whole.json"
    captures = ["--capture", CAPTURES / "light-1", "--capture", CAPTURES / "saturated-1"]
    ok("calibrate", tmp_path / "light.yaml", *captures, "--from", "whole-step", "--out", out)
    arguments = [tmp_path / "saturated.yaml", "--capture", CAPTURES / "saturated-2", "--calibration", out]
    result = validated(tmp_path, *arguments)
    assert result["valid"], result["reasons"]
    assert result["provenance"]["profile"] is None
    assert result["paired"]["e2el_s"]["mape"] < 0.12
    assert "no profile: steps are timed by a whole-step model" in result["notes"]
    assert servetwin("simulate", tmp_path / "light.yaml", "--out", tmp_path / "none").returncode == 2
    # What the scenario says beside the engine counts as it does with a profile.
    engine = "engine={max_num_seqs: 8, max_model_len: 2048, num_gpu_blocks: 500, async_scheduling: false}"
    said = ["--set", f"calibration={out}", "--set", engine, "--set", "concurrency=4", "--set"]
    ok("simulate", tmp_path / "light.yaml", *said, "cluster.instances.0.count=2", "--out", tmp_path / "two")
    capture = read_capture(tmp_path / "two")
    assert {outcome.instance for outcome in capture.outcomes} == {0, 1}
    assert sum(outcome.arrival_s == 0 for outcome in capture.outcomes) == 4
    for key, value, message in (
        ("pipeline_parallel_size", "2", "needs a profile"),
        ("source", "roofline", "has no effect"),
    ):
        refused = [*said, f"cluster.instances.0.{key}={value}", "--out", tmp_path / "none"]
        assert message in servetwin("simulate", tmp_path / "light.yaml", *refused).stderr


BROKEN = {
    "another model": (lambda f: f.update(model="other"), "field 'model': the calibration is the residual of something"),
    "another profile": (lambda f: f.update(profile="sha256:0"), "field 'profile'"),
    "another schema": (lambda f: f.update(schema_version="x/1"), "field 'schema_version': found 'x/1'"),
    "an unknown parameter": (
        lambda f: f["parameters"].update(denses=f["parameters"]["dense"]),
        "field 'parameters.denses': is unknown: accepted: 'dense'",
    ),
    "a missing parameter": (lambda f: f["parameters"].pop("dense"), "field 'parameters.dense': is missing"),
    "a wrong type": (lambda f: f["parameters"]["dense"].update(value="1"), "parameters"),
    "an unknown key": (lambda f: f.update(knot=[]), "field 'knot': is unknown"),
    "half a covariance": (lambda f: f["covariance"].pop(), "field 'covariance'"),
    "no time at all": (lambda f: f["parameters"]["dense"].update(value=-5.0), "no time at all"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_calibration_that_cannot_be_used_is_refused(fitted: Path, tmp_path: Path, case: str) -> None:
    change, message = BROKEN[case]
    found = json.loads(fitted.read_text())
    change(found)
    (tmp_path / "broken.json").write_text(json.dumps(found))
    override = f"calibration={tmp_path / 'broken.json'}"
    ran = servetwin("simulate", LIGHT, *RECORDED, "--set", override, "--out", tmp_path / "run")
    assert ran.returncode == 2, ran.stderr
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fit-on", "half"], "field '--fit-on': found 'half': accepted: all, first:SHARE"),
        (["--fit-on", "first:0.05"], "chooses 4 requests"),
        (["--from", "thin air"], "field '--from': found 'thin air'"),
        (["--set", "engine.max_num_seqs=64"], "configuration mismatch: max_num_seqs 64 simulated, 32 measured"),
    ],
)
def test_what_cannot_be_fitted_is_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    ran = servetwin("calibrate", LIGHT, "--capture", CAPTURES / "light-1", *arguments, "--out", tmp_path / "x.json")
    assert ran.returncode == 2
    assert message in ran.stderr
    assert not (tmp_path / "x.json").exists()


def test_a_noise_floor_needs_another_recording(tmp_path: Path) -> None:
    light = CAPTURES / "light-1"
    ran = servetwin("validate", LIGHT, "--capture", light, "--noise-floor", light, "--out", tmp_path / "check")
    assert ran.returncode == 2
    assert "is the capture itself" in ran.stderr


@pytest.mark.parametrize("option", ["--score-fitted", "--explain", "--steps"])
def test_options_that_mean_nothing_together_are_refused(tmp_path: Path, option: str) -> None:
    arguments = [LIGHT, "--capture", CAPTURES / "light-1", "--out", tmp_path / "check"]
    extra = {"--score-fitted": [], "--explain": ["--steps"], "--steps": ["--score-fitted"]}[option]
    ran = servetwin("validate", *arguments, option, *extra)
    assert ran.returncode == 2
    assert not (tmp_path / "check").exists()


@pytest.mark.parametrize("command", ["calibrate", "drift"])
def test_help_has_an_example(command: str) -> None:
    assert "Example: servetwin" in ok(command, "--help")
