"""A small study on disk, and how to run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.sweeps.sweep import Swept, sweep
from harness.sweeps.trials import Progress
from tests.harness.scenarios import write_scenario

GRID = """\
grid:
  engine.max_num_seqs: [2, 8]
  cluster.instances.0.count: [1, 2]
objectives: {e2el_s.p90: min, output_tokens_per_s: max}
"""

WRITTEN = ("study.json", "results.csv", "pareto.csv", "pareto.svg")

DYING = """
import os, signal

class Dies:
    reads_state = False

    def __init__(self, seed):
        pass

    def choose(self, row, hashes, instances, now_s):
        os.kill(os.getpid(), signal.SIGKILL)
"""
"""A router whose worker is killed as it chooses."""


def write_study(folder: Path, text: str = GRID) -> Path:
    """A study of the small scenario; what it varies and wants is `text`."""
    if not (folder / "scenario.yaml").exists():
        write_scenario(folder)
    (folder / "study.yaml").write_text(f"scenario: scenario.yaml\n{text}")
    return folder / "study.yaml"


def points_of(swept: Swept) -> list[dict[str, Any]]:
    """The points of study.json."""
    points: list[dict[str, Any]] = swept.record["points"]
    return points


def contents(out: Path) -> dict[str, bytes]:
    """Everything in a study's folder."""
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


def reported(study: Path, out: Path) -> list[Progress]:
    """Run a study on one worker; what it reported after each point."""
    reports: list[Progress] = []
    sweep(study, out, workers=1, report=reports.append)
    return reports


def written(out: Path) -> dict[str, Any]:
    """study.json."""
    record: dict[str, Any] = json.loads((out / "study.json").read_text())
    return record
