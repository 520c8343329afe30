"""Flags of `vllm serve` that stand elsewhere here are pointed to their place, and what an error shows can be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from harness.descriptions.vllm_flags import STANDS_AS
from harness.running.simulate import simulate_scenario
from simulator.scheduling.options import EngineOptions
from tests.harness.scenarios import EXAMPLES
from traces.errors import InputError


@pytest.mark.parametrize("name", STANDS_AS)
def test_a_flag_that_stands_elsewhere_is_pointed_there(name: str) -> None:
    assert name not in EngineOptions.__struct_fields__
    with pytest.raises(InputError, match=rf"power.yaml:\d+: field 'engine.{name}': stands elsewhere: accepted: "):
        simulate_scenario(EXAMPLES / "power.yaml", [f"engine.{name}=2"])
    key = f"cluster.instances.0.engine.{name}"
    with pytest.raises(InputError, match=rf"field 'instances\[0\].engine.{name}': stands elsewhere"):
        simulate_scenario(EXAMPLES / "power.yaml", ["cluster.instances.0.engine={}", f"{key}=2"])


@pytest.mark.parametrize("example", ["prefill_decode.yaml", "tensor_parallel.yaml"])
def test_a_fabric_that_is_missing_is_shown_as_it_can_be_written(tmp_path: Path, example: str) -> None:
    asked = yaml.safe_load((EXAMPLES / example).read_text())
    asked["trace"] = str((EXAMPLES / asked["trace"]).resolve())
    del asked["cluster"]["fabric"]
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump(asked, sort_keys=False))
    with pytest.raises(InputError, match=r"scenario.yaml:\d+: field 'fabric': is missing") as raised:
        simulate_scenario(file)
    shown = str(raised.value).partition("as fabric: ")[2]
    simulation, _ = simulate_scenario(file, [f"cluster.fabric={shown[: shown.index('}') + 1]}"])
    assert simulation.capture.outcomes
