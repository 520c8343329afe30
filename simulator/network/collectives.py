"""How long ranks take to exchange data: from the links between them by formula, or from measured tables.

`bytes` is the larger of a rank's two buffers, input and output, as nccl-tests count (doc/PERFORMANCE.md): what
all_reduce sums, what all_gather fills, what reduce_scatter and all_to_all read, what broadcast and send hand on. All
functions take bytes of any shape and answer in seconds of that shape. No bytes take the latency.

A formula counts messages between neighbours, each alpha + bytes * beta: alpha and beta are of the slowest of those that
are sent at once, sharing links where they have to. The time to add numbers up is taken to hide behind the transfers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from profiles.interpolation import interpolate
from profiles.profile import Curve
from simulator.network.links import Path
from simulator.network.topology import Place, Topology
from traces.errors import InputError, ProfileError
from traces.steps import Floats

Bytes = npt.ArrayLike
Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
Algorithm = Literal["fastest", "ring", "tree", "hierarchical"]


class CollectiveTimes(Protocol):
    """Times of one group of ranks."""

    def all_reduce_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has `n_bytes`; each gets their sum."""
        ...

    def all_gather_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has its part; each gets all parts, `n_bytes` together."""
        ...

    def reduce_scatter_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has `n_bytes`; each gets its part of their sum."""
        ...

    def all_to_all_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has `n_bytes`, an equal part of them for each rank."""
        ...

    def count(self, operation: Operation, n_bytes: float, times: int) -> None:
        """Take note that an operation was done so many times."""
        ...

    def notes(self) -> tuple[str, ...]:
        """What was read outside the measured range so far, and other things a reader should know."""
        ...


# -- groups of ranks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hop:
    """What each of several messages takes that are sent at once: latency_s + bytes / bandwidth_bytes_per_s."""

    bandwidth_bytes_per_s: float
    latency_s: float

    def time_s(self, n_bytes: Floats) -> Floats:
        """Seconds of messages of so many bytes."""
        seconds: Floats = self.latency_s + n_bytes / self.bandwidth_bytes_per_s
        return seconds


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Ranks spread evenly over nodes.

    Attributes:
        n_nodes: 2 or more.
        ranks_per_node: 2 or more.
        inside: each rank to the next of its node, in all nodes at once.
        between: each rank to the same one of the next node, all ranks of a node at once.
    """

    n_nodes: int
    ranks_per_node: int
    inside: Hop
    between: Hop


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that exchange data.

    Attributes:
        n_ranks: how many.
        ring: each rank to the next, all at once.
        pair: each rank to each other one, all at once.
        nodes: the same ranks by nodes; None where they are in one, or unevenly spread, or one in each.
        fully_connected: each has a link or a switch to each other, in one node.
    """

    n_ranks: int
    ring: Hop
    pair: Hop
    nodes: NodeGroup | None = None
    fully_connected: bool = False


def switched_group(n_ranks: int, bandwidth_bytes_per_s: float, latency_s: float) -> Group:
    """Ranks on a switch that never blocks, or on links of which each rank uses one at a time."""
    pair = Hop(bandwidth_bytes_per_s / max(1, n_ranks - 1), latency_s)
    return Group(n_ranks, Hop(bandwidth_bytes_per_s, latency_s), pair, fully_connected=True)


def group_of(topology: Topology, places: Sequence[Place], beside: Sequence[Sequence[Place]] = ()) -> Group:
    """Ranks at these places; a ring goes through them in this order. Raises InputError for a place that is not there.

    Args:
        topology: the links between them.
        places: of the ranks.
        beside: of other groups, as large, that exchange as much at the same moments.

    Raises:
        InputError: a device that does not exist, or that is named twice.
    """
    if len(set(places)) < len(places):
        raise InputError("names a device twice", field="places", found=[tuple(place) for place in places])
    groups = (places, *beside)
    return Group(
        len(places),
        at_once([topology.path(a, b) for group in groups for a, b in _neighbours(group)]),
        at_once([topology.path(a, b) for group in groups for a, b in permutations(group, 2)]),
        _node_group(topology, groups),
        topology.is_fully_connected(places),
    )


def at_once(paths: Sequence[Path]) -> Hop:
    """The slowest of equal messages over these paths, sent at once: links are shared, the longest latency counts."""
    uses = Counter(link for path in paths for link in path)
    rates = (link.bandwidth_bytes_per_s / n for link, n in uses.items())
    return Hop(min(rates, default=np.inf), max((sum(link.latency_s for link in path) for path in paths), default=0.0))


def traffic(
    topology: Topology, places: Sequence[Place], operation: Operation, n_bytes: float
) -> list[tuple[Path, float]]:
    """What an operation sends in all, by path: round the ring, or from each to each for an all-to-all.

    For energy by bytes; and to be started as transfers where the operation has to share links with others.
    """
    n = len(places)
    if operation == "all_to_all":
        return [(topology.path(a, b), n_bytes / n) for a, b in permutations(places, 2)]
    passes = 2 if operation == "all_reduce" else 1
    return [(topology.path(a, b), passes * (n - 1) / n * n_bytes) for a, b in _neighbours(places)]


def _neighbours(places: Sequence[Place]) -> list[tuple[Place, Place]]:
    """Each with the next, the last with the first; none of one alone."""
    return list(zip(places, [*places[1:], places[0]], strict=True)) if len(places) > 1 else []


def _node_group(topology: Topology, groups: Sequence[Sequence[Place]]) -> NodeGroup | None:
    """Groups that exchange at the same moments, by nodes; None where they are not spread alike, each evenly."""
    by_nodes = [_by_node(places) for places in groups]
    shapes = {tuple(map(len, nodes)) for nodes in by_nodes}
    n_nodes, ranks_per_node = len(by_nodes[0]), len(by_nodes[0][0])
    if n_nodes < 2 or ranks_per_node < 2 or shapes != {(ranks_per_node,) * n_nodes}:
        return None
    inside = at_once([topology.path(a, b) for nodes in by_nodes for ranks in nodes for a, b in _neighbours(ranks)])
    across = [ranks for nodes in by_nodes for ranks in zip(*nodes, strict=True)]
    between = at_once([topology.path(a, b) for ranks in across for a, b in _neighbours(ranks)])
    return NodeGroup(n_nodes, ranks_per_node, inside, between)


def _by_node(places: Sequence[Place]) -> list[list[Place]]:
    by_node: dict[int, list[Place]] = {}
    for place in places:
        by_node.setdefault(place.node, []).append(place)
    return list(by_node.values())


# -- formulas --------------------------------------------------------------------------------------------------------


def ring_pass_s(n_bytes: Bytes, n_ranks: int, hop: Hop) -> Floats:
    """An all-gather or a reduce-scatter round a ring: n - 1 steps, each of a part of the bytes.

    Thakur, Rabenseifner and Gropp, Int. J. High Perform. Comput. Appl. 19 (2005), section 4.1.
    """
    seconds: Floats = (n_ranks - 1) * hop.time_s(_floats(n_bytes) / n_ranks)
    return seconds


def ring_all_reduce_s(n_bytes: Bytes, n_ranks: int, hop: Hop) -> Floats:
    """A reduce-scatter, then an all-gather: 2 (n - 1) steps. No all-reduce sends fewer bytes.

    Patarasuk and Yuan, J. Parallel Distrib. Comput. 69 (2009).
    """
    return 2 * ring_pass_s(n_bytes, n_ranks, hop)


def tree_all_reduce_s(n_bytes: Bytes, n_ranks: int, hop: Hop) -> Floats:
    """A reduction to a root, then a broadcast from it, each in the faster of two ways.

    A binomial tree, the whole message at each of ceil(log2 n) levels (Thakur et al. 2005). Or two binary trees, each
    for a half of the message, in k pieces: 2 log2 n + k steps of a piece, at the best k, which is
    bytes * beta + 2 alpha log2 n + sqrt(8 alpha beta bytes log2 n) (Sanders, Speck and Traeff, Parallel Comput. 35,
    2009).
    """
    whole = _floats(n_bytes)
    binomial = np.ceil(np.log2(n_ranks)) * hop.time_s(whole)
    seconds: Floats = 2 * np.minimum(binomial, _pipelined_s(whole, 2 * np.log2(n_ranks), hop))
    return seconds


def broadcast_s(n_bytes: Bytes, n_ranks: int, hop: Hop) -> Floats:
    """From one rank down the ring, in k pieces at the best k: n - 2 + k steps of a piece, as NCCL's only broadcast."""
    return _pipelined_s(_floats(n_bytes), max(0, n_ranks - 2), hop) if n_ranks > 1 else 0 * _floats(n_bytes)


def send_s(n_bytes: Bytes, path: Path) -> Floats:
    """From one rank to another, over links that nobody else uses."""
    return at_once([path]).time_s(_floats(n_bytes))


def _pipelined_s(n_bytes: Floats, ahead: float, hop: Hop) -> Floats:
    """`ahead` + k steps of a k-th of the bytes, at the best k: a real number, and 1 where it would be less."""
    alpha, whole = hop.latency_s, n_bytes / hop.bandwidth_bytes_per_s
    in_pieces = ahead * alpha + whole + 2 * np.sqrt(ahead * alpha * whole)
    return np.where(ahead * whole > alpha, in_pieces, (ahead + 1) * (alpha + whole))


def _floats(n_bytes: Bytes) -> Floats:
    return np.asarray(n_bytes, dtype=np.float64)


# -- times from links ------------------------------------------------------------------------------------------------


class LinkCollectives:
    """Times by formula from the links between the ranks."""

    def __init__(self, group: Group, *, algorithm: Algorithm = "fastest") -> None:
        """Choose how.

        Args:
            group: the ranks.
            algorithm: of all-reduce; `tree` has none for all-gather and reduce-scatter, which go round the ring as
                NCCL's do (src/graph/tuning.cc). `hierarchical`: inside each node, then between nodes. `fastest`: at
                each size the fastest of those that the group allows.

        Raises:
            InputError: `hierarchical` where ranks are not spread evenly over nodes, several in each.
        """
        if algorithm == "hierarchical" and group.nodes is None:
            accepted = "hierarchical only for the same number of ranks, 2 or more, in each of several nodes"
            raise InputError(field="algorithm", found=algorithm, accepted=accepted)
        self._group = group
        self._algorithm = algorithm

    def all_reduce_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has `n_bytes`; each gets their sum."""
        group, whole = self._group, _floats(n_bytes)
        choices: dict[Algorithm, Floats] = {
            "ring": ring_all_reduce_s(whole, group.n_ranks, group.ring),
            "tree": tree_all_reduce_s(whole, group.n_ranks, group.ring),
        }
        if group.nodes is not None:
            choices["hierarchical"] = _hierarchical_all_reduce_s(whole, group.nodes)
        return self._chosen(choices)

    def all_gather_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has its part; each gets all parts, `n_bytes` together."""
        return self._pass_s(n_bytes)

    def reduce_scatter_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has `n_bytes`; each gets its part of their sum."""
        return self._pass_s(n_bytes)

    def all_to_all_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has `n_bytes`, an equal part of them for each rank; all are sent at once, as NCCL groups them."""
        return self._unless_alone(self._group.pair.time_s(_floats(n_bytes) / self._group.n_ranks))

    def broadcast_s(self, n_bytes: Bytes) -> Floats:
        """One rank has `n_bytes`; each gets them."""
        return broadcast_s(n_bytes, self._group.n_ranks, self._group.ring)

    def count(self, operation: Operation, n_bytes: float, times: int) -> None:
        """Nothing: formulas have no range."""

    def notes(self) -> tuple[str, ...]:
        """Where the times are from."""
        ring = self._group.ring
        return (
            f"collectives of {self._group.n_ranks} ranks are not measured: {self._algorithm} all-reduce, "
            f"{ring.bandwidth_bytes_per_s / 1e9:g} GB/s and {ring.latency_s * 1e6:g} us from rank to rank",
        )

    def _pass_s(self, n_bytes: Bytes) -> Floats:
        group, whole = self._group, _floats(n_bytes)
        ring = ring_pass_s(whole, group.n_ranks, group.ring)
        choices: dict[Algorithm, Floats] = {"ring": ring, "tree": ring}
        if group.nodes is not None:
            choices["hierarchical"] = _hierarchical_pass_s(whole, group.nodes)
        return self._chosen(choices)

    def _chosen(self, choices: Mapping[Algorithm, Floats]) -> Floats:
        if self._algorithm == "fastest":
            fastest: Floats = np.min(list(choices.values()), axis=0)
            return self._unless_alone(fastest)
        return self._unless_alone(choices[self._algorithm])

    def _unless_alone(self, seconds: Floats) -> Floats:
        """A rank alone sends nothing."""
        return seconds if self._group.n_ranks > 1 else 0 * seconds


def _hierarchical_pass_s(n_bytes: Floats, nodes: NodeGroup) -> Floats:
    """Each rank's share with its like in other nodes, then all of it inside the node; a reduce-scatter in reverse."""
    between = ring_pass_s(n_bytes / nodes.ranks_per_node, nodes.n_nodes, nodes.between)
    return between + ring_pass_s(n_bytes, nodes.ranks_per_node, nodes.inside)


def _hierarchical_all_reduce_s(n_bytes: Floats, nodes: NodeGroup) -> Floats:
    """Reduce-scatter inside each node, all-reduce of each rank's share between nodes, all-gather inside each node."""
    share = n_bytes / nodes.ranks_per_node
    ring = ring_all_reduce_s(share, nodes.n_nodes, nodes.between)
    tree = tree_all_reduce_s(share, nodes.n_nodes, nodes.between)
    return ring_all_reduce_s(n_bytes, nodes.ranks_per_node, nodes.inside) + np.minimum(ring, tree)


# -- measured times --------------------------------------------------------------------------------------------------


class MeasuredCollectives:
    """Times from a profile's collectives.csv, linear between measured sizes.

    Below the smallest: its time, the floor of a call. Above the largest: linear from the last two, and counted.
    """

    def __init__(
        self, collectives: Mapping[str, Mapping[int, Curve]], n_ranks: int, *, source: str, note: str | None = None
    ) -> None:
        """Take the curves of this number of ranks. Raises ProfileError when none was measured.

        Args:
            collectives: curves by operation and number of ranks.
            n_ranks: which of them.
            source: the file that they are from.
            note: what a reader of results should know of it.
        """
        self._curves = {name: by_ranks[n_ranks] for name, by_ranks in collectives.items() if n_ranks in by_ranks}
        if not self._curves:
            degrees = sorted({ranks for by_ranks in collectives.values() for ranks in by_ranks})
            accepted = f"a measured number: {', '.join(map(str, degrees))}"
            raise ProfileError(file=source, field="ranks", found=n_ranks, accepted=accepted)
        self._n_ranks = n_ranks
        self._source = source
        self._note = note
        self._calls: Counter[str] = Counter()
        self._beyond: Counter[str] = Counter()

    def all_reduce_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has `n_bytes`; each gets their sum. Raises ProfileError when it was not measured."""
        return self._time_s("all_reduce", n_bytes)

    def all_gather_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has its part; each gets all, `n_bytes` together. Raises ProfileError when it was not measured."""
        return self._time_s("all_gather", n_bytes)

    def reduce_scatter_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has `n_bytes`; each gets its part of the sum. Raises ProfileError when it was not measured."""
        return self._time_s("reduce_scatter", n_bytes)

    def all_to_all_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has `n_bytes`, an equal part for each. Raises ProfileError when it was not measured."""
        return self._time_s("all_to_all", n_bytes)

    def count(self, operation: Operation, n_bytes: float, times: int) -> None:
        """Count `times` operations of this size, and those of them that are larger than what was measured."""
        self._calls[operation] += times
        if n_bytes > self._curve(operation).x[-1]:
            self._beyond[operation] += times

    def notes(self) -> tuple[str, ...]:
        """What was said of the tables, and how many operations were priced beyond the measured range."""
        return (() if self._note is None else (self._note,)) + tuple(
            f"{count} of {self._calls[name]} {name} of {self._n_ranks} ranks priced beyond the largest measured, "
            f"{self._curves[name].x[-1]:.0f} bytes"
            for name, count in sorted(self._beyond.items())
        )

    def _time_s(self, operation: Operation, n_bytes: Bytes) -> Floats:
        curve = self._curve(operation)
        return interpolate(curve.x, curve.time_s, _floats(n_bytes))

    def _curve(self, operation: Operation) -> Curve:
        if operation not in self._curves:
            accepted = f"measured with {self._n_ranks} ranks: {', '.join(sorted(self._curves))}"
            raise ProfileError(file=self._source, field="op", found=operation, accepted=accepted)
        return self._curves[operation]
