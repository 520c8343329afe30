"""The blocks of docs/check.md: commands print what the page says, the rest is what its reader accepts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import yaml

from harness.demo import BUNDLED
from harness.gate.fidelity import DEFAULT
from harness.gate.suite import read_suite
from tests.harness.test_calibrate_docs import skeleton

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
PLUGIN = "harness.gate.pytest_plugin"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_commands_print_what_the_page_shows(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("GITHUB_STEP_SUMMARY", None)
    setting, shown, printed = "", [], []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if command.startswith("B="):
                setting = command
                continue
            script = f"{{ {setting}\n{command}\n}} 2>&1"
            ran = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
            shown += [f"$ {command}", *skeleton(output)]
            printed += [f"$ {command}", *skeleton(ran.stdout)]
    assert len(shown) > 20
    assert printed == shown


def test_the_suite_can_be_read(tmp_path: Path) -> None:
    suite, *_ = blocks("yaml")
    (tmp_path / "suite.yaml").write_text(suite)
    assert [entry.name for entry in read_suite(tmp_path / "suite.yaml").entries] == ["chat", "whatif"]
    for figure, tolerance in DEFAULT.items():
        assert f"`{figure}`" in PAGE
        assert f" {tolerance[:-1]} %" in PAGE


def test_the_action_and_the_hook_are_used_as_they_are() -> None:
    _, step, hook = (yaml.safe_load(block) for block in blocks("yaml"))
    workflow = yaml.safe_load((ROOT / "docs" / "ci" / "servetwin.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert step[0] in job["steps"]
    (known,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert [one["id"] for one in hook["repos"][0]["hooks"]] == [known["id"]]


def test_the_test_runs(tmp_path: Path) -> None:
    (test,) = blocks("python")
    (tmp_path / "test_twin.py").write_text(test)
    (tmp_path / "suite").symlink_to(BUNDLED)
    options = [] if any(point.value == PLUGIN for point in entry_points(group="pytest11")) else ["-p", PLUGIN]
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", str(tmp_path / "test_twin.py")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
