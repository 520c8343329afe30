"""Our scheduler against the installed vLLM's own: the same decisions, step by step; then whole simulations of both."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conformance.cases import keep, read_cases
from tests.conformance.compare import Difference, count, difference, script
from tests.conformance.count import counted
from tests.conformance.engine import ENGINE, ROOT, run_in_engine
from tests.conformance.judge import Judge, Verdict
from tests.conformance.scenario import Scenario, draw_newer_options, draw_scenario

pytestmark = pytest.mark.live

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
"""A scenario is a few hundred draws, and vLLM takes its time."""


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    if not ENGINE.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    with Judge() as process:
        yield process


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    def pick(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    return draw_newer_options(pick, draw_scenario(pick))


def test_the_kept_scenarios_first(judge: Judge) -> None:
    for name, case in read_cases().items():
        verdict = judge.verdict(case.scenario)
        assert difference(case.scenario, verdict) is None, f"{name}: {case.about}"
        if judge.version in case.judged:
            assert verdict.states == case.judged[judge.version], f"{name}: vLLM did otherwise when it was recorded"


def test_seeded_scenarios_are_planned_as_vllm_plans_them(judge: Judge) -> None:
    counts = counted(judge, 60, first_seed=5000)
    assert counts["mismatches"] == 0, counts["first"]
    assert counts["steps"] >= 20_000
    assert counts["preemptions"] >= 200
    assert counts["prefix hits"] >= 500
    assert min(counts["priority steps"], counts["asynchronous steps"], counts["whole prompts steps"]) >= 2_000


def test_any_scenario_is_planned_as_vllm_plans_it(judge: Judge) -> None:
    """A mismatch is shrunk, kept in tests/conformance/cases for every later run, and printed as a script."""
    counts: Counter[str] = Counter()
    found: list[tuple[Scenario, Verdict, Difference]] = []

    @settings(max_examples=80, deadline=None, suppress_health_check=SLOW, phases=set(Phase) - {Phase.explain})
    @given(scenarios())
    def agree(scenario: Scenario) -> None:
        verdict = judge.verdict(scenario)
        count(scenario, verdict.states, counts)
        if (first := difference(scenario, verdict)) is not None:
            found.append((scenario, verdict, first))
        assert first is None

    try:
        agree()
    except AssertionError:
        scenario, verdict, first = found[-1]  # Hypothesis runs the smallest one last
        file = keep(scenario, verdict.version, verdict.states, str(first))
        pytest.fail(f"kept as {file}; shown by\n\n{script(scenario, str(first))}", pytrace=False)
    assert counts["steps"] >= 2_000


def test_whole_simulations_are_the_same_with_vllms_own_scheduler(judge: Judge, tmp_path: Path) -> None:
    """Byte for byte, and each of vLLM's recorded steps is planned alike afterwards, two in flight included."""
    ground_truth = Path(os.environ.get("SERVETWIN_GROUND_TRUTH", ROOT.parent / "shared" / "ground-truth"))
    arguments = [str(tmp_path), *([str(ground_truth)] if ground_truth.is_dir() else [])]
    results = json.loads(run_in_engine("tests.conformance.outcomes", *arguments).splitlines()[-1])
    assert {"light", "prefix", "saturated", "saturated, asynchronous"} <= results.keys()
    for name, result in results.items():
        assert result["identical"], name
        assert result["replayed"] == result["steps"] > 1000, name
    assert results["saturated"]["preemptions"] > 0
    assert ("ground truth" in results) == ground_truth.is_dir()


def test_the_script_of_a_scenario_runs(judge: Judge, tmp_path: Path) -> None:
    """What a mismatch prints is a file that stands on its own."""
    file = tmp_path / "shown.py"
    file.write_text(script(read_cases()["adaptive-threshold"].scenario, "a scenario"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([ENGINE, file], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "no difference"
