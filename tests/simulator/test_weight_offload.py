"""Weights that come from the host in every step: closed forms of each way, and what bounds them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.scheduling.plan import StepPlan
from simulator.steps.gates import uniform
from simulator.steps.step_time import OperatorTimes, StepCost
from simulator.steps.weight_offload import (
    OffloadedExperts,
    OffloadedModel,
    Way,
    WeightOffload,
    first_layers,
    last_of_groups,
    whole_layers,
)
from tests.simulator.batches import decodes


def offload(layer_bytes: tuple[float, ...], way: Way, *, buffers: int = 1, latency_s: float = 0.0) -> WeightOffload:
    """Over a link of 1 byte a second."""
    return WeightOffload(layer_bytes, way, 1.0, latency_s, buffers)


def stall_s(one: WeightOffload, layer_s: float, products_s: float | None = None) -> float:
    products = layer_s if products_s is None else products_s
    return float(one.stall_s(np.array([layer_s]), np.array([products]), 1)[0])


def test_a_copy_is_added_to_its_layer() -> None:
    assert stall_s(offload((3.0, 0.0, 3.0), "copy", latency_s=0.5), 2.0) == pytest.approx(7.0)


def test_a_kernel_that_reads_in_place_takes_as_long_as_its_weights() -> None:
    assert stall_s(offload((3.0, 0.0, 1.0), "in_place"), 4.0, 2.0) == pytest.approx(1.0)


def test_weights_that_come_faster_than_layers_compute_cost_the_last_copy_alone() -> None:
    """The first layer's copy for the next step begins when the last offloaded layer has computed."""
    assert stall_s(offload((1.0, 1.0, 1.0, 1.0), "prefetch"), 1.0) == pytest.approx(4.0)
    alternate = offload((0.0, 1.0, 0.0, 1.0, 0.0), "prefetch")
    assert stall_s(alternate, 1.0) == pytest.approx(0.0)


def test_more_buffers_hide_more() -> None:
    layer_bytes = (2.0,) * 8
    stalls = [stall_s(offload(layer_bytes, "prefetch", buffers=n), 2.0) for n in (1, 2, 4)]
    assert stalls[0] == pytest.approx(16.0)
    assert stalls == sorted(stalls, reverse=True)
    assert stalls[1] == pytest.approx(2.0)


layer_lists = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=10).filter(any)


@given(layer_lists, st.sampled_from([0.25, 1.0, 2.0]), st.integers(1, 4))
def test_fetching_ahead_is_never_faster_than_the_link_nor_slower_than_copying(
    layer_bytes: list[float], layer_s: float, buffers: int
) -> None:
    buffers = min(buffers, sum(1 for n in layer_bytes if n))
    one = offload(tuple(layer_bytes), "prefetch", buffers=buffers)
    total_s = len(layer_bytes) * layer_s + stall_s(one, layer_s)
    in_turn_s = len(layer_bytes) * layer_s + stall_s(offload(tuple(layer_bytes), "copy"), layer_s)
    assert max(len(layer_bytes) * layer_s, sum(layer_bytes)) - 1e-9 <= total_s <= in_turn_s + 1e-9


def test_what_the_device_holds_instead_is_its_buffers() -> None:
    prefetch = offload((3.0, 0.0, 3.0), "prefetch", buffers=2)
    assert (prefetch.offloaded_bytes, prefetch.buffer_bytes, prefetch.step_bytes(1)) == (6.0, 6.0, 6.0)
    assert offload((3.0, 0.0, 3.0), "in_place").buffer_bytes == 0.0
    assert offload((3.0, 0.0, 3.0), "copy").buffer_bytes == 3.0


def test_only_experts_that_a_token_has_chosen_come() -> None:
    experts = OffloadedExperts(uniform(8, 2), (4, 5, 6, 7), 10.0)
    one = WeightOffload((0.0, 0.0), "copy", 1.0, experts=experts)
    assert experts.layer_bytes(1) == pytest.approx(10.0)  # two of eight, half of them here
    assert experts.layer_bytes(1000) == pytest.approx(40.0)
    assert one.step_bytes(1) == pytest.approx(20.0)
    assert one.offloaded_bytes == pytest.approx(2 * 4 * 10.0)
    assert one.stall_s(np.ones(1), np.ones(1), 1)[0] == pytest.approx(20.0)


def test_the_ends_come_by_themselves() -> None:
    one = WeightOffload((0.0, 1.0, 0.0), "prefetch", 1.0, 0.5, head_bytes=3.0, table_bytes=90.0, row_bytes=2.0)
    assert one.stall_s(np.array([9.0]), np.array([9.0]), 4)[0] == pytest.approx((0.5 + 3.0) + (0.5 + 4 * 2.0))
    assert (one.offloaded_bytes, one.buffer_bytes, one.step_bytes(4)) == (94.0, 3.0, 12.0)
    alone = WeightOffload((0.0, 0.0), "prefetch", 1.0, head_bytes=3.0)
    assert alone.stall_s(np.array([9.0]), np.array([9.0]), 4)[0] == pytest.approx(3.0)


def test_which_layers_move() -> None:
    assert first_layers(4.0, 4, 10.0) == (4.0, 4.0, 2.0, 0.0)
    assert whole_layers(4.0, 4, [1, 3]) == (0.0, 4.0, 0.0, 4.0)
    assert last_of_groups(10, 4, 2) == (2, 3, 6, 7)


class _Steps:
    """Steps of 4 s in four layers, 2 s of them in matrix products; attention grows."""

    def price(self, plan: StepPlan) -> StepCost:
        attention_s = 2.0 + np.arange(plan.repeat) / 1024
        return StepCost(2.0 + attention_s, np.zeros(plan.repeat), OperatorTimes(2.0, 0.0, attention_s, 0.0))

    def count(self, plan: StepPlan, times: int) -> None:
        """Nothing is counted."""

    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()


@pytest.mark.parametrize("way", ["copy", "in_place", "prefetch"])
def test_a_step_is_longer_by_its_stall_in_each_repeat(way: Way) -> None:
    model = OffloadedModel(_Steps(), offload((3.0, 0.0, 3.0, 0.0), way))
    cost = model.price(decodes(10, repeat=3))
    assert cost.operators is not None
    layers_s = (4.0 + np.arange(3) / 1024) / 4
    stalls = {"copy": np.full(3, 6.0), "in_place": np.full(3, 5.0), "prefetch": 6.0 - layers_s * 2}
    assert cost.device_s == pytest.approx(4 * layers_s + stalls[way])
    waits = np.broadcast_to(cost.operators.waiting_s, 3)
    assert waits == pytest.approx(np.zeros(3) if way == "in_place" else stalls[way])
    assert [model.price(decodes(10)).device_s[0]] == [cost.device_s[0]]


def test_every_byte_is_counted() -> None:
    model = OffloadedModel(_Steps(), offload((3e9, 0.0, 3e9, 0.0), "copy"))
    model.count(decodes(10), 5)
    assert "5.59 GiB of weights of each device in its host's memory (copy): 30.000 GB in 5 steps over its link" in (
        model.notes()
    )
