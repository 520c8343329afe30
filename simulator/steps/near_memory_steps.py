"""Steps of an engine whose decodes attend in a memory that computes, one batch at a time or two halves in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np

from simulator.scheduling.plan import StepPlan
from simulator.steps.near_memory import NearLayer, NearMemory, halves, part_of
from simulator.steps.operator_model import OperatorModel
from simulator.steps.step_time import OperatorTimes, StepCost
from traces.steps import Floats, Ints


class NearMemoryModel:
    """A step-time model of device and near memory together.

    In a layer the device attends for prompts while near memory attends for decodes, and the later of the two ends it.
    With interleaving, the device computes one half of the batch while the other half is near memory (NeuPIMs, Heo et
    al., ASPLOS 2024): each half reads every weight, so that it pays where attention takes longer than that.

    Attributes:
        model: of the device.
        memory: what attends for decodes.
    """

    reads_batches = True

    def __init__(self, model: OperatorModel, memory: NearMemory) -> None:
        self.model = model
        self.memory = memory
        self._taken = self._steps = self._interleaved = 0

    def price(self, plan: StepPlan) -> StepCost:
        """Seconds of each repeat of the plan, [repeat]."""
        if self.memory.interleaves and plan.n_requests > 1:
            return self._in_turn(plan)
        cost = self._on_device(plan)
        assert cost.operators is not None
        layers, repeats = self.memory.num_layers, np.arange(plan.repeat)
        # Each rank has a memory of its own, and those that step together wait for the slowest.
        near_s = np.max([self._near_s(one, repeats) for one in (plan, *plan.alongside)], axis=0)
        waiting_s = np.maximum(layers * near_s - cost.operators.attention_s, 0.0)
        return replace(
            cost,
            device_s=cost.device_s + waiting_s,
            host_s=np.full(plan.repeat, cost.host_s[0]),
            operators=msgspec.structs.replace(cost.operators, waiting_s=waiting_s),
            stages=self._stages(cost, float(waiting_s[0])),
        )

    def _near_s(self, plan: StepPlan, repeats: Ints) -> Floats:
        """One layer near memory, of one rank, [repeat]."""
        (near,) = self.memory.layers([plan], repeats)
        return near.alone_s

    def _stages(self, cost: StepCost, waiting_s: float) -> tuple[float, ...]:
        """Shares of pipeline stages, each of which waits in its own layers."""
        if len(cost.stages) == 1:
            return cost.stages
        device_s, layers = float(cost.device_s[0]), self.memory.num_layers
        return tuple(
            (share * device_s + waiting_s * own / layers) / (device_s + waiting_s)
            for share, own in zip(cost.stages, self.model.stage_layers, strict=True)
        )

    def _on_device(self, plan: StepPlan) -> StepCost:
        """The step without the attention that near memory computes."""
        return self.model.price(plan, self._attending(plan))

    def _attending(self, plan: StepPlan) -> StepPlan:
        """What of the step attends on the device, on each rank."""
        own, *others = (part_of(one, ~self.memory.takes(one)) for one in (plan, *plan.alongside))
        return msgspec.structs.replace(own, alongside=tuple(others))

    def _in_turn(self, plan: StepPlan) -> StepCost:
        """Two halves, layer by layer in turn; what runs once for the batch follows the last layer."""
        whole = self._on_device(plan)
        parts = [part_of(plan, half) for half in halves(plan)]
        costs = [self._on_device(part) for part in parts]
        times = [cost.operators for cost in costs if cost.operators is not None]
        layers, repeats = self.memory.num_layers, np.arange(plan.repeat)
        device_s = [
            np.broadcast_to((one.dense_s + one.attention_s + one.communication_s) / layers, repeats.shape)
            for one in times
        ]
        turns_s = in_turn_s(device_s, self.memory.layers(parts, repeats), layers)
        assert whole.operators is not None
        once_s = whole.operators.per_request_s + self.model.overhead.device_step_s
        operators = OperatorTimes(
            sum(one.dense_s for one in times),
            sum(one.padding_s for one in times),
            times[0].attention_s + times[1].attention_s,
            whole.operators.per_request_s,
            communication_s=sum(one.communication_s for one in times),
            waiting_s=turns_s - layers * (device_s[0] + device_s[1]),
        )
        return StepCost(turns_s + once_s, np.full(plan.repeat, whole.host_s[0]), operators)

    def count(self, plan: StepPlan, times: int) -> None:
        """Take note that the plan was run so many times."""
        self.model.count(plan, times, self._attending(plan))
        self._steps += times
        self._taken += times * any(self.memory.takes(one).any() for one in (plan, *plan.alongside))
        self._interleaved += times if self.memory.interleaves and plan.n_requests > 1 else 0

    def notes(self) -> tuple[str, ...]:
        """The model's own, and what near memory did."""
        memory = self.memory
        own = (
            f"attention near memory in {self._taken} of {self._steps} steps: {memory.n_channels} channels, "
            f"{memory.group_channels} for a request, placed {memory.placing}"
        )
        turns = (f"{self._interleaved} of {self._steps} steps computed as two halves in turn",)
        return (*self.model.notes(), own, *(turns if memory.interleaves else ()))


def in_turn_s(device_s: Sequence[Floats], near: Sequence[NearLayer], layers: int) -> Floats:
    """Seconds until both halves have passed so many layers, [repeat].

    In each layer a half computes on the device, goes near memory and comes back. The device and each group of channels
    take one half at a time, the first half first; a half is back when its slowest group has done.

    Args:
        device_s: of each half, one layer on the device, [repeat].
        near: of each half, one layer near memory.
        layers: of the model.
    """
    device_free_s = np.zeros_like(device_s[0])
    groups_free_s = np.zeros_like(near[0].groups_s)
    ready_s = [np.zeros_like(device_s[0]) for _ in device_s]
    for _ in range(layers):
        for half, (own_s, attended) in enumerate(zip(device_s, near, strict=True)):
            device_free_s = np.maximum(device_free_s, ready_s[half]) + own_s
            taken = attended.groups_s > 0
            groups_end_s = np.where(taken, np.maximum(groups_free_s, device_free_s) + attended.groups_s, 0.0)
            groups_free_s = np.where(taken, groups_end_s, groups_free_s)
            ready_s[half] = np.maximum(groups_end_s.max(axis=0), device_free_s) + attended.way_s
    ended_s: Floats = np.maximum(*ready_s)
    return ended_s
