"""`servetwin check` from outside: what it prints, writes and exits with."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

from tests.command_line import servetwin
from tests.harness.gate.suites import write_suite, write_suite_with_baseline


def check(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`servetwin check`, with no summary of a job unless one is given."""
    return servetwin("check", *arguments, **{"GITHUB_STEP_SUMMARY": "", **environment})


def test_green_is_0_with_every_output(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path)
    outputs = {name: tmp_path / f"out.{name}" for name in ("junit", "markdown", "result", "benchmark")}
    options = [part for name, path in outputs.items() for part in (f"--{name}", path)]
    ran = check(suite, *options, GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("PASSED: 1 scenario, ")
    assert all(path.stat().st_size for path in outputs.values())
    assert (tmp_path / "summary.md").read_text() == outputs["markdown"].read_text()
    assert json.loads(outputs["result"].read_text())["passed"] is True


def test_red_is_1_and_its_outputs_are_written(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path)
    ran = check(suite, "--set", "engine.max_num_seqs=1", "--junit", tmp_path / "out.xml", "--json")
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["passed"] is False
    assert "<failure" in (tmp_path / "out.xml").read_text()


def test_a_wrong_input_is_2_and_nothing_is_written(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    for wrong in ([suite], [tmp_path / "none.yaml"], [suite, "--fail-on", "ttft:1%"]):
        ran = check(*wrong, "--junit", tmp_path / "out.xml", GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"))
        assert ran.returncode == 2
        assert ran.stderr.startswith("error: ")
        assert not (tmp_path / "out.xml").exists()
        assert not (tmp_path / "summary.md").exists()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed here")
def test_an_engine_that_is_not_there_is_3(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path)
    ran = check(suite, "--set", "scheduler=vllm", "--junit", tmp_path / "out.xml")
    assert ran.returncode == 3
    assert "scheduler 'vllm' needs vllm" in ran.stderr
    assert not (tmp_path / "out.xml").exists()


def test_a_baseline_is_made_with_a_reason_and_not_when_an_output_cannot_be_written(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    (tmp_path / "folder").mkdir()
    assert check(suite, "--update-baseline", "first", "--junit", tmp_path / "folder").returncode == 2
    assert not (tmp_path / "baseline.json").exists()
    assert check(suite, "--update-baseline", "first").returncode == 0
    assert json.loads((tmp_path / "baseline.json").read_text())["reason"] == "first"
    assert check(suite).returncode == 0
