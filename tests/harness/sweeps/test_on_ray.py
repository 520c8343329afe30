"""The same study on a Ray cluster of two processors on this machine: the same bytes, and nothing left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.sweeps.sweep import sweep
from tests.command_line import COMMAND
from tests.harness.sweeps.studies import DYING, contents, write_study
from traces.errors import EngineError, InputError

STUDY = """\
grid:
  routing: [round_robin, 'sweeps_dying:Dies', least_loaded]
  cluster.instances.0.count: [2, 3]
objectives: {ttft_s.mean: min}
"""


def test_ray_gives_the_same_bytes_and_outlives_a_dead_worker(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "sweeps_dying.py").write_text(DYING)
    study = write_study(tmp_path, STUDY)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
    for executor in ("local", "ray"):
        command = ["sweep", str(study), "--out", str(tmp_path / executor), "--executor", executor, "--workers", "2"]
        ran = subprocess.run(
            [*COMMAND, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    local, on_ray = contents(tmp_path / "local"), contents(tmp_path / "ray")
    assert local.keys() == on_ray.keys()
    died = [json.loads(record["study.json"])["points"][2:4] for record in (local, on_ray)]
    assert all("its process died" in point["reason"] for points in died for point in points)
    for name in (*(name for name in local if name.startswith("points/")), "pareto.csv", "pareto.svg"):
        assert local[name] == on_ray[name], name


def test_a_cluster_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(EngineError, match="Ray cannot be started or reached: Could not find any running Ray instance"):
        sweep(write_study(tmp_path), tmp_path / "out", executor="ray")


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is not installed: found 'ray': accepted: pip .*'\.\[ray\]'.*; or local"):
        sweep(write_study(tmp_path), tmp_path / "out", executor="ray")
