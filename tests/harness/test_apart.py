"""Prefill and decode apart: examples of failures, pools that grow, shared links and KV tiers, and what pages show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from harness.demo import BUNDLED
from harness.deploy.deployment import deploy
from harness.descriptions.scenario import read_scenario
from harness.running.simulate import simulate_scenario
from simulator.steps.operator_model import OperatorModel
from tests.harness.scenarios import EXAMPLES, example
from tests.pages import shown_and_printed
from traces.capture import Capture, read_capture
from traces.errors import InputError
from traces.outcome import Status

NO_FAILURES = ("cluster.failures=[]", "cluster.after_failure=start_over", "cluster.kv_transfer={}")


def mean_e2el_s(capture: Capture) -> float:
    values = [(outcome.finish_s or 0) - outcome.arrival_s for outcome in capture.outcomes]
    return sum(values) / len(values)


def note(capture: Capture, of: str) -> str:
    return next(one for one in capture.meta.notes if of in one)


@pytest.mark.parametrize("page", ["cluster.md", "network.md"])
def test_a_page_shows_what_its_commands_print(page: str, tmp_path: Path) -> None:
    shown, printed = shown_and_printed(page, tmp_path)
    assert printed == shown


def test_answers_that_go_on_are_sooner_than_those_that_start_over() -> None:
    on, over = example("failures_apart"), example("failures_apart", "cluster.after_failure=start_over")
    none = example("failures_apart", *NO_FAILURES)
    assert mean_e2el_s(none) < mean_e2el_s(on) < mean_e2el_s(over)
    for capture in (on, over, none):
        assert {outcome.status for outcome in capture.outcomes} == {Status.FINISHED}
        assert sum(o.output_tokens for o in capture.outcomes) == sum(row.output_tokens for row in capture.trace.rows)


def test_an_instance_that_is_down_takes_no_step() -> None:
    steps = example("failures_apart").steps
    assert steps is not None
    for instance, down_s, up_s in ((2, 12.6, 22.5), (0, 25.2, 35.1)):
        own = steps.end_s[steps.instance == instance]
        assert not ((own > down_s) & (own < up_s)).any()


def test_pools_grow_apart() -> None:
    both = example("autoscaling_apart")
    prefill_only = example("autoscaling_apart", "cluster.autoscaling.decode.up_above=1000")
    assert note(both, "3 decode: ").endswith(" started")
    assert note(prefill_only, "3 decode: ") == "autoscaling from 1 instances of 3 decode: 0 started"
    assert both.steps is not None
    assert prefill_only.steps is not None
    assert set(both.steps.instance.tolist()) > set(prefill_only.steps.instance.tolist())


def test_collectives_and_kv_over_one_switch_take_longer_for_each_other() -> None:
    switch, mesh = example("shared_links"), example("shared_links", "cluster.fabric.kind=full_mesh")
    assert float(re.findall(r"took (.*) s longer", note(switch, "steps took"))[0]) > 0.1
    assert not any("steps took" in one for one in mesh.meta.notes)
    assert mean_e2el_s(switch) > 1.01 * mean_e2el_s(mesh)
    faster = example("shared_links", "cluster.fabric.bandwidth_bytes_per_s=2.0e+10")
    less_s = float(re.findall(r"took (.*) s longer", note(faster, "steps took"))[0])
    assert less_s < 0.2


def test_engines_of_ranks_that_share_experts_slow_each_other_on_a_bus() -> None:
    bus, mesh = example("shared_experts"), example("shared_experts", "cluster.fabric.kind=full_mesh")
    assert float(re.findall(r"took (.*) s longer for other", note(bus, "steps took"))[0]) > 0.1
    assert not any("steps took" in one for one in mesh.meta.notes)
    assert mean_e2el_s(bus) > 1.02 * mean_e2el_s(mesh)
    alone = example("shared_experts", "cluster.instances.0.count=1")
    assert not any("steps took" in one for one in alone.meta.notes)


@pytest.mark.parametrize(("kind", "share"), [("bus", 2), ("full_mesh", 1)])
def test_ranks_in_step_have_their_share_of_a_bus(kind: str, share: int) -> None:
    """Two ranks of two devices: all-reduces of both, and the exchanges of their experts, go at once."""
    ranks = {}
    for n in (1, 2):
        own = [f"cluster.fabric.kind={kind}", f"cluster.instances.0.data_parallel_size={n}"]
        scenario = read_scenario(
            EXAMPLES / "shared_experts.yaml",
            [*own, "cluster.instances.0.tensor_parallel_size=2", "cluster.instances.0.count=1"],
        )
        engine = deploy(scenario).engine
        assert engine.exchanges
        step_time = engine.step_time
        assert isinstance(step_time, OperatorModel)
        assert step_time._partition.tensor is not None
        ranks[n] = step_time._partition.tensor.all_gather_s(np.array([1e9, 2e9]))
    one, both = (float(np.diff(ranks[n])[0]) for n in (1, 2))
    assert both == pytest.approx(share * one)


def test_pipeline_stages_share_links_with_kv_too() -> None:
    """Between nodes of one NIC each: stages of the decode engine talk over the NICs that KV comes over."""
    prefill = "{model: servetwin/llama-s, device: AMD-EPYC-2vCPU, role: prefill}"
    decode = "{model: servetwin/llama-s, device: AMD-EPYC-2vCPU, role: decode, pipeline_parallel_size: 2}"
    staged = [
        f"cluster.instances=[{prefill}, {decode}]",
        "cluster.fabric={kind: bus, bandwidth_bytes_per_s: 5.0e+7, latency_s: 1.0e-5}",
    ]
    assert int(note(example("prefill_decode", *staged), "steps took").split()[0]) > 0


def test_tiers_behind_prefill_engines_and_the_energy_of_what_moves() -> None:
    simulation, figures = simulate_scenario(EXAMPLES / "kv_tiers_apart.yaml")
    energy = figures["energy"]
    by_tier = {name: sum(m.n_bytes for m in simulation.moves if m.tier == name) for name in ("host", "store")}
    assert energy["components"]["dram"]["total_j"] == pytest.approx(by_tier["host"] * 8 * 6e-12)
    assert energy["components"]["nic"]["total_j"] == pytest.approx(by_tier["store"] * 8 * 30e-12)
    assert f"energy of {by_tier['store'] / 1e9:.3f} GB over remote to and from KV tier store" in energy["unknown"]
    without = example("kv_tiers_apart", "cluster.kv_tiers=[]")
    cached = [sum(o.cached_tokens or 0 for o in each.outcomes) for each in (simulation.capture, without)]
    assert cached[0] > 1.2 * cached[1]


def test_a_tier_that_does_not_say_where_it_is_has_no_known_energy() -> None:
    tier = "{name: host, capacity_bytes: 60.0e+6, bandwidth_bytes_per_s: 2.0e+9}"
    _, figures = simulate_scenario(EXAMPLES / "kv_tiers_apart.yaml", [f"cluster.kv_tiers=[{tier}]"])
    assert any("to and from KV tier host, of which no memory is said" in one for one in figures["energy"]["unknown"])
    assert figures["energy"]["components"]["dram"]["total_j"] == 0


def test_a_cluster_of_llmservingsim_sends_whole_blocks_too(tmp_path: Path) -> None:
    """Its example, the first engine for prompts and the second for answers, without prefix caching: 8 KiB a token."""
    described = json.loads((EXAMPLES / "llmservingsim.json").read_text())
    for node, kind in zip(described["nodes"], ("prefill", "decode"), strict=True):
        node["instances"][0] |= {"pd_type": kind, "num_npus": 1, "pp_size": 1}
    (tmp_path / "apart.json").write_text(json.dumps(described))
    capture = example("llmservingsim", f"cluster={tmp_path / 'apart.json'}", "engine.enable_prefix_caching=false")
    sent = capture.transfers
    assert sent is not None
    blocks = [-(-capture.outcomes[i].prompt_tokens // 32) for i in sent.request.tolist()]
    assert len(blocks) == len(capture.trace.rows)
    assert sent.n_bytes.tolist() == [count * 32 * 8192 for count in blocks]


@pytest.mark.parametrize("recording", ["apart-1", "apart-2"])
def test_the_bytes_of_each_transfer_are_those_that_nixl_counted(recording: str) -> None:
    """60 prompts, 59 of which do not fill their last block."""
    measured = read_capture(BUNDLED / "captures" / recording).transfers
    trace = f"trace={BUNDLED / 'captures' / recording / 'trace.jsonl.gz'}"
    simulated = example("measured_apart", trace).transfers
    assert measured is not None
    assert simulated is not None
    by_request = [one.n_bytes[np.argsort(one.request)].tolist() for one in (measured, simulated)]
    assert len(by_request[0]) == 60
    assert by_request[0] == by_request[1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.autoscaling={min_instances: 1}", "autoscaling.*is not said of which pool"),
        ("cluster.autoscaling={prefill: {min_instances: 4}}", "autoscaling.prefill.min_instances': found 4"),
        ("cluster.autoscaling={prefill: {minimum: 4}}", "minimum"),
        ("cluster.kv_transfer={kv_load_failure_policy: ignore}", "kv_load_failure_policy': found 'ignore'"),
        ("cluster.kv_transfer={kv_load_failure_policy: fail}", "kv_load_failure_policy': has no effect"),
        ("cluster.after_failure=go_on", "after_failure': has no effect"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        example("autoscaling_apart", override)
