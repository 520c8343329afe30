"""Memories that compute, from cluster descriptions to runs: read, refused, simulated, and beside the reference's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.deploy.asked import read_cluster
from harness.deploy.deployment import deploy
from harness.deploy.memory import scenario_memory
from harness.descriptions.memories import NearMemoryFile
from harness.descriptions.scenario import read_scenario
from harness.running.simulate import simulate_scenario
from simulator.simulate import simulate
from tests.measured_near_memory import peer, simulated
from tests.pages import shown_and_printed
from traces.errors import InputError
from traces.formats import read_any_trace
from traces.windows import grid_over

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
EXAMPLE = EXAMPLES / "near_memory.yaml"


def figures(*overrides: str) -> dict[str, Any]:
    return simulate_scenario(EXAMPLE, overrides)[1]


def tpot_s(found: dict[str, Any]) -> float:
    return float(found["metrics"]["tpot_s"]["mean"])


# -- what it does ------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("near_memory.md", tmp_path)
    assert printed == shown


def test_slower_channels_make_decodes_slower() -> None:
    near = "cluster.instances=[{model: servetwin/llama-s, device: AMD-EPYC-2vCPU, near_memory: {timing: near_memory.ini"
    slow = "attention: {request_s: 1.0e-4, token_s: 1.0e-6, num_heads: 8, head_dim: 64}"
    assert tpot_s(figures(f"{near}, capacity_bytes: 536870912, {slow}}}}}]")) > 1.1 * tpot_s(figures())


def test_requests_of_short_prompts_can_stay_on_the_device() -> None:
    device, near = tpot_s(figures("attention=device")), tpot_s(figures())
    said = read_scenario(EXAMPLE).file.cluster
    assert isinstance(said, dict)
    memory = said["instances"][0]["near_memory"] | {"min_prompt_tokens": 200}
    text = json.dumps([said["instances"][0] | {"near_memory": memory}])
    assert min(device, near) < tpot_s(figures(f"cluster.instances={text}")) < max(device, near)


def test_kv_that_is_only_near_memory_has_its_room() -> None:
    said = read_scenario(EXAMPLE).file.cluster
    assert isinstance(said, dict)
    memory = said["instances"][0]["near_memory"] | {"kv_on_device": False}
    text = json.dumps([said["instances"][0] | {"near_memory": memory}])
    simulation, _ = simulate_scenario(EXAMPLE, [f"cluster.instances={text}", "engine.num_gpu_blocks=null"])
    each = 2 * 8 * 4 * 64 * 2 * 32  # keys and values of 8 layers, 4 heads of 64, 16 bits, 32 tokens
    assert simulation.capture.meta.num_gpu_blocks == 536870912 // each
    large = said["instances"][0] | {"model": "meta-llama/Llama-3.1-8B", "device": "A6000", "near_memory": memory}
    (facts,) = scenario_memory(EXAMPLE, [f"cluster.instances={json.dumps([large])}"])
    assert "KV is near memory, which has room for 128 blocks" in facts["notes"]


@pytest.mark.parametrize("attention", ["near_memory", "interleaved"])
def test_fast_forward_is_stepping_to_the_last_bit(attention: str) -> None:
    scenario = read_scenario(EXAMPLE, [f"attention={attention}"])
    trace = read_any_trace(scenario.trace_path)
    fast, slow = (simulate(trace, deploy(scenario).cluster, fast_forward=fast).capture for fast in (True, False))
    assert fast.outcomes == slow.outcomes
    assert fast.steps is not None
    assert slow.steps is not None
    assert np.array_equal(fast.steps.end_s, slow.steps.end_s)


@pytest.mark.parametrize("attention", ["device", "near_memory", "interleaved"])
def test_energy_balances(attention: str) -> None:
    simulation, found = simulate_scenario(EXAMPLE, [f"attention={attention}"])
    energy = found["energy"]
    parts = [part for one in energy["components"].values() for part in (one["serving_j"], one["idle_j"], one["sent_j"])]
    assert sum(parts) == pytest.approx(energy["total_j"], rel=1e-9)
    assert simulation.request_j is not None
    assert float(simulation.request_j.sum()) == pytest.approx(energy["serving_j"], rel=1e-9)
    grid = grid_over(simulation.capture)
    series = simulation.capture.series["power_w"]
    assert float(series.value.sum()) * grid.window_s >= energy["total_j"] * (1 - 1e-9)
    # Eight channels at 60 mW beside the 3 W of other memory, used or not.
    assert energy["components"]["dram"]["idle_j"] >= 8 * 0.06 * energy["window_s"] * (1 - 1e-9)


def test_devices_wait_on_standby_while_near_memory_attends() -> None:
    near, device = figures()["energy"], figures("attention=device")["energy"]
    assert near["components"]["devices"]["serving_j"] < device["components"]["devices"]["serving_j"]
    dram_w = [one["components"]["dram"]["total_j"] / one["window_s"] for one in (near, device)]
    assert dram_w[0] > dram_w[1]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"near_memory": None, "attention": "near_memory"}, r"'attention': has no effect without near_memory"),
        ({"attention": "elsewhere"}, r"attention': found 'elsewhere': accepted: device, interleaved, near_memory"),
        ({"near_memory": {"timing": "none"}}, r"'timing': found 'none': accepted: a path ending in .ini"),
        ({"near_memory": {"capacity_bytes": 1000}}, r"capacity_bytes': found 1000.*at least one channel"),
        ({"near_memory": {"capacity_bytes": 7e7}}, r"capacity_bytes': found 70000000.0: .*engine's 500 KV blocks"),
        ({"near_memory": {"attention": None}}, r"'attention': is missing: accepted: request_s and token_s of near_mem"),
        (
            {"near_memory": {"kv_on_device": False, "min_prompt_tokens": 5}},
            r"kv_on_device': found False: accepted: t",
        ),
        ({"near_memory": {"timming": 1}}, r"near_memory.timming': is unknown: accepted: 'timing' is the nearest"),
        (
            {"pipeline_parallel_size": 2, "attention": "interleaved"},
            "'attention': is not modelled with pipeline stages",
        ),
    ],
)
def test_what_makes_no_whole_is_refused(changes: dict[str, Any], message: str) -> None:
    said = read_scenario(EXAMPLE).file.cluster
    assert isinstance(said, dict)
    instance = dict(said["instances"][0])
    memory = changes.pop("near_memory", {})
    instance["near_memory"] = None if memory is None else instance["near_memory"] | memory
    fabric = "{kind: bus, bandwidth_bytes_per_s: 1.0e9, latency_s: 0}"
    with pytest.raises(InputError, match=message):
        figures(f"cluster.instances={json.dumps([instance | changes])}", f"cluster.fabric={fabric}")


def test_a_scenario_cannot_move_attention_where_nothing_computes() -> None:
    with pytest.raises(InputError, match=r"power.yaml:\d+: field 'attention': has no effect without near_memory"):
        simulate_scenario(EXAMPLES / "power.yaml", ["attention=near_memory"])


# -- LLMServingSim's files ---------------------------------------------------------------------------------------------

INSTANCE: dict[str, Any] = {
    "model_name": "meta-llama/Llama-3.1-8B",
    "hardware": "RTXPRO6000",
    "npu_mem": {"mem_size": 96, "mem_bw": 1597, "mem_latency": 0},
}
MEMORY = {"mem_size": 64, "mem_bw": 128, "mem_latency": 0, "pim_config": "HBM2_1GB_2000_pim"}


def reference(tmp_path: Path, *instances: dict[str, Any], memory: dict[str, Any] | None = None) -> Any:
    each = [{**INSTANCE, **instance} for instance in instances or ({},)]
    node = {"num_instances": len(each), "instances": each, "cpu_mem": MEMORY if memory is None else memory}
    (tmp_path / "cluster.json").write_text(json.dumps({"num_nodes": 1, "nodes": [node]}))
    (tmp_path / "scenario.yaml").write_text("trace: t.jsonl\ncluster: cluster.json\n")
    return read_cluster(read_scenario(tmp_path / "scenario.yaml"))


@pytest.mark.parametrize(
    ("switches", "attention"),
    [
        ({}, "device"),
        ({"enable_attn_offloading": True}, "near_memory"),
        ({"enable_attn_offloading": True, "enable_sub_batch_interleaving": True}, "interleaved"),
    ],
)
def test_a_memory_that_computes_and_its_switches(tmp_path: Path, switches: dict[str, bool], attention: str) -> None:
    (spec,) = reference(tmp_path, switches).instances
    assert spec.attention == attention
    assert spec.near_memory == NearMemoryFile(timing="HBM2_1GB_2000_pim", capacity_bytes=64 * 2**30)


def test_instances_of_a_node_share_its_channels(tmp_path: Path) -> None:
    specs = reference(tmp_path, {}, {}).instances
    assert [spec.near_memory.capacity_bytes for spec in specs] == [32 * 2**30] * 2


@pytest.mark.parametrize(
    ("memory", "instance", "message"),
    [
        ({"mem_size": 1}, {"enable_attn_offloading": True}, r"enable_attn_offloading': .*where cpu_mem has a pim_conf"),
        (None, {"enable_sub_batch_interleaving": True}, r"enable_sub_batch_interleaving': .*with enable_attn_offload"),
        ({"pim_config": "x"}, {}, r"nodes\[0\].cpu_mem.mem_size': accepted: a number above 0"),
        ({"pim_config": 3, "mem_size": 1}, {}, r"nodes\[0\].cpu_mem.pim_config': found 3: accepted: the name of a"),
    ],
)
def test_switches_that_make_no_whole_are_refused(
    tmp_path: Path, memory: dict[str, Any] | None, instance: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        reference(tmp_path, instance, memory=memory)


# -- beside the reference's figures ------------------------------------------------------------------------------------


@pytest.mark.ground_truth
@pytest.mark.parametrize(("case", "duration", "energy"), [("gpu-only", 0.004, 0.004), ("pim-sbi", 0.02, 0.01)])
def test_the_references_runs_without_their_fault(
    ground_truth: Path, tmp_path: Path, case: str, duration: float, energy: float
) -> None:
    ours, theirs = simulated(case, tmp_path), peer(case)
    assert abs(ours.duration_s / theirs.duration_s - 1) <= duration
    assert abs(ours.total_j / theirs.total_j - 1) <= energy


@pytest.mark.ground_truth
def test_steps_with_prompts_attend_once_and_near_memory_does_all_of_its_work(
    ground_truth: Path, tmp_path: Path
) -> None:
    """LLMServingSim attends for decodes on the GPU too in every step with a prompt, and counts an eighth of the work
    near memory with interleaving (docs/near_memory.md)."""
    ours, theirs = simulated("pim", tmp_path), peer("pim")
    assert -0.03 <= ours.duration_s / theirs.duration_s - 1 <= -0.02
    assert -0.025 <= ours.total_j / theirs.total_j - 1 <= -0.015
    channels_w = 256 * 0.16
    work_j = ours.energy_j["dram"] - channels_w * ours.duration_s
    assert work_j == pytest.approx(theirs.energy_j["dram"] - channels_w * theirs.duration_s, rel=0.01)
    halved, theirs_halved = simulated("pim-sbi", tmp_path), peer("pim-sbi")
    assert halved.energy_j["dram"] - channels_w * halved.duration_s == pytest.approx(work_j, rel=0.01)
    assert theirs_halved.energy_j["dram"] - channels_w * theirs_halved.duration_s == pytest.approx(work_j / 8, rel=0.02)


# -- beside stages, ranks and small keys -------------------------------------------------------------------------------


def combined(name: str, *overrides: str) -> dict[str, Any]:
    return simulate_scenario(EXAMPLES / f"{name}.yaml", overrides)[1]


def test_keys_and_values_of_8_bits_are_read_sooner_and_take_half_the_room() -> None:
    small, large = combined("near_memory_stages"), combined("near_memory_stages", "engine.kv_cache_dtype=auto")
    assert tpot_s(small) < tpot_s(large)
    only_there = ("cluster.instances.0.near_memory.kv_on_device=false", "engine.num_gpu_blocks=null")
    rooms = [
        deploy(read_scenario(EXAMPLES / "near_memory_stages.yaml", (*only_there, f"engine.kv_cache_dtype={dtype}")))
        for dtype in ("fp8", "auto")
    ]
    assert rooms[0].engine.num_gpu_blocks == 2 * rooms[1].engine.num_gpu_blocks
    whole = 17179869184 // (16 * 32 * 2 * 8 * 128)
    assert rooms[0].engine.num_gpu_blocks == 2 * whole  # each of two stages has half of the layers


@pytest.mark.parametrize("name", ["near_memory_stages", "near_memory_experts"])
def test_slower_memory_behind_stages_and_ranks_is_slower(name: str) -> None:
    rate = "cluster.instances.0.near_memory.attention.token_s"
    times_s = [tpot_s(combined(name, f"{rate}={token_s}")) for token_s in ("1.0e-7", "1.0e-6")]
    assert times_s[0] < times_s[1]


@pytest.mark.parametrize("name", ["near_memory_stages", "near_memory_experts"])
def test_fast_forward_is_stepping_behind_stages_and_ranks(name: str) -> None:
    scenario = read_scenario(EXAMPLES / f"{name}.yaml")
    cluster, trace = deploy(scenario).cluster, read_any_trace(scenario.trace_path)
    fast, slow = (simulate(trace, cluster, fast_forward=fast_forward) for fast_forward in (True, False))
    assert fast.capture.outcomes == slow.capture.outcomes
