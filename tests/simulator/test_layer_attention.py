"""A layer's attention of plans: what unequal decodes cost, however their steps are cut into plans."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import pytest

from profiles.attention import AttentionTable, Chunk
from profiles.flash_attention import FlashAttention2, UnequalDecodes
from profiles.profile import AttentionRows
from simulator.scheduling.plan import StepPlan, plan_of
from simulator.steps.layer_attention import MOST_KEPT, STRETCH, LayerAttention
from traces.steps import Floats, Ints

KERNEL = FlashAttention2(
    heads=32, group=4, key_bytes=4096, bytes_per_s=1e12, multiprocessors=80, packs=True, slots=80, key_s=25e-9
)
UNEQUAL = np.random.default_rng(0).integers(50, 4000, 40)
EQUAL = np.full(40, int(UNEQUAL.mean()))


def attention(*, known: bool = True) -> LayerAttention:
    """16 us and 4.8 ns a key of a decode; a prompt of 64 takes 20 us, beside decodes as both together."""
    n, history = (grid.ravel() for grid in np.meshgrid([1.0, 512.0], [0.0, 8191.0], indexing="ij"))
    none = np.zeros(4)
    rows = AttentionRows(
        np.concatenate([none, [64.0, 64.0]]),
        np.concatenate([none, [0.0, 8192.0]]),
        np.concatenate([n, [0.0, 0.0]]),
        np.concatenate([history, [0.0, 0.0]]),
        np.concatenate([16e-6 + 4.8e-9 * n * (history + 1), [20e-6, 40e-6]]),
    )
    table = AttentionTable(rows)
    return LayerAttention(table, UnequalDecodes(KERNEL, table) if known else None)


def decodes(histories: Ints, repeat: int = 1) -> StepPlan:
    return plan_of([], np.ones_like(histories), histories, first_step=0, repeat=repeat)


def test_who_looks_at_each_history_says_so() -> None:
    assert attention().reads_batches
    assert not attention(known=False).reads_batches


def test_unequal_decodes_take_longer_and_equal_ones_what_was_measured() -> None:
    known, unknown = attention(), attention(known=False)
    assert known.time_s(decodes(EQUAL), 1, 40) == pytest.approx(unknown.time_s(decodes(EQUAL), 1, 40), rel=0.04)
    assert known.time_s(decodes(UNEQUAL), 1, 40) > 1.05 * unknown.time_s(decodes(UNEQUAL), 1, 40)


def test_histories_that_are_split_cost_what_equal_ones_cost() -> None:
    """The kernel splits up to 15 of these, or as many as a CUDA graph is padded to."""
    known, unknown = attention(), attention(known=False)
    few = decodes(UNEQUAL[:15])
    assert known.time_s(few, 1, 15) == unknown.time_s(few, 1, 15)
    assert known.time_s(few, 1, 16) > unknown.time_s(few, 1, 16)


def test_each_step_takes_as_long_in_whatever_plan_it_is() -> None:
    """To the bit, over two changes of stretch."""
    known, repeat = attention(), 2 * STRETCH + 10
    whole = np.asarray(known.time_s(decodes(UNEQUAL, repeat), repeat, 40))
    assert len(whole) == repeat
    at = 0
    for size in (1, 7, 1, STRETCH, 50, repeat - 59 - STRETCH):
        part = known.time_s(decodes(UNEQUAL + at, size), size, 40)
        assert np.array_equal(np.atleast_1d(part), whole[at : at + size])
        at += size
    assert at == repeat


def test_beside_a_prompt_it_is_the_decodes_histories_alone_that_count() -> None:
    known, unknown = attention(), attention(known=False)
    for histories, least in ((EQUAL, 1.0), (UNEQUAL, 1.02)):
        tokens = np.append(np.ones_like(histories), 64)
        plan = plan_of([], tokens, np.append(histories, 0), first_step=0, repeat=1)
        assert plan.chunks == [Chunk(64, 0)]
        uniform = msgspec.structs.replace(plan, decode_kv_max=plan.decode_kv_sum // plan.n_decode)
        assert known.time_s(plan, 1, 40) >= least * unknown.time_s(uniform, 1, 40)
    assert known.time_s(decodes(np.zeros(0, dtype=np.int64)), 1, 0) == 0.0


def test_what_unequal_decodes_cost_is_kept_of_a_batch_that_is_planned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of so many batches at most; a time that was kept is what another model finds."""
    known, counts = attention(), Counter[str]()
    real = UnequalDecodes.alone_s

    def counting(self: UnequalDecodes, histories: Floats) -> float:
        counts["found"] += 1
        return real(self, histories)

    monkeypatch.setattr(UnequalDecodes, "alone_s", counting)
    once = known.time_s(decodes(UNEQUAL), 1, 40)
    again = known.time_s(decodes(UNEQUAL + 1, 5), 5, 40)
    assert counts["found"] == 1
    assert np.array_equal(again, attention().time_s(decodes(UNEQUAL + 1, 5), 5, 40))
    for i in range(MOST_KEPT):
        known.time_s(decodes(np.append(UNEQUAL, i)), 1, 41)
    assert known.time_s(decodes(UNEQUAL), 1, 40) == once
    assert counts["found"] == 1 + 1 + MOST_KEPT + 1
