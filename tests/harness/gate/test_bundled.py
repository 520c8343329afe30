"""The suite of the bundled captures: green as it is, on noise and on a small error, red on a larger one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from harness.demo import BUNDLED
from harness.gate.check import check
from harness.gate.verdict import Checked, Status
from tests.harness.gate.planted import plant

SUITE = BUNDLED / "suite.yaml"


def failed(checked: Checked) -> dict[str, list[str]]:
    return {
        scenario.name: [f"{verdict.gate} {verdict.figure}" for verdict in scenario.of(Status.FAILED)]
        for scenario in checked.scenarios
        if not scenario.passed
    }


def written(folder: Path, change: Callable[[dict[str, dict[str, str]]], object]) -> Path:
    """The bundled suite with its scenarios changed, in another folder."""
    suite = yaml.safe_load(SUITE.read_text())
    suite["baseline"] = str(BUNDLED / suite["baseline"])
    for entry in suite["scenarios"].values():
        entry["scenario"], entry["capture"] = str(BUNDLED / entry["scenario"]), str(BUNDLED / entry["capture"])
    change(suite["scenarios"])
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    return folder / "suite.yaml"


def test_it_is_green_and_says_how_every_figure_stands() -> None:
    checked = check(SUITE)
    assert failed(checked) == {}
    assert [scenario.name for scenario in checked.scenarios] == ["light", "prefix", "saturated"]
    for scenario in checked.scenarios:
        assert {verdict.gate for verdict in scenario.verdicts} == {"fidelity", "drift", "canary"}
        assert {verdict.status for verdict in scenario.verdicts} == {Status.PASSED}


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_steps_that_take_5_percent_more_or_less_turn_every_scenario_red(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    plant(monkeypatch, factor)
    checked = check(SUITE)
    for scenario in checked.scenarios:
        drifted = {verdict.figure: verdict for verdict in scenario.of(Status.FAILED) if verdict.gate == "drift"}
        assert {"at_once.duration", "itl.p50", "tpot.mean", "e2el.mean"} <= drifted.keys()
        assert drifted["at_once.duration"].difference == pytest.approx(factor - 1)
        assert not [verdict for verdict in scenario.of(Status.FAILED) if verdict.gate == "canary"], (
            "no decision changed"
        )


@pytest.mark.parametrize("factor", [0.995, 1.005])
def test_steps_that_take_half_a_percent_more_or_less_are_reported(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    plant(monkeypatch, factor)
    checked = check(SUITE)
    assert failed(checked) == {}
    for scenario in checked.scenarios:
        assert "at_once.duration" in {verdict.figure for verdict in scenario.of(Status.CHANGED)}


def test_the_second_capture_of_each_load_is_green_too(tmp_path: Path) -> None:
    def second(scenarios: dict[str, dict[str, str]]) -> None:
        for entry in scenarios.values():
            entry["capture"] = entry["capture"].replace("-1", "-2")

    checked = check(written(tmp_path, second))
    assert failed(checked) == {}
    for scenario in checked.scenarios:
        assert [change.name for change in scenario.inputs] == ["capture"]
        assert all(verdict.status is Status.PASSED for verdict in scenario.verdicts if verdict.gate != "fidelity")


def test_a_lost_scenario_turns_it_red(tmp_path: Path) -> None:
    checked = check(written(tmp_path, lambda scenarios: scenarios.pop("prefix")))
    assert failed(checked) == {"prefix": ["drift scenario"]}
    assert [scenario.name for scenario in checked.scenarios] == ["light", "saturated", "prefix"]


def test_a_configuration_that_is_not_the_captures_turns_it_red() -> None:
    checked = check(SUITE, overrides=["engine.max_num_seqs=16"])
    first = checked.scenarios[0].verdicts[0]
    assert (first.figure, first.status) == ("comparison", Status.FAILED)
    assert first.why == "configuration mismatch: max_num_seqs 16 simulated, 32 measured"


@pytest.mark.parametrize("wrong", ["block_size=16", "enable_prefix_caching=false", "num_gpu_blocks=200"])
def test_the_canary_sees_what_the_scheduler_does_otherwise(wrong: str) -> None:
    checked = check(SUITE, overrides=[f"engine.{wrong}"])
    counts = {
        verdict.figure for one in checked.scenarios for verdict in one.of(Status.FAILED) if verdict.gate == "canary"
    }
    assert counts & {"steps", "prefix_hit_tokens", "preemptions", "peak_kv_blocks"}
