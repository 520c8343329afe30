"""Options that nobody states: what the installed vLLM's own functions choose, on devices that it is only told of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collectors.local.small_model import write_small_model
from harness.deploy import defaults
from harness.deploy.asked import engine_asked
from harness.descriptions.scenario import read_scenario
from tests.conformance.engine import ENGINE, run_in_engine
from tests.conformance.engine_defaults import Answer, asked_of_vllm, differences

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def answer() -> Answer:
    if not ENGINE.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    return asked_of_vllm()


def test_the_same_is_chosen_as_by_vllm(answer: Answer) -> None:
    assert len(answer.chosen) > 2000
    assert not differences(answer)[:1]


@pytest.mark.parametrize(("name", "value"), [("LARGE_BYTES", 2**40), ("LARGEST_SINCE", (1, 0)), ("SMALL", (256, 2049))])
def test_another_rule_would_be_found_out(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(defaults, name, value)
    assert differences(answer)


def test_a_whole_configuration_of_this_cpu(tmp_path: Path) -> None:
    """All that `vllm serve` makes of a command line that says nothing but the model and the degree."""
    if not ENGINE.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    model = write_small_model(tmp_path / "model", "s")
    printed = run_in_engine("tests.conformance.cpu_config", str(model), "1", "2")
    for degree, theirs in zip((1, 2), json.loads(printed.splitlines()[-1]), strict=True):
        instance = f"{{model: servetwin/llama-s, device: AMD-EPYC-2vCPU, tensor_parallel_size: {degree}}}"
        (tmp_path / "scenario.yaml").write_text(f"trace: none.jsonl\ncluster: {{instances: [{instance}]}}\n")
        ours = engine_asked(read_scenario(tmp_path / "scenario.yaml")).options
        found = {name: getattr(ours, name) for name in theirs if name != "cudagraph_capture_sizes"}
        assert {**found, "cudagraph_capture_sizes": list(ours.capture_sizes())} == theirs
