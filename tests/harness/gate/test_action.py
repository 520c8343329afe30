"""The GitHub Action, run as far as that goes without GitHub: its shell steps, in order, in a shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.gate.suites import write_suite_with_baseline

ROOT = Path(__file__).resolve().parents[3]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "ci" / "servetwin.yml").read_text())
INSTALL, CHECK = (step for step in ACTION["runs"]["steps"] if "run" in step)


@dataclass(frozen=True)
class Job:
    """A job's folder, and the files through which a step speaks to GitHub."""

    folder: Path
    bin: Path

    def run(self, step: dict[str, Any], inputs: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a step as GitHub does: `bash --noprofile --norc -eo pipefail FILE`."""
        defaults = {name: str(known.get("default", "")) for name, known in ACTION["inputs"].items()}
        given = {**defaults, **inputs}
        script = self.folder.parent / "step.sh"
        script.write_text(step["run"])
        environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": os.environ.get("HOME", "/"),
            "GITHUB_ACTION_PATH": str(self.folder.parent / "action"),
            "GITHUB_OUTPUT": str(self.folder.parent / "output"),
            "GITHUB_STEP_SUMMARY": str(self.folder.parent / "summary.md"),
            **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))},
            **{name: substituted(value, given) for name, value in step.get("env", {}).items()},
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def output(self) -> str:
        path = self.folder.parent / "output"
        return path.read_text() if path.exists() else ""


def substituted(text: str, inputs: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: inputs[match[1]], text)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "work").mkdir()
    return Job(tmp_path / "work", Path(sys.executable).parent)


def test_every_input_is_described_and_used() -> None:
    text = (ROOT / "action.yml").read_text()
    for name, known in ACTION["inputs"].items():
        assert known["description"]
        assert f"${{{{ inputs.{name} }}}}" in text
    for step in (INSTALL, CHECK):
        assert "${{" not in step["run"], "an input in a script would be run"
        assert step["shell"] == "bash"
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(ACTION["inputs"])


def test_it_passes_writes_everything_and_says_so(job: Job) -> None:
    write_suite_with_baseline(job.folder)
    ran = job.run(CHECK, {"suite": "suite.yaml", "fail-on": "ttft.p50:10%\n\ntpot.mean:1ms\n"})
    assert ran.returncode == 0, ran.stderr
    assert job.output() == "passed=true\n"
    assert (job.folder.parent / "summary.md").read_text().startswith("## PASSED")
    for name in ("junit", "markdown", "result", "benchmark", "page"):
        assert (job.folder / ACTION["inputs"][name]["default"]).stat().st_size
    assert "fidelity ttft.p50" in (job.folder / "servetwin-check.xml").read_text()


def test_it_fails_as_the_command_does(job: Job) -> None:
    write_suite_with_baseline(job.folder)
    assert job.run(CHECK, {"suite": "suite.yaml", "set": "engine.max_num_seqs=1"}).returncode == 1
    assert job.output() == "passed=false\n"
    assert "<failure" in (job.folder / "servetwin-check.xml").read_text()


def test_a_history_grows_and_its_page_is_the_last_one(job: Job) -> None:
    write_suite_with_baseline(job.folder)
    inputs = {"suite": "suite.yaml", "history": "checks.jsonl"}
    assert job.run(CHECK, inputs).returncode == 0
    assert job.run(CHECK, {**inputs, "set": "engine.max_num_seqs=1"}).returncode == 1
    assert len((job.folder / "checks.jsonl").read_text().splitlines()) == 2
    assert "now for the first time" in (job.folder / "servetwin-check.html").read_text()


def test_a_wrong_input_is_no_result_and_is_not_run(job: Job) -> None:
    ran = job.run(CHECK, {"suite": "$(touch owned) --help", "fail-on": "`touch owned`"})
    assert ran.returncode == 2
    assert job.output() == ""
    assert list(job.folder.iterdir()) == []


@pytest.mark.parametrize(("extras", "asked"), [("", ""), ("aiconfigurator,search", "[aiconfigurator,search]")])
def test_it_asks_pip_for_the_extras(job: Job, tmp_path: Path, extras: str, asked: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    ran = Job(job.folder, tmp_path / "bin").run(INSTALL, {"extras": extras})
    assert ran.stdout.splitlines()[-1] == f"{tmp_path / 'action'}{asked}"


def test_it_installs_itself(job: Job, tmp_path: Path) -> None:
    """Into an empty environment that sees the packages of this one, from a copy of what the repository holds."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    (tmp_path / "action").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", *{package.split(".")[0] for package in packages}):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / "action" / name)
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    inside = tmp_path / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (inside / "outside.pth").write_text(sysconfig.get_paths()["purelib"])
    fresh = Job(job.folder, tmp_path / "venv" / "bin")
    ran = fresh.run(INSTALL, {})
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "venv" / "bin" / "servetwin").exists()
    bundled = inside / "harness" / "bundled" / "suite.yaml"
    ran = fresh.run(CHECK, {"suite": str(bundled)})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert fresh.output() == "passed=true\n"


def test_the_example_workflow_uses_what_there_is() -> None:
    (job,) = WORKFLOW["jobs"].values()
    (step,) = [step for step in job["steps"] if "/servetwin@" in step["uses"]]
    assert step["with"].keys() <= ACTION["inputs"].keys()
    assert "suite" in step["with"]
    (upload,) = [step for step in job["steps"] if "upload-artifact" in step["uses"]]
    assert all(Path(ACTION["inputs"][name]["default"]).match(upload["with"]["path"]) for name in ("junit", "result"))
