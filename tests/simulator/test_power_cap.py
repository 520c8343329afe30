"""A power cap makes steps longer by what was measured, prompts and decodes each by their own."""

from __future__ import annotations

import numpy as np
import pytest

from profiles.power_cap import Slowdown
from simulator.scheduling.plan import StepPlan, plan_of
from simulator.steps.power_cap import CappedModel
from simulator.steps.step_time import OperatorTimes, StepCost


def plan(new_tokens: list[int]) -> StepPlan:
    """A step of requests with so many new tokens each."""
    new = np.array(new_tokens, dtype=np.int64)
    return plan_of([], new, np.zeros(len(new), dtype=np.int64), first_step=0, repeat=2)


SLOWDOWN = Slowdown(prefill=1.3, decode=1.1)


class Fixed:
    """Ten milliseconds on the device and one on the host."""

    def __init__(self) -> None:
        self.counted = 0

    def price(self, plan: StepPlan) -> StepCost:
        times = OperatorTimes(0.006, 0.001, np.full(2, 0.003), 0.001)
        return StepCost(np.full(2, 0.01), np.full(2, 0.001), times)

    def count(self, plan: StepPlan, times: int) -> None:
        self.counted += times

    def notes(self) -> tuple[str, ...]:
        return ("fixed",)


@pytest.mark.parametrize(("new_tokens", "factor"), [([1, 1], 1.1), ([64, 1], 1.3)])
def test_the_devices_part_is_slowed_and_the_hosts_is_not(new_tokens: list[int], factor: float) -> None:
    model = CappedModel(Fixed(), SLOWDOWN, "capped")
    cost = model.price(plan(new_tokens))
    assert cost.device_s == pytest.approx(0.01 * factor)
    assert cost.host_s == pytest.approx(0.001)
    assert cost.operators is not None
    operators = cost.operators
    whole_s = operators.dense_s + operators.attention_s + operators.per_request_s
    assert whole_s == pytest.approx(cost.device_s)


def test_a_cap_is_told() -> None:
    fixed = Fixed()
    model = CappedModel(fixed, SLOWDOWN, "capped")
    model.count(plan([1]), 3)
    assert fixed.counted == 3
    assert model.notes() == ("fixed", "capped")
