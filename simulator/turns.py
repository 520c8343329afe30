"""Engines whose queues decide where a request goes: which of them must go on before it can be dealt.

A router looks at engines when a request arrives, and what it sees must be as it is at that moment. That needs less than
running every engine up to it. While a sweep runs (`simulator.instance`), nobody comes or goes: queues are as they were
when it was planned. So an engine plans and prices a sweep to its end and holds it back; it goes on when the last step
of it has been planned by now, or when it gets a request itself: then the steps before that moment are run, and the
others forgotten. A router that asks for the prefix cache is answered without running anything where no block that can
be found is overwritten meanwhile and none becomes findable. What comes out is the same, to the bit.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from simulator.instance import Instance
from simulator.rank import Rank
from simulator.routing import Reads


class Turns:
    """Engines of which a router reads the state when a request arrives; nothing else concerns them."""

    def __init__(self, instances: Sequence[Instance], reads: Reads | None) -> None:
        """Nothing has happened yet; `reads`: what the router looks at, None: it may be anything."""
        self._instances = instances
        self._reads_cache = reads == "cache"
        self._number = {rank.number: i for i, instance in enumerate(instances) for rank in instance.ranks}
        # When each is due that has something to do; the others wait for a request.
        self._due: list[tuple[float, int]] = []
        self._asleep = set(range(len(instances)))
        for instance in instances:
            instance.holds_sweeps = reads is not None

    def go_on(self, until_s: float) -> None:
        """Bring engines to where a router can look at them at this moment; infinite: to their end."""
        due = self._due
        while due and due[0][0] < until_s:
            _, number = heapq.heappop(due)
            instance = self._instances[number]
            while instance.step(until_s):
                if instance.due_s >= until_s:
                    heapq.heappush(due, (instance.due_s, number))
                    break
            else:
                self._asleep.add(number)
        if self._reads_cache and until_s < np.inf:
            for number, instance in enumerate(self._instances):
                if instance.is_holding and not instance.cache_stays(until_s):
                    self._settle(number, until_s)

    def sent(self, rank: Rank, time_s: float) -> None:
        """A request was sent to this rank: its engine looks at it as soon as it can."""
        number = self._number[rank.number]
        instance = self._instances[number]
        if number in self._asleep:
            self._asleep.remove(number)
            instance.now_s = max(instance.now_s, time_s)
            heapq.heappush(self._due, (instance.now_s, number))
        elif instance.is_holding:
            self._settle(number, time_s)

    def _settle(self, number: int, until_s: float) -> None:
        instance = self._instances[number]
        self._due.remove((instance.due_s, number))
        instance.settle(until_s)
        self._due.append((instance.due_s, number))
        heapq.heapify(self._due)
