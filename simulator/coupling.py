"""Which engines concern each other, and how far one may go on before another could."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from simulator.agenda import Agenda
from simulator.engine import Role
from simulator.instance import Instance
from simulator.steps.contention import SharedLinks
from simulator.steps.talking import Neighbour

Reach = Literal["none", "other_role", "any"]
"""Which others what an instance does can concern: none, those that prefill or decode where it does not, or any of them.
"""


class Coupling:
    """What ties the engines of a cluster to each other while they serve.

    Attributes:
        reach: whom what one of them does can concern.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        roles: Sequence[Role],
        agenda: Agenda,
        shared: Mapping[int, SharedLinks],
        reach: Reach,
    ) -> None:
        """Nothing has happened yet.

        Args:
            instances: the engines, in time.
            roles: of each.
            agenda: who is awake.
            shared: step times of those that talk over links that others use, by instance.
            reach: as the attribute.
        """
        self._instances = instances
        self._roles = roles
        self._agenda = agenda
        self._shared = shared
        self.reach = reach

    def begin_turn(self, number: int, until_s: float) -> float:
        """An instance is about to go on: tell it who is beside it on its links. Returns how far it may go.

        That is at most `until_s`, and until another could concern it.
        """
        now_s = self._instances[number].now_s
        if self.reach != "none":
            until_s = min(until_s, self._concerned_s(number))
        if (shared := self._shared.get(number)) is not None:
            shared.now_s = now_s
            shared.neighbours = self._neighbours(shared)
            if shared.is_shared_now:
                return now_s  # each step finds less KV on its links
        return until_s

    def _neighbours(self, shared: SharedLinks) -> tuple[Neighbour, ...]:
        """Other engines that talk over the links of one that is about to plan a step."""
        due = {number for at_s, number in self._agenda.awake if at_s == shared.now_s}
        return tuple(
            Neighbour(other.talk, is_due=number in due and self._instances[number].has_requests)
            for number, other in self._shared.items()
            if shared.is_beside(other)
        )

    def _concerned_s(self, number: int) -> float:
        """When another instance could do something that concerns this one.

        KV that one decode instance reads can only delay another's, unless it makes room on a prefill instance that
        waits for it.
        """
        role = self._roles[number]
        any_can = self.reach == "any" or (role == "decode" and any(map(self._is_held_up, self._agenda.asleep)))
        others = (at_s for at_s, other in self._agenda.awake if any_can or self._roles[other] != role)
        return min(others, default=np.inf)

    def _is_held_up(self, number: int) -> bool:
        """Whether a prefill instance has requests and no blocks for them."""
        waits = any(rank.scheduler.waiting for rank in self._instances[number].ranks)
        return waits and self._roles[number] == "prefill"
