"""Drafted tokens: what is drawn, what is scheduled, what it costs; closed forms, conservation, and what is refused."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.engine import Engine, check_engine
from simulator.fleet import Failure
from simulator.scheduling.choice import new_scheduler
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan, plan_of
from simulator.scheduling.spec import SchedulerSpec
from simulator.scheduling.speculation import (
    Acceptance,
    SpeculativeConfig,
    acceptance_of,
    no_speculation,
    slots_ahead,
    together,
    uniform,
)
from simulator.scheduling.step_replay import replay_steps
from simulator.simulate import Simulation, simulate
from simulator.steps.speculative_steps import as_chunks
from tests.engines import LinearStepTime, engine, trace
from tests.simulator.batches import batch, request
from traces.errors import EngineError, InputError
from traces.outcome import Status


def drafter(*rates: float, method: str = "draft_model", **more: Any) -> SpeculativeConfig:
    """Drafts of as many tokens as there are rates."""
    given = {"num_speculative_tokens": len(rates), "acceptance_rates": rates, "draft_s": 0.0, **more}
    return msgspec.convert({"method": method, **given}, SpeculativeConfig)


def drafting(*rates: float, step_time: LinearStepTime | None = None, seed: int = 0, **options: Any) -> Engine:
    """An engine with such a drafter, by a draft model where nothing else is said."""
    keys = {name: options.pop(name) for name in ("method", "draft_rate") if name in options}
    made = engine(step_time, speculative_config=drafter(*rates, **keys), **options)
    return dataclasses.replace(made, seed=seed)


def tokens_by_step(run: Simulation, request: int = 0) -> list[int]:
    """Tokens that each of a request's steps brought, in order."""
    return list(Counter(run.capture.outcomes[request].token_times_s or ()).values())


# -- what is drawn ---------------------------------------------------------------------------------------------------


def test_a_draw_depends_on_its_key_alone() -> None:
    draws = [uniform(1, 2, i) for i in range(20_000)]
    assert draws[5] == uniform(1, 2, 5) != uniform(1, 3, 5) != uniform(2, 3, 5)
    # Of 20,000 uniform numbers the mean has a standard deviation of 0.002, and each tenth holds 2,000 with one of 42.
    assert abs(np.mean(draws) - 0.5) < 0.01
    assert max(abs(np.histogram(draws, bins=10, range=(0, 1))[0] - 2000)) < 210
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.035


def test_rates_are_unconditional_as_vllm_counts_them() -> None:
    """The share of drafts whose first i + 1 tokens are accepted is the rate of position i: a binomial of 20,000."""
    acceptance = acceptance_of(drafter(0.8, 0.5, 0.1), seed=3)
    accepted = np.array([acceptance.accepted(i % 100, i // 100) for i in range(20_000)])
    for i, rate in enumerate((0.8, 0.5, 0.1)):
        assert (accepted > i).mean() == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / 20_000))


def test_certain_and_impossible_drafts() -> None:
    assert {Acceptance((1.0, 1.0), 1.0, 0).accepted(i, 7) for i in range(500)} == {2}
    assert {Acceptance((0.0, 0.0), 1.0, 0).accepted(i, 7) for i in range(500)} == {0}
    assert {Acceptance((1.0, 1.0), 1.0, 0).drafts(i, 7) for i in range(500)} == {2}
    found = [Acceptance((1.0,), 0.3, 0).drafts(i, 7) for i in range(5_000)]
    assert sum(found) / 5_000 == pytest.approx(0.3, abs=0.033)


@pytest.mark.parametrize(("length", "rates"), [(1.0, (0, 0, 0)), (2.5, (1, 0.5, 0)), (4.0, (1, 1, 1))])
def test_a_synthetic_length_is_as_many_whole_tokens_as_there_are(length: float, rates: tuple[float, ...]) -> None:
    keys = {"acceptance_rates": None, "rejection_sample_method": "synthetic", "synthetic_acceptance_length": length}
    assert drafter(1, 1, 1, **keys).rates == rates


def test_what_was_drafted_is_added_up() -> None:
    one, other = no_speculation(2), no_speculation(3)
    one.observe(2, 1)
    other.observe(3, 3)
    total = together((one, None, other))
    assert total is not None
    assert (total.num_drafts, total.num_draft_tokens, total.num_accepted_tokens) == (2, 5, 4)
    assert total.num_accepted_tokens_per_pos == [2, 1, 1]
    assert total.mean_acceptance_length == 3.0
    assert together((None,)) is None
    assert no_speculation(2).mean_acceptance_length is None
    assert no_speculation(2).note() == "speculative decoding: nothing was drafted"


# -- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("method", ["eagle", "mtp", "draft_model"])
def test_with_every_draft_accepted_a_step_brings_all_of_its_tokens(method: str, asynchronous: bool) -> None:
    """One token comes with the prompt, then 1 + k with each step of 10 ms."""
    run = simulate(trace((0.0, 50, 41)), drafting(1, 1, 1, method=method, async_scheduling=asynchronous))
    assert tokens_by_step(run) == [1, *[4] * 10]
    assert run.capture.outcomes[0].finish_s == pytest.approx(0.01 + 10 * 0.01)
    assert run.speculation is not None
    assert run.speculation.mean_acceptance_length == 4.0


def test_lookup_that_always_finds_its_draft() -> None:
    run = simulate(trace((0.0, 50, 41)), drafting(1, 1, 1, method="ngram", draft_rate=1.0))
    assert tokens_by_step(run) == [1, *[4] * 10]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_with_no_draft_accepted_the_same_tokens_come_and_steps_are_of_more(asynchronous: bool) -> None:
    """A token takes 1 ms: each of 20 steps behind the prompt's computes 1 + k of them, and brings one."""
    per_token = LinearStepTime(step_s=0.0, token_s=0.001)
    with_drafts = drafting(0, 0, 0, step_time=per_token, async_scheduling=asynchronous)
    run = simulate(trace((0.0, 50, 21)), with_drafts)
    plain = simulate(trace((0.0, 50, 21)), engine(per_token, async_scheduling=asynchronous))
    assert tokens_by_step(run) == tokens_by_step(plain) == [1] * 21
    assert plain.capture.outcomes[0].finish_s == pytest.approx(0.05 + 20 * 0.001)
    assert run.capture.outcomes[0].finish_s == pytest.approx(0.05 + 20 * 0.004)
    assert run.speculation is not None
    assert run.speculation.num_accepted_tokens == 0
    assert plain.speculation is None


def test_a_step_brings_one_and_the_sum_of_the_rates_on_the_average() -> None:
    run = simulate(trace(*[(0.0, 10, 400)] * 50), drafting(0.7, 0.5, 0.3))
    assert run.speculation is not None
    counted = run.speculation
    # About 8,000 drafts; the tokens of one have a standard deviation of 1.2.
    assert counted.mean_acceptance_length == pytest.approx(1 + 0.7 + 0.5 + 0.3, abs=5 * 1.2 / np.sqrt(8_000))
    assert "mean acceptance length 2.5" in run.capture.meta.notes[-1]
    per_step = [n for i in range(50) for n in tokens_by_step(run, i)[1:-1]]
    assert np.mean(per_step) == pytest.approx(2.5, abs=0.07)


def test_tokens_of_a_step_come_together() -> None:
    run = simulate(trace((0.0, 10, 13)), drafting(1, 1))
    times = run.capture.outcomes[0].token_times_s
    assert times is not None
    gaps = np.diff(times)
    assert (gaps == 0).sum() == 2 * 4
    assert gaps.sum() == pytest.approx(4 * 0.01)


def test_what_is_accepted_does_not_depend_on_what_else_runs() -> None:
    """The answers grow by the same tokens one after another, all together, and a step ahead."""
    rows = trace(*[(0.0, 10, 60)] * 6)
    kinds = ({"max_num_seqs": 1}, {"max_num_seqs": 6}, {"max_num_seqs": 6, "async_scheduling": True})
    runs = [simulate(rows, drafting(0.8, 0.4, **kind)) for kind in kinds]
    grown = [[tokens_by_step(run, i) for i in range(6)] for run in runs]
    assert grown[0] == grown[1] == grown[2]
    other_seed = simulate(rows, drafting(0.8, 0.4, seed=1))
    assert [tokens_by_step(other_seed, i) for i in range(6)] != grown[0]


def test_an_answer_of_a_word_drafts_nothing() -> None:
    run = simulate(trace((0.0, 10, 1)), drafting(1, 1, async_scheduling=True))
    assert (run.n_steps, tokens_by_step(run)) == (1, [1])
    assert run.capture.meta.notes[-1] == "speculative decoding: nothing was drafted"


# -- conservation ----------------------------------------------------------------------------------------------------

rows = st.lists(st.tuples(st.floats(0, 0.3), st.integers(1, 120), st.integers(1, 50)), min_size=1, max_size=14)


@settings(deadline=None, max_examples=60)
@given(
    rows,
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
    st.sampled_from(["eagle", "mtp", "draft_model", "ngram"]),
    st.booleans(),
    st.integers(14, 60),
    st.sampled_from([16, 40, 200]),
)
def test_every_request_gets_its_tokens_and_every_block_comes_back(
    rows: list[tuple[float, int, int]], rates: list[float], method: str, asynchronous: bool, blocks: int, budget: int
) -> None:
    rates.sort(reverse=True)
    made = drafting(
        *rates,
        method=method,
        draft_rate=0.6 if method == "ngram" else None,
        async_scheduling=asynchronous and method != "ngram",
        num_gpu_blocks=blocks,
        max_model_len=200,
        max_num_batched_tokens=budget,
        max_num_seqs=8,
    )
    run = simulate(trace(*sorted(rows)), made, record_batches=True)
    steps = run.capture.steps
    assert steps is not None
    for outcome, (_, prompt, output) in zip(run.capture.outcomes, sorted(rows), strict=True):
        assert outcome.status is Status.FINISHED
        assert outcome.output_tokens == len(outcome.token_times_s or ()) == min(output, 200 - prompt)
        assert (np.diff(outcome.token_times_s or ()) >= 0).all()
    assert (np.diff(steps.end_s) > 0).all()
    assert (steps.kv_blocks <= blocks - 1).all()
    assert (steps.n_prefill_tokens + steps.n_decode_tokens <= budget).all()
    assert steps.batches is not None
    assert steps.batches.new_tokens.sum() == (steps.n_prefill_tokens + steps.n_decode_tokens).sum()
    counted = run.speculation
    assert counted is not None
    assert counted.num_accepted_tokens == sum(counted.num_accepted_tokens_per_pos) <= counted.num_draft_tokens
    again = simulate(trace(*sorted(rows)), made, fast_forward=False)
    assert again.capture.outcomes == run.capture.outcomes


@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_block_is_free_when_all_is_over(asynchronous: bool) -> None:
    made = drafting(0.9, 0.5, async_scheduling=asynchronous)
    scheduler = new_scheduler("native", SchedulerSpec(made.options, num_gpu_blocks=20, max_model_len=200))
    for index, row in enumerate(trace(*[(0.0, 40, 60)] * 5).rows):
        scheduler.add_request(row, index, (), 0.0)
    depth, under_way, done, n_preempted = 1 + asynchronous, [], 0, 0
    while scheduler.running or scheduler.waiting:
        plan = scheduler.schedule(0.0)
        if plan is not None:
            under_way.append(plan.first_step)
            n_preempted += plan.n_preempted
        if under_way and (plan is None or len(under_way) == depth):
            done += len(scheduler.finish(under_way.pop(0), 0.0))
    assert (done, scheduler.num_free_blocks) == (5, 19)
    assert n_preempted > 0


@pytest.mark.parametrize("method", ["eagle", "draft_model"])
def test_large_hashes_find_what_small_ones_do(method: str) -> None:
    """A hash of 64 tokens stands for four blocks; eagle leaves the last block of a hit, and not the last hash."""
    made = drafting(0.8, 0.5, method=method)
    plans, hits = [], []
    for per_hash, hashes in ((4, (1, 2)), (1, tuple(10 * large + small for large in (1, 2) for small in range(4)))):
        scheduler = new_scheduler("native", SchedulerSpec(made.options, 60, 400, blocks_per_hash=per_hash))
        batches = []
        for index in range(3):
            row = trace((0.0, 120 + 10 * index, 20)).rows[0]
            added = scheduler.add_request(msgspec.structs.replace(row, request_id=str(index)), index, hashes, 0.0)
            while (plan := scheduler.schedule(0.0)) is not None:
                batches.append((plan.new_tokens.tolist(), plan.computed_tokens.tolist(), plan.kv_blocks))
                scheduler.finish(plan.first_step, 0.0)
            hits.append(added.cached_tokens)
        plans.append(batches)
    assert plans[0] == plans[1]
    assert hits == ([0, 112, 112] if method == "eagle" else [0, 128, 128]) * 2


def test_a_failing_engine_loses_its_drafts_and_serves_all_the_same() -> None:
    made = drafting(0.8, 0.4, async_scheduling=True)
    cluster = Cluster((made, made), failures=(Failure(instance=0, at_s=0.105, for_s=0.2),))
    run = simulate(trace(*[(0.01 * i, 30, 40) for i in range(8)]), cluster)
    assert {outcome.status for outcome in run.capture.outcomes} == {Status.FINISHED}
    assert {outcome.output_tokens for outcome in run.capture.outcomes} == {40}


def test_a_client_that_gives_up_takes_its_drafts_along() -> None:
    cluster = Cluster((drafting(0.8, 0.4, async_scheduling=True),), deadline_s=0.055)
    run = simulate(trace((0.0, 30, 400), (0.03, 30, 5)), cluster)
    given_up, served = run.capture.outcomes
    assert (given_up.status, served.status) == (Status.ABORTED, Status.FINISHED)
    assert 0 < given_up.output_tokens < 400


# -- plans and their parts -------------------------------------------------------------------------------------------


def verifying() -> StepPlan:
    """Requests that verify 3 drafts, decode, and compute 20 tokens of a prompt."""
    plain = batch([(100, 4, 100), (50, 1, 50), (40, 20, 0)])
    return plan_of(
        [request(i, tokens) for i, tokens in enumerate((100, 50, 40))],
        plain.new_tokens,
        plain.computed_tokens,
        drafts=np.array([3, 0, 0]),
        **{name: getattr(plain, name) for name in PLAN_FACTS},
    )


PLAN_FACTS = ("first_step", "repeat", "n_preempted", "n_running", "n_waiting", "kv_blocks")


def test_a_request_with_drafts_is_a_decode_of_more_tokens() -> None:
    plan = verifying()
    assert (plan.n_tokens, plan.n_prefill_tokens, plan.n_decode, plan.n_draft_tokens) == (25, 20, 2, 3)
    assert (plan.decode_kv_sum, plan.decode_kv_max, len(plan.chunks)) == (150, 100, 1)


def test_as_chunks_a_request_with_drafts_is_a_chunk_with_history() -> None:
    plan = as_chunks(verifying())
    assert [(chunk.new_tokens, chunk.computed_tokens) for chunk in plan.chunks] == [(4, 100), (20, 0)]
    assert (plan.n_tokens, plan.n_decode, plan.decode_kv_sum, plan.n_draft_tokens) == (25, 1, 50, 0)


def test_plans_with_drafts_are_of_one_step() -> None:
    made = drafting(1.0)
    scheduler = new_scheduler("native", SchedulerSpec(made.options, num_gpu_blocks=20, max_model_len=200))
    scheduler.add_request(trace((0.0, 40, 60)).rows[0], 0, (), 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    with pytest.raises(EngineError, match="one at a time"):
        scheduler.repeat(plan, 2)


def test_graphs_are_captured_for_whole_drafts() -> None:
    sizes = EngineOptions(max_num_seqs=8, speculative_config=drafter(1, 1)).capture_sizes()
    assert sizes == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48)
    assert EngineOptions(max_num_seqs=8).capture_sizes() == (1, 2, 4, 8, 16)


def test_slots_beyond_the_last_token() -> None:
    assert slots_ahead(None, asynchronous=True) == 0
    assert slots_ahead(drafter(1, 1), asynchronous=True) == 2 * 2 + 2
    assert slots_ahead(drafter(1, 1, method="ngram"), asynchronous=False) == 2


def test_a_request_that_its_drafts_leave_no_room_for_is_rejected() -> None:
    """31 tokens to compute fit in two blocks, 31 and 4 slots for drafts do not."""
    (fits,) = simulate(trace((0.0, 20, 12)), engine(num_gpu_blocks=3)).capture.outcomes
    (rejected,) = simulate(trace((0.0, 20, 12)), drafting(1, 1, num_gpu_blocks=3)).capture.outcomes
    assert (fits.status, rejected.status) == (Status.FINISHED, Status.REJECTED)
    assert rejected.reason == "needs 3 KV blocks, the engine has 2"


# -- what is refused -------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"acceptance_rates": (0.5,)}, "acceptance_rates': found '1 rates': accepted: 2"),
    ({"acceptance_rates": (0.5, 0.6)}, r"acceptance_rates\.1': increases"),
    ({"acceptance_rates": None}, "acceptance_rates"),
    ({"synthetic_acceptance_length": 2.0}, "synthetic_acceptance_length': has no effect"),
    ({"rejection_sample_method": "synthetic"}, "acceptance_rates': has no effect"),
    (
        {"rejection_sample_method": "synthetic", "acceptance_rates": None, "synthetic_acceptance_length": 3.5},
        "synthetic_acceptance_length': found 3.5: accepted: 1 to 3",
    ),
    (
        {"rejection_sample_method": "synthetic", "acceptance_rates": None},
        "synthetic_acceptance_rates, synthetic_acceptance_length",
    ),
    ({"draft_s": None}, "draft_s"),
    ({"model": "some/model"}, "draft_s"),
    ({"method": "eagle", "model": "some/model"}, "model': cannot be priced"),
    ({"method": "ngram"}, "draft_rate"),
    ({"draft_rate": 0.5}, "draft_rate"),
    ({"disable_eagle_block_drop": True}, "disable_eagle_block_drop': has no effect"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_drafter_that_is_wrong_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    made = engine(speculative_config=drafter(0.7, 0.5, **change))
    with pytest.raises(InputError, match=message):
        check_engine(made)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"async_scheduling": True, "method": "ngram", "draft_rate": 1.0}, "engine.async_scheduling"),
        ({"max_num_batched_tokens": 3, "max_num_seqs": 1}, "engine.max_num_batched_tokens"),
        ({"long_prefill_token_threshold": 2}, "engine.long_prefill_token_threshold"),
    ],
)
def test_options_that_vllm_refuses_or_fails_with_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as refused:
        check_engine(drafting(0.7, 0.5, **options))
    assert refused.value.field == field


def test_stages_that_wait_for_outputs_are_not_modelled_beside_drafts() -> None:
    with pytest.raises(InputError, match=r"instances\.pipeline.*not modelled where tokens are drafted.*without async"):
        check_engine(dataclasses.replace(drafting(0.7), pipeline_parallel_size=2))
    check_engine(dataclasses.replace(drafting(0.7, async_scheduling=True), pipeline_parallel_size=2))


def test_steps_of_a_capture_with_drafts_are_not_planned_again() -> None:
    capture = simulate(trace((0.0, 10, 5)), drafting(0.7), record_batches=True).capture
    meta = msgspec.structs.replace(
        capture.meta, engine_options={**capture.meta.engine_options, "max_model_len": 4096}, num_gpu_blocks=1000
    )
    with pytest.raises(InputError, match="speculative_config"):
        replay_steps(dataclasses.replace(capture, meta=meta))
