"""What happens at set times, and which engine goes on next: the virtual time in which several serve together."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

Act = Callable[[float], None]
"""What happens, told when it does."""


class Agenda:
    """Events in order of time, those of one time in the order in which they were told; and engines by their clocks.

    Attributes:
        awake: (seconds, engine) of those that have something to do, a heap.
        asleep: engines that wait for a request.
    """

    def __init__(self, n_engines: int) -> None:
        """Nothing is to happen, and nobody is awake."""
        self.awake: list[tuple[float, int]] = []
        self.asleep = set(range(n_engines))
        self._events: list[tuple[float, int, Act]] = []
        self._n_told = 0

    @property
    def n_events(self) -> int:
        """Events that are still to come."""
        return len(self._events)

    @property
    def next_event_s(self) -> float:
        """When the next event is; infinity: never."""
        return self._events[0][0] if self._events else np.inf

    @property
    def next_turn_s(self) -> float:
        """The clock of the engine that is furthest behind; infinity: all are asleep."""
        return self.awake[0][0] if self.awake else np.inf

    def at(self, time_s: float, act: Act) -> None:
        """Have something happen then."""
        self._n_told += 1
        heapq.heappush(self._events, (time_s, self._n_told, act))

    def happen(self) -> None:
        """Let the next event happen."""
        time_s, _, act = heapq.heappop(self._events)
        act(time_s)

    def take_turn(self) -> int:
        """The engine that is furthest behind, which is neither awake nor asleep until it is told."""
        return heapq.heappop(self.awake)[1]

    def wake(self, engine: int, now_s: float) -> None:
        """An engine has something to do, from this moment of its clock on."""
        self.asleep.discard(engine)
        heapq.heappush(self.awake, (now_s, engine))

    def stop(self, engine: int) -> None:
        """An engine has nothing to do any more, whatever it had."""
        self.awake = [(at_s, other) for at_s, other in self.awake if other != engine]
        heapq.heapify(self.awake)
        self.asleep.add(engine)
