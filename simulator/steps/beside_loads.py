"""Steps of an engine whose weights come over the links to its host, beside KV that tiers send over the same links.

While KV comes a step goes on as if it came all the time, from one moment to the next at which that changes, as far as
it is known when the step is planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np

from simulator.kv.host_link import HostWay
from simulator.scheduling.plan import StepPlan
from simulator.steps.step_time import OperatorTimes, StepCost, StepTimeModel, reads_batches
from simulator.steps.weight_offload import WeightOffload


class BesideLoads:
    """The step times of an engine whose weights share links with KV.

    Attributes:
        reads_batches: as the model's.
        ways: the links of each of its ranks.
    """

    def __init__(self, model: StepTimeModel, offload: WeightOffload | None, ways: Sequence[HostWay]) -> None:
        """Nothing is under way.

        Args:
            model: of its steps, weights included, with nothing else on the links.
            offload: which weights come; None: none, and only loads are on the links.
            ways: the links of each rank.
        """
        self.reads_batches = reads_batches(model)
        self.ways = tuple(ways)
        self._model = model
        self._offload = offload
        self._extra_s = 0.0
        self._n_slowed = 0
        self._slowed_s = 0.0

    def price(self, plan: StepPlan) -> StepCost:
        """Seconds of each repeat, with the links as they are now."""
        cost = self._model.price(plan)
        self._extra_s = self._longer_s(plan, cost)
        if not self._extra_s:
            return cost
        times = cost.operators
        assert times is not None
        assert self._offload is not None
        waits = 0.0 if self._offload.way == "in_place" else self._extra_s
        operators = msgspec.structs.replace(times, waiting_s=times.waiting_s + waits)
        return replace(cost, device_s=cost.device_s + self._extra_s, operators=operators)

    def count(self, plan: StepPlan, times: int) -> None:
        """Count `times` steps of the plan that was priced last."""
        self._model.count(plan, times)
        if self._extra_s:
            self._n_slowed += times
            self._slowed_s += times * self._extra_s

    def notes(self) -> tuple[str, ...]:
        """What the model has to say."""
        return self._model.notes()

    @property
    def has_weights(self) -> bool:
        """Whether weights are on the links at all."""
        return self._offload is not None

    def note(self) -> str:
        """What KV took of the links."""
        slowed = f"{self._n_slowed} steps took {self._slowed_s:.6g} s longer"
        return f"{slowed} for KV on the links of their weights, as planned"

    def look(self, now_s: float) -> None:
        """It is now so late."""
        for way in self.ways:
            way.now_s = now_s

    def ran(self, plan: StepPlan, begin_s: float, end_s: float) -> None:
        """A step of this plan begins and ends then."""
        if self._offload is not None:
            for way in self.ways:
                way.weights(self._offload.step_bytes(plan.n_tokens), begin_s, end_s)

    def forget(self) -> None:
        """The engine fails."""
        for way in self.ways:
            way.forget()

    @property
    def is_shared_now(self) -> bool:
        """Whether KV is on the links, or on its way to them, so that each step finds less of it."""
        return self._offload is not None and any(way.loads for way in self.ways)

    def _longer_s(self, plan: StepPlan, cost: StepCost) -> float:
        """How much longer a step takes for the KV that is known of now, on the rank that has most of it."""
        if self._offload is None or not self.is_shared_now or cost.operators is None:
            return 0.0
        step_s, longest_s = float(cost.device_s[0]), 0.0
        for way in self.ways:
            slow_s = [
                step_s + _stall_s(self._offload, cost.operators, plan.n_tokens, users)
                for users in range(len(way.loads) + 1)
            ]
            longest_s = max(longest_s, _beside(way, slow_s) - step_s)
        return longest_s


def _stall_s(offload: WeightOffload, times: OperatorTimes, n_tokens: int, others: int) -> float:
    """How much longer a step takes where as many others are on the links of its weights all the time."""
    if not others:
        return 0.0
    layers, products_s = len(offload.layer_bytes), np.atleast_1d(times.dense_s + times.moe_s)[:1]
    in_layers_s = products_s + np.atleast_1d(times.attention_s + times.communication_s)[:1]
    shared = replace(offload, bytes_per_s=offload.bytes_per_s / (1 + others))
    stalls = [one.stall_s(in_layers_s / layers, products_s / layers, n_tokens)[0] for one in (shared, offload)]
    return float(stalls[0] - stalls[1])


def _beside(way: HostWay, slow_s: Sequence[float]) -> float:
    """How long a step takes that would take `slow_s[n]` with n loads on the links all the time."""
    at_s, to_do = way.now_s, 1.0
    edges_s = sorted({edge_s for load in way.loads for edge_s in load if edge_s > at_s})
    for edge_s in [*edges_s, np.inf]:
        whole_s = slow_s[sum(begin_s <= at_s < end_s for begin_s, end_s in way.loads)]
        if edge_s - at_s >= to_do * whole_s:
            return at_s + to_do * whole_s - way.now_s
        to_do -= (edge_s - at_s) / whole_s
        at_s = edge_s
    return at_s - way.now_s
