"""How far off a calibrated twin may be on requests that were not fitted: ceilings that only go down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.calibrate import calibrate, write_calibration
from harness.deploy.deployment import Deployment
from harness.running.predicted import interval_notes, run
from harness.scoring.validate import validate
from harness.terminal.facts import import_profiles_to
from simulator.cluster import Cluster
from tests.calibrate.synthetic import bundled, measured
from traces.capture import write_capture
from traces.errors import InputError
from traces.formats import import_capture, read_any_trace


def on_the_rest(case: Path, work: Path, model: str, workload_name: str, maker: str) -> dict[str, Any]:
    """Fit the first third of a GPU run's requests, from request records alone; score the others."""
    workload, bench = case / "workloads" / f"{workload_name}.jsonl", case / "bench" / "RTXPRO6000" / model
    import_profiles_to(case / "perf" / "RTXPRO6000" / maker, work / "profiles")
    write_capture(import_capture(bench, trace=read_any_trace(workload)), work / "capture")
    scenario = work / "scenario.yaml"
    scenario.write_text(f"trace: {workload}\ncluster: {bench / 'cluster.json'}\nprofiles: [profiles]\n")
    write_calibration(calibrate(scenario, [work / "capture"], "first:0.33"), work / "fitted.json")
    result = validate(scenario, work / "capture", calibration=work / "fitted.json").result
    assert result["valid"], result["reasons"]
    assert result["n_scored"] == 201
    return result


@pytest.fixture(scope="module")
def dense(ground_truth: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """RTX PRO 6000, Llama-3.1-8B, vLLM 0.19; with nothing fitted: 8.3, 1.2 and 1.6 %."""
    names = ("Llama-3.1-8B", "sharegpt-llama-3.1-8b-300-sps10", "meta-llama")
    return on_the_rest(ground_truth / "vllm-0.19", tmp_path_factory.mktemp("dense"), *names)


@pytest.fixture(scope="module")
def experts(ground_truth: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """RTX PRO 6000, Qwen3-30B-A3B, DP2 x EP2. Its TTFT is mostly where in a step of 50 ms a request arrives."""
    names = ("Qwen3-30B-A3B-Instruct-2507", "sharegpt-qwen3-30b-a3b-300-sps10", "Qwen")
    return on_the_rest(ground_truth / "vllm-0.19", tmp_path_factory.mktemp("experts"), *names)


@pytest.mark.ground_truth
def test_a_dense_model(dense: dict[str, Any]) -> None:
    assert dense["paired"]["ttft_s"]["mape"] <= 0.02
    assert dense["paired"]["tpot_s"]["mape"] <= 0.008
    assert dense["paired"]["e2el_s"]["mape"] <= 0.0055
    for metric in ("ttft_s", "tpot_s", "e2el_s"):
        for figure in dense["metrics"][metric].values():
            assert abs(figure["error"]) <= 0.012


@pytest.mark.ground_truth
def test_a_mixture_of_experts_on_two_ranks(experts: dict[str, Any]) -> None:
    assert experts["paired"]["ttft_s"]["mape"] <= 0.12
    assert experts["paired"]["ttft_s"]["median_ape"] <= 0.07
    assert experts["paired"]["tpot_s"]["mape"] <= 0.006
    assert experts["paired"]["e2el_s"]["mape"] <= 0.005


@pytest.mark.ground_truth
def test_intervals_hold_held_back_requests(dense: dict[str, Any], experts: dict[str, Any]) -> None:
    """Over both runs; one alone may be fitted better or worse than its own first third can tell."""
    for metric in ("tpot_s", "e2el_s"):
        shares = [result["prediction"]["coverage"][metric]["share"] for result in (dense, experts)]
        assert 0.8 <= sum(shares) / 2 <= 0.98
        assert min(shares) >= 0.75


def test_what_cannot_be_carried_through_is_said_or_refused() -> None:
    """Pipeline stages overlap, so that a request's time is no sum of steps."""
    subject = measured(bundled("light"), {}, seed=1)
    staged = Cluster((replace(subject.engine, pipeline_parallel_size=2),))
    deployment = Deployment(staged, (), (), {}, calibration=None)
    with pytest.raises(InputError, match="not explained"):
        run(deployment, subject.trace, explain=True)
    assert interval_notes(deployment) == []
