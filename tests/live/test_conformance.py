"""Our scheduler against the installed vLLM's own: the same decisions, step by step; then whole simulations of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from harness.demo import BUNDLED
from simulator.scheduling.policies import Precedence
from simulator.scheduling.rules import rules_of, version_of
from tests.conformance.cases import read_cases
from tests.conformance.compare import difference, first_difference, our_states
from tests.conformance.count import FROM_ELSEWHERE, count, counted
from tests.conformance.engine import ENGINE, ROOT, run_in_engine
from tests.conformance.hooks import hooked
from tests.conformance.judge import Judge
from tests.conformance.mismatch import SHOWN_BY, reported
from tests.conformance.record import record
from tests.conformance.scenario import Scenario, draw_newer_options, draw_scenario
from traces.capture import read_capture, write_capture
from traces.steps import STEP_COLUMNS

pytestmark = pytest.mark.live

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
"""A scenario is a few hundred draws, and vLLM takes its time."""

FAULT = "Precedence.victim = lambda self, running: 0"
"""A scheduler that takes the blocks of the request admitted first."""

WITH_FAULT = (
    f"import runpy, sys; from simulator.scheduling.policies import Precedence; {FAULT}; runpy.run_path(sys.argv[1])"
)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    if not ENGINE.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    with Judge() as process:
        yield process


def test_the_kept_scenarios_first(judge: Judge) -> None:
    for name, case in read_cases().items():
        verdict = judge.verdict(case.scenario)
        assert difference(case.scenario, verdict) is None, f"{name}: {case.about}"
        if judge.version in case.judged:
            assert verdict.states == case.judged[judge.version], f"{name}: vLLM did otherwise when it was recorded"


def test_seeded_scenarios_are_planned_as_vllm_plans_them(judge: Judge) -> None:
    counts, differing = counted(judge, 60, first_seed=5000)
    if differing:
        pytest.fail(reported(judge, differing[0]), pytrace=False)
    assert counts["steps"] >= 20_000
    assert counts["preemptions"] >= 200
    assert counts["prefix hits"] >= 500
    assert min(counts["priority steps"], counts["asynchronous steps"], counts["whole prompts steps"]) >= 2_000


def test_seeded_scenarios_with_drafts_are_planned_as_vllm_plans_them(judge: Judge) -> None:
    counts, differing = counted(judge, 40, first_seed=5000, drafts=True)
    if differing:
        pytest.fail(reported(judge, differing[0]), pytrace=False)
    assert counts["steps"] >= 8_000
    assert counts["drafts"] >= 8_000
    assert counts["preemptions"] >= 100
    assert min(counts["priority steps"], counts["asynchronous steps"]) >= 1_000


@pytest.mark.parametrize("drafts", [False, True])
def test_seeded_scenarios_with_kv_from_elsewhere_are_planned_as_vllm_plans_them(judge: Judge, *, drafts: bool) -> None:
    counts, differing = counted(judge, 25, first_seed=5000, drafts=drafts, elsewhere=True)
    if differing:
        pytest.fail(reported(judge, differing[0]), pytrace=False)
    assert counts["steps"] >= 4_000
    assert counts[FROM_ELSEWHERE] >= 150
    assert counts["preemptions"] >= 30


@pytest.mark.parametrize("drafts", [False, True])
def test_seeded_scenarios_in_a_pipeline_are_planned_as_vllm_plans_them(judge: Judge, *, drafts: bool) -> None:
    """Planned when outputs have come or ahead of them, by the rules of vLLM's second model runner."""
    counts, differing = counted(judge, 25, first_seed=5000, drafts=drafts, stages=True)
    if differing:
        pytest.fail(reported(judge, differing[0]), pytrace=False)
    assert counts["steps"] >= 4_000
    assert counts["preemptions"] >= 30


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    def pick(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    return draw_newer_options(pick, draw_scenario(pick))


def first_differing(judge: Judge, counts: Counter[str], *, derandomize: bool = False) -> Scenario | None:
    """Let Hypothesis draw scenarios. Returns the first in which the two differ; None when there is none."""
    found: list[Scenario] = []

    # Made small by conformance/shrink.py: what takes long steps to reach takes Hypothesis minutes.
    @settings(
        max_examples=80,
        deadline=None,
        derandomize=derandomize,
        database=None,
        suppress_health_check=SLOW,
        phases=(Phase.generate,),
    )
    @given(scenarios())
    def look(scenario: Scenario) -> None:
        if found:
            return
        verdict = judge.verdict(scenario)
        count(scenario, verdict.states, counts)
        if difference(scenario, verdict) is not None:
            found.append(scenario)

    look()
    return found[0] if found else None


def test_the_recorder_and_the_stat_logger_write_what_vllm_did() -> None:
    row = hooked(6)
    assert row["steps"] >= 2_000
    assert row["preemptions"] >= 20
    assert row["aborts"] >= 10
    assert row["differing scenarios"] == 0
    assert row["stat logger"] == "equal"


def test_any_scenario_is_planned_as_vllm_plans_it(judge: Judge) -> None:
    """A mismatch is made small, kept in tests/conformance/cases for every later run, and printed as a script."""
    counts: Counter[str] = Counter()
    if (differing := first_differing(judge, counts)) is not None:
        pytest.fail(reported(judge, differing), pytrace=False)
    assert counts["steps"] >= 2_000


def test_a_planted_fault_is_found_made_small_kept_and_shown(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as planted:
        planted.setattr(Precedence, "victim", lambda self, running: 0)
        differing = first_differing(judge, Counter(), derandomize=True)
        assert differing is not None
        text = reported(judge, differing, tmp_path)
        (case,) = read_cases(tmp_path).values()
        ((version, states),) = case.judged.items()
        rules = rules_of(version_of(version) or (0, 0))
        assert str(first_difference(states, our_states(case.scenario, rules))) == case.about
    assert first_difference(states, our_states(case.scenario, rules)) is None
    assert 2 <= len(case.scenario.arrivals) <= 3, "one that loses its blocks, and one that takes them"
    file = tmp_path / "shown.py"
    file.write_text(text.partition(SHOWN_BY)[2])
    command = [ENGINE, "-c", WITH_FAULT, file]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == case.about


def test_whole_simulations_are_the_same_with_vllms_own_scheduler(judge: Judge, tmp_path: Path) -> None:
    """Byte for byte, and each of vLLM's recorded steps is planned alike afterwards, two in flight included."""
    ground_truth = Path(os.environ.get("SERVETWIN_GROUND_TRUTH", ROOT.parent / "shared" / "ground-truth"))
    arguments = [str(tmp_path), *([str(ground_truth)] if ground_truth.is_dir() else [])]
    results = json.loads(run_in_engine("tests.conformance.outcomes", *arguments).splitlines()[-1])
    assert {"light", "prefix", "saturated", "saturated, asynchronous"} <= results.keys()
    for name, result in results.items():
        assert result["identical"], name
        assert result["steps"] > 1000, name
        assert (result["replayed"] == result["steps"]) is (result["drafts"] is None), name
    assert results["drafts, asynchronous"]["drafts"] > 1000
    assert results["saturated"]["preemptions"] > 0
    assert ("ground truth" in results) == ground_truth.is_dir()


def test_the_scenarios_key_chooses_vllms_own_scheduler(judge: Judge, tmp_path: Path) -> None:
    """The same files from the command line, but for what the capture says of its scheduler."""
    command = ["simulate", str(BUNDLED / "saturated.yaml")]
    for option in ("num_gpu_blocks=200", "block_size=32", "max_num_seqs=32", "max_num_batched_tokens=512"):
        command += ["--set", f"engine.{option}"]
    servetwin(*command, "--out", tmp_path / "native")
    run_in_engine("tests.conformance.cli", *command, "--out", str(tmp_path / "vllm"), "--set", "scheduler=vllm")
    for name in ("outcomes.parquet", "trace.jsonl.gz"):
        assert (tmp_path / "native" / name).read_bytes() == (tmp_path / "vllm" / name).read_bytes(), name
    native, vllm = (read_capture(tmp_path / scheduler).steps for scheduler in ("native", "vllm"))
    assert native is not None
    assert vllm is not None
    for column in STEP_COLUMNS:
        np.testing.assert_array_equal(getattr(native, column), getattr(vllm, column), column)
    # How many free blocks hold content still is not asked of vLLM's own.
    assert native.kv_cached is not None
    assert vllm.kv_cached is None
    simulated = read_capture(tmp_path / "vllm")
    assert f"scheduled by vLLM {judge.version}'s own scheduler" in simulated.meta.notes
    assert sum(outcome.num_preemptions or 0 for outcome in simulated.outcomes) > 0


def test_a_live_engines_steps_are_planned_alike(tmp_path: Path) -> None:
    """With the priority policy, preemptions, clients that go away and answers that stop early."""
    if not ENGINE.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    capture = record("priority", tmp_path, n_requests=70)
    write_capture(capture, tmp_path / "capture")
    scenario = tmp_path / "scenario.json"
    instance = {"model": capture.meta.model, "device": capture.meta.device}
    scenario.write_text(json.dumps({"trace": "unused", "cluster": {"instances": [instance]}}))
    said = json.loads(servetwin("validate", scenario, "--capture", tmp_path / "capture", "--steps", "--json"))
    assert said["divergence"] is None
    assert said["n_steps"] == said["n_recorded"] >= 250
    assert said["n_preempted"] >= 10


def servetwin(*arguments: object) -> str:
    """What the command line prints."""
    command = [sys.executable, "-c", "from harness.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
