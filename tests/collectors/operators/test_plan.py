"""Which shots, and how many passes over them, fit a budget."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.operators.budget import FEWEST_PASSES, MOST_PASSES, PROBES, plan_within, quickest_s
from collectors.operators.shots import Limits, Shot, estimate_s, mean_history, plan_shots, skewed_shots
from tests.collectors.operators.shot_answers import LIMITS, step_s
from traces.errors import InputError


def test_a_shot_counts_its_batch() -> None:
    shot = Shot(prefill_tokens=33, prefill_kv_tokens=64, n_decode=2, decode_kv_tokens=32)
    assert shot.requests() == [[33, 64], [1, 32], [1, 32]]
    assert (shot.n_tokens, shot.n_requests, shot.kv_blocks(32)) == (35, 3, 4 + 2 + 2)
    several = Shot(8, 16, 0, 0, n_chunks=3)
    assert several.requests() == [[8, 16]] * 3
    assert (several.n_tokens, several.n_requests, several.is_plain) == (24, 3, False)
    skewed = Shot(0, 0, 3, 10, n_long=1, long_kv_tokens=100)
    assert skewed.requests() == [[1, 100], [1, 10], [1, 10]]
    assert (skewed.decode_kv_sum, mean_history(skewed), skewed.is_plain) == (120, 40, False)


@given(
    max_tokens=st.integers(1, 5000),
    max_requests=st.integers(1, 300),
    max_kv=st.integers(16, 20_000),
    kv_blocks=st.integers(40, 10_000),
    every=st.integers(1, 6),
    experts=st.sampled_from([(0, 0), (2, 8), (8, 128), (1, 3)]),
)
@settings(max_examples=50, deadline=None)
def test_shots_are_distinct_and_within_the_limits(
    max_tokens: int, max_requests: int, max_kv: int, kv_blocks: int, every: int, experts: tuple[int, int]
) -> None:
    limits = Limits(max_tokens, max_requests, max_kv, 32, kv_blocks, *experts)
    shots = plan_shots(limits, every)
    assert len(set(shots)) == len(shots)
    for shot in shots:
        assert shot.n_tokens >= 1
        assert shot.n_chunks * shot.prefill_tokens <= max_tokens
        assert shot.n_requests <= max_requests
        assert max(shot.prefill_kv_tokens, shot.decode_kv_tokens, shot.long_kv_tokens) <= max_kv
        assert shot.kv_blocks(32) <= kv_blocks
        assert shot.n_experts <= min(experts[1], shot.n_tokens * experts[0])
        assert all(history >= 0 for _, history in shot.requests())
    for shot, of_mean, of_longest in skewed_shots(shots):
        assert {of_mean, of_longest} <= set(shots)
        assert abs(shot.decode_kv_sum / shot.n_decode - of_mean.decode_kv_tokens) <= 0.5


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_grid_reaches_its_ends_however_sparse(every: int) -> None:
    shots = plan_shots(LIMITS, every)
    assert {Shot(1, 0, 0, 0), Shot(512, 0, 0, 0), Shot(1, 128, 0, 0), Shot(512, 2048, 0, 0)} <= set(shots)
    assert {Shot(0, 0, 1, 16), Shot(0, 0, 32, 2048), Shot(512, 512, 31, 1024)} <= set(shots)


def test_beside_the_grid_stand_skew_several_chunks_and_experts() -> None:
    limits = dataclasses.replace(LIMITS, top_k=2, num_experts=8)
    kinds = Counter(
        "skewed" if shot.n_long else "several" if shot.n_chunks > 1 else "experts" if shot.n_experts else "plain"
        for shot in plan_shots(limits)
    )
    assert kinds == {"plain": 194, "several": 12, "skewed": 17, "experts": 19}
    assert all(shot.is_plain for shot in plan_shots(limits, steps_only=True))


@pytest.mark.parametrize("experts", [(0, 0), (2, 8)], ids=["dense", "moe"])
def test_the_estimate_is_exact_for_a_device_that_is_linear(experts: tuple[int, int]) -> None:
    shots = plan_shots(dataclasses.replace(LIMITS, top_k=experts[0], num_experts=experts[1]))
    asked: list[Shot] = []

    def measure(shot: Shot) -> float:
        asked.append(shot)
        return step_s(shot)

    assert np.allclose(estimate_s(shots, measure), [step_s(shot) for shot in shots])
    assert len(asked) <= 7


def test_a_plan_spends_the_budget_and_no_more() -> None:
    whole_s = sum(map(step_s, plan_shots(LIMITS)))
    plan = plan_within(4.2 * whole_s, LIMITS, step_s)
    assert (plan.every, plan.passes) == (1, 3)
    assert plan_within(1e6, LIMITS, step_s).passes == MOST_PASSES


def test_a_plan_over_the_budget_is_thinned() -> None:
    whole_s = sum(map(step_s, plan_shots(LIMITS)))
    plan = plan_within(whole_s, LIMITS, step_s)
    assert plan.every > 1
    assert plan.passes >= FEWEST_PASSES
    assert plan.estimated_s <= whole_s
    assert f"every {plan.every} values" in plan.text()


def test_parts_of_a_budget_are_planned_as_budgets_of_their_own() -> None:
    whole_s = sum(map(step_s, plan_shots(LIMITS)))
    assert plan_within(9 * whole_s, LIMITS, step_s, parts=2) == plan_within(4.5 * whole_s, LIMITS, step_s)


def test_a_budget_below_the_sparsest_grid_is_refused() -> None:
    with pytest.raises(InputError, match=r"--budget-s.*found 0.01.*at least"):
        plan_within(0.01, LIMITS, step_s)


@pytest.mark.parametrize(
    ("takes_s", "tries"), [([0.03, 0.001, 0.002, 0.02, 0.004], PROBES), ([3.0], 1), ([0.1, 0.15], 2)]
)
def test_what_waited_beside_a_short_probe_is_not_taken_for_its_time(takes_s: list[float], tries: int) -> None:
    now_s, left = 0.0, list(takes_s)

    def act() -> None:
        nonlocal now_s
        now_s += left.pop(0)

    assert quickest_s(act, lambda: now_s) == pytest.approx(min(takes_s))
    assert len(takes_s) - len(left) == tries
