"""Attention of decodes in a memory that computes (PIM): which requests it takes, on which channels, and how long.

A decode's attention reads all of its keys and values for one token, so that a device waits for its memory; a memory
with arithmetic at its banks reads them where they are. Prompts stay on the device, whose matrix units they fill. What a
layer takes there:

    layer = way + slowest group of channels
    way   = 2 latency + bytes sent / bytes_per_s
    group = sum over its decodes of (request_s + token_s * tokens) / channels of the group

Key-value heads are dealt to the channels of a group, which work at once; requests of a group follow each other. A
request's tokens grow by one a step, and so does its group's sum.

Everything here depends on the batch and on nothing before it, so that a step costs the same however steps are grouped.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from simulator.scheduling.plan import StepPlan, plan_of
from simulator.scheduling.request import Request
from traces.steps import Floats, Ints, Mask

Placing = Literal["balanced", "fixed"]
"""How requests come to channels: see `NearMemory.groups_of`."""


@dataclass(frozen=True, slots=True)
class NearLayer:
    """What a batch, or a part of one, takes of one layer near memory.

    Attributes:
        way_s: there and back; 0 where nothing is sent.
        groups_s: each group of channels computes, [n_groups, repeat].
    """

    way_s: float
    groups_s: Floats

    @property
    def alone_s(self) -> Floats:
        """Seconds when nothing else is near memory, [repeat]."""
        alone_s: Floats = self.way_s + self.groups_s.max(axis=0)
        return alone_s


@dataclass(frozen=True, slots=True)
class NearMemory:
    """A memory that computes, as one engine uses it.

    Attributes:
        n_channels: of the memory.
        group_channels: channels that share a request, at most one for each key-value head.
        request_s: one layer of one decode on one channel, at no history.
        token_s: likewise for each token of history.
        decode_bytes: sent for one decode and layer: query, new key and value there, the result back.
        token_bytes: keys and values of one token and layer.
        bytes_per_s: of the way to the memory and back.
        latency_s: of one way.
        num_layers: of the model.
        placing: how requests come to channels.
        min_prompt_tokens: requests with a shorter prompt stay on the device.
        reads_history: chunks of prompts read the keys and values before them from here, since the device has none.
        interleaves: a batch is halved, and one half computes on the device while the other is near memory.
    """

    n_channels: int
    group_channels: int
    request_s: float
    token_s: float
    decode_bytes: float
    token_bytes: float
    bytes_per_s: float
    latency_s: float
    num_layers: int
    placing: Placing = "balanced"
    min_prompt_tokens: int = 0
    reads_history: bool = False
    interleaves: bool = False

    @property
    def n_groups(self) -> int:
        """Groups of channels; channels that are left over have nothing to do."""
        return self.n_channels // self.group_channels

    def takes(self, plan: StepPlan) -> Mask:
        """Which of a batch's requests have their attention computed here, [n_requests]: decodes of long prompts."""
        taken: Mask = (plan.new_tokens == 1) & self.keeps(plan.requests)
        return taken

    def keeps(self, requests: Sequence[Request]) -> Mask:
        """Which requests are this memory's own, prompts included, [n_requests]."""
        return np.array([request.row.prompt_tokens >= self.min_prompt_tokens for request in requests], dtype=bool)

    def groups_of(self, *parts: Sequence[Request]) -> list[Ints]:
        """The group of each request of each part of a batch.

        `balanced`: part after part, the longest prompt first, each to the group with the fewest prompt tokens, anew for
        each batch; what it takes to move keys and values is not counted. `fixed`: by the request's number in the trace,
        where its prompt was written once. Neither looks at tokens that were generated, so that a batch that only grows
        stays where it is.
        """
        if self.placing == "fixed":
            return [np.array([one.index % self.n_groups for one in part], dtype=np.int64) for part in parts]
        loads = [(0, group) for group in range(self.n_groups)]
        placed = []
        for part in parts:
            groups = np.zeros(len(part), dtype=np.int64)
            for i in sorted(range(len(part)), key=lambda i: (-part[i].row.prompt_tokens, part[i].index)):
                load, group = loads[0]
                groups[i] = group
                heapq.heapreplace(loads, (load + part[i].row.prompt_tokens, group))
            placed.append(groups)
        return placed

    def layers(self, plans: Sequence[StepPlan], repeats: Ints) -> list[NearLayer]:
        """What each of these parts of a batch takes of one layer."""
        taken = [self.takes(plan) for plan in plans]
        requests = [[plan.requests[i] for i in own.nonzero()[0]] for plan, own in zip(plans, taken, strict=True)]
        placed = self.groups_of(*requests)
        return [
            NearLayer(self._way_s(plan, own), self._groups_s(groups, plan.computed_tokens[own], repeats))
            for plan, own, groups in zip(plans, taken, placed, strict=True)
        ]

    def _way_s(self, plan: StepPlan, taken: Mask) -> float:
        """Until all that is sent for a layer is there and the results are back."""
        chunks = self.keeps(plan.requests) & ~taken
        written = plan.new_tokens[chunks].sum() + self.reads_history * plan.computed_tokens[chunks].sum()
        sent_bytes = self.decode_bytes * taken.sum() + self.token_bytes * written
        return float(2 * self.latency_s + sent_bytes / self.bytes_per_s) if sent_bytes else 0.0

    def _groups_s(self, groups: Ints, tokens: Ints, repeats: Ints) -> Floats:
        counts = np.bincount(groups, minlength=self.n_groups)
        sums = np.bincount(groups, tokens, self.n_groups).astype(np.int64)
        history = sums[:, None] + counts[:, None] * repeats
        groups_s: Floats = (counts[:, None] * self.request_s + self.token_s * history) / self.group_channels
        return groups_s

    def channel_s(self, n_decodes: Floats | Ints, tokens: Floats | Ints) -> Floats:
        """Seconds that channels compute in steps with so many decodes here and so much history, all layers, [n]."""
        return self.num_layers * (self.request_s * n_decodes + self.token_s * tokens)


def part_of(plan: StepPlan, chosen: Mask) -> StepPlan:
    """The plan with these of its requests only, [n_requests]."""
    return plan_of(
        [plan.requests[i] for i in chosen.nonzero()[0]],
        plan.new_tokens[chosen],
        plan.computed_tokens[chosen],
        first_step=plan.first_step,
        repeat=plan.repeat,
    )


def halves(plan: StepPlan) -> tuple[Mask, Mask]:
    """The batch in two parts of as many tokens, as far as that goes, [n_requests] each; the second may be empty.

    The request with the most tokens to compute first, of equal ones that with the longest prompt, each to the part with
    fewer tokens; so decodes are dealt in turn, and long prompts to both.
    """
    order = sorted(
        range(len(plan.requests)),
        key=lambda i: (-plan.new_tokens[i], -plan.requests[i].row.prompt_tokens, plan.requests[i].index),
    )
    first = np.zeros(len(order), dtype=bool)
    tokens = [0, 0]
    for i in order:
        part = 0 if tokens[0] <= tokens[1] else 1
        tokens[part] += int(plan.new_tokens[i])
        first[i] = part == 0
    return first, ~first
