"""Drafted tokens, from scenarios to results: what they change, what drafting costs, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from harness.deploy.deployment import deploy
from harness.deploy.memory import scenario_memory
from harness.deploy.unprofiled import deploy_unprofiled
from harness.descriptions.scenario import read_scenario
from harness.running.simulate import simulate_scenario, write_simulation
from harness.running.stream import stream_scenario
from harness.terminal.summary import speculation_lines
from simulator.scheduling.plan import StepPlan
from simulator.service import Service
from simulator.steps.speculative_steps import SpeculativeModel
from tests.harness.scenarios import write_scenario
from tests.pages import shown_and_printed
from tests.simulator.batches import batch, request
from traces.errors import InputError
from traces.formats import read_any_trace

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "speculation.yaml"
APART = EXAMPLE.with_name("speculation_apart.yaml")
CONFIG = {"method": "eagle3", "num_speculative_tokens": 3, "acceptance_rates": [0.72, 0.51, 0.36], "draft_s": 0.0015}


def config(**changes: Any) -> str:
    """An override with the example's drafter, changed; None leaves a key out."""
    said = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    return f"engine.speculative_config={json.dumps(said)}"


def tpot_s(*overrides: str) -> float:
    return float(simulate_scenario(EXAMPLE, overrides)[1]["metrics"]["tpot_s"]["mean"])


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("speculation.md", tmp_path)
    assert printed == shown


def test_good_drafts_shorten_answers_and_bad_ones_lengthen_them() -> None:
    plain = tpot_s("engine.speculative_config=null")
    assert tpot_s(config(acceptance_rates=[1, 1, 1])) < tpot_s() < plain < tpot_s(config(acceptance_rates=[0, 0, 0]))


def test_drafting_takes_the_time_that_was_stated() -> None:
    plan = verifying(3)
    steps_s = [model_of(config(draft_s=draft_s)).price(plan).device_s[0] for draft_s in (0.0, 0.004)]
    assert steps_s[1] - steps_s[0] == pytest.approx(0.004)


def test_the_summary_counts_as_vllm_does(tmp_path: Path) -> None:
    simulation, figures = simulate_scenario(EXAMPLE)
    counted = figures["speculation"]
    drafts = counted["num_drafts"]
    assert counted["num_draft_tokens"] == 3 * drafts
    assert counted["num_accepted_tokens"] == sum(counted["num_accepted_tokens_per_pos"])
    assert counted["mean_acceptance_length"] == 1 + counted["num_accepted_tokens"] / drafts
    for count, rate in zip(counted["num_accepted_tokens_per_pos"], CONFIG["acceptance_rates"], strict=True):
        assert count / drafts == pytest.approx(rate, abs=5 * (rate * (1 - rate) / drafts) ** 0.5)
    write_simulation(simulation, figures, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["speculation"] == counted
    assert simulate_scenario(EXAMPLE, ["engine.speculative_config=null"])[1]["speculation"] is None
    assert speculation_lines(None) == []
    assert speculation_lines(counted)[0].startswith("speculative decoding: ")


def test_another_seed_accepts_other_drafts() -> None:
    runs = [simulate_scenario(EXAMPLE, [f"seed={seed}"])[0] for seed in (0, 0, 1)]
    assert runs[0].capture.outcomes == runs[1].capture.outcomes != runs[2].capture.outcomes


def test_a_mean_length_stands_for_rates() -> None:
    synthetic = config(acceptance_rates=None, rejection_sample_method="synthetic", synthetic_acceptance_length=2.5)
    _, figures = simulate_scenario(EXAMPLE, [synthetic])
    counted = figures["speculation"]
    first, second, third = counted["num_accepted_tokens_per_pos"]
    assert (first, third) == (counted["num_drafts"], 0)
    assert second / first == pytest.approx(0.5, abs=5 * 0.5 / first**0.5)


def model_of(*overrides: str) -> SpeculativeModel:
    model = deploy(read_scenario(EXAMPLE, overrides)).engine.step_time
    assert isinstance(model, SpeculativeModel)
    return model


def verifying(n_drafts: int, n_requests: int = 4, history: int = 500) -> StepPlan:
    """Requests that each verify so many drafts behind a history."""
    plan = batch([(history, 1 + n_drafts, history)] * n_requests)
    return msgspec.structs.replace(
        batch([(history, 1, history)] * n_requests),
        new_tokens=plan.new_tokens,
        drafts=np.full(n_requests, n_drafts),
        n_draft_tokens=n_drafts * n_requests,
        requests=[request(i, history) for i in range(n_requests)],
    )


def test_a_step_that_verifies_costs_its_parts() -> None:
    """Dense operators of all tokens, the longer of two attentions, rows for all tokens, and drafting."""
    model = model_of()
    plan = verifying(3)
    cost, bare = model.price(plan), model.model.price(plan)
    in_chunks = model.model.price(batch([(500, 4, 500)] * 4))
    as_decodes = model.model.price(batch([(500, 1, 500)] * 4))
    assert cost.operators is not None
    assert bare.operators is not None
    assert in_chunks.operators is not None
    assert as_decodes.operators is not None
    assert cost.operators.dense_s == in_chunks.operators.dense_s > as_decodes.operators.dense_s
    bounds = in_chunks.operators.attention_s[0], as_decodes.operators.attention_s[0]
    assert cost.operators.attention_s[0] == max(bounds)
    rows_s = cost.operators.per_request_s - bare.operators.per_request_s
    assert rows_s > 0
    longest = max(bounds) - bare.operators.attention_s[0]
    assert cost.device_s[0] == pytest.approx(bare.device_s[0] + longest + rows_s + 0.0015)


def test_the_last_stage_verifies_and_drafts() -> None:
    """What a step of a pipeline takes longer than without drafting is all behind its last stage."""
    fabric = {"kind": "full_mesh", "bandwidth_bytes_per_s": 1e9, "latency_s": 5e-5}
    piped = {"model": "servetwin/llama-s", "device": "AMD-EPYC-2vCPU", "pipeline_parallel_size": 2}
    cluster = f"cluster={json.dumps({'instances': [piped], 'fabric': fabric})}"
    plan, costs = verifying(3), []
    for draft_s in (0.0, 0.004):
        model = model_of(cluster, "engine.async_scheduling=true", config(draft_s=draft_s))
        costs.append(model.price(plan))
    one, other = ([share * cost.device_s[0] for share in cost.stages] for cost in costs)
    assert one[0] == pytest.approx(other[0])
    assert other[1] - one[1] == pytest.approx(0.004)


@pytest.mark.parametrize(
    "name", ["speculation_apart", "speculation_experts", "speculation_tensor_parallel", "speculation_pipeline"]
)
def test_good_drafts_pay_wherever_they_are_made(name: str) -> None:
    tpots_s = []
    for rate in (1, 0):
        rates = f"engine.speculative_config.acceptance_rates=[{rate}, {rate}, {rate}]"
        figures = simulate_scenario(EXAMPLE.with_name(f"{name}.yaml"), [rates])[1]
        tpots_s.append(figures["metrics"]["tpot_s"]["mean"])
    plain = simulate_scenario(EXAMPLE.with_name(f"{name}.yaml"), ["engine.speculative_config=null"])[1]
    assert tpots_s[0] < plain["metrics"]["tpot_s"]["mean"] < tpots_s[1]


KV_BYTES = 8 * 1024
"""Of one token of llama-s: 8 layers of 2 * 4 heads * 64 * 2 bytes."""


@pytest.mark.parametrize(
    ("drafter", "layers", "said"),
    [
        ("engine.speculative_config=null", 8, []),
        (config(method="ngram", draft_rate=0.5), 8, []),
        (config(method="eagle3"), 9, ["one layer more than the model's, of eagle3's drafter"]),
        (config(method="mtp"), 9, ["one layer more than the model's, of mtp's drafter"]),
        (
            config(method="draft_model", draft_s=None, model="servetwin/llama-s"),
            16,
            ["8 layers more than the model's, of servetwin/llama-s"],
        ),
    ],
)
def test_kv_of_a_drafter_is_sent_and_kept_with_the_models(drafter: str, layers: int, said: list[str]) -> None:
    """Transfers are of whole blocks of all layers, and so are a tier's chunks."""
    scenario = read_scenario(APART, [drafter])
    deployment = deploy(scenario)
    service = Service(read_any_trace(scenario.trace_path), deployment.cluster, fast_forward=True)
    service.run()
    assert service.handover is not None
    sent, block_bytes = service.handover.transfers(), 32 * layers * KV_BYTES // 8
    answers = {request.index: request for request in service.ranks[1].requests}
    blocks = [
        -(-answers[i].row.prompt_tokens // 32) - (answers[i].cached_tokens or 0) // 32 for i in sent.request.tolist()
    ]
    assert len(blocks) == len(service.arrivals_s)
    assert sent.n_bytes.tolist() == [count * block_bytes for count in blocks]
    assert [tier.chunk_bytes for tier in service.tiers] == [block_bytes]
    about = "KV that is sent or kept elsewhere has "
    assert [note.removeprefix(about) for note in deployment.notes if note.startswith(about)] == said


def test_a_draft_model_of_unknown_kv_is_refused_where_kv_moves() -> None:
    unknown = config(method="draft_model", draft_s=0.001)
    alone, no_tiers = "cluster.instances=[{model: servetwin/llama-s, device: AMD-EPYC-2vCPU}]", "cluster.kv_tiers=[]"
    for where in (no_tiers, alone):
        with pytest.raises(InputError, match=r"draft_s.*how much KV the draft model has.*accepted: model in its place"):
            simulate_scenario(APART, [unknown, where])
    simulate_scenario(APART, [unknown, alone, no_tiers, "cluster.fabric=null"])


def test_a_slow_link_slows_a_draft_model_that_is_spread() -> None:
    slow, fast = (
        next(
            note
            for note in simulate_scenario(example, [f"cluster.fabric.latency_s={latency_s}"])[0].capture.meta.notes
            if note.startswith("drafting by meta-llama/Llama-3.1-8B")
        )
        for example in [EXAMPLE.with_name("speculation_tensor_parallel.yaml")]
        for latency_s in ("20.0e-6", "2.0e-6")
    )
    assert float(slow.split("takes ")[1].split(" s")[0]) > 1.5 * float(fast.split("takes ")[1].split(" s")[0])


def test_weights_of_the_host_come_while_tokens_are_verified() -> None:
    host = "cluster.instances.0.host_link={bandwidth_bytes_per_s: 4.0e+9, latency_s: 1.0e-5}"
    tpots_s = [
        tpot_s(host, f"cluster.instances.0.offload={{layers: '{layers}', way: copy}}") for layers in ("1", "1-7")
    ]
    assert tpot_s() < tpots_s[0] < tpots_s[1]


def test_a_lookup_takes_the_host() -> None:
    lookup = config(method="ngram", draft_rate=0.8)
    cost, device = model_of(lookup).price(verifying(3)), model_of().price(verifying(3))
    assert cost.host_s[0] == device.host_s[0] + 0.0015
    assert cost.device_s[0] == pytest.approx(device.device_s[0] - 0.0015)


def test_a_model_that_drafts_is_priced_by_its_own_profile() -> None:
    """As large as the model: a pass over all tokens and one more each, then one a request for each other draft."""
    priced = config(method="draft_model", draft_s=None, model="servetwin/llama-s")
    model, plan = model_of(priced), verifying(3)
    assert model.drafter is not None
    passes = model.drafter.plans(plan)
    assert [(each.n_tokens, each.n_decode, each.repeat) for each in passes] == [(4 * 5, 4, 1), (4, 4, 2)]
    assert passes[1].decode_kv_sum == 4 * (500 + 4 + 1)
    stated = model_of(config(method="draft_model", draft_s=0.0)).price(plan).device_s[0]
    assert model.price(plan).device_s[0] == pytest.approx(stated + model.drafter.step_s(plan))
    simulation, _ = simulate_scenario(EXAMPLE, [priced])
    (note,) = [note for note in simulation.capture.meta.notes if note.startswith("drafting by servetwin/llama-s")]
    assert "3 passes a step" in note


def test_a_stream_drafts_the_same_tokens(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path)
    with_drafts = scenario.read_text().rstrip() + f"\n  {config(draft_s=0.0)[7:].replace('=', ': ', 1)}\n"
    scenario.write_text(with_drafts)
    simulation, _ = simulate_scenario(scenario)
    figures = stream_scenario(scenario, tmp_path / "streamed")
    written = (tmp_path / "streamed" / "meta.json").read_text()
    assert simulation.speculation is not None
    assert simulation.speculation.note() in written
    assert figures["speculation"] == simulation.speculation.figures()


@pytest.mark.parametrize(
    ("override", "field"),
    [
        (config(acceptance_rates=[0.5, 0.6, 0.4]), r"engine\.speculative_config\.acceptance_rates\.1"),
        (config(acceptance_rates=[1.5, 0.6, 0.4]), r"acceptance_rates"),
        (config(draft_s=None), r"engine\.speculative_config\.draft_s"),
        (config(method="medusa"), "method"),
        (config(method="draft_model", model="servetwin/llama-s"), r"draft_s"),
        (config(prompt_lookup_max=3), "prompt_lookup_max"),
        ("engine.num_gpu_blocks=null", r"speculative_config\.method.*num_gpu_blocks"),
        ("engine.long_prefill_token_threshold=3", r"engine\.long_prefill_token_threshold"),
    ],
)
def test_what_cannot_be_priced_or_scheduled_is_refused_by_name(override: str, field: str) -> None:
    with pytest.raises(InputError, match=field) as refused:
        simulate_scenario(EXAMPLE, [override])
    assert str(refused.value.file).endswith("speculation.yaml")


@pytest.mark.parametrize(
    ("instance", "field"),
    [
        ({"pipeline_parallel_size": 2}, r"pipeline_parallel_size.*accepted: 1, or async_scheduling"),
        ({"role": "prefill", "engine": {"speculative_config": None}}, r"speculative_config\.method"),
        (
            {
                "near_memory": {
                    "timing": str(EXAMPLE.with_name("near_memory.ini")),
                    "capacity_bytes": 536870912,
                    "attention": {"request_s": 8e-6, "token_s": 1e-7, "num_heads": 8, "head_dim": 64},
                }
            },
            "near_memory",
        ),
    ],
)
def test_what_is_not_modelled_beside_drafts_is_refused_by_name(instance: dict[str, Any], field: str) -> None:
    made = {"model": "servetwin/llama-s", "device": "AMD-EPYC-2vCPU"}
    instances = [{**made, **instance}, *([{**made, "role": "decode"}] if "role" in instance else [])]
    fabric = {"kind": "switch", "bandwidth_bytes_per_s": 1e10, "latency_s": 1e-6}
    override = f"cluster={json.dumps({'instances': instances, 'fabric': fabric})}"
    with pytest.raises(InputError, match=field):
        simulate_scenario(EXAMPLE, [override])


def test_a_whole_step_model_knows_nothing_of_drafts() -> None:
    with pytest.raises(InputError, match=r"engine\.speculative_config.*needs a profile"):
        deploy_unprofiled(read_scenario(EXAMPLE))


def test_the_memory_of_a_drafter_is_not_predicted() -> None:
    with pytest.raises(InputError, match="takes memory for the drafter, which is not predicted"):
        scenario_memory(EXAMPLE, ["cluster.instances=[{model: meta-llama/Llama-3.1-8B, device: A6000}]"])


def test_a_model_without_a_profile_cannot_draft() -> None:
    with pytest.raises(InputError, match=r"no profile of AMD-EPYC-2vCPU / meta-llama/Llama-3\.1-8B"):
        simulate_scenario(EXAMPLE, [config(method="draft_model", draft_s=None, model="meta-llama/Llama-3.1-8B")])


def test_another_version_is_said_to_draft_by_the_reference(tmp_path: Path) -> None:
    simulation, _ = simulate_scenario(EXAMPLE, ["engine_version='0.26'"])
    expected = "drafted tokens are scheduled by the rules of vllm 0.32, all else by those of vllm 0.26"
    assert expected in simulation.capture.meta.notes
