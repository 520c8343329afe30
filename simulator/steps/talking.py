"""Collectives of several engines over the same links: how much longer those of each take for the others.

A collective is many short messages, and the link is shared fairly by those that are on it at once. Two engines that go
in step, whose steps begin at the same moment, send their messages at the same moments too: of each pair the shorter
takes twice its time, and so does as much of the longer. Others meet by chance: a message finds another engine's on the
link for as large a share of its time as that engine talks there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.network.links import Link


@dataclass(frozen=True, slots=True)
class Talk:
    """What an engine's last step does on links that others use too.

    Attributes:
        begin_s: when the step begins on the devices.
        end_s: when it ends.
        alone_s: on each link, how long its bytes take when nobody else is there.
        share: on each link, the share of the step's time in which they are on it.
    """

    begin_s: float
    end_s: float
    alone_s: Mapping[Link, float]
    share: Mapping[Link, float]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another engine as it is known when a step is planned.

    Attributes:
        talk: of its last step; None: there was none.
        is_due: whether it plans a step at the same moment, not known yet, and is taken to go in step.
    """

    talk: Talk | None
    is_due: bool = False

    def longer_s(self, link: Link, alone_s: float, begin_s: float) -> float:
        """How much longer it makes a step's collectives that take so long alone on a link.

        Args:
            link: that they share.
            alone_s: of all of the step's messages there.
            begin_s: when the step begins.
        """
        if self.is_due:
            return alone_s
        if self.talk is None or self.talk.end_s <= begin_s or link not in self.talk.alone_s:
            return 0.0
        if self.talk.begin_s == begin_s:
            return min(alone_s, self.talk.alone_s[link])
        return alone_s * self.talk.share[link]


def beside_s(own: Sequence[Mapping[Link, float]], neighbours: Sequence[Neighbour], begin_s: float) -> float:
    """How much longer a step takes for what other engines send, each of its exchanges as long as on its worst link.

    Args:
        own: of each exchange the seconds that it takes alone on each link.
        neighbours: the other engines.
        begin_s: when the step begins.
    """
    total_s = 0.0
    for exchange in own:
        on_links = (
            sum(one.longer_s(link, alone_s, begin_s) for one in neighbours) for link, alone_s in exchange.items()
        )
        total_s += max(on_links, default=0.0)
    return total_s


def talk_of(own: Sequence[Mapping[Link, float]], begin_s: float, end_s: float, longer_s: float) -> Talk:
    """What a step does that is planned now, its collectives taking `longer_s` more than alone."""
    alone_s: dict[Link, float] = {}
    for exchange in own:
        for link, seconds in exchange.items():
            alone_s[link] = alone_s.get(link, 0.0) + seconds
    lasts_s = end_s - begin_s
    share = {
        link: min(1.0, (seconds + longer_s) / lasts_s) if lasts_s > 0 else 0.0 for link, seconds in alone_s.items()
    }
    return Talk(begin_s, end_s, alone_s, share)
