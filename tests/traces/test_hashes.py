"""Prefix identity: chains, finer and coarser blocks, salts."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.hashes import chained, coarsened, refined, resized, salted, stretched

IDS = st.lists(st.integers(-1, 2), max_size=12)


def shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Blocks that two requests share from the first on."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@given(IDS, IDS)
def test_a_chain_is_equal_as_far_as_the_ids_are(a: list[int], b: list[int]) -> None:
    same = shared(tuple(a), tuple(b))
    one, other = chained(a), chained(b)
    assert shared(one, other) == same
    assert not set(one[same:]) & set(other)


def test_a_block_behind_another_one_is_another_block() -> None:
    assert chained([1, 2])[1] != chained([3, 2])[1]
    assert chained([1, 1])[0] != chained([1, 1])[1]
    assert chained([1], seed="a") != chained([1], seed="b")


@given(IDS, IDS, st.sampled_from([1, 2, 32]))
def test_small_blocks_are_shared_where_the_large_ones_are(a: list[int], b: list[int], parts: int) -> None:
    one, other = chained(a), chained(b)
    small, small_other = refined(one, parts), refined(other, parts)
    assert len(small) == len(set(small)) == parts * len(one)
    assert shared(small, small_other) == parts * shared(one, other)
    assert len(set(small) & set(small_other)) == parts * len(set(one) & set(other))
    assert coarsened(small, parts) == one


@given(IDS, IDS, st.fractions(Fraction(1, 20), 20, max_denominator=50))
def test_a_stretched_text_shares_as_much_more_down_to_whole_blocks(a: list[int], b: list[int], by: Fraction) -> None:
    one, other = chained(a), chained(b)
    longer, longer_other = stretched(one, by), stretched(other, by)
    assert len(longer) == len(set(longer)) == int(len(one) * by)
    assert shared(longer, longer_other) == int(shared(one, other) * by)
    assert len(set(longer) & set(longer_other)) == shared(longer, longer_other)


@given(IDS, st.integers(1, 9))
def test_to_stretch_by_whole_numbers_is_to_refine_and_to_coarsen(ids: list[int], parts: int) -> None:
    hashes = chained(ids)
    assert stretched(hashes, Fraction(parts)) == refined(hashes, parts)
    assert stretched(hashes, Fraction(1, parts)) == coarsened(hashes, parts)
    assert stretched([-1, 2**70], Fraction(3, 2)) == stretched([2**64 - 1, 0], Fraction(3, 2))


def test_sizes_that_divide_neither_way_are_told() -> None:
    hashes = chained(range(6))
    assert resized(hashes, 16, 16) == hashes
    assert resized(hashes, 16, 32) == hashes[1::2]
    assert len(resized(hashes, 512, 16) or ()) == 6 * 32
    assert resized(hashes, 16, 24) is None


def test_salted_hashes_keep_what_is_equal_and_nothing_else() -> None:
    hashes = chained([1, 2, 3])
    assert salted(hashes, b"one") == salted(hashes, b"one") != salted(hashes, b"other")
    assert not set(salted(hashes, b"one")) & set(hashes)
    with pytest.raises(ValueError, match="key"):
        salted(hashes, b"x" * 65)
