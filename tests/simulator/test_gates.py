"""Gates: what share of the tokens each expert gets, by closed forms, by brute force and by drawing."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.steps.gates import Gate, activated, inclusion, measured, new_gate, read_gate, uniform, zipf
from traces.errors import InputError
from traces.steps import Floats


def test_uniform_activation_is_the_closed_form() -> None:
    gate = uniform(128, 8)
    n = np.array([0, 1, 2, 16, 1000])
    assert activated(gate.shares[0], n) == pytest.approx(128 * (1 - (1 - 8 / 128) ** n))
    assert activated(gate.shares[0], n)[:2] == pytest.approx([0, 8])


@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_shares_are_those_of_all_sets_weighted(top_k: int) -> None:
    """Every set of experts has the product of its weights."""
    weights = np.array([3.0, 1.0, 0.5, 0.25, 0.0, 2.0])
    sets = list(combinations(range(6), top_k))
    products = np.array([weights[list(chosen)].prod() for chosen in sets])
    expected = [products[[e in chosen for chosen in sets]].sum() / products.sum() for e in range(6)]
    assert inclusion(weights, top_k) == pytest.approx(expected)


def starting_over(weights: Floats, top_k: int, n_tokens: int) -> Floats:
    """Shares of a token that draws `top_k` times and starts over unless all are different, by doing so."""
    rng = np.random.default_rng(5)
    drawn = np.sort(rng.choice(len(weights), (40 * n_tokens, top_k), p=weights / weights.sum()), axis=1)
    distinct = drawn[(np.diff(drawn, axis=1) > 0).all(axis=1)][:n_tokens]
    assert len(distinct) == n_tokens
    return np.bincount(distinct.reshape(-1), minlength=len(weights)) / n_tokens


@pytest.mark.parametrize(("n_experts", "top_k", "exponent"), [(16, 2, 1.0), (16, 2, 0.5), (64, 4, 0.7), (128, 8, 0.4)])
def test_zipf_is_drawing_until_all_are_different(n_experts: int, top_k: int, exponent: float) -> None:
    gate = zipf(n_experts, top_k, exponent)
    weights = 1 / np.arange(1, n_experts + 1) ** exponent
    assert gate.shares.sum() == pytest.approx(top_k)
    assert gate.shares[0] == pytest.approx(starting_over(weights, top_k, 100_000), abs=0.006)


def test_zipf_of_exponent_0_is_uniform() -> None:
    assert zipf(64, 4, 0.0).shares == pytest.approx(uniform(64, 4).shares)


def test_a_steeper_zipf_reaches_fewer_experts() -> None:
    reached = [activated(zipf(128, 8, s).shares[0], np.array([32]))[0] for s in (0.0, 0.5, 1.0, 2.0)]
    assert reached == sorted(reached, reverse=True)
    assert reached[0] > 2 * reached[-1]


GATES = [uniform(16, 2), zipf(64, 6, 1.0), zipf(8, 1, 2.0), measured(np.array([[9.0, 3, 0, 6, 5, 7]]), 3, "counts")]


@pytest.mark.parametrize("gate", GATES, ids=[gate.source for gate in GATES])
def test_drawn_tokens_choose_by_their_shares(gate: Gate) -> None:
    n = np.full(400, 500)
    chosen = gate.draw(np.random.default_rng(3), n)
    assert (chosen.sum(axis=1) == 500 * gate.top_k).all()
    assert chosen.max() <= 500
    assert chosen.sum(axis=0) / n.sum() == pytest.approx(gate.shares[0], abs=5 * 0.5 / np.sqrt(n.sum()))


@pytest.mark.parametrize("gate", GATES, ids=[gate.source for gate in GATES])
@pytest.mark.parametrize("n_tokens", [1, 3, 20])
def test_expected_activation_is_that_of_drawn_tokens(gate: Gate, n_tokens: int) -> None:
    chosen = gate.draw(np.random.default_rng(4), np.full(20_000, n_tokens))
    reached = (chosen > 0).sum(axis=1)
    error = reached.std() / np.sqrt(len(reached)) + 1e-9
    assert activated(gate.shares[0], np.array([n_tokens]))[0] == pytest.approx(reached.mean(), abs=5 * error)


def test_drawn_sets_have_the_weights_of_their_products() -> None:
    """Not only each expert's share: a token alone shows its set."""
    weights = np.array([4.0, 2.0, 1.0, 1.0])
    gate = Gate(inclusion(weights, 2)[None], 2, "test")
    chosen = gate.draw(np.random.default_rng(6), np.full(100_000, 1))
    for pair in combinations(range(4), 2):
        expected = weights[list(pair)].prod() / 21  # 8 + 4 + 4 + 2 + 2 + 1
        assert chosen[:, list(pair)].all(axis=1).mean() == pytest.approx(expected, abs=0.006)


def test_an_expert_that_every_token_chooses_is_always_chosen() -> None:
    gate = measured(np.array([[10.0, 4, 10, 3, 3, 0]]), 3, "counts")
    assert gate.shares[0].tolist() == pytest.approx([1, 0.4, 1, 0.3, 0.3, 0])
    chosen = gate.draw(np.random.default_rng(7), np.full(2000, 25))
    assert (chosen[:, [0, 2]] == 25).all()
    assert (chosen[:, 5] == 0).all()
    assert chosen[:, 1].mean() / 25 == pytest.approx(0.4, abs=0.01)


def test_tokens_that_choose_all_experts() -> None:
    assert (uniform(4, 4).draw(np.random.default_rng(8), np.array([3, 0])) == [[3] * 4, [0] * 4]).all()


@given(
    st.integers(1, 6).flatmap(
        lambda top_k: st.tuples(st.just(top_k), st.lists(st.integers(0, 1000), min_size=top_k, max_size=24))
    )
)
@settings(deadline=None, max_examples=60)
def test_any_counts_are_a_gate_or_refused(case: tuple[int, list[int]]) -> None:
    top_k, counts = case
    try:
        gate = measured(np.array([counts], dtype=np.float64), top_k, "counts")
    except InputError:
        assert sum(counts) == 0 or max(counts) * top_k > sum(counts)
        return
    assert gate.shares.sum() == pytest.approx(top_k)
    chosen = gate.draw(np.random.default_rng(0), np.array([0, 7, 300]))
    assert chosen.sum(axis=1).tolist() == [0, 7 * top_k, 300 * top_k]
    assert ((chosen >= 0) & (chosen <= [[0], [7], [300]])).all()
    assert (chosen[:, np.array(counts) == 0] == 0).all()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_histogram_is_read_from_a_file(tmp_path: Path) -> None:
    gate = new_gate(str(write(tmp_path / "g.csv", "expert,n_pairs\n2,30\n0,50\n1,20\n")), 4, 2)
    assert gate.shares.tolist() == [[1.0, 0.4, 0.6, 0.0]]
    assert not gate.is_recorded


def test_a_trace_is_a_histogram_per_step(tmp_path: Path) -> None:
    text = "step,expert,n_pairs\n7,0,1\n7,1,1\n9,2,4\n9,0,4\n"
    gate = read_gate(write(tmp_path / "g.csv", text), 3, 2)
    assert gate.shares.tolist() == [[1, 1, 0], [1, 0, 1]]
    assert gate.is_recorded


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("expert,n_pairs\n0,1\n4,1\n", 3, "expert"),
        ("expert,n_pairs\n0,1\n0,1\n", 3, "expert"),
        ("expert,n_pairs\n0,1\n1,-1\n", 3, "n_pairs"),
        ("expert,n_pairs\n0,1\n1,0.5\n", 3, "n_pairs"),
        ("expert,n_pairs\n0,0\n", None, "n_pairs"),
        ("expert,n_pairs\n0,3\n1,1\n", None, "n_pairs"),  # 3 of 4 pairs of tokens that have two each
        ("expert,pairs\n0,1\n", None, "n_pairs"),
        ("step,expert,n_pairs\n1,0,1\n1,1,1\n0,1,1\n", 4, "step"),
    ],
)
def test_a_wrong_histogram_is_refused(tmp_path: Path, text: str, line: int | None, field: str) -> None:
    with pytest.raises(InputError) as caught:
        read_gate(write(tmp_path / "g.csv", text), 4, 2)
    assert caught.value.file == str(tmp_path / "g.csv")
    assert field in str(caught.value)
    if line is not None:
        assert caught.value.line == line


@pytest.mark.parametrize(
    "name", ["unifrom", "zipf", "zipf:", "zipf:x", "zipf:-1", "zipf:inf", "zipf:nan", "counts.txt"]
)
def test_an_unknown_gate_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="zipf"):
        new_gate(name, 8, 2)


def test_no_token_chooses_more_experts_than_there_are() -> None:
    with pytest.raises(InputError, match="1 to 4"):
        new_gate("uniform", 4, 5)
    assert new_gate("zipf:1", 4, 4).shares[0] == pytest.approx([1, 1, 1, 1])
