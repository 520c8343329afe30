"""Steps of a device whose power is capped: the same plan takes longer, by what was measured under the cap."""

from __future__ import annotations

from dataclasses import replace

from profiles.power_cap import Slowdown
from simulator.scheduling.plan import StepPlan
from simulator.steps.step_time import OperatorTimes, StepCost, StepTimeModel, reads_batches


class CappedModel:
    """A step-time model under a power cap.

    Only the device's part of a step is slowed. A step that computes prompts is slowed as prompts are: its kernels are
    the ones that reach the cap.

    Attributes:
        model: without the cap.
        slowdown: of its steps.
    """

    def __init__(self, model: StepTimeModel, slowdown: Slowdown, note: str) -> None:
        """`note` says what was capped and where the slowdown is from."""
        self.model = model
        self.slowdown = slowdown
        self._note = note

    @property
    def reads_batches(self) -> bool:
        """Whether the model does."""
        return reads_batches(self.model)

    def price(self, plan: StepPlan) -> StepCost:
        """Seconds of each repeat of the plan, [repeat]."""
        cost = self.model.price(plan)
        prefills = any(each.chunks for each in (plan, *plan.alongside))
        factor = self.slowdown.prefill if prefills else self.slowdown.decode
        operators = None if cost.operators is None else _slowed(cost.operators, factor)
        return replace(cost, device_s=cost.device_s * factor, operators=operators)

    def count(self, plan: StepPlan, times: int) -> None:
        """Take note that the plan was run so many times."""
        self.model.count(plan, times)

    def notes(self) -> tuple[str, ...]:
        """The model's notes and the cap's."""
        return (*self.model.notes(), self._note)


def _slowed(times: OperatorTimes, factor: float) -> OperatorTimes:
    return OperatorTimes(*(getattr(times, name) * factor for name in times.__struct_fields__))
