"""The blocks of docs/check.md: commands print what the page says, the rest is what its reader accepts."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import yaml

from harness.demo import BUNDLED
from harness.gate.fidelity import DEFAULT
from harness.gate.suite import read_suite
from tests.pages import ROOT, blocks, shown_and_printed

PAGE = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
PLUGIN = "harness.gate.pytest_plugin"


def test_commands_print_what_the_page_shows(tmp_path: Path) -> None:
    (tmp_path / "changes.yaml").write_text(blocks("check.md", "yaml")[1])
    shown, printed = shown_and_printed("check.md", tmp_path, numbers=False, errors=True)
    assert len(shown) > 20
    assert printed == shown


def test_the_suite_can_be_read(tmp_path: Path) -> None:
    suite, changes, *_ = blocks("check.md", "yaml")
    (tmp_path / "suite.yaml").write_text(suite)
    assert [entry.name for entry in read_suite(tmp_path / "suite.yaml").entries] == ["chat", "whatif"]
    (tmp_path / "suite.yaml").write_text(changes)
    assert [entry.change_from for entry in read_suite(tmp_path / "suite.yaml").entries] == [None, "now"]
    for figure, tolerance in DEFAULT.items():
        assert f"`{figure}`" in PAGE
        assert f" {tolerance[:-1]} %" in PAGE


def test_the_action_and_the_hook_are_used_as_they_are() -> None:
    *_, step, hook = (yaml.safe_load(block) for block in blocks("check.md", "yaml"))
    workflow = yaml.safe_load((ROOT / "docs" / "ci" / "servetwin.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert step[0] in job["steps"]
    (known,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert [one["id"] for one in hook["repos"][0]["hooks"]] == [known["id"]]


def test_the_test_runs(tmp_path: Path) -> None:
    (test,) = blocks("check.md", "python")
    (tmp_path / "test_twin.py").write_text(test)
    (tmp_path / "suite").symlink_to(BUNDLED)
    options = [] if any(point.value == PLUGIN for point in entry_points(group="pytest11")) else ["-p", PLUGIN]
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", str(tmp_path / "test_twin.py")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
