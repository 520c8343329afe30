"""Weights that live in the host's memory and come over a link in every step: which, and how long a step waits.

Three ways, by what overlaps with what:

    copy       a layer's weights come before it computes, and nothing happens meanwhile
    in_place   kernels read them over the link as they go: a matrix product takes as long as its weights take to come
               (vLLM's `cpu_offload_gb`, 0.32 `model_executor/offloader/uva.py`)
    prefetch   they come into a buffer while the layers before compute (`offload_group_size`, `offloader/prefetch.py`)

Which experts a step needs is known when its gate has chosen, so that experts are never prefetched; what comes is the
expected number of them that any token of the step has chosen. The output head and rows of the embedding come by
themselves, and nothing overlaps with them.

Each device has a link of its own and brings its own share; what the host's memory can feed at once is not a limit here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np

from simulator.scheduling.plan import StepPlan
from simulator.steps.experts import Placement, expected_load
from simulator.steps.gates import Gate
from simulator.steps.step_time import StepCost, StepTimeModel, reads_batches
from traces.steps import Floats

Way = Literal["copy", "in_place", "prefetch"]
"""What overlaps with what: see above."""


@dataclass(frozen=True, slots=True)
class OffloadedExperts:
    """Experts of every layer that live in the host's memory.

    Attributes:
        gate: how tokens choose.
        experts: which of them.
        expert_bytes: of one on one device.
    """

    gate: Gate
    experts: tuple[int, ...]
    expert_bytes: float

    def layer_bytes(self, n_tokens: int) -> float:
        """Expected bytes of those that any of so many tokens has chosen, one layer's."""
        rest = tuple(sorted(set(range(self.gate.n_experts)) - set(self.experts)))
        placement = Placement((self.experts, rest) if rest else (self.experts,))
        reached = expected_load(self.gate, placement, n_tokens).experts[:, 0]
        return float(reached.mean()) * self.expert_bytes


@dataclass(frozen=True, slots=True)
class WeightOffload:
    """Weights of one device that live in its host's memory.

    Attributes:
        layer_bytes: of each layer of the model; 0 for those on the device.
        way: what overlaps with what.
        bytes_per_s: of the device's link to the host.
        latency_s: until the first byte of a copy.
        buffers: layers that are fetched ahead, with `prefetch`.
        experts: of every layer; None: none.
        head_bytes: of the output head, which comes after the layers; 0: it is on the device.
        table_bytes: of the embedding; likewise.
        row_bytes: of it that come for each token, with the step; likewise.
    """

    layer_bytes: tuple[float, ...]
    way: Way
    bytes_per_s: float
    latency_s: float = 0.0
    buffers: int = 1
    experts: OffloadedExperts | None = None
    head_bytes: float = 0.0
    table_bytes: float = 0.0
    row_bytes: float = 0.0

    @property
    def offloaded_bytes(self) -> float:
        """What the device does not hold."""
        return sum(self.layer_bytes) + self._expert_bytes + self.head_bytes + self.table_bytes

    @property
    def buffer_bytes(self) -> float:
        """What it holds instead, to fetch into; kernels that read in place need none."""
        match self.way:
            case "in_place":
                return 0.0
            case "copy":
                one = 0.0 if self.experts is None else len(self.experts.experts) * self.experts.expert_bytes
                return max(*self.layer_bytes, self.head_bytes, one)
        return max(self.buffers * max(self.layer_bytes), self.head_bytes)

    @property
    def _expert_bytes(self) -> float:
        each = self.experts
        return 0.0 if each is None else len(self.layer_bytes) * len(each.experts) * each.expert_bytes

    def step_bytes(self, n_tokens: int) -> float:
        """What comes over the link in a step of so many tokens."""
        of_experts = 0.0 if self.experts is None else self.experts.layer_bytes(n_tokens)
        of_ends = self.head_bytes + self.row_bytes * n_tokens
        return sum(self.layer_bytes) + len(self.layer_bytes) * of_experts + of_ends

    def stall_s(self, layer_s: Floats, products_s: Floats, n_tokens: int) -> Floats:
        """What a step takes longer, [repeat].

        Args:
            layer_s: one layer with all its weights on the device, [repeat].
            products_s: the part of it that reads weights, [repeat].
            n_tokens: of the step.
        """
        ends_s = sum(
            self.latency_s + n_bytes / self.bytes_per_s
            for n_bytes in (self.head_bytes, self.row_bytes * n_tokens)
            if n_bytes
        )
        if self.way == "prefetch":
            return self._prefetch_s(layer_s) - len(self.layer_bytes) * layer_s + ends_s
        of_experts = 0.0 if self.experts is None else self.experts.layer_bytes(n_tokens)
        stall_s = np.zeros_like(layer_s) + ends_s
        for n_bytes in self.layer_bytes:
            if n_bytes + of_experts:
                load_s = self.latency_s + (n_bytes + of_experts) / self.bytes_per_s
                stall_s = stall_s + (load_s if self.way == "copy" else np.maximum(load_s - products_s, 0.0))
        return stall_s

    def _prefetch_s(self, layer_s: Floats) -> Floats:
        """All layers, those fetched ahead among them, [repeat].

        The first `buffers` of the offloaded layers are there when a step begins. When one has computed, its buffer is
        free for the one that comes as many places after it, over again from the first; a step ends when all that it
        has begun to fetch is there (0.32 `offloader/prefetch.py`: `start_prefetch`, `join_after_forward`).
        """
        if not any(self.layer_bytes):
            return len(self.layer_bytes) * layer_s
        now_s = copied_s = np.zeros_like(layer_s)
        loads_s = [self.latency_s + n_bytes / self.bytes_per_s for n_bytes in self.layer_bytes if n_bytes]
        arrives_s = {i: np.zeros_like(layer_s) for i in range(self.buffers)}
        number = 0
        for n_bytes in self.layer_bytes:
            if not n_bytes:
                now_s = now_s + layer_s
                continue
            now_s = np.maximum(now_s, arrives_s.pop(number)) + layer_s
            coming = number + self.buffers
            copied_s = np.maximum(copied_s, now_s) + loads_s[coming % len(loads_s)]
            arrives_s[coming] = copied_s
            number += 1
        ended_s: Floats = np.maximum(now_s, copied_s)
        return ended_s


class OffloadedModel:
    """A step-time model of a device some of whose weights come from its host.

    Attributes:
        model: with all weights on the device.
        offload: what comes, and how.
    """

    def __init__(self, model: StepTimeModel, offload: WeightOffload) -> None:
        self.model = model
        self.offload = offload
        self._layers = len(offload.layer_bytes)
        self._steps = 0
        self._bytes = 0.0

    @property
    def reads_batches(self) -> bool:
        """Whether the model does."""
        return reads_batches(self.model)

    def price(self, plan: StepPlan) -> StepCost:
        """Seconds of each repeat of the plan, [repeat]."""
        cost = self.model.price(plan)
        times = cost.operators
        assert times is not None
        products_s = times.dense_s + times.moe_s + np.zeros_like(cost.device_s)
        layers_s = products_s + times.attention_s + times.communication_s + times.waiting_s
        stall_s = self.offload.stall_s(layers_s / self._layers, products_s / self._layers, plan.n_tokens)
        waiting_s = times.waiting_s + (0.0 if self.offload.way == "in_place" else stall_s)
        operators = msgspec.structs.replace(times, waiting_s=waiting_s)
        return replace(cost, device_s=cost.device_s + stall_s, operators=operators)

    def count(self, plan: StepPlan, times: int) -> None:
        """Take note that the plan was run so many times."""
        self.model.count(plan, times)
        self._steps += times
        self._bytes += times * self.offload.step_bytes(plan.n_tokens)

    def notes(self) -> tuple[str, ...]:
        """The model's own, and what came over the link."""
        of_steps = f"{self._bytes / 1e9:.3f} GB in {self._steps} steps"
        held = f"{self.offload.offloaded_bytes / 2**30:.2f} GiB of weights of each device in its host's memory"
        return (*self.model.notes(), f"{held} ({self.offload.way}): {of_steps} over its link")


def first_layers(layer_bytes: float, num_layers: int, most_bytes: float) -> tuple[float, ...]:
    """Bytes of each layer that `cpu_offload_gb` moves: from the first on, until as many have moved.

    vLLM moves whole parameters and stops after the one that reaches the limit, so that it moves up to a parameter more.
    """
    return tuple(min(max(most_bytes - i * layer_bytes, 0.0), layer_bytes) for i in range(num_layers))


def whole_layers(layer_bytes: float, num_layers: int, layers: Sequence[int]) -> tuple[float, ...]:
    """Bytes of each layer where these are moved as a whole."""
    return tuple(layer_bytes if i in set(layers) else 0.0 for i in range(num_layers))


def last_of_groups(num_layers: int, group_size: int, num_in_group: int) -> tuple[int, ...]:
    """The layers that vLLM's `offload_group_size` and `offload_num_in_group` move (0.32 `offloader/prefetch.py`)."""
    return tuple(i for i in range(num_layers) if i % group_size >= group_size - num_in_group)
