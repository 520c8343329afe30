"""The gate from pytest and from pre-commit."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from tests.harness.gate.suites import write_suite_with_baseline

ROOT = Path(__file__).resolve().parents[3]
PLUGIN = "harness.gate.pytest_plugin"

TESTS = """\
def test_green(servetwin_check):
    assert servetwin_check("suite.yaml").passed

def test_red(servetwin_check):
    servetwin_check("suite.yaml", overrides=["engine.max_num_seqs=1"])

def test_wrong(servetwin_check):
    servetwin_check("suite.yaml", fail_on=["ttft:1%"])
"""


def test_the_fixture_fails_the_test_when_the_check_fails(tmp_path: Path) -> None:
    write_suite_with_baseline(tmp_path)
    (tmp_path / "test_twin.py").write_text(TESTS)
    installed = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
    options = [] if installed else ["-p", PLUGIN]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *options,
        "-p",
        "no:cacheprovider",
        "-rf",
        str(tmp_path / "test_twin.py"),
    ]
    ran = subprocess.run(command, cwd=ROOT / "docs", capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "1 passed" in ran.stdout
    assert "2 failed" in ran.stdout
    assert "FAILED: 1 of 1 scenario: tiny (fidelity comparison" in ran.stdout
    assert "tiny: fidelity comparison failed: configuration mismatch: max_num_seqs 1 simulated, 16 meas" in ran.stdout
    assert "servetwin: field '--fail-on': is unknown: found 'ttft'" in ran.stdout
    assert "Traceback" not in ran.stdout


@pytest.mark.parametrize(("extra", "code"), [([], 0), (["--set", "engine.max_num_seqs=1"], 1)])
def test_the_pre_commit_hook_runs_the_command(tmp_path: Path, extra: list[str], code: int) -> None:
    """As pre-commit does: the entry's words, then the arguments of the user's configuration."""
    write_suite_with_baseline(tmp_path)
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook.keys() >= {"id", "name", "entry", "language"}
    assert hook["pass_filenames"] is False
    command = [Path(sys.executable).parent / shlex.split(hook["entry"])[0], *shlex.split(hook["entry"])[1:]]
    ran = subprocess.run([*command, "suite.yaml", *extra], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
