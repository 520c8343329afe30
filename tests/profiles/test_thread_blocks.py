"""What unequal thread blocks cost, beside a simulation of each of them."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.thread_blocks import last_ends, left_over_of_equal_s, left_over_s
from traces.steps import Floats

KEY_S = 20e-9
"""A block alone reads 50 keys in a microsecond."""
KEYS_PER_S = 2.5e9
"""So that 50 blocks keep the memory busy."""


def simulated_s(keys: Floats, heads: int, slots: int, key_s: float, keys_per_s: float) -> float:
    """Seconds of all blocks: in order, at most `slots` at once, each at its share of the memory or by itself."""
    queue = np.tile(keys, heads).tolist()[::-1]
    at_work: list[float] = []
    read = seconds = 0.0
    while queue or at_work:
        while queue and len(at_work) < slots:
            heapq.heappush(at_work, read + queue.pop())
        end = heapq.heappop(at_work)
        seconds += (end - read) * max(key_s, (len(at_work) + 1) / keys_per_s)
        read = end
    return seconds


def lengths(n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).lognormal(6.9, 0.6, n).round() + 1


@pytest.mark.parametrize("slots", [84, 188])
@pytest.mark.parametrize("heads", [8, 32])
@pytest.mark.parametrize("n", [12, 45, 100, 256])
def test_all_blocks_simulated_take_as_long(n: int, heads: int, slots: int) -> None:
    """To the bit for up to two rounds; of more, within 2 % of the batch, or 7 % for a dozen requests of 32 heads.

    One of a dozen may be half as long as all others together.
    """
    errors = []
    for seed in range(12):
        keys = lengths(n, seed)
        found_s = keys.sum() * heads / KEYS_PER_S + left_over_s(keys, heads, slots, KEY_S, KEYS_PER_S)
        errors.append(found_s / simulated_s(keys, heads, slots, KEY_S, KEYS_PER_S) - 1)
    assert np.abs(errors).max() < (1e-9 if n * heads <= 2 * slots else 0.02 if n > 12 else 0.07)
    assert abs(np.mean(errors)) < 0.01


@pytest.mark.parametrize(("n", "share"), [(1, 0.0), (20, 0.0), (47, 0.0), (64, 0.015), (300, 0.003)])
def test_equal_blocks_leave_next_to_nothing_over(n: int, share: float) -> None:
    keys = np.full(n, 1000.0)
    assert left_over_s(keys, 8, 188, KEY_S, KEYS_PER_S) <= share * keys.sum() * 8 / KEYS_PER_S + 1e-12


def test_a_block_four_times_as_long_as_the_others_is_waited_for() -> None:
    """After the others it works alone, with all others of its request: 8 blocks of 50 that the memory has room for."""
    keys = np.full(20, 1000.0)
    keys[0] = 4000.0
    assert left_over_s(keys, 8, 188, KEY_S, KEYS_PER_S) == pytest.approx(3000 * (KEY_S - 8 / KEYS_PER_S))


def test_blocks_that_are_too_few_for_the_memory_wait_for_the_longest() -> None:
    """Two requests of one head: what two blocks read in a second is all there is to read."""
    keys = np.array([3000.0, 1000.0])
    found_s = left_over_s(keys, 1, 188, KEY_S, 2 / KEY_S)
    assert keys.sum() / (2 / KEY_S) + found_s == pytest.approx(3000 * KEY_S)


@given(
    keys=st.lists(st.integers(1, 20_000), min_size=1, max_size=80),
    heads=st.integers(1, 16),
    slots=st.integers(1, 250),
    memory=st.floats(1.0, 300.0),
)
@settings(max_examples=150, deadline=None)
def test_the_latest_end_comes_first_and_none_before_the_longest_is_read(
    keys: list[int], heads: int, slots: int, memory: float
) -> None:
    blocks = np.array(keys, dtype=np.float64)
    assert left_over_s(blocks, heads, slots, KEY_S, memory / KEY_S) >= -1e-12
    ends = last_ends(blocks, heads, slots, slots)
    assert len(ends) == min(slots, len(keys) * heads)
    assert np.all(np.diff(ends) <= 0)
    assert ends[0] >= blocks.max()


def test_a_memory_that_takes_no_time_leaves_nothing_over() -> None:
    assert left_over_s(np.array([10.0, 1000.0]), 8, 188, KEY_S, float("inf")) == 0


@pytest.mark.parametrize("memory", [1.0, 30.0, 87.5, 300.0])
@pytest.mark.parametrize(("n", "heads", "slots"), [(12, 8, 95), (24, 8, 188), (40, 8, 188), (47, 8, 188), (40, 4, 80)])
def test_equal_blocks_of_two_rounds_have_a_closed_form(n: int, heads: int, slots: int, memory: float) -> None:
    """To the bit."""
    for key in (1.0, 1234.5, 1000 / 3):
        known = heads, slots, KEY_S, memory / KEY_S
        assert left_over_of_equal_s(key, n, *known) == left_over_s(np.full(n, key), *known)
