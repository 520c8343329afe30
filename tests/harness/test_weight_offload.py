"""Weights in the host's memory, from descriptions to runs: what is read, what it costs, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.deploy.deployment import deploy
from harness.deploy.memory import scenario_memory
from harness.descriptions.scenario import read_scenario
from harness.running.simulate import simulate_scenario
from simulator.simulate import simulate
from tests.pages import shown_and_printed
from traces.errors import InputError
from traces.formats import read_any_trace

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "offload.yaml"
LINK = {"bandwidth_bytes_per_s": 4e9, "latency_s": 1e-5}


def instance(**changes: Any) -> str:
    """An override with the example's only instance, changed; None leaves a key out."""
    facts = {"model": "servetwin/llama-s", "device": "AMD-EPYC-2vCPU", "host_link": LINK, **changes}
    return f"cluster.instances={json.dumps([{key: value for key, value in facts.items() if value is not None}])}"


def tpot_s(*overrides: str) -> float:
    return float(simulate_scenario(EXAMPLE, overrides)[1]["metrics"]["tpot_s"]["mean"])


def blocks(*overrides: str) -> int:
    """KV blocks of Llama-3.1-8B on an A6000."""
    return int(scenario_memory(EXAMPLE, [*overrides, "engine.num_gpu_blocks=null"])[0]["num_gpu_blocks"])


def on_a6000(**changes: Any) -> str:
    return instance(model="meta-llama/Llama-3.1-8B", device="A6000", **changes)


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("offload.md", tmp_path)
    assert printed == shown


def test_what_overlaps_costs_less() -> None:
    ways = {way: tpot_s(instance(offload={"layers": "1,3,5,7", "way": way})) for way in ("copy", "prefetch")}
    without = tpot_s(instance(host_link=None))
    assert without < ways["prefetch"] < ways["copy"]
    # Four layers of (3 * 1536 + 2 * 512 + 2 * 256) * 512 + 2 * 512 weights of 16 bits, copied once in each decode step.
    copies_s = 4 * (1e-5 + 2 * ((3 * 1536 + 2 * 512 + 2 * 256) * 512 + 2 * 512) / 4e9)
    assert ways["copy"] == pytest.approx(without + copies_s, rel=0.2)


@pytest.mark.parametrize("way", ["copy", "in_place", "prefetch"])
def test_fast_forward_is_stepping_and_every_byte_and_joule_is_counted(way: str) -> None:
    override = instance(offload={"layers": "0-3", "way": way})
    scenario = read_scenario(EXAMPLE, [override])
    trace = read_any_trace(scenario.trace_path)
    fast, slow = (simulate(trace, deploy(scenario).cluster, fast_forward=fast).capture for fast in (True, False))
    assert fast.outcomes == slow.outcomes
    assert fast.steps is not None
    assert slow.steps is not None
    assert np.array_equal(fast.steps.end_s, slow.steps.end_s)
    _, found = simulate_scenario(EXAMPLE, [override])
    energy = found["energy"]
    parts = [part for one in energy["components"].values() for part in (one["serving_j"], one["idle_j"], one["sent_j"])]
    assert sum(parts) == pytest.approx(energy["total_j"], rel=1e-9)
    layer_bytes = 2 * ((3 * 1536 + 2 * 512 + 2 * 256) * 512 + 2 * 512)
    links_j = found["steps"] * 4 * layer_bytes * 8 * 4e-12
    assert energy["components"]["links"]["total_j"] == pytest.approx(energy["window_s"] + links_j, rel=1e-9)


def test_less_on_the_device_is_more_kv_blocks() -> None:
    none, moved = blocks(on_a6000(host_link=None)), blocks(on_a6000(offload={"layers": "0-15", "way": "in_place"}))
    layer_bytes = 2 * ((3 * 14336 + 2 * 4096 + 2 * 1024) * 4096 + 2 * 4096)
    assert moved - none == pytest.approx(16 * layer_bytes / (2 * 32 * 1024 * 2 * 32), abs=1)
    by_group = blocks(on_a6000(), "engine.offload_group_size=4", "engine.offload_num_in_group=2")
    assert by_group - none == pytest.approx(15 * layer_bytes / (2 * 32 * 1024 * 2 * 32), abs=1)
    assert blocks(on_a6000(), "engine.cpu_offload_gb=3") - none == pytest.approx(3 * 2**30 / 2**22, abs=1)


@pytest.mark.parametrize(
    ("override", "more", "message"),
    [
        (instance(), (), "'host_link': has no effect where no weights are in the host's memory"),
        (instance(host_link=None, offload={"layers": "0"}), (), "'host_link': is missing: accepted: bandwidth"),
        (instance(offload={}), (), "'offload': moves nothing: accepted: layers, experts or ends"),
        (instance(offload={"layers": "0-8"}), (), "layers': found '0-8': accepted: numbers and ranges of 0 to 7"),
        (instance(offload={"layers": "a"}), (), "layers': found 'a': accepted: numbers and ranges"),
        (instance(offload={"experts": "0"}), (), "experts': servetwin/llama-s has no experts"),
        (instance(offload={"layers": "0", "buffers": 2}), (), "buffers': found 2: accepted: 1 without prefetch"),
        (instance(offload={"layers": "0", "way": "prefetch", "buffers": 2}), (), "buffers': found 2: .*at most the 1"),
        (instance(offload={"layers": "0"}), ("engine.cpu_offload_gb=1",), "'offload': is said twice"),
        (instance(), ("engine.offload_num_in_group=2",), "offload_num_in_group': found 2: accepted: 1 without"),
        (
            instance(),
            ("engine.offload_group_size=2", "engine.offload_num_in_group=3"),
            "offload_num_in_group': found 3: accepted: at most offload_group_size 2",
        ),
    ],
)
def test_what_makes_no_whole_is_refused(override: str, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate_scenario(EXAMPLE, [override, *more])


def test_experts_in_the_hosts_memory_leave_their_room() -> None:
    """Half of 128 experts of 48 layers, each three matrices of 2048 x 768 in 16 bits."""
    moe = {"model": "Qwen/Qwen3-30B-A3B-Instruct-2507", "device": "A6000", "tensor_parallel_size": 2}
    facts = [
        scenario_memory(EXAMPLE, [instance(**moe, **more), "engine.num_gpu_blocks=null"])[0]
        for more in ({"host_link": None}, {"offload": {"experts": "64-", "way": "in_place"}})
    ]
    moved_bytes = 64 * 48 * 3 * 2048 * 768 * 2 // 2
    assert facts[1]["weight_bytes"]["in the host's memory"] == -moved_bytes
    assert facts[1]["kv_bytes"] - facts[0]["kv_bytes"] == moved_bytes
    with pytest.raises(InputError, match=r"'offload.way': found 'prefetch': accepted: copy or in_place: which experts"):
        scenario_memory(EXAMPLE, [instance(**moe, offload={"experts": "0", "way": "prefetch"})])


# -- KV on the same links ----------------------------------------------------------------------------------------------

HOST_LINK = EXAMPLE.with_name("host_link.yaml")


def mean_s(metric: str, *overrides: str) -> float:
    return float(simulate_scenario(HOST_LINK, overrides)[1]["metrics"][metric]["mean"])


def test_kv_and_weights_take_longer_on_one_link_than_on_two() -> None:
    as_fast = "cluster.kv_tiers.0.bandwidth_bytes_per_s=2.0e+9"
    for metric in ("ttft_s", "tpot_s"):
        assert mean_s(metric, as_fast) > mean_s(metric, as_fast, "cluster.kv_tiers.0.link=own")


def test_a_faster_link_brings_both_sooner() -> None:
    link = "cluster.instances.0.host_link.bandwidth_bytes_per_s"
    assert mean_s("ttft_s", f"{link}=8.0e+9") < mean_s("ttft_s") < mean_s("ttft_s", f"{link}=1.0e+9")


def test_a_link_without_weights_carries_kv_alone() -> None:
    no_weights = "cluster.instances.0.offload=null"
    assert mean_s("tpot_s", no_weights) < mean_s("tpot_s")
    with pytest.raises(InputError, match="'host_link': has no effect where no weights are in the host's memory"):
        mean_s("tpot_s", no_weights, "cluster.kv_tiers.0.link=own")


def test_steps_on_a_shared_link_are_the_same_one_by_one() -> None:
    scenario = read_scenario(HOST_LINK)
    cluster, trace = deploy(scenario).cluster, read_any_trace(scenario.trace_path)
    fast, slow = (simulate(trace, cluster, fast_forward=fast_forward) for fast_forward in (True, False))
    assert fast.capture.outcomes == slow.capture.outcomes
