"""Fast-forward changes nothing: on the bundled loads and on the measured GPU runs, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.demo import BUNDLED, LOADS
from harness.deploy.deployment import deploy
from harness.descriptions.scenario import read_scenario
from harness.scoring.validate import at_measured_arrivals
from simulator.simulate import simulate
from tests.measured import RUNS, measured_run
from traces.capture import read_capture
from traces.formats import read_any_trace
from traces.steps import STEP_COLUMNS


def assert_same_bytes(scenario_path: Path, capture_path: Path) -> None:
    scenario, measured = read_scenario(scenario_path), read_capture(capture_path)
    trace = at_measured_arrivals(read_any_trace(scenario.trace_path), measured)
    cluster = deploy(scenario, measured.meta).cluster
    fast, slow = (simulate(trace, cluster, fast_forward=fast_forward) for fast_forward in (True, False))
    assert fast.n_sweeps < 0.7 * slow.n_sweeps == 0.7 * slow.n_steps
    assert fast.capture.outcomes == slow.capture.outcomes
    assert fast.capture.steps is not None
    assert slow.capture.steps is not None
    for name in STEP_COLUMNS:
        np.testing.assert_array_equal(getattr(fast.capture.steps, name), getattr(slow.capture.steps, name))


@pytest.mark.parametrize("load", LOADS)
def test_on_a_bundled_load(load: str) -> None:
    assert_same_bytes(BUNDLED / f"{load}.yaml", BUNDLED / "captures" / f"{load}-2")


@pytest.mark.ground_truth
@pytest.mark.parametrize("name", RUNS)
def test_on_a_measured_gpu_run(ground_truth: Path, tmp_path: Path, name: str) -> None:
    assert_same_bytes(*measured_run(name, tmp_path))
