"""Power from descriptions: our own section, LLMServingSim's, and what a simulation writes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.deploy.asked import read_cluster
from harness.deploy.deployment import deploy
from harness.deploy.power import EngineMade, plan_power
from harness.descriptions.cluster import InstanceSpec
from harness.descriptions.scenario import read_scenario
from harness.running.simulate import simulate_scenario, write_simulation
from harness.scoring.validate import validate
from harness.terminal.summary import energy_lines
from profiles.model import ModelSpec
from simulator.network.topology import Place
from simulator.power.nodes import HostPower, NodePower, PartPower
from tests.engines import engine
from tests.harness.scenarios import write_scenario
from tests.harness.test_cluster import INSTANCE, cluster, own
from traces.capture import read_capture
from traces.errors import InputError

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "power.yaml"
LEVELS = "{idle_w: 20, standby_w: 50, standby_s: 2, active_w: 200}"
ALL = f"""\
  power:
    devices: {{TESTGPU: {LEVELS}}}
    host: {{idle_w: 90, active_w: 120}}
    dram: {{idle_w: 16, j_per_bit: 6.0e-12}}
    links: {{idle_w: 5, j_per_bit: 4.0e-12}}
    nic: {{idle_w: 11}}
    storage: {{idle_w: 6}}
    base_w: 200
"""


def scenario(folder: Path, power: str = ALL, extra: str = "") -> Path:
    """A small scenario whose cluster says this of power."""
    path = write_scenario(folder)
    path.write_text(path.read_text().replace("profiles:", power + extra + "profiles:"))
    return path


# -- our own section ---------------------------------------------------------------------------------------------------


def test_a_simulation_writes_power_by_the_second_and_its_energy(tmp_path: Path) -> None:
    simulation, figures = simulate_scenario(scenario(tmp_path))
    write_simulation(simulation, figures, tmp_path / "run")
    capture = read_capture(tmp_path / "run")
    watts = capture.series["power_w"]
    assert list(watts.time_s) == list(range(1, len(watts.time_s) + 1))
    assert capture.series["power_w.base"].value == pytest.approx(200.0)
    assert watts.value.max() <= 200 + 120 + 16 + 5 + 11 + 6 + 200
    energy = json.loads((tmp_path / "run" / "summary.json").read_text())["energy"]
    assert energy["total_j"] == pytest.approx(sum(part["total_j"] for part in energy["components"].values()), rel=1e-9)
    assert energy["total_j"] == pytest.approx(energy["serving_j"] + energy["idle_j"] + energy["sent_j"], rel=1e-9)
    assert energy["unknown"] == []
    shares = [float(line.split(",")[1]) for line in (tmp_path / "run" / "energy.csv").read_text().splitlines()[1:]]
    assert len(shares) == 40
    assert sum(shares) == pytest.approx(energy["serving_j"], rel=1e-6)
    assert energy["request_j"]["mean"] == pytest.approx(np.mean(shares), rel=1e-6)
    assert not (tmp_path / "run" / "batches.parquet").exists()


def test_without_a_description_nothing_is_told_of_power(tmp_path: Path) -> None:
    simulation, figures = simulate_scenario(write_scenario(tmp_path))
    assert (figures["energy"], figures["slo"], figures["cost"]) == (None, None, None)
    assert simulation.capture.series == {}
    write_simulation(simulation, figures, tmp_path / "run")
    assert not (tmp_path / "run" / "energy.csv").exists()


def test_a_note_says_what_is_not_known(tmp_path: Path) -> None:
    simulation, figures = simulate_scenario(scenario(tmp_path, "  power: {base_w: 100}\n"))
    assert "power_w is the sum of base" in simulation.capture.meta.notes
    missing = "power of devices, power of host, power of dram, power of links, power of nic, power of storage"
    assert f"not known, and in no sum: {missing}" in simulation.capture.meta.notes
    assert list(figures["energy"]["components"]) == ["base"]
    first, _, last = energy_lines(figures["energy"])
    assert first.startswith("energy ")
    assert last == f"power not known, and in no sum: {missing}"


def test_nothing_known_is_no_energy_at_all(tmp_path: Path) -> None:
    simulation, figures = simulate_scenario(scenario(tmp_path, "  power: {}\n"))
    assert figures["energy"]["total_j"] is None
    assert "power_w" not in simulation.capture.series


def test_levels_of_a_device_come_from_its_own_file(tmp_path: Path) -> None:
    path = scenario(tmp_path, "  power: {base_w: 1}\n")
    devices = tmp_path / "profiles" / "devices"
    devices.mkdir()
    (devices / "testgpu.yaml").write_text(
        f"name: TESTGPU\nmemory_bytes: 1.0e9\npower: {LEVELS}\nsources: {{memory_bytes: a test, power: another}}\n"
    )
    _, figures = simulate_scenario(path)
    assert list(figures["energy"]["components"]) == ["devices", "base"]


def test_a_cap_slows_and_limits(tmp_path: Path) -> None:
    (tmp_path / "caps.csv").write_text("power_fraction,prefill_slowdown,decode_slowdown\n0.5,1.6,1.2\n1,1,1\n")
    levels = "active_w: 200, idle_w: 20, tdp_w: 200"
    plain, _ = simulate_scenario(scenario(tmp_path, f"  power: {{devices: {{TESTGPU: {{{levels}}}}}}}\n"))
    cap = f"  power: {{devices: {{TESTGPU: {{{levels}, power_cap_w: 100, cap_slowdown: caps.csv}}}}}}\n"
    (tmp_path / "scenario.yaml").write_text((tmp_path / "scenario.yaml").read_text().split("  power:")[0])
    (tmp_path / "capped").mkdir()
    (tmp_path / "capped" / "caps.csv").write_text((tmp_path / "caps.csv").read_text())
    capped, _ = simulate_scenario(scenario(tmp_path / "capped", cap))
    ends = [run.capture.outcomes[-1].finish_s for run in (plain, capped)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[1] > 1.1 * ends[0]
    assert capped.capture.series["power_w"].value.max() <= 100
    assert any("TESTGPU capped at 100 W of 200: steps with prompts take 1.6" in n for n in capped.capture.meta.notes)


@pytest.mark.parametrize(
    ("power", "message"),
    [
        ("{base: 1}", "power.base': is unknown.*base_w"),
        ("{base_w: -1}", "power.base_w': found -1"),
        ("{devices: {TESTGPU: {idle_w: 20}}}", "power.devices.TESTGPU.active_w.*one of active_w"),
        ("{devices: {TESTGPU: {idle_w: 20, active_w: 9, active_decode_w: 9}}}", "TESTGPU.active_w.*one of active_w"),
        ("{devices: {TESTGPU: {idle_w: 20, active_decode_w: 9}}}", "active_prefill_w.*together"),
        ("{devices: {TESTGPU: {idle_w: 20, active_w: 9, standby_w: 9}}}", "standby_s.*together"),
        ("{devices: {TESTGPU: {idle_w: 20, active_w: 9, power_cap_w: 30}}}", "cap_slowdown.*measured"),
        ("{devices: {TESTGPU: {idle_w: 20, active_w_by_tokens: [[9, 9]]}}}", "at least two pairs"),
        ("{devices: {OTHER: {idle_w: 20, active_w: 9}}}", "power.devices.OTHER': is no engine's device.*TESTGPU"),
        (
            "{devices: {TESTGPU: {idle_w: 20, active_w: 9, power_cap_w: 30, cap_slowdown: caps.csv}}}",
            "power.devices.TESTGPU.tdp_w': is missing",
        ),
        (
            "{devices: {TESTGPU: {idle_w: 20, active_w: 9, power_cap_w: 30, cap_slowdown: none.csv, tdp_w: 99}}}",
            "none.csv.*no such file",
        ),
        (
            "{devices: {TESTGPU: {idle_w: 20, active_w: 9, power_cap_w: 30, cap_slowdown: caps.csv, tdp_w: 99}}}",
            "power_cap_w': found 30: accepted: 0.5 to 1, as caps.csv measured, of 99 W",
        ),
    ],
)
def test_a_description_that_is_no_whole_is_refused(tmp_path: Path, power: str, message: str) -> None:
    (tmp_path / "caps.csv").write_text("power_fraction,prefill_slowdown,decode_slowdown\n0.5,1.6,1.2\n1,1,1\n")
    with pytest.raises(InputError, match=message):
        simulate_scenario(scenario(tmp_path, f"  power: {power}\n"))


# -- what devices of an engine send each other -------------------------------------------------------------------------

MODEL = ModelSpec("m", 4, 64, 128, 4, 4, 16, 100)
DENSE_BYTES = 2 * 64
"""Hidden state of a token in bfloat16."""


def link_bytes(tmp_path: Path, **sizes: Any) -> tuple[float | None, float]:
    """What a rank of such an engine sends for each token and each request."""
    read = own(tmp_path, "instances: [{model: m, device: d}]\npower: {base_w: 1}\n")
    ranks, split, model = sizes.pop("ranks", 1), sizes.pop("split", False), sizes.pop("of", MODEL)
    spec = InstanceSpec("m", "d", {}, read.document, ("instances", 0), **sizes)
    made = engine()
    made = type(made)(
        **{name: getattr(made, name) for name in ("model", "device", "options", "num_gpu_blocks", "max_model_len")},
        step_time=made.step_time, ranks=ranks, pipeline_parallel_size=spec.pipeline_parallel_size,
    )  # fmt: skip
    _, plan = plan_power(read, [EngineMade(made, spec, model, split=split)], [])
    assert plan is not None
    machine = plan.machines[0]
    assert len(machine.places) == spec.tensor_parallel_size * spec.pipeline_parallel_size
    return machine.link_bytes_per_token, machine.link_bytes_per_request


def test_one_device_sends_nothing(tmp_path: Path) -> None:
    assert link_bytes(tmp_path) == (0.0, 0.0)


def test_a_ring_sends_what_all_its_devices_send(tmp_path: Path) -> None:
    """LLMServingSim counts one of them. Two all-reduces a layer, one of the embedding, and the logits."""
    assert link_bytes(tmp_path, tensor_parallel_size=4) == (9 * 2 * 3 * DENSE_BYTES, 3 * 100 * 2)


def test_what_goes_from_stage_to_stage_is_counted_in_bytes(tmp_path: Path) -> None:
    """LLMServingSim counts numbers there, not their bytes; vLLM sends hidden states and residual."""
    assert link_bytes(tmp_path, pipeline_parallel_size=3) == (2 * 2 * DENSE_BYTES, 0.0)


EXPERTS = ModelSpec("e", 4, 64, 128, 4, 4, 16, 100, num_experts=8, num_experts_per_tok=2)
ENTERING_BYTES = (2 * 64 + 8) * 2
"""Hidden state and router logits of a token to the experts, and their sum back."""


def test_experts_of_ranks_go_round_one_ring_of_each_rank_or_of_all_their_devices(tmp_path: Path) -> None:
    """Three ranks. Of one device: 2 of 3 send a token on. Of two: 4 in two rings, or all but one in one."""
    assert link_bytes(tmp_path, of=EXPERTS, ranks=3) == (4 * 2 * ENTERING_BYTES, 0.0)
    tensor = {"of": EXPERTS, "tensor_parallel_size": 2, "ranks": 3}
    whole, split = link_bytes(tmp_path, **tensor), link_bytes(tmp_path, **tensor, split=True)
    assert whole == ((4 * 4 + 2) * DENSE_BYTES + 4 * 4 * ENTERING_BYTES, 100 * 2)
    assert split == ((4 * 3 + 2) * DENSE_BYTES + 4 * 5 * ENTERING_BYTES, 100 * 2)


def test_what_a_model_that_is_not_described_sends_is_not_known(tmp_path: Path) -> None:
    assert link_bytes(tmp_path, of=None, tensor_parallel_size=2)[0] is None


# -- LLMServingSim's section -------------------------------------------------------------------------------------------

SECTION: dict[str, Any] = {
    "base_node_power": 219,
    "npu": {"RTXPRO6000": {"idle_power": 33, "standby_power": 89, "active_power": 300, "standby_duration": 18}},
    "cpu": {"idle_power": 10, "active_power": 185, "util": 0.5},
    "dram": {"dimm_size": 32, "idle_power": 4.0, "energy_per_bit": 6.0},
    "link": {"num_links": 2, "idle_power": 5.0, "energy_per_bit": 4.0},
    "nic": {"num_nics": 3, "idle_power": 11.2},
    "storage": {"num_devices": 4, "idle_power": 5.9},
}
MEMORY = {"mem_size": 128, "mem_bw": 128, "mem_latency": 0}


def section(tmp_path: Path, changes: dict[str, Any] | None = None, memory: Any = MEMORY) -> NodePower:
    """The node's power as it is read."""
    read = cluster(tmp_path, node={"power": {**SECTION, **(changes or {})}, "cpu_mem": memory})
    (node,) = read.power
    assert isinstance(node, NodePower)
    return node


def test_its_section_is_read_as_it_is(tmp_path: Path) -> None:
    node = section(tmp_path)
    assert node.base_w == 219
    assert node.host == HostPower(idle_w=97.5, active_w=132.5)
    assert node.dram == PartPower(idle_w=16.0, j_per_bit=6e-12)
    assert node.links == PartPower(idle_w=10.0, j_per_bit=4e-12)
    assert node.nic == PartPower(idle_w=pytest.approx(33.6), j_per_bit=4e-12)
    assert node.storage == PartPower(idle_w=23.6)
    levels = node.devices["RTXPRO6000"]
    assert (levels.idle_w, levels.standby_w, levels.standby_s, levels.active_w) == (33, 89, 18, 300)


def test_a_memory_smaller_than_a_dimm_draws_what_a_dimm_draws(tmp_path: Path) -> None:
    """Its code rounds the number of DIMMs down: no power for this one, as if there were no memory."""
    for size, dimms in ((16, 1), (32, 1), (33, 2)):
        dram = section(tmp_path, memory={**MEMORY, "mem_size": size}).dram
        assert dram is not None
        assert dram.idle_w == 4.0 * dimms


def test_a_cpu_that_is_busier_than_its_own_figure_stays_so(tmp_path: Path) -> None:
    host = section(tmp_path, {"cpu": {"idle_power": 10, "active_power": 110, "util": 0.9}}).host
    assert host == HostPower(idle_w=100.0, active_w=100.0)


def test_no_standby_duration_is_no_standby(tmp_path: Path) -> None:
    npu = {**SECTION["npu"]["RTXPRO6000"], "standby_duration": 0}
    levels = section(tmp_path, {"npu": {"RTXPRO6000": npu}}).devices["RTXPRO6000"]
    assert (levels.standby_w, levels.standby_s) == (None, None)


@pytest.mark.parametrize(
    ("changes", "memory", "message"),
    [
        ({"npu": {"A100": SECTION["npu"]["RTXPRO6000"]}}, MEMORY, r"nodes\[0\].power.npu.*levels of RTXPRO6000"),
        ({}, None, r"nodes\[0\].cpu_mem.mem_size.*how many DIMMs"),
        ({"cpu": {"idle_power": 10, "active_power": 185}}, MEMORY, r"nodes\[0\].power.cpu.util': is missing"),
        ({"basee": 1}, MEMORY, r"nodes\[0\].power.basee': is unknown"),
    ],
)
def test_a_section_that_lacks_something_is_refused(
    tmp_path: Path, changes: dict[str, Any], memory: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        section(tmp_path, changes, memory)


def test_power_of_one_node_alone_is_refused(tmp_path: Path) -> None:
    """Its code then leaves power out without a word."""
    nodes: Sequence[dict[str, Any]] = [
        {"num_instances": 1, "instances": [INSTANCE], "power": SECTION, "cpu_mem": MEMORY},
        {"num_instances": 1, "instances": [INSTANCE]},
    ]
    with pytest.raises(InputError, match=r"nodes\[1\].power': is missing.*of every node, or of none"):
        cluster(tmp_path, top={"num_nodes": 2, "nodes": nodes})


@pytest.mark.ground_truth
@pytest.mark.parametrize(
    "file", ["vllm-0.19/cluster-examples/single_node_power_instance.json", "ispass26/power/cluster.json"]
)
def test_its_clusters_with_power_are_read(ground_truth: Path, tmp_path: Path, file: str) -> None:
    (tmp_path / "scenario.yaml").write_text(f"trace: t.jsonl\ncluster: {ground_truth / file}\n")
    read = read_cluster(read_scenario(tmp_path / "scenario.yaml"))
    assert len(read.power) == 1
    assert any("LLMServingSim's own figure" in note for note in read.notes)


def test_engines_of_a_deployment_stand_somewhere(tmp_path: Path) -> None:
    made = deploy(read_scenario(scenario(tmp_path)))
    assert made.power is not None
    assert [machine.places for machine in made.power.machines] == [(Place(0, 0),)]


def test_validation_scores_power(tmp_path: Path) -> None:
    """A run against itself is right in every window; one whose device draws more is wrong by its share."""
    simulation, figures = simulate_scenario(EXAMPLE)
    write_simulation(simulation, figures, tmp_path / "run")
    assert validate(EXAMPLE, tmp_path / "run").result["series"]["power_w"]["mape"] < 1e-9
    more = ["cluster.power.base_w=100"]
    assert validate(EXAMPLE, tmp_path / "run", more).result["series"]["power_w"]["mape"] > 0.01
