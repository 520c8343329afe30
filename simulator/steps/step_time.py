"""How long a step takes: the seam between a plan and the clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec

from simulator.scheduling.plan import StepPlan
from traces.steps import Floats


class OperatorTimes(msgspec.Struct, frozen=True, eq=False):
    """What of a step's device time its operators take, by class, in seconds; [repeat] where it grows with history.

    Attributes:
        dense_s: token-wise operators, over the tokens that are computed, padding included.
        padding_s: what of that goes to tokens that only pad a batch to the size of a CUDA graph.
        attention_s: [repeat] attention in all layers.
        per_request_s: operators with one row per request: logits and sampler.
        moe_s: experts.
        communication_s: collectives and transfers between devices.
        waiting_s: nothing: the device waits for attention near memory, or for weights on their way from the host.
    """

    dense_s: float
    padding_s: float
    attention_s: Floats
    per_request_s: float
    moe_s: float | Floats = 0.0
    communication_s: float | Floats = 0.0
    waiting_s: float | Floats = 0.0


@dataclass(frozen=True, slots=True)
class StepCost:
    """Time of each repeat of a plan.

    Attributes:
        device_s: [repeat] the device is busy.
        host_s: [repeat] the host plans and launches; it overlaps with the device when scheduling is asynchronous.
        operators: what of the device's time its operators take; None from a model that knows only whole steps.
        stages: share of `device_s` that each pipeline stage takes, in order; the next batch enters a stage when this
            one has left it.
    """

    device_s: Floats
    host_s: Floats
    operators: OperatorTimes | None = None
    stages: tuple[float, ...] = (1.0,)


class StepTimeModel(Protocol):
    """Anything that can price a plan."""

    def price(self, plan: StepPlan) -> StepCost:
        """Seconds of each repeat; must not depend on how repeats are split over plans."""
        ...

    def count(self, plan: StepPlan, times: int) -> None:
        """Take note that the plan was run so many times."""
        ...

    def notes(self) -> tuple[str, ...]:
        """What was read outside the measured range so far, and other things a reader should know."""
        ...


def reads_batches(model: StepTimeModel) -> bool:
    """Whether a model looks at the requests of a plan, one by one, and not only at what they amount to.

    One that does not says so by an attribute `reads_batches`, False: plans are made faster for it.
    """
    return bool(getattr(model, "reads_batches", True))


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a step takes beside its operators; all zero unless measured or fitted.

    Attributes:
        device_step_s: on the device, once per step: gaps between kernels, sampling, copies.
        host_step_s: on the host, once per step: scheduling, input preparation, output processing.
        host_request_s: on the host, once per request in the step.
        source: where the numbers are from.
    """

    device_step_s: float = 0.0
    host_step_s: float = 0.0
    host_request_s: float = 0.0
    source: str = "none: operators only"

    def note(self) -> str:
        """What is taken, and from where; below zero where the operators take longer than the steps they are of."""
        parts_ms = {"on the device": self.device_step_s, "on the host": self.host_step_s}
        taken = [f"{1e3 * part_s:.3g} ms {where}" for where, part_s in parts_ms.items() if part_s]
        taken += [f"{1e6 * self.host_request_s:.3g} us a request"] if self.host_request_s else []
        what = f"{', '.join(taken)} ({self.source})" if taken else self.source
        said = f"time of a step beside its operators: {what}"
        if self.device_step_s + self.host_step_s < 0:
            said += "; it is below zero: the operators take longer than the whole steps, as if of another machine"
        return said
