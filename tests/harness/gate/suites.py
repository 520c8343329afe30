"""Small suites on disk: a scenario, a simulated capture of it, one of a change of it, a baseline."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.gate.check import check
from harness.gate.outputs import write_outputs
from harness.running.simulate import simulate_scenario, write_simulation
from tests.harness.gate.planted import plant
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


CHANGES = """\
baseline: baseline.json
fidelity: {}
change: {ttft.mean: 10%, e2el.mean: 10%, output_tokens_per_s: 5%}
scenarios:
  base:
    scenario: scenario.yaml
    capture: capture
  seats-4:
    scenario: scenario.yaml
    set: [engine.max_num_seqs=4]
    capture: seats-4
    change_from: base
"""


def write_changes(folder: Path, text: str = CHANGES, factor: float = 1.0) -> Path:
    """A suite with a change, measured on an engine whose steps take `factor` times the twin's once it has changed."""
    suite = write_suite(folder, text)
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, factor)
        write_simulation(*simulate_scenario(folder / "scenario.yaml", ["engine.max_num_seqs=4"]), folder / "seats-4")
    return suite


def write_changes_with_baseline(folder: Path, text: str = CHANGES, factor: float = 1.0) -> Path:
    """The same with a baseline."""
    suite = write_changes(folder, text, factor)
    store(suite)
    return suite
