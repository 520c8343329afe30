"""Memory as a command and as series: the lines of a scenario, and a measured run by the second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.deploy.memory import scenario_memory
from harness.running.simulate import simulate_scenario
from tests.measured_memory import memory_errors
from traces.errors import CapacityError
from traces.series import derive
from traces.windows import grid_over

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def scenario(folder: Path, instance: str, engine: str = "") -> Path:
    path = folder / "scenario.yaml"
    path.write_text(f"trace: none.jsonl\ncluster: {{instances: [{instance}]}}\nengine: {{{engine}}}\n")
    return path


def test_a_scenario_needs_neither_profile_nor_trace(tmp_path: Path) -> None:
    path = scenario(tmp_path, "{model: meta-llama/Llama-3.1-70B, device: H200, tensor_parallel_size: 4}")
    (facts,) = scenario_memory(path)
    assert facts["context_bytes"] is None
    assert facts["num_gpu_blocks"] * facts["block_bytes"] <= facts["kv_bytes"]
    taken = sum(facts["weight_bytes"].values()) + facts["activation_bytes"] + facts["graph_bytes"]
    assert taken + facts["kv_bytes"] == pytest.approx(facts["requested_bytes"], abs=8)


def test_the_command_prints_a_sum_that_ends_at_the_blocks(tmp_path: Path) -> None:
    path = scenario(tmp_path, "{model: meta-llama/Llama-3.1-8B, device: A6000}", "enforce_eager: true")
    said = CliRunner().invoke(app, ["profile", "memory", str(path), "--set", "engine.max_num_seqs=128"]).output
    for line in ("memory ", "x utilization 0.9", "weights ", "activations ", "context, libraries", "KV blocks "):
        assert f"\n{line}" in said
    as_json = CliRunner().invoke(app, ["profile", "memory", str(path), "--json"]).output
    assert json.loads(as_json)[0]["model"] == "meta-llama/Llama-3.1-8B"


def test_a_stated_size_of_the_kv_cache_needs_no_device(tmp_path: Path) -> None:
    path = scenario(tmp_path, "{model: meta-llama/Llama-3.1-8B, device: TBD}", "kv_cache_memory_bytes: 20971520")
    (facts,) = scenario_memory(path)
    assert facts["num_gpu_blocks"] == 10


def test_a_model_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match=r"meta-llama/Llama-3.1-70B does not fit on A6000"):
        scenario_memory(scenario(tmp_path, "{model: meta-llama/Llama-3.1-70B, device: A6000}"))


def test_series_of_a_simulated_run() -> None:
    capture = simulate_scenario(EXAMPLES / "prefix_aware.yaml")[0].capture
    series = derive(capture, grid_over(capture))
    assert capture.meta.weight_bytes is not None
    memory = series["gpu_memory_bytes"].value
    assert (memory >= capture.meta.weight_bytes).all()
    assert memory.max() > capture.meta.weight_bytes
    rate = series["prefix_hit_rate"].value
    assert 0 < rate[-1] <= 1
    asked = [outcome for outcome in capture.outcomes if outcome.scheduled_s is not None]
    assert rate[-1] == sum(o.cached_tokens or 0 for o in asked) / sum(o.prompt_tokens for o in asked)


@pytest.mark.ground_truth
def test_memory_and_prefix_hits_of_an_a6000_by_the_second(ground_truth: Path, tmp_path: Path) -> None:
    """Nothing is fitted; the reference simulator: 1.2 % of memory, by row number."""
    errors = memory_errors(tmp_path)
    assert errors.memory_mape <= 0.003
    assert errors.final_hit_rate <= 1e-9
    assert errors.hit_rate.mean() <= 0.14
    assert errors.hit_rate.max() <= 0.68


def test_tiers_save_prompts_from_being_computed_again() -> None:
    tiers = simulate_scenario(EXAMPLES / "kv_tiers.yaml")[0].capture
    alone = simulate_scenario(EXAMPLES / "kv_tiers.yaml", ["cluster.kv_tiers=[]"])[0].capture
    found = [sum(o.cached_tokens or 0 for o in capture.outcomes) for capture in (tiers, alone)]
    assert found[0] > 1.3 * found[1]
    loaded = [tiers.series[f"kv_tier_{name}_hit_tokens"].value[-1] for name in ("host", "store")]
    assert min(loaded) > 0


def test_the_page_shows_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text, *rest = (EXAMPLES.parent / "memory.md").read_text().split("```yaml\n")
    assert not rest
    written, _, shown, *_ = text.split("```")
    shown = shown.removeprefix("\n$ servetwin profile memory memory.yaml\n")
    (tmp_path / "memory.yaml").write_text(written)
    monkeypatch.setenv("COLUMNS", "160")
    assert CliRunner().invoke(app, ["profile", "memory", str(tmp_path / "memory.yaml")]).output == shown
