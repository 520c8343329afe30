"""A small suite on disk: a scenario, a simulated capture of it, a baseline."""

from __future__ import annotations

from pathlib import Path

from harness.gate.check import check
from harness.gate.outputs import write_outputs
from harness.running.simulate import simulate_scenario, write_simulation
from tests.harness.scenarios import write_scenario

SUITE = """\
baseline: baseline.json
scenarios:
  tiny:
    scenario: scenario.yaml
    capture: capture
"""


def write_suite(folder: Path, text: str = SUITE) -> Path:
    """A suite whose capture is the twin's own, so that it is not off at all. Returns its file."""
    scenario = write_scenario(folder)
    write_simulation(*simulate_scenario(scenario), folder / "capture")
    (folder / "suite.yaml").write_text(text)
    return folder / "suite.yaml"


def write_suite_with_baseline(folder: Path, text: str = SUITE) -> Path:
    """The same with a baseline."""
    suite = write_suite(folder, text)
    store(suite)
    return suite


def store(suite: Path, reason: str = "the first one") -> None:
    """Make what a suite gives its baseline."""
    checked = check(suite, update_baseline=reason)
    assert checked.baseline is not None
    write_outputs(dict([checked.baseline]))
