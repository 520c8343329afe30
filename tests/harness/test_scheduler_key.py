"""The scenario key `scheduler`, from outside, where vllm is not installed; where it is, tests/live runs it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from harness.demo import BUNDLED
from tests.command_line import servetwin
from tests.harness.scenarios import write_scenario
from traces.capture import read_capture

without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed here")


def test_our_own_is_the_default(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path)
    for name, asked in (("unsaid", []), ("said", ["--set", "scheduler=native"])):
        ran = servetwin("simulate", scenario, "--out", tmp_path / name, *asked)
        assert ran.returncode == 0, ran.stderr
    for name in ("meta.json", "outcomes.parquet", "steps.parquet"):
        assert (tmp_path / "unsaid" / name).read_bytes() == (tmp_path / "said" / name).read_bytes(), name
    assert "scheduled by the rules of vllm 0.32" in read_capture(tmp_path / "said").meta.notes


def test_another_name_is_refused_with_its_line(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path)
    scenario.write_text(scenario.read_text() + "scheduler: sglang\n")
    ran = servetwin("simulate", scenario, "--out", tmp_path / "run")
    assert ran.returncode == 2
    assert "scenario.yaml:11: field 'scheduler': found 'sglang'" in ran.stderr


@without_vllm
def test_vllms_where_there_is_no_vllm_is_an_engine_that_failed(tmp_path: Path) -> None:
    ran = servetwin("simulate", write_scenario(tmp_path), "--out", tmp_path / "run", "--set", "scheduler=vllm")
    assert ran.returncode == 3
    assert "scheduler 'vllm' needs vllm in the environment that runs servetwin, and it is not installed" in ran.stderr
    assert "use scheduler 'native'" in ran.stderr
    assert not (tmp_path / "run").exists()


@without_vllm
@pytest.mark.parametrize("steps", [["--steps"], []])
def test_a_validation_says_the_same(tmp_path: Path, steps: list[str]) -> None:
    folder = BUNDLED / "captures" / "light-1"
    meta = read_capture(folder).meta
    scenario = tmp_path / "scenario.json"
    cluster = {"instances": [{"model": meta.model, "device": meta.device}]}
    trace = str(folder / "trace.jsonl.gz")
    scenario.write_text(json.dumps({"trace": trace, "cluster": cluster, "scheduler": "vllm"}))
    ran = servetwin("validate", scenario, "--capture", folder, "--out", tmp_path / "run", *steps)
    assert ran.returncode == 3
    assert "scheduler 'vllm' needs vllm" in ran.stderr
    assert not (tmp_path / "run").exists()
