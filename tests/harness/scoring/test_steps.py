"""`validate --steps` from outside: recorded steps planned again, with a cause and an exit code when one differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.demo import BUNDLED
from harness.deploy.deployment import deploy
from harness.descriptions.scenario import read_scenario
from harness.scoring.steps import steps_text, validate_steps
from simulator.scheduling.rules import REFERENCE_RULES, rules_of
from tests.command_line import servetwin
from tests.harness.scenarios import write_scenario
from traces.capture import read_capture
from traces.errors import InputError

SATURATED = BUNDLED / "captures" / "saturated-1"


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A scenario that says no more than what was recorded runs on what."""
    meta = read_capture(SATURATED).meta
    file = tmp_path / "scenario.yaml"
    cluster = {"instances": [{"model": meta.model, "device": meta.device}]}
    file.write_text(json.dumps({"trace": "unused", "cluster": cluster}))
    return file


def test_recorded_steps_agree_and_no_profile_is_needed(scenario: Path) -> None:
    ran = servetwin("validate", scenario, "--capture", SATURATED, "--steps")
    assert ran.returncode == 0, ran.stderr
    assert "1222 of 1222 recorded steps, 57 preemptions agree.\nEvery batch agrees." in ran.stdout
    assert "Planned again by the rules of vllm 0.32" in ran.stdout


def test_a_divergence_is_named_written_and_exits_1(scenario: Path, tmp_path: Path) -> None:
    options = ["--capture", SATURATED, "--steps", "--set", "engine.max_num_seqs=16"]
    ran = servetwin("validate", scenario, *options, "--out", tmp_path / "steps", "--json")
    assert ran.returncode == 1, ran.stderr
    written = json.loads((tmp_path / "steps" / "steps.json").read_text())
    assert json.loads(ran.stdout) == written
    assert (written["agrees"], written["n_steps"], written["n_recorded"]) == (False, 14, 1222)
    divergence = written["divergence"]
    assert (divergence["step"], divergence["rule"], divergence["request_id"]) == (14, "seats", "16")
    assert "all 16 seats are taken" in divergence["cause"]
    assert written["reasons"] == ["configuration mismatch: max_num_seqs 16 simulated, 32 measured"]
    text = steps_text(written)
    assert "First divergence: step 14 of instance 0, at 1.571758 s\nlikely cause: seats" in text
    assert "recorded: 17 requests; only here: '16' 243 tokens after 0" in text
    assert "warning: configuration mismatch" in text


def test_a_long_difference_is_cut() -> None:
    entries = [[str(i), 1, 10] for i in range(9)]
    parted = {
        "step": 3,
        "instance": 0,
        "time_s": 1.0,
        "request_id": None,
        "rule": "order",
        "cause": "a cause",
        "recorded": {"batch": entries},
        "planned": {"batch": []},
    }
    result = {"scheduler": "vllm", "rules": "", "n_steps": 3, "n_recorded": 9, "n_preempted": 0}
    text = steps_text({**result, "notes": [], "reasons": [], "divergence": parted})
    assert "Planned again by vLLM's own scheduler: 3 of 9" in text
    assert "'4' 1 tokens after 10, and 4 more\nplanned: 0 requests; only here: none" in text


def test_a_capture_without_batches_is_refused(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path)
    assert servetwin("simulate", scenario, "--out", tmp_path / "run").returncode == 0
    ran = servetwin(
        "validate", scenario, "--capture", tmp_path / "run", "--steps", "--set", "engine.max_model_len=4096"
    )
    assert ran.returncode == 2
    assert "run: field 'steps.batches': the capture has no record of which requests were in each step" in ran.stderr


def test_what_an_engine_is_made_of_must_be_known(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path)
    assert servetwin("simulate", scenario, "--out", tmp_path / "run").returncode == 0
    with pytest.raises(InputError, match=r"engine.max_model_len.*neither scenario nor capture says it"):
        validate_steps(scenario, tmp_path / "run")


def test_options_that_contradict_each_other_are_refused_with_their_line(scenario: Path) -> None:
    with pytest.raises(InputError, match=r"scenario.yaml.*max_num_batched_tokens.*found 8"):
        validate_steps(scenario, SATURATED, ["engine.max_num_batched_tokens=8"])


def test_without_steps_a_folder_to_write_is_needed(scenario: Path) -> None:
    ran = servetwin("validate", scenario, "--capture", SATURATED)
    assert ran.returncode == 2
    assert "--out" in ran.stderr


def test_the_rules_are_the_captures_or_the_scenarios(tmp_path: Path) -> None:
    file = write_scenario(tmp_path)
    assert deploy(read_scenario(file)).engine.rules == REFERENCE_RULES
    assert deploy(read_scenario(file, ["engine_version='0.26.0'"])).engine.rules == rules_of((0, 26))
    assert servetwin("simulate", file, "--out", tmp_path / "run", "--set", "engine_version='0.26'").returncode == 0
    meta = read_capture(tmp_path / "run").meta
    assert "scheduled by the rules of vllm 0.26" in meta.notes
    measured = read_capture(SATURATED).meta
    assert deploy(read_scenario(file), measured).engine.rules == rules_of((0, 32))
    said = deploy(read_scenario(file, ["engine_version='0.26'"]), measured)
    assert said.engine.rules == rules_of((0, 26))
    assert "configuration mismatch: engine_version 0.26 simulated, vllm 0.32.0 measured" in said.mismatches
    with pytest.raises(InputError, match=r"engine_version"):
        read_scenario(file, ["engine_version=0.26"])
