"""Experts over ranks: placements, loads, the slowest rank; by closed forms, by drawing, and against known faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.profile import MoeRows
from simulator.steps.experts import (
    N_DRAWS,
    ExpertTimes,
    Mode,
    Placement,
    drawn_load,
    expected_load,
    given_placement,
    linear,
    placement_of,
    round_robin,
)
from simulator.steps.gates import Gate, activated, measured, uniform, zipf
from traces.errors import InputError
from traces.steps import Floats

LAYERS = 12


def table(
    floor_s: float = 3e-5, expert_s: float = 6e-6, token_s: float = 1e-7, most_tokens: int = 2048, least: int = 8
) -> MoeRows:
    """A kernel whose time is a sum: per expert reached, and per token of 8 pairs. Powers of two; corners missing."""
    points = [
        (float(1 << i), float(1 << j))
        for i in range(most_tokens.bit_length())
        for j in range(least.bit_length() - 1, 8)
        if 1 << j <= 8 << i
    ]
    tokens, experts = np.array(points).T
    return MoeRows(tokens, experts, floor_s + expert_s * experts + token_s * tokens)


def times(
    gate: Gate | None = None,
    placement: Placement | None = None,
    *,
    rows: MoeRows | None = None,
    parts: int = 1,
    mode: Mode = "expected",
    seed: int = 0,
    instance: int = 0,
) -> ExpertTimes:
    gate = gate or uniform(128, 8)
    return ExpertTimes(
        rows or table(),
        gate,
        placement or linear(gate.n_experts, 1),
        num_layers=LAYERS,
        parts=parts,
        mode=mode,
        seed=seed,
        instance=instance,
    )


# -- placements --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "n_experts", "ranks", "expected"),
    [  # what vLLM 0.32's own `determine_expert_map` answers
        ("linear", 8, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("linear", 10, 4, [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]),
        ("linear", 7, 3, [[0, 1, 2], [3, 4], [5, 6]]),
        ("round_robin", 10, 4, [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]),
        ("round_robin", 7, 3, [[0, 3, 6], [1, 4], [2, 5]]),
    ],
)
def test_experts_stand_where_vllm_puts_them(name: str, n_experts: int, ranks: int, expected: list[list[int]]) -> None:
    assert placement_of(name, n_experts, ranks) == given_placement(expected)


def test_redundant_experts_follow_behind_the_last() -> None:
    assert linear(6, 4, redundant=2).experts == ((0, 1), (2, 3), (4, 5), (0, 1))


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([[0, 1], [2]], "expert 3 is held by no rank"),
        ([[0, 1, 2, 3], []], "rank 1 holds none"),
        ([[0, 1], [2, 3, 4]], "expert 4 is none of the model's"),
    ],
)
def test_a_placement_of_other_experts_is_refused(experts: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        times(uniform(4, 2), given_placement(experts))


def test_unknown_placements_are_refused() -> None:
    with pytest.raises(InputError, match="linear, round_robin"):
        placement_of("lienar", 8, 2)
    with pytest.raises(InputError, match="0 with round_robin"):
        placement_of("round_robin", 8, 2, redundant=2)
    for ranks in (0, 9):
        with pytest.raises(InputError, match="1 to 8"):
            linear(8, ranks)


# -- loads -------------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 5),
    st.lists(st.integers(0, 11), max_size=6),
    st.integers(1, 4),
    st.integers(0, 60),
    st.floats(0, 2),
)
@settings(deadline=None, max_examples=50)
def test_pairs_are_conserved_however_experts_are_placed(
    ranks: int, replicas: list[int], top_k: int, n_tokens: int, exponent: float
) -> None:
    gate = zipf(12, top_k, exponent)
    slots = [*range(12), *replicas]
    placement = given_placement([slots[rank::ranks] for rank in range(ranks)])
    assert expected_load(gate, placement, n_tokens).pairs.sum() == pytest.approx(n_tokens * top_k)
    rng = np.random.default_rng(1)
    chosen = gate.draw(rng, np.full(5, n_tokens))
    load = drawn_load(placement, chosen, rng)
    assert (load.pairs.sum(axis=1) == n_tokens * top_k).all()
    assert (load.experts <= load.pairs).all()
    assert ((load.experts > 0) == (load.pairs > 0)).all()
    assert (load.experts.sum(axis=1) >= (chosen > 0).sum(axis=1)).all()


PLACEMENTS = [linear(32, 4), round_robin(32, 4), linear(32, 4, redundant=8)]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=["linear", "round_robin", "redundant"])
def test_expected_loads_are_those_of_drawn_choices(placement: Placement) -> None:
    gate, rng = zipf(32, 4, 0.8), np.random.default_rng(2)
    load = drawn_load(placement, gate.draw(rng, np.full(20_000, 6)), rng)
    expected = expected_load(gate, placement, 6)
    assert expected.pairs[0] == pytest.approx(load.pairs.mean(axis=0), rel=0.02)
    assert expected.experts[0] == pytest.approx(load.experts.mean(axis=0), rel=0.02)


def test_replicas_take_load_off_the_hot_rank() -> None:
    gate = zipf(32, 4, 1.0)
    alone, helped = (expected_load(gate, linear(32, 4, redundant=r), 100).pairs[0] for r in (0, 8))
    assert helped.max() < 0.75 * alone.max()


# -- the slowest rank --------------------------------------------------------------------------------------------------


def test_one_rank_takes_what_the_table_says_of_the_expected_experts() -> None:
    for n in (1, 2, 5, 16, 100, 2000):
        reached = activated(uniform(128, 8).shares[0], np.array([n]))[0]
        assert times().layer_s(n) == pytest.approx(3e-5 + 6e-6 * reached + 1e-7 * n, rel=0.01)
    assert times().layer_s(0) == 0


def slowest_drawn_s(gate: Gate, placement: Placement, n: int, n_draws: int) -> Floats:
    """The slowest rank's time where the table is a sum, drawn token by token."""
    rng = np.random.default_rng(11)
    load = drawn_load(placement, gate.draw(rng, np.full(n_draws, n)), rng)
    each_s = 3e-5 + 6e-6 * np.maximum(load.experts, 1) + 1e-7 * np.maximum(load.pairs / 8, 1)
    slowest_s: Floats = each_s.max(axis=1)
    return slowest_s


@pytest.mark.parametrize("gate", [uniform(128, 8), zipf(128, 8, 0.8)], ids=["uniform", "zipf"])
@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("n", [5, 16, 48, 200, 1500])
def test_the_expected_slowest_rank_is_that_of_many_draws(gate: Gate, ranks: int, n: int) -> None:
    drawn_s = slowest_drawn_s(gate, linear(128, ranks), n, 4000)
    one = times(gate, linear(128, ranks), rows=table(least=1))
    # Of the model's own draws, five standard errors; and what half an octave between sizes bends.
    assert one.layer_s(n) == pytest.approx(drawn_s.mean(), abs=5 * drawn_s.std() / N_DRAWS**0.5, rel=0.001)


def test_two_ranks_have_the_closed_form_of_the_larger_half() -> None:
    """Pairs of rank 0 are nearly normal, and rank 1 has the others: the larger is the mean + std * sqrt(2 / pi)."""
    n, gate = 2000, uniform(128, 8)
    variance = n * 8 * 0.5 * 0.5 * (128 - 8) / (128 - 1)  # hypergeometric per token
    expected = 8 * n / 2 + np.sqrt(variance * 2 / np.pi)
    per_token = MoeRows(np.array([1.0, 4096.0]), np.array([64.0, 64.0]), np.array([1.0, 4096.0]))  # seconds: tokens
    one = ExpertTimes(per_token, gate, linear(128, 2), num_layers=1)
    assert 8 * one.layer_s(n) == pytest.approx(expected, abs=5 * np.sqrt(variance / N_DRAWS))
    assert one.layer_s(n) > n / 2


def test_skew_costs_more_the_more_ranks_there_are() -> None:
    def excess(ranks: int) -> float:
        skewed, even = (times(gate, linear(128, ranks)).layer_s(512) for gate in (zipf(128, 8, 1.0), uniform(128, 8)))
        return skewed / even

    assert excess(1) < 1 < excess(2) < excess(8)


def test_placement_decides_who_is_slowest() -> None:
    gate = zipf(128, 8, 1.0)
    assert times(gate, linear(128, 8)).layer_s(1000) > 1.2 * times(gate, round_robin(128, 8)).layer_s(1000)


@given(st.integers(1, 500), st.sampled_from([1, 2, 4]), st.sampled_from([0.0, 0.7]))
@settings(deadline=None, max_examples=5)
def test_more_tokens_take_no_less_and_more_ranks_no_more(n: int, ranks: int, exponent: float) -> None:
    gate = zipf(128, 8, exponent)
    assert times(gate, linear(128, ranks)).layer_s(n + 50) >= times(gate, linear(128, ranks)).layer_s(n)
    assert times(gate, linear(128, 2 * ranks)).layer_s(n) <= 1.001 * times(gate, linear(128, ranks)).layer_s(n)


def test_no_answer_depends_on_the_question_before_it() -> None:
    up, down = times(placement=linear(128, 4)), times(placement=linear(128, 4))
    sizes = [1, 7, 64, 100, 1000, 3000]
    assert [up.layer_s(n) for n in sizes] == [down.layer_s(n) for n in sizes[::-1]][::-1]


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_sampled_steps_have_the_expected_mean_and_the_spread_of_draws() -> None:
    gate, placement = uniform(128, 8), linear(128, 4)
    sampled = times(gate, placement, rows=table(least=1), mode="sampled")
    layer_s = sampled.layers_s(40, 0, 5000)
    assert layer_s.mean() / LAYERS == pytest.approx(sampled.layer_s(40), rel=0.001)
    one_layer_std = slowest_drawn_s(gate, placement, 40, 4000).std()
    assert layer_s.std() == pytest.approx(one_layer_std * LAYERS**0.5, rel=0.2)


@pytest.mark.parametrize("mode", ["expected", "sampled"])
def test_a_step_costs_the_same_however_steps_are_grouped(mode: Mode) -> None:
    whole = times(placement=linear(128, 4), mode=mode, seed=5).layers_s(24, 100, 60)
    again = times(placement=linear(128, 4), mode=mode, seed=5)
    again.layers_s(7, 0, 3)
    parts = [again.layers_s(24, 100 + first, count) for first, count in ((0, 1), (1, 19), (20, 40))]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_no_two_steps_instances_or_seeds_draw_the_same() -> None:
    """A gate that is made anew with its seed for every step repeats its draw for ever."""

    def drawn(seed: int, instance: int) -> Floats:
        return times(placement=linear(128, 4), mode="sampled", seed=seed, instance=instance).layers_s(24, 0, 200)

    assert len(set(drawn(1, 0).tolist())) > 150
    assert (drawn(1, 0) == drawn(1, 0)).all()
    for other in (drawn(2, 0), drawn(1, 1), drawn(0, 1)):
        assert (drawn(1, 0) != other).mean() > 0.9


def test_layers_of_one_step_draw_each_for_itself() -> None:
    """Twelve layers that repeated one layer's draw would spread twelve times as much, not by the root of twelve."""
    sampled = times(placement=linear(128, 4), mode="sampled").layers_s(40, 0, 3000)
    alone = ExpertTimes(table(), uniform(128, 8), linear(128, 4), num_layers=1, mode="sampled").layers_s(40, 0, 3000)
    assert sampled.std() == pytest.approx(alone.std() * LAYERS**0.5, rel=0.1)


def test_a_recorded_gate_is_replayed_step_by_step() -> None:
    counts = np.array([[4.0, 4, 0, 0], [0, 0, 4, 4], [2, 2, 2, 2]])
    gate = measured(counts, 2, "trace", is_recorded=True)
    rows = MoeRows(*np.array([[1.0, 1, 64, 64], [1, 4, 1, 4], [1, 4, 64, 67]]))  # seconds: tokens + experts - 1
    one = ExpertTimes(rows, gate, linear(4, 2), num_layers=10, mode="sampled")
    # 32 tokens: all 64 pairs and two experts on one rank, or half of each.
    assert one.layers_s(32, 0, 5) == pytest.approx([330, 330, 170, 330, 330])
    assert one.layers_s(32, 4, 2) == pytest.approx([330, 170])
    assert one.layer_s(32) == pytest.approx((33 + 33 + 17) / 3)


# -- faults of LLMServingSim that must not come back -------------------------------------------------------------------


def test_few_tokens_do_not_reach_as_many_experts_as_they_have_pairs() -> None:
    """16 tokens of 8 pairs reach 82 of 128 experts, and not min(128 pairs, 128 experts)."""
    assert activated(uniform(128, 8).shares[0], np.array([16]))[0] == pytest.approx(82.4, abs=0.05)
    assert times().layer_s(16) < 0.7 * (3e-5 + 6e-6 * 128 + 1e-7 * 16)


def test_a_rank_works_for_its_pairs_and_not_for_all_pairs_of_tokens_that_have_one_there() -> None:
    """2048 tokens over 2 ranks: 2040 of them have a pair on rank 0, but half of all pairs are there."""
    rows = table(floor_s=0, expert_s=1e-9, token_s=1e-6)
    assert times(placement=linear(128, 2), rows=rows).layer_s(2048) == pytest.approx(1024e-6, rel=0.02)


@pytest.mark.parametrize("hot_rank", [0, 1, 3])
def test_the_slowest_rank_is_waited_for_whichever_it_is(hot_rank: int) -> None:
    """Pricing rank 0 alone would see the hot rank only where it is rank 0."""
    hot = given_placement([[0, 1, 2, 3] if rank == hot_rank else [] for rank in range(4)])
    cold = iter(np.arange(4, 16).reshape(3, 4).tolist())
    placement = given_placement([held or next(cold) for held in hot.experts])
    counts = np.array([[12.0] * 4 + [1] * 12])
    rows = MoeRows(*np.array([[1.0, 4096], [4, 4], [1, 4096]]))  # seconds: tokens
    one = ExpertTimes(rows, measured(counts, 4, "counts"), placement, num_layers=1)
    assert one.layer_s(1000) == pytest.approx(1000 * 48 / 60, rel=0.01)


def test_experts_that_tensor_parallelism_splits_cost_a_part_each() -> None:
    """Weights read, and products, of one of two devices that share all experts: half of both."""
    whole, half = times().layer_s(2000), times(parts=2).layer_s(2000)
    assert half == pytest.approx(3e-5 + (whole - 3e-5) / 2, rel=0.01)


def test_what_was_not_measured_is_counted() -> None:
    one = times(placement=linear(128, 16), rows=table(most_tokens=64))
    for n, count in ((0, 1), (1, 2), (200, 10), (1024, 20), (1025, 40)):
        one.count(n, count)
    assert one.notes()[1:] == (
        "2 of 73 steps priced beyond the profile's measured range: experts: fewer reached per rank",
        "40 of 73 steps priced beyond the profile's measured range: experts: tokens per rank",
    )
    narrow = times(rows=MoeRows(*np.array([[1.0, 64], [8, 8], [1, 2]])))
    narrow.count(64, 3)
    assert "3 of 3 steps" in narrow.notes()[1]
    assert "experts: more reached per rank" in narrow.notes()[1]


def test_beyond_the_table_time_goes_on_as_it_went() -> None:
    short, whole = (times(rows=table(most_tokens=most)) for most in (256, 2048))
    assert short.layer_s(2000) == pytest.approx(whole.layer_s(2000))


def test_missing_corners_do_not_make_many_experts_cheap() -> None:
    """5 tokens reach 35 experts: between rows of 32 and of 64, and the second was measured from 8 tokens on."""
    rows = table(token_s=0)
    reached = activated(uniform(128, 8).shares[0], np.array([5]))[0]
    assert 32 < reached < 64
    assert times(rows=rows).layer_s(5) == pytest.approx(3e-5 + 6e-6 * reached)


def test_notes_say_what_was_assumed() -> None:
    notes = times(zipf(128, 8, 1.0), linear(128, 4), mode="sampled").notes()
    assert notes == ("experts: chosen by the gate 'zipf, exponent 1' on 4 ranks, a draw for each layer of each step",)
    assert "2 devices share each" in times(parts=2).notes()[1]


# -- the published table -----------------------------------------------------------------------------------------------


@pytest.mark.ground_truth
def test_the_documentations_times_are_those_of_the_published_table(ground_truth: Path) -> None:
    """Of docs/experts.md: our lookup, and LLMServingSim's beside it, which counts work and experts too high."""
    folder = ground_truth / "vllm-0.19" / "perf" / "RTXPRO6000" / "Qwen" / "Qwen3-30B-A3B-Instruct-2507" / "bf16"
    columns = np.loadtxt(folder / "tp1" / "moe.csv", delimiter=",", skiprows=1).T
    rows = MoeRows(columns[0], columns[1], columns[2] * 1e-6)
    text = (Path(__file__).parents[2] / "docs" / "experts.md").read_text()
    sizes, ours, theirs = (
        [float(cell) for cell in text.split(f"| {head} |")[-1].split("|\n")[0].split("|")]
        for head in ("tokens", "`uniform`", "min(pairs, experts), tokens with any pair, no slowest rank")
    )
    even = times(placement=linear(128, 2), rows=rows)
    assert [round(even.layer_s(int(n)) * 1e6) for n in sizes] == ours
    assert all(one < other for n, one, other in zip(sizes, ours, theirs, strict=True) if n >= 16)
