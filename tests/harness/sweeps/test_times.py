"""What a study must not lose: engines that vLLM would not start, what kinds of times points are of, why they failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.sweeps import points
from harness.sweeps.below_table import failure_lines, time_lines, times_record
from harness.sweeps.sweep import sweep
from harness.sweeps.times import refusal, times_of
from simulator.memory import memory_account
from simulator.scheduling.options import EngineOptions
from tests.command_line import ok
from tests.harness.scenarios import EXAMPLES, SCENARIO
from tests.harness.sweeps.studies import points_of, write_study
from tests.simulator.test_memory import small
from traces.capture import CaptureMeta
from traces.errors import InputError

SIXTY_BLOCKS = 60 * 16 * 512
"""Bytes of KV for 960 tokens of the small model: 2 layers of keys and values, 4 heads of 16, 2 bytes each."""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A point of 512 tokens a request at most, which starts, and one of 4096, which does not."""
    study = write_study(tmp_path, "grid: {engine.max_model_len: [512, 4096]}\nobjectives: {ttft_s.p50: min}\n")
    text = SCENARIO.replace("num_gpu_blocks: 200", f"kv_cache_memory_bytes: {SIXTY_BLOCKS}")
    (tmp_path / "scenario.yaml").write_text(text)
    return study


def test_a_point_that_vllm_would_not_start_fails_with_the_reason(study: Path, tmp_path: Path) -> None:
    swept = sweep(study, tmp_path / "out", workers=1)
    good, bad = points_of(swept)
    assert swept.record["front"] == [0]
    assert good["reason"] is None
    assert bad["figures"] is None
    assert bad["reason"] == ("vLLM would not start: a request of max_model_len 4096 takes more than the 60 KV blocks")
    printed = ok("sweep", study, "--out", tmp_path / "out")
    assert "2 points, 2 of them from before: 1 on the front, 1 failed" in printed
    assert "point 1 failed: vLLM would not start: a request of max_model_len 4096" in printed


def test_what_vllm_would_not_start_is_not_simulated(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulate(*asked: Any, **options: Any) -> None:
        raise AssertionError("simulated")

    monkeypatch.setattr(points, "simulate_trace", simulate)
    inputs = points.read_inputs(tmp_path / "scenario.yaml")
    good, bad = (
        points.simulate_point(inputs, points.Point({"engine.max_model_len": length}, "")) for length in (512, 4096)
    )
    assert good.reason == "AssertionError: simulated"
    assert bad.reason == "vLLM would not start: a request of max_model_len 4096 takes more than the 60 KV blocks"
    assert bad.is_lasting


def test_where_vllm_would_start_no_point_there_is_no_result(study: Path, tmp_path: Path) -> None:
    study.write_text(study.read_text().replace("512, 4096", "2048, 4096"))
    with pytest.raises(InputError, match="none of 2 points has figures; vLLM would not start: "):
        sweep(study, tmp_path / "out", workers=1)


def test_what_vllm_would_not_start_has_no_capacity(study: Path, tmp_path: Path) -> None:
    asked = "capacity: {key: concurrency, low: 1, high: 2}\nconstraints: {n_finished: {min: 1}}\n"
    study.write_text(study.read_text().replace("objectives: {ttft_s.p50: min}\n", asked))
    swept = sweep(study, tmp_path / "out", workers=1)
    good, bad = swept.record["capacities"]
    assert good["highest"]["value"] == 2
    assert bad["highest"] is None
    assert bad["next_above"]["shortfalls"][0].startswith("failed: vLLM would not start: ")
    assert "2 values failed and count as not held" in swept.record["notes"]
    printed = ok("sweep", study, "--out", tmp_path / "out")
    assert printed.count("failed: vLLM would not start: ") == 2  # in the table, and once below it
    assert "points 2, 3 failed: vLLM would not start: " in printed


def test_the_refusal_is_found_where_it_is_made() -> None:
    options = EngineOptions(max_num_batched_tokens=64, max_num_seqs=4, enforce_eager=True, max_model_len=100_000)
    notes = memory_account(small(), "d", 3e6, options).notes()
    assert refusal(notes) == notes[-1]
    assert refusal(notes[:-1]) is None


def test_the_kinds_of_times_are_printed_below_the_table(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"scenario: {EXAMPLES / 'tensor_parallel.yaml'}\n"
        "grid: {cluster.instances.0.tensor_parallel_size: [1, 2]}\nobjectives: {ttft_s.p50: min}\n"
    )
    printed = " ".join(ok("sweep", study, "--out", tmp_path / "out").split())
    bound = "a roofline from the datasheet, a bound and not a measurement; validated: a bound; against no run"
    assert f"times of all points: {bound}" in printed
    assert "times of cluster.instances.0.tensor_parallel_size 2: collectives of 2 ranks are not measured" in printed


def meta(*notes: str) -> CaptureMeta:
    return CaptureMeta(kind="simulated", engine=None, model="m", device="H100", clock="c", notes=notes)


def test_times_of_a_profile_are_said_to_be_of_one_and_what_lies_outside_of_it() -> None:
    profile, beyond, unfitted = times_of(
        meta(
            "2 instances",
            "3 of 9 steps priced beyond the profile's measured range: tokens per step",
            "3 of 9 steps lie outside the range that the calibration was fitted on: KV tokens",
        )
    )
    assert profile.startswith("a profile of H100; servetwin profile list says ")
    assert beyond == "steps beyond the profile's measured range: tokens per step"
    assert unfitted == "steps unlike those that were fitted: KV tokens"


def test_times_of_an_external_simulator_are_no_profile() -> None:
    (only,) = times_of(meta("operators priced by the external simulator ./mine"))
    assert only == "operators priced by the external simulator ./mine"


def record_of(overrides: list[dict[str, Any]], times: list[list[str]], failed: dict[int, str]) -> dict[str, Any]:
    points = [{"overrides": set_to, "reason": failed.get(i)} for i, set_to in enumerate(overrides)]
    return {"points": points, "times": times_record(times)}


def test_points_are_told_apart_by_a_key_where_one_does_else_by_number() -> None:
    overrides: list[dict[str, Any]] = [{"seed": i % 2, "device": "AABBC"[i]} for i in range(5)]
    record = record_of(overrides, [["a", "all"], ["a", "all"], ["b", "all"], ["all"], []], {4: "no"})
    assert list(time_lines(record)) == [
        "times of device A: a",
        "times of all points: all",
        "times of point 2: b",
    ]


def test_points_that_failed_for_the_same_reason_are_listed_once() -> None:
    failed = {0: "x", 2: "no room", 3: "no room", 4: "no room", 7: "no room", 8: "no room"}
    record = record_of([{}] * 10, [[]] * 10, failed)
    assert failure_lines(record) == ["points 2 to 4, 7, 8 failed: no room", "point 0 failed: x"]
    assert list(time_lines(record)) == []


def test_of_many_points_the_first_are_named_and_the_others_counted() -> None:
    failed = dict.fromkeys([*range(0, 18, 2), 20, 21, 22], "x")
    (line,) = failure_lines(record_of([{}] * 24, [[]] * 24, failed))
    assert line == "points 0, 2, 4, 6, 8, 10, 12, 14, 4 more failed: x"
