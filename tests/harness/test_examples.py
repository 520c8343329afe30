"""Every example scenario of the documentation runs, and shows what it is there for."""

from __future__ import annotations

from typing import ClassVar

import pytest

from harness.running.simulate import simulate_scenario
from simulator.kv.kv_cache import BlockHash, Run
from tests.harness.scenarios import EXAMPLES, example
from traces.capture import Capture
from traces.errors import InputError
from traces.outcome import Status

NAMES = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))


@pytest.fixture(autouse=True)
def own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PYTHONPATH=docs/examples does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


def mean_ttft_s(capture: Capture) -> float:
    values = [(outcome.first_token_s or 0) - outcome.arrival_s for outcome in capture.outcomes]
    return sum(values) / len(values)


def notes_of(capture: Capture) -> str:
    return "\n".join(capture.meta.notes)


def test_there_are_examples() -> None:
    assert len(NAMES) >= 6


@pytest.mark.parametrize("name", NAMES)
def test_an_example_serves_every_request(name: str) -> None:
    capture = example(name)
    given_up = {Status.ABORTED} if name == "failures" else set()
    assert {outcome.status for outcome in capture.outcomes} - given_up == {Status.FINISHED}
    assert (EXAMPLES / f"{name}.yaml").read_text().startswith("# ")


def test_the_larger_of_two_engines_gets_more_requests() -> None:
    instances = [outcome.instance for outcome in example("two_engines").outcomes]
    assert instances.count(0) > instances.count(1) > 0


def test_requests_go_where_their_prefix_is() -> None:
    cached = {
        routing: sum(outcome.cached_tokens or 0 for outcome in example("prefix_aware", f"routing={routing}").outcomes)
        for routing in ("prefix_aware", "round_robin")
    }
    assert cached["prefix_aware"] > 1.02 * cached["round_robin"]


def test_a_slower_link_between_prefill_and_decode_delays_first_tokens() -> None:
    fast = example("prefill_decode")
    slow = example("prefill_decode", "cluster.fabric.bandwidth_bytes_per_s=5.0e+7")
    assert "GB of KV of 90 prompts sent from prefill to decode instances" in notes_of(fast)
    assert {outcome.instance for outcome in fast.outcomes} == {1}
    assert mean_ttft_s(slow) > mean_ttft_s(fast) + 0.01


def test_a_slower_link_between_stages_delays_first_tokens() -> None:
    fast, slow = example("pipeline"), example("pipeline", "cluster.fabric.latency_s=0.01")
    assert mean_ttft_s(slow) > mean_ttft_s(fast) + 0.01
    assert "pipeline stages run without asynchronous scheduling" in notes_of(fast)


def test_a_call_waits_for_those_before_and_its_tool() -> None:
    plan, search, read, answer, _, again = example("sessions").outcomes
    assert search.arrival_s == pytest.approx((plan.finish_s or 0) + 0.8)
    assert read.arrival_s == pytest.approx((plan.finish_s or 0) + 0.2)
    assert answer.arrival_s == pytest.approx(max(search.finish_s or 0, read.finish_s or 0) + 0.3)
    assert plan.instance == search.instance == read.instance == answer.instance
    assert again.arrival_s > 2.5


def test_thinking_is_what_seats_do() -> None:
    drawn, same = example("closed_loop", "think=exponential"), example("closed_loop")
    assert [o.arrival_s for o in drawn.outcomes] != [o.arrival_s for o in same.outcomes]
    with pytest.raises(InputError, match=r"think_s': found 1.0: accepted: 0 without concurrency"):
        example("closed_loop", "concurrency=null")


def test_a_reference_cluster_is_two_nodes() -> None:
    capture = example("llmservingsim")
    assert {outcome.instance for outcome in capture.outcomes} == {0, 1}
    assert capture.meta.num_gpu_blocks is None
    assert "KV blocks in the stated " in notes_of(capture)
    assert "is for weights and KV, as LLMServingSim reads it" in notes_of(capture)


def test_a_failure_sends_requests_again_and_makes_some_clients_give_up() -> None:
    failing, patient = example("failures"), example("failures", "deadline_s=null")
    assert "1 failures of instances; " in notes_of(failing)
    assert max((o.finish_s or 0) - o.arrival_s for o in failing.outcomes) <= 4.1
    served_meanwhile = [o for o in patient.outcomes if 12.5 < o.arrival_s < 21.5]
    assert {outcome.instance for outcome in served_meanwhile} == {1}


def test_a_pool_that_grows_serves_sooner_than_one_that_does_not() -> None:
    growing, alone = (
        example("autoscaling"),
        example("autoscaling", "cluster.instances=[{model: servetwin/llama-s, device: AMD-EPYC-2vCPU}]"),
    )
    assert "autoscaling from 1 instances of 4" in notes_of(growing)
    assert mean_ttft_s(growing) < mean_ttft_s(alone)


def test_a_closed_loop_keeps_as_many_requests_as_it_has_seats() -> None:
    capture = example("closed_loop")
    assert capture.steps is not None
    assert max(capture.steps.n_running) <= 8
    assert sum(outcome.arrival_s == 0 for outcome in capture.outcomes) == 8


def test_kv_that_leaves_as_it_is_computed_arrives_sooner() -> None:
    early = example("layer_by_layer", "cluster.kv_transfer.failure_probability=0")
    late = example("layer_by_layer", "cluster.kv_transfer={when: at_end}")
    assert mean_ttft_s(early) < mean_ttft_s(late) - 0.005
    assert "prompts was lost on the way, and computed again" in notes_of(example("layer_by_layer"))


def test_rules_of_ones_own_order_requests_and_keep_blocks() -> None:
    own = example("own_policies")
    plain = example("own_policies", "cluster.instances=[{model: servetwin/llama-s, device: AMD-EPYC-2vCPU}]")
    assert [o.scheduled_s for o in own.outcomes] != [o.scheduled_s for o in plain.outcomes]
    cached = [sum(o.cached_tokens or 0 for o in capture.outcomes) for capture in (own, plain)]
    assert cached[0] != cached[1]


class Watching:
    """Evicts first what became free first, as vLLM does, and remembers what it was asked of."""

    seen: ClassVar[list[tuple[BlockHash | None, int]]] = []

    def freed(self, run: Run) -> float:
        self.seen.append((run.hash, run.end - run.first))
        return len(self.seen)


def test_an_eviction_rule_of_ones_own_is_asked_of_single_blocks_that_can_be_found() -> None:
    Watching.seen.clear()
    example("own_policies", f"cluster.instances.0.cache_eviction={__name__}:Watching")
    assert {length for _, length in Watching.seen} == {1}
    assert None not in {hash_ for hash_, _ in Watching.seen}


def test_energy_and_cost_are_told_and_what_is_not_known_too() -> None:
    simulation, figures = simulate_scenario(EXAMPLES / "power.yaml")
    energy, cost = figures["energy"], figures["cost"]
    assert list(energy["components"]) == ["devices", "dram", "base"]
    assert "power of host" in energy["unknown"]
    assert cost["total"] == pytest.approx(0.04 * cost["device_hours"] + 0.25 * energy["total_j"] / 3.6e6)
    assert 0 < figures["slo"]["n_meeting"] < 90
    power = simulation.capture.series["power_w"]
    assert power.value.min() >= 2 * 8 + 3 + 21
    assert power.value.max() <= 2 * 24 + 3 + 21


def test_kv_that_is_sent_costs_its_bits_once() -> None:
    """LLMServingSim adds hidden states to the KV that goes from prefill to decode, which nobody sends."""
    power = "cluster.power={links: {idle_w: 1, j_per_bit: 4.0e-12}}"
    simulation, figures = simulate_scenario(EXAMPLES / "prefill_decode.yaml", [power])
    assert simulation.network is not None
    (link, *others) = simulation.network.links
    sent_bytes = float(simulation.network.carried_bytes(link, simulation.network.now_s))
    assert f"{sent_bytes / 1e9:.3f} GB of KV of 90 prompts" in notes_of(simulation.capture)
    # A switch has a link up and one down.
    assert len(others) == 1
    assert figures["energy"]["sent_j"] == pytest.approx(2 * sent_bytes * 8 * 4e-12)


def test_a_router_of_ones_own_is_asked() -> None:
    two = "cluster.instances=[{model: servetwin/llama-s, device: AMD-EPYC-2vCPU, count: 2}]"
    worst = example("own_policies", two, "routing=own_policies:LongestQueue")
    assert {outcome.instance for outcome in worst.outcomes} == {0}


def mean_tpot_s(capture: Capture) -> float:
    values = [(o.finish_s or 0) - (o.first_token_s or 0) for o in capture.outcomes]
    return sum(values) / sum(outcome.output_tokens - 1 for outcome in capture.outcomes)


def test_favourite_experts_make_their_device_the_one_that_others_wait_for() -> None:
    evenly = example("experts", "cluster.instances.0.experts.gate=uniform")
    assert mean_tpot_s(example("experts")) > 1.005 * mean_tpot_s(evenly)


def test_a_slow_link_takes_a_share_of_every_layer() -> None:
    slow, fast = example("tensor_parallel"), example("tensor_parallel", "cluster.fabric.latency_s=1e-6")
    all_reduces = 2 * 32 + 1
    assert mean_tpot_s(slow) - mean_tpot_s(fast) > all_reduces * 9e-6
