"""A rank's links to its host, which KV of tiers and weights that live in the host's memory both cross.

Each of its devices has one, and its share of all that moves. Loads have what the weights of the step under way leave,
and at least what they would have beside one more transfer; weights come beside a load at half of the link, or as many
parts as there are loads and they. Writes go the other way, on which nothing else is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from simulator.kv.tier_links import Direction


@dataclass(frozen=True, slots=True)
class HostLink:
    """The way of each device of a rank to its host.

    Attributes:
        bytes_per_s: of one device's link, in either direction.
        devices: of the rank.
    """

    bytes_per_s: float
    devices: int = 1


class HostWay:
    """The links of one rank, and what is on them.

    Attributes:
        now_s: when the engine plans its next step.
    """

    def __init__(self, link: HostLink) -> None:
        self.now_s = 0.0
        self._link = link
        # Loads under way or to come: from when to when.
        self._loads: deque[tuple[float, float]] = deque()
        # Of the last step: bytes of weights per second on each device's link, and when it ends.
        self._weights_rate = 0.0
        self._until_s = -1.0

    def takes_s(self, n_bytes: float, way: Direction) -> float:
        """How long the links need for so many bytes at least, beside what is on them now."""
        each = n_bytes / self._link.devices
        if way == "out":
            return each / self._link.bytes_per_s
        full, others = self._link.bytes_per_s, len(self.loads)
        weights_rate = self._weights_rate if self._until_s >= self.now_s else 0.0
        n_users = 1 + others + (weights_rate > 0)
        share = max((full - weights_rate) / (1 + others), full / n_users)
        return each / share

    def moves(self, begin_s: float, end_s: float, n_bytes: float, way: Direction) -> None:
        """So many bytes cross the links from one moment to another."""
        if way == "in" and n_bytes:
            self._loads.append((begin_s, end_s))

    def weights(self, n_bytes: float, begin_s: float, end_s: float) -> None:
        """A step brings so many bytes of weights to each device."""
        self._weights_rate = n_bytes / (end_s - begin_s) if end_s > begin_s else 0.0
        self._until_s = end_s

    @property
    def loads(self) -> list[tuple[float, float]]:
        """Loads that are not over, from when to when."""
        while self._loads and self._loads[0][1] <= self.now_s:
            self._loads.popleft()
        return [one for one in self._loads if one[1] > self.now_s]

    def forget(self) -> None:
        """The engine fails: nothing is on its links."""
        self._loads.clear()
        self._weights_rate, self._until_s = 0.0, -1.0
