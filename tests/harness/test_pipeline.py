"""Pipeline stages planned ahead of their outputs: what it changes, what the page shows, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.running.simulate import simulate_scenario
from tests.pages import shown_and_printed
from traces.errors import InputError

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "pipeline_ahead.yaml"


def tpot_s(*overrides: str) -> float:
    return float(simulate_scenario(EXAMPLE, overrides)[1]["metrics"]["tpot_s"]["mean"])


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("pipeline.md", tmp_path)
    assert printed == shown


def test_planned_ahead_the_host_is_hidden() -> None:
    ahead, waiting = tpot_s(), tpot_s("engine.async_scheduling=false")
    assert ahead < waiting - 0.0025
    without_host = tpot_s("engine.async_scheduling=false", "overhead.host_step_s=0")
    assert ahead == pytest.approx(without_host, rel=0.03)


def test_where_it_is_not_said_outputs_are_waited_for() -> None:
    said = (
        "max_num_seqs: 32, max_num_batched_tokens: 512, max_model_len: 2048, num_gpu_blocks: 500, enforce_eager: true"
    )
    unsaid, waiting = tpot_s(f"engine={{{said}}}"), tpot_s(f"engine={{{said}, async_scheduling: false}}")
    assert unsaid == waiting > tpot_s(f"engine={{{said}, async_scheduling: true}}")


def test_versions_that_are_not_known_to_plan_ahead_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"async_scheduling.*accepted: false with pipeline_parallel_size above 1 before"
    ):
        tpot_s("engine_version='0.26'")
