"""Requests that compute one token in every step, as sums: what a step of many of them costs the scheduler is constant.

Such a request grows by a token with each step, and so do all others beside it. Of each it is enough to know its
*offset*, the tokens it had computed less the number of the step that came next: at step k it has offset + k. So the
sum of their histories is the sum of offsets plus k each, the longest is the one of the largest offset, and a new block
is needed by those whose offset is -k modulo the size of a block. None of that has to be brought up to date as steps go
by; a request costs something when it joins and when it leaves.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from operator import attrgetter

import numpy as np

from simulator.scheduling.request import Request
from traces.steps import Ints


class Lockstep:
    """The requests that decode, by their offsets.

    Attributes:
        offsets: of each; computed tokens before a step, less the step's number.
    """

    __slots__ = (
        "_admissions",
        "_block_size",
        "_ends",
        "_largest",
        "_ordered_offsets",
        "_ordered_requests",
        "_phases",
        "_phases_seen",
        "_sum",
        "_turns",
        "offsets",
    )

    def __init__(self, block_size: int) -> None:
        self.offsets: dict[Request, int] = {}
        self._block_size = block_size
        self._sum = 0
        # Largest offset; None when the one that had it has left.
        self._largest: int | None = None
        # How many have each offset modulo the block size, and the same numbers as numpy sees them.
        self._phases = array("q", (0,)) * block_size
        self._phases_seen = np.frombuffer(self._phases, dtype=np.int64)
        # Whose turn it is to need a block at steps 0, 1, ...: offsets modulo the block size.
        self._turns = np.zeros(0, dtype=np.int64)
        # When each ends: the step that brings its last token, and its place in order of admission.
        self._ends: list[tuple[int, int, Request]] = []
        # All of them in order of admission: where each stands in it, who it is, and its offset.
        self._admissions: list[int] = []
        self._ordered_requests: list[Request] = []
        self._ordered_offsets: array[int] = array("q")

    def __len__(self) -> int:
        return len(self.offsets)

    def join(self, request: Request, step: int) -> None:
        """From this step on the request computes one token in each; it has more than one to go."""
        offset = request.num_computed_tokens - step
        self.offsets[request] = offset
        place = bisect_left(self._admissions, request.admission)
        self._admissions.insert(place, request.admission)
        self._ordered_requests.insert(place, request)
        self._ordered_offsets.insert(place, offset)
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
            place = bisect_left(self._admissions, request.admission)
            del self._admissions[place], self._ordered_requests[place], self._ordered_offsets[place]
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
        self._admissions.clear()
        self._ordered_requests.clear()
        del self._ordered_offsets[:]
        self._sum, self._largest = 0, None
        self._phases_seen[:] = 0
        self._ends.clear()

    def batch(self, step: int, others: Mapping[Request, int]) -> tuple[list[Request], Ints, Ints]:
        """All of them and `others`, who compute so many tokens each: a batch in order of admission.

        Returns the requests, their tokens of this step, and those before it.
        """
        requests, offsets = self._ordered_requests.copy(), self._ordered_offsets[:]
        tokens = array("q", (1,)) * len(requests)
        # From the last on, so that places stay what they are.
        for request in sorted(others, key=attrgetter("admission"), reverse=True):
            place = bisect_left(self._admissions, request.admission)
            requests.insert(place, request)
            offsets.insert(place, request.num_computed_tokens - step)
            tokens.insert(place, others[request])
        return requests, np.array(tokens), np.array(offsets) + step

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
        first = step % self._block_size
        if first + steps > len(self._turns):
            self._turns = -np.arange(2 * (first + steps)) % self._block_size
        return self._phases_seen[self._turns[first : first + steps]].cumsum()

    def _settle(self, request: Request, offset: int, step: int, cached_step: int) -> None:
        """The request's own counts, as they are before this step."""
        computed = offset + step
        request.num_computed_tokens = computed
        request.num_tokens = computed + 1
        request.last_step = step - 1
        request.num_blocks = -(-computed // self._block_size)
        request.num_cached_tokens = max(request.num_cached_tokens, offset + cached_step)
