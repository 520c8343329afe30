"""What was sent beside an engine's steps and what that draws: over links, and to and from KV tiers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from simulator.kv.tiers import Move
from simulator.network.transfers import Network
from simulator.power.curves import Curve, Spans, spread
from simulator.power.nodes import COMPONENTS, NodePower
from traces.steps import Floats

BITS = 8


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent beside the steps.

    Attributes:
        network: the links and what they carried.
        j_per_bit: by link's name; a link that is not in it costs what nobody knows.
        component: that each link belongs to, by its name.
        tiers: what moves to and from tiers draws, by component; only where that is known.
        unknown: bytes in no sum, in words.
    """

    network: Network
    j_per_bit: Mapping[str, float]
    component: Mapping[str, str]
    tiers: Mapping[str, Curve] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def energy_j(self, component: str, at_s: npt.ArrayLike) -> Floats:
        """What a component has drawn for it by each of these times."""
        at = np.asarray(at_s, dtype=np.float64)
        total = self.tiers[component].energy_j(at) if component in self.tiers else np.zeros(at.shape)
        at = np.minimum(at, self.network.now_s)
        for link in self.network.links:
            if self.component.get(link.name) == component and link.name in self.j_per_bit:
                total = total + self.network.carried_bytes(link, at) * BITS * self.j_per_bit[link.name]
        return total


def sent_beside(
    network: Network, nodes: Sequence[NodePower], known: Collection[str], moves: Sequence[Move] = ()
) -> Sent:
    """What links carried, by the names that `network.topology` gives them, and what moved to and from tiers.

    `known`: components of which every node says what they draw; nothing is added to others.
    """
    j_per_bit: dict[str, float] = {}
    component: dict[str, str] = {}
    for link in network.links:
        name, _, rest = link.name.partition(".")
        if not name.startswith("node"):
            continue  # a CXL memory, which no description of power knows
        kind = "nic" if rest.startswith("nic") else "dram" if rest == "host_memory" else "links"
        component[link.name] = kind
        cost = nodes[int(name.removeprefix("node"))].j_per_bit(kind)
        if cost is not None and kind in known:
            j_per_bit[link.name] = cost
    tiers = {name: curve for name in known if (curve := _moved(moves, nodes, name)) is not None}
    sent = Sent(network, j_per_bit, component, tiers)
    return replace(sent, unknown=(*_unpriced(sent), *_unpriced_moves(moves, nodes, known)))


def _moved(moves: Sequence[Move], nodes: Sequence[NodePower], component: str) -> Curve | None:
    """What moves to and from tiers draw of a component while they last; None where nothing is known to.

    A move is taken to last a nanosecond at least: late in a long run, one may be shorter than what a float can tell.
    """
    own = [(move, nodes[move.node].j_per_bit(component)) for move in moves if component in (move.crosses or ())]
    priced = [(move, j_per_bit) for move, j_per_bit in own if j_per_bit is not None]
    if not priced:
        return None
    begin_s = np.array([move.begin_s for move, _ in priced])
    end_s = np.maximum(np.array([move.end_s for move, _ in priced]), begin_s + 1e-9)
    joules = np.array([move.n_bytes * BITS * j_per_bit for move, j_per_bit in priced])
    return spread(Spans(begin_s, end_s), joules)


def _unpriced(sent: Sent) -> Iterator[str]:
    """Bytes that crossed links without a known energy per bit."""
    network = sent.network
    crossed: dict[str, float] = {}
    for link in network.links:
        if link.name not in sent.j_per_bit:
            kind = sent.component.get(link.name, "cxl")
            crossed[kind] = crossed.get(kind, 0.0) + float(network.carried_bytes(link, network.now_s))
    for kind, n_bytes in crossed.items():
        if n_bytes:
            yield f"energy of {n_bytes / 1e9:.3f} GB sent over {kind}"


def _unpriced_moves(moves: Sequence[Move], nodes: Sequence[NodePower], known: Collection[str]) -> Iterator[str]:
    """Bytes that moved to and from tiers without a known energy per bit; not of components that are not known."""
    crossed: dict[str, float] = {}
    for move in moves:
        if move.crosses is None:
            what = f"to and from KV tier {move.tier}, of which no memory is said"
            crossed[what] = crossed.get(what, 0.0) + move.n_bytes
        for component in move.crosses or ():
            is_told = component in COMPONENTS and component not in known
            if not is_told and nodes[move.node].j_per_bit(component) is None:
                what = f"over {component} to and from KV tier {move.tier}"
                crossed[what] = crossed.get(what, 0.0) + move.n_bytes
    for what, n_bytes in crossed.items():
        yield f"energy of {n_bytes / 1e9:.3f} GB {what}"
