"""A rank's way to a store on the network: its nodes' NICs, which KV between prefill and decode engines crosses too.

What moves takes at least as long as the NICs need for it beside the KV that is under way when it is asked for: a
max-min fair share of each, as one transfer more would have. It is taken to cross them at an even rate, and KV has what
it leaves. Two ranks that move something at once do not slow each other here; their tier's own link may.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from simulator.network.links import Link
from simulator.network.topology import Place, Topology
from simulator.network.transfers import Network, fair_rates

Direction = Literal["in", "out"]


class Way(Protocol):
    """What tiers' bytes cross that others use too."""

    def takes_s(self, n_bytes: float, way: Direction) -> float:
        """How long it needs for so many bytes at least, beside what is on it now."""
        ...

    def moves(self, begin_s: float, end_s: float, n_bytes: float, way: Direction) -> None:
        """So many bytes cross it from one moment to another."""
        ...


@dataclass(frozen=True, slots=True)
class _Moved:
    """Bytes that cross links at an even rate."""

    begin_s: float
    end_s: float
    link_bytes: dict[Link, float]


class NicWay:
    """The NICs of a rank's devices, and what moves over them to and from its tier."""

    def __init__(self, topology: Topology, places: Sequence[Place], network: Network) -> None:
        """Nothing moves. Each device moves an equal part over its NIC.

        Args:
            topology: whose nodes have NICs, on a switch.
            places: the rank's devices.
            network: the KV on the same links.
        """
        nics = [topology.nic(place) for place in places]
        ways: dict[Direction, Counter[Link]] = {
            "out": Counter(up for up, _ in nics),
            "in": Counter(down for _, down in nics),
        }
        self._parts = {way: {link: n / len(places) for link, n in links.items()} for way, links in ways.items()}
        self._network = network
        self._moves: deque[_Moved] = deque()
        for links in self._parts.values():
            for link in links:
                network.share_with(link, self)

    def takes_s(self, n_bytes: float, way: Direction) -> float:
        """How long the NICs need at least, beside the KV that is under way now."""
        parts = self._parts[way]
        kv = [one.path for one in self._network.on(parts)]
        return max(n_bytes * part / fair_rates([*kv, (link,)])[-1] for link, part in parts.items())

    def moves(self, begin_s: float, end_s: float, n_bytes: float, way: Direction) -> None:
        """So many bytes cross the NICs from one moment, not before the network's present one, to another."""
        while self._moves and self._moves[0].end_s <= self._network.now_s:
            self._moves.popleft()
        link_bytes = {link: n_bytes * part for link, part in self._parts[way].items()}
        self._moves.append(_Moved(begin_s, end_s, link_bytes))
        self._network.shared_anew(link_bytes, begin_s)

    def rate(self, link: Link, at_s: float) -> tuple[float, float]:
        """Bytes per second over a link from this moment on, and until when as far as that is known."""
        rate, until_s = 0.0, np.inf
        for one in self._moves:
            if one.end_s <= at_s or link not in one.link_bytes:
                continue
            if one.begin_s > at_s:
                until_s = min(until_s, one.begin_s)
            else:
                rate += one.link_bytes[link] / (one.end_s - one.begin_s)
                until_s = min(until_s, one.end_s)
        return rate, until_s
