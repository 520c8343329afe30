"""Blocks: found by hash, reused in order, never lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.kv.kv_cache import Found, Held, KVCache, n_blocks


def cache_of(num_gpu_blocks: int = 11) -> KVCache:
    return KVCache(num_gpu_blocks, prefix_caching=True)


def fill(cache: KVCache, hashes: list[int]) -> Held:
    """A request takes and completes one block per hash."""
    cache.allocate(len(hashes))
    held: Held = []
    for hash_ in hashes:
        cache.cache(held, hash_)
    return held


def hashes_of(found: Found) -> list:
    return [run.hash for run, _, _ in found]


def test_one_block_is_the_null_block() -> None:
    assert cache_of(11).num_blocks == 10


@pytest.mark.parametrize(("full", "partial"), [(0, 0), (10, 0), (3, 7), (4, 2)])
def test_blocks_taken_in_turn_are_those_taken_one_by_one(full: int, partial: int) -> None:
    """All of those that come next hold content, or none, or some."""
    one_by_one, in_turn = cache_of(), cache_of()
    for cache in (one_by_one, in_turn):
        cache.allocate(full + partial)
        cache.free([], full, partial)
    taken = np.array([0, 1, 1, 4, 9])
    cached = []
    for more in np.diff(taken, prepend=0).tolist():
        one_by_one.allocate(more)
        cached.append(one_by_one.num_cached_free)
    assert in_turn.allocate_in_turn(taken).tolist() == cached
    assert (in_turn.num_free, in_turn.num_cached_free) == (one_by_one.num_free, one_by_one.num_cached_free)


def test_a_freed_prefix_is_found_until_its_blocks_are_reused() -> None:
    cache = cache_of()
    cache.free(fill(cache, [1, 2, 3]), full=0, partial=0)
    assert hashes_of(cache.find([1, 2, 9], 3)) == [1, 2]
    cache.allocate(10)
    assert cache.find([1, 2], 2) == []
    assert cache.num_evicted == 3


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    cache = cache_of()
    cache.free(fill(cache, [1, 2, 3]), full=0, partial=0)
    cache.allocate(8)
    assert hashes_of(cache.find([1, 2, 3], 3)) == [1, 2]


def test_an_unfinished_block_is_reused_first() -> None:
    cache = cache_of(4)
    blocks = fill(cache, [1, 2])
    cache.allocate(1)
    cache.free(blocks, full=0, partial=1)
    cache.allocate(1)
    assert hashes_of(cache.find([1, 2], 2)) == [1, 2]


def test_a_held_block_is_not_free_and_comes_back_with_its_last_holder() -> None:
    cache = cache_of()
    blocks = fill(cache, [1, 2])
    cache.free(blocks, full=0, partial=0)
    found = cache.find([1, 2], 2)
    assert cache.num_free_without(found) == 8
    first = cache.hold(found)
    second = cache.hold(found)
    cache.free(first, full=0, partial=0)
    assert cache.in_use == 2
    cache.free(second, full=0, partial=0)
    assert cache.in_use == 0


def test_a_duplicate_is_found_only_after_the_first_is_gone() -> None:
    cache = cache_of(3)
    first, second = fill(cache, [7]), fill(cache, [7])
    assert cache.find([7], 1) == [(first[0][0], 0, 1)]
    cache.free(first, full=0, partial=0)
    cache.allocate(1)
    assert cache.find([7], 1) == [(second[0][0], 0, 1)]


def test_without_prefix_caching_nothing_is_found() -> None:
    cache = KVCache(5, prefix_caching=False)
    cache.allocate(2)
    cache.free([], full=0, partial=2)
    assert cache.find([1], 1) == []
    assert cache.num_free == 4


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_blocks_are_conserved(requests: list[tuple[int, int, int]]) -> None:
    """Whatever requests take and give back, held and free blocks add up, and all are free in the end."""
    cache = cache_of(31)
    held: list[tuple[list, int, int]] = []
    for group, full, partial in requests:
        found = cache.find([group * 10 + i for i in range(3)], 3)
        needed = 3 - n_blocks(found) + full + partial
        while needed > cache.num_free_without(found) and held:
            cache.free(*held.pop(0))
            found = cache.find([group * 10 + i for i in range(3)], 3)
            needed = 3 - n_blocks(found) + full + partial
        blocks = cache.hold(found)
        cache.allocate(needed)
        for i in range(n_blocks(found), 3):
            cache.cache(blocks, group * 10 + i)
        held.append((blocks, full, partial))
        unique = len({id(run) for request, _, _ in held for run, _ in request})
        assert cache.in_use == unique + sum(f + p for _, f, p in held)
    for request in held:
        cache.free(*request)
    assert cache.num_free == cache.num_blocks
