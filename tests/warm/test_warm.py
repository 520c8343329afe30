"""A warm `servetwin` prints, writes and ends as the installed one, which is started here as any user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.pages import ROOT

INSTALLED = Path(sys.executable).parent
EXAMPLE = ROOT / "docs" / "examples" / "power.yaml"

COMMANDS = {
    "the version": "servetwin --version",
    "help for a pipe that is closed early": "servetwin --help | head -n 1; echo ${PIPESTATUS[*]}",
    "a command that there is not": "servetwin nothing",
    "no scenario": "servetwin simulate absent.yaml --out out; echo $?; ls",
    "a simulation": f"servetwin simulate {EXAMPLE} --out out; ls out; head -n 12 out/summary.json; cat out/energy.csv",
    "both streams in one": "servetwin trace stats absent.jsonl 2>&1 | cat; servetwin --help 2>&1 | tail -n 3",
    "standard input": "cat scenario.yaml | servetwin simulate /dev/stdin --out out; echo $?",
    "settings": "COLUMNS=60 servetwin --help",
    "two in a pipe": "servetwin --help | servetwin --version",
}


def ran(folder: Path, start: Path, command: str) -> tuple[int, str, str]:
    folder.mkdir()
    (folder / "scenario.yaml").write_text("nothing: 1\n")
    environment = {**os.environ, "PATH": f"{start}:{INSTALLED}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_it_is_the_installed_one(command: str, tmp_path: Path) -> None:
    found = ran(tmp_path / "warm", warm.folder(), command)
    assert found == ran(tmp_path / "installed", INSTALLED, command)
    assert found[1] or found[2]
