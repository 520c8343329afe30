"""How far off the twin may be on measured runs: ceilings that only go down."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.demo import LOADS, bundled_validation
from harness.show import import_profiles_to
from harness.validate import validate
from traces.capture import write_capture
from traces.formats import import_capture, read_any_trace


@pytest.mark.ground_truth
def test_a_gpu_run_with_nothing_fitted(ground_truth: Path, tmp_path: Path) -> None:
    """RTX PRO 6000, Llama-3.1-8B, vLLM 0.19, 300 requests; the reference simulator: 15.0, 1.5 and 1.9 %."""
    case = ground_truth / "vllm-0.19"
    workload = case / "workloads" / "sharegpt-llama-3.1-8b-300-sps10.jsonl"
    run = case / "bench" / "RTXPRO6000" / "Llama-3.1-8B"
    import_profiles_to(case / "perf" / "RTXPRO6000" / "meta-llama", tmp_path / "profiles")
    write_capture(import_capture(run, trace=read_any_trace(workload)), tmp_path / "capture")
    scenario = f"trace: {workload}\ncluster: {run / 'cluster.json'}\nprofiles: [profiles]\n"
    (tmp_path / "scenario.yaml").write_text(scenario)
    result = validate(tmp_path / "scenario.yaml", tmp_path / "capture").result
    assert result["valid"]
    assert result["n_scored"] == 300
    assert result["paired"]["ttft_s"]["mape"] <= 0.085
    assert result["paired"]["tpot_s"]["mape"] <= 0.013
    assert result["paired"]["e2el_s"]["mape"] <= 0.0175


@pytest.mark.parametrize("load", LOADS)
def test_the_bundled_loads(load: str) -> None:
    """Against both recordings: they differ by up to 12 %, so that either one alone could flatter the twin."""
    validation, repeat = bundled_validation(load)
    for result in (validation.result, repeat.again, repeat.floor):
        assert result["valid"], result["reasons"]
    ceilings = {"light": (0.06, 0.14), "prefix": (0.12, 0.10), "saturated": (0.12, 0.15)}
    for result, ceiling in zip((validation.result, repeat.again), ceilings[load], strict=True):
        assert result["paired"]["e2el_s"]["mape"] <= ceiling


def test_the_saturated_load_preempts_and_the_prefix_load_shares() -> None:
    saturated, _ = bundled_validation("saturated")
    prefix, _ = bundled_validation("prefix")
    for capture in (saturated.measured, saturated.simulated):
        assert sum(outcome.num_preemptions or 0 for outcome in capture.outcomes) >= 10
    for capture in (prefix.measured, prefix.simulated):
        assert sum(outcome.cached_tokens or 0 for outcome in capture.outcomes) >= 5_000
