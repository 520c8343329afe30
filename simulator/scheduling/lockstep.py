"""Requests that compute one token in every step, as sums: what a step of many of them costs the scheduler is constant.

Such a request grows by a token with each step, and so do all others beside it. Of each it is enough to know its
*offset*, the tokens it had computed less the number of the step that came next: at step k it has offset + k. So the
sum of their histories is the sum of offsets plus k each, the longest is the one of the largest offset, and a new block
is needed by those whose offset is -k modulo the size of a block. None of that has to be brought up to date as steps go
by; a request costs something when it joins and when it leaves.
"""

from __future__ import annotations

import heapq

import numpy as np

from simulator.scheduling.request import Request
from traces.steps import Ints


class Lockstep:
    """The requests that decode, by their offsets.

    Attributes:
        offsets: of each; computed tokens before a step, less the step's number.
    """

    __slots__ = ("_block_size", "_ends", "_largest", "_phases", "_sum", "offsets")

    def __init__(self, block_size: int) -> None:
        self.offsets: dict[Request, int] = {}
        self._block_size = block_size
        self._sum = 0
        # Largest offset; None when the one that had it has left.
        self._largest: int | None = None
        # How many have each offset modulo the block size.
        self._phases = [0] * block_size
        # When each ends: the step that brings its last token, and its place in order of admission.
        self._ends: list[tuple[int, int, Request]] = []

    def __len__(self) -> int:
        return len(self.offsets)

    def join(self, request: Request, step: int) -> None:
        """From this step on the request computes one token in each; it has more than one to go."""
        offset = request.num_computed_tokens - step
        self.offsets[request] = offset
        self._sum += offset
        if self._largest is not None or len(self.offsets) == 1:
            self._largest = offset if self._largest is None else max(self._largest, offset)
        self._phases[offset % self._block_size] += 1
        last_step = step + request.target_tokens - request.num_tokens - 1
        heapq.heappush(self._ends, (last_step, request.admission, request))

    def retire(self, before: int, cached_step: int) -> list[Request]:
        """Take out those that got their last token in a step before this one, and bring their counts up to date."""
        done = []
        while self._ends and self._ends[0][0] < before:
            last_step, _, request = heapq.heappop(self._ends)
            offset = self.offsets.pop(request)
            self._sum -= offset
            self._phases[offset % self._block_size] -= 1
            if offset == self._largest:
                self._largest = None
            self._settle(request, offset, last_step + 1, min(cached_step, last_step + 1))
            done.append(request)
        return done

    def disband(self, step: int, cached_step: int) -> None:
        """Take out all before this step, and bring their counts up to date."""
        for request, offset in self.offsets.items():
            self._settle(request, offset, step, cached_step)
        self.offsets.clear()
        self._sum, self._largest = 0, None
        self._phases = [0] * self._block_size
        self._ends.clear()

    @property
    def first_end(self) -> int:
        """The first step that brings somebody's last token; there must be somebody."""
        return self._ends[0][0]

    def kv_sum(self, step: int) -> int:
        """Tokens that all together have computed before this step."""
        return self._sum + step * len(self.offsets)

    def kv_max(self, step: int) -> int:
        """The most that one has computed before this step; 0 when there is nobody."""
        if not self.offsets:
            return 0
        if self._largest is None:
            self._largest = max(self.offsets.values())
        return self._largest + step

    def new_blocks(self, step: int) -> int:
        """Blocks that they need for their tokens of this step."""
        return self._phases[-step % self._block_size]

    def growth(self, step: int, steps: int) -> Ints:
        """Blocks that so many steps from this one on need, summed up, [steps]."""
        phases = np.array(self._phases, dtype=np.int64)
        return np.cumsum(phases[-np.arange(step, step + steps) % self._block_size])

    def _settle(self, request: Request, offset: int, step: int, cached_step: int) -> None:
        """The request's own counts, as they are before this step."""
        computed = offset + step
        request.num_computed_tokens = computed
        request.num_tokens = computed + 1
        request.last_step = step - 1
        request.num_blocks = -(-computed // self._block_size)
        request.num_cached_tokens = max(request.num_cached_tokens, offset + cached_step)
