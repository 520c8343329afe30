"""Times of collectives against sums made by hand, against messages in the network, and from tables."""

from __future__ import annotations

import math
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.profile import Curve
from profiles.profile_folder import read_collectives
from simulator.network.collectives import (
    CollectiveTimes,
    Hop,
    LinkCollectives,
    MeasuredCollectives,
    Operation,
    at_once,
    broadcast_s,
    group_of,
    ring_all_reduce_s,
    ring_pass_s,
    send_s,
    switched_group,
    traffic,
    tree_all_reduce_s,
)
from simulator.network.links import Link
from simulator.network.topology import FabricFile, InterNodeFile, NodeFile, Place, PortFile, Topology, TopologyFile
from simulator.network.transfers import Network
from traces.errors import InputError, ProfileError

GB = 1e9
US = 1e-6
SIZES = np.array([0.0, 16.0, 1e3, 1e5, 1e7, 1e9])
HOP = Hop(100 * GB, 2 * US)


def cluster(kind: str = "switch", nodes: int = 1, devices: int = 4, nics: int = 1) -> Topology:
    node = NodeFile(devices, FabricFile(kind, 100 * GB, 2 * US))  # type: ignore[arg-type]
    return Topology(TopologyFile((node,) * nodes, InterNodeFile("switch", 10 * GB, 5 * US, nics)))


# -- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "share"), [("bus", 2), ("switch", 1), ("full_mesh", 1), ("ring", 1)])
def test_groups_that_exchange_at_once_share_a_bus(kind: str, share: int) -> None:
    """Two pairs of four devices: on a bus each has half of it, elsewhere links of its own."""
    made, pairs = cluster(kind), [[Place(0, 0), Place(0, 1)], [Place(0, 2), Place(0, 3)]]
    alone, both = group_of(made, pairs[0]), group_of(made, pairs[0], pairs[1:])
    for one, other in ((alone.ring, both.ring), (alone.pair, both.pair)):
        assert other == Hop(one.bandwidth_bytes_per_s / share, one.latency_s)


def test_groups_that_exchange_at_once_share_the_nics_of_their_nodes() -> None:
    """Two groups over the same two nodes of a NIC each: half of it for each, and nodes of their own inside."""
    made = cluster("full_mesh", nodes=2)
    groups = [[Place(i, 2 * j + k) for i in range(2) for k in range(2)] for j in range(2)]
    alone, both = group_of(made, groups[0]), group_of(made, groups[0], groups[1:])
    assert alone.nodes is not None
    assert both.nodes is not None
    assert both.ring.bandwidth_bytes_per_s == alone.ring.bandwidth_bytes_per_s / 2
    assert both.nodes.between.bandwidth_bytes_per_s == alone.nodes.between.bandwidth_bytes_per_s / 2
    assert both.nodes.inside == alone.nodes.inside
    uneven = group_of(made, groups[0], [[Place(0, 2), Place(0, 3), Place(1, 2)]])
    assert uneven.nodes is None


@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_ring_sends_a_part_to_the_next_rank_each_step(n: int) -> None:
    times = LinkCollectives(switched_group(n, 100 * GB, 2 * US), algorithm="ring")
    step_s = 2 * US + SIZES / n / (100 * GB)
    assert times.all_reduce_s(SIZES) == pytest.approx(2 * (n - 1) * step_s)
    assert times.all_gather_s(SIZES) == pytest.approx((n - 1) * step_s)
    assert times.reduce_scatter_s(SIZES) == pytest.approx((n - 1) * step_s)


@pytest.mark.parametrize("n", [2, 3, 8, 64])
def test_large_messages_reach_the_bus_bandwidth_of_nccl_tests(n: int) -> None:
    """Its factors of algorithm bandwidth: 2 (n - 1) / n for all-reduce, (n - 1) / n for the others."""
    times, n_bytes = LinkCollectives(switched_group(n, 100 * GB, 2 * US)), 1e15
    share = (n - 1) / n
    assert n_bytes / times.all_reduce_s(n_bytes) * 2 * share == pytest.approx(100 * GB, rel=1e-4)
    for time_s in (times.all_gather_s(n_bytes), times.reduce_scatter_s(n_bytes), times.all_to_all_s(n_bytes)):
        assert n_bytes / time_s * share == pytest.approx(100 * GB, rel=1e-4)
    assert n_bytes / times.broadcast_s(n_bytes) == pytest.approx(100 * GB, rel=1e-3)


def test_the_two_trees_take_what_their_authors_say() -> None:
    """bytes * beta + 2 alpha log2 n + sqrt(8 alpha beta bytes log2 n), to reduce and again to broadcast."""
    n, n_bytes = 16, 1e9
    alpha, beta, levels = HOP.latency_s, 1 / HOP.bandwidth_bytes_per_s, math.log2(n)
    one_way_s = n_bytes * beta + 2 * alpha * levels + math.sqrt(8 * alpha * beta * n_bytes * levels)
    assert tree_all_reduce_s(n_bytes, n, HOP) == pytest.approx(2 * one_way_s)


def test_a_small_message_climbs_a_binomial_tree() -> None:
    assert tree_all_reduce_s(16, 8, HOP) == pytest.approx(2 * 3 * (2 * US + 16 / (100 * GB)))
    assert tree_all_reduce_s(16, 5, HOP) == pytest.approx(2 * 3 * (2 * US + 16 / (100 * GB)))


def test_a_broadcast_is_pipelined() -> None:
    """To one rank it is a message; down a long ring of large messages, the sum of its square roots, squared."""
    assert broadcast_s(1e6, 2, HOP) == pytest.approx(2 * US + 1e-5)
    alone_s, ahead_s = 1e9 / (100 * GB), 6 * 2 * US
    assert broadcast_s(1e9, 8, HOP) == pytest.approx((math.sqrt(alone_s) + math.sqrt(ahead_s)) ** 2)
    assert broadcast_s(1e9, 8, Hop(100 * GB, 0.0)) == pytest.approx(alone_s)


def test_trees_win_small_and_rings_win_large() -> None:
    group = switched_group(16, 100 * GB, 2 * US)
    ring, tree = (LinkCollectives(group, algorithm=a).all_reduce_s(SIZES) for a in ("ring", "tree"))  # type: ignore[arg-type]
    assert tree[1] < ring[1]
    assert ring[-1] < tree[-1]
    assert LinkCollectives(group).all_reduce_s(SIZES) == pytest.approx(np.minimum(ring, tree))


def test_sending_is_the_path_alone() -> None:
    path = (Link("a", 2 * GB, 1 * US), Link("b", 1 * GB, 3 * US))
    assert send_s(np.array([0.0, 1e9]), path) == pytest.approx([4 * US, 1 + 4 * US])


def test_a_rank_alone_takes_no_time() -> None:
    times = LinkCollectives(switched_group(1, 100 * GB, 2 * US))
    for operation in (times.all_reduce_s, times.all_gather_s, times.all_to_all_s, times.broadcast_s):
        assert operation(SIZES).tolist() == [0.0] * len(SIZES)


@given(
    n=st.integers(1, 64),
    n_bytes=st.lists(st.integers(0, 10**12), min_size=2, max_size=5),
    bandwidth=st.floats(1e6, 1e12),
    latency_s=st.floats(0, 1e-3),
    algorithm=st.sampled_from(["fastest", "ring", "tree"]),
)
def test_times_grow_with_bytes_and_never_beat_the_lower_bound(
    n: int, n_bytes: list[int], bandwidth: float, latency_s: float, algorithm: str
) -> None:
    """Each rank has to send 2 (n - 1) / n of the bytes for an all-reduce, (n - 1) / n for the others."""
    times = LinkCollectives(switched_group(n, bandwidth, latency_s), algorithm=algorithm)  # type: ignore[arg-type]
    sizes = np.sort(n_bytes)
    bound_s = (n - 1) / n * sizes / bandwidth
    for time_s, least_s in (
        (times.all_reduce_s(sizes), 2 * bound_s),
        (times.all_gather_s(sizes), bound_s),
        (times.reduce_scatter_s(sizes), bound_s),
        (times.all_to_all_s(sizes), bound_s),
    ):
        assert (np.diff(time_s) >= -1e-12 * time_s[1:]).all()
        assert (time_s >= least_s * (1 - 1e-12)).all()


# -- groups on a topology --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "ring", "pair"), [("switch", 100, 100 / 3), ("full_mesh", 100, 100), ("bus", 25, 100 / 12)]
)
def test_messages_at_once_share_links(kind: str, ring: float, pair: float) -> None:
    """Four ranks: on a switch each has its links to itself, three messages on each when all send to all."""
    topology = cluster(kind)
    group = group_of(topology, topology.places)
    assert group.ring == Hop(pytest.approx(ring * GB), pytest.approx(2 * US))
    assert group.pair == Hop(pytest.approx(pair * GB), pytest.approx(2 * US))


@pytest.mark.parametrize("kind", ["switch", "full_mesh", "ring", "bus"])
@pytest.mark.parametrize("nodes", [1, 3])
def test_messages_at_once_end_as_they_do_in_the_network(kind: str, nodes: int) -> None:
    """A step of a ring and an exchange of all with all, message by message."""
    topology = cluster(kind, nodes)
    places = topology.places
    ring = [topology.path(a, b) for a, b in pairwise([*places, places[0]])]
    for paths in (ring, [topology.path(a, b) for a, b in permutations(places, 2)]):
        network, n_bytes = Network(), 1e9  # large, so that latencies that differ hardly count
        for path in paths:
            network.start(path, n_bytes, 0.0)
        last_s = max(t.end_s or 0.0 for t in network.advance(math.inf))
        assert at_once(paths).time_s(np.array(n_bytes)) == pytest.approx(last_s, rel=1e-4)


@pytest.mark.parametrize("operation", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
def test_its_traffic_takes_the_time_of_the_operation(operation: Operation) -> None:
    """Started as transfers, the bytes of an operation end when its formula says, but for latencies."""
    topology, network = cluster("full_mesh"), Network()
    for path, n_bytes in traffic(topology, topology.places, operation, 1e10):
        network.start(path, n_bytes, 0.0)
    last_s = max(t.end_s or 0.0 for t in network.advance(math.inf))
    times = LinkCollectives(group_of(topology, topology.places), algorithm="ring")
    assert last_s == pytest.approx(float(getattr(times, f"{operation}_s")(1e10)), rel=1e-3)


def test_a_group_over_nodes_reduces_inside_first() -> None:
    """Two nodes of four, one NIC: four rings between the nodes share it."""
    topology = cluster(nodes=2)
    group = group_of(topology, topology.places)
    assert group.nodes is not None
    assert group.nodes.between == Hop(pytest.approx(10 / 4 * GB), pytest.approx(5 * US))
    inside_s = ring_all_reduce_s(SIZES, 4, Hop(100 * GB, 2 * US))
    between_s = ring_all_reduce_s(SIZES / 4, 2, Hop(2.5 * GB, 5 * US))
    times = LinkCollectives(group, algorithm="hierarchical")
    assert times.all_reduce_s(SIZES)[-1] == pytest.approx(inside_s[-1] + between_s[-1])
    half_s = ring_pass_s(SIZES, 4, Hop(100 * GB, 2 * US)) + ring_pass_s(SIZES / 4, 2, Hop(2.5 * GB, 5 * US))
    assert times.all_gather_s(SIZES) == pytest.approx(half_s)
    assert times.reduce_scatter_s(SIZES) == pytest.approx(half_s)


def test_more_nics_make_it_faster_between_nodes() -> None:
    one, four = (cluster(nodes=2, nics=nics) for nics in (1, 4))
    slow, fast = (LinkCollectives(group_of(t, t.places)).all_reduce_s(SIZES) for t in (one, four))
    assert (fast[1:] < slow[1:]).all()


@pytest.mark.parametrize(
    "places",
    [
        [Place(0, 0), Place(0, 1)],  # one node
        [Place(0, 0), Place(1, 0)],  # one in each
        [Place(0, 0), Place(0, 1), Place(1, 0)],  # unevenly spread
    ],
)
def test_other_groups_have_no_hierarchy(places: list[Place]) -> None:
    group = group_of(cluster(nodes=2), places)
    assert group.nodes is None
    with pytest.raises(InputError, match="field 'algorithm': found 'hierarchical'"):
        LinkCollectives(group, algorithm="hierarchical")


def test_a_device_is_in_a_group_once() -> None:
    with pytest.raises(InputError, match="names a device twice"):
        group_of(cluster(), [Place(0, 0), Place(0, 0)])


def test_a_note_says_that_nothing_was_measured() -> None:
    (note,) = LinkCollectives(switched_group(4, 100 * GB, 2 * US)).notes()
    assert note.startswith("collectives of 4 ranks are not measured: fastest all-reduce, 100 GB/s and 2 us from rank")


# -- measured tables -------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path: Path) -> MeasuredCollectives:
    file = tmp_path / "collectives.csv"
    file.write_text("op,ranks,bytes,time_us\nall_reduce,4,1024,20\nall_reduce,4,4096,50\nall_reduce,2,1024,10\n")
    return MeasuredCollectives(read_collectives(file), 4, source=str(file))


def test_between_measured_sizes_it_is_linear(measured: CollectiveTimes) -> None:
    times_s = measured.all_reduce_s([0, 1024, 2560, 4096, 7168])
    assert times_s == pytest.approx(np.array([20, 20, 35, 50, 80]) * US)
    assert measured.all_reduce_s(2560.0).shape == ()


def test_what_is_beyond_the_largest_size_is_counted(measured: CollectiveTimes) -> None:
    measured.count("all_reduce", 4096, 5)
    assert measured.notes() == ()
    measured.count("all_reduce", 4097, 3)
    assert measured.notes() == ("3 of 8 all_reduce of 4 ranks priced beyond the largest measured, 4096 bytes",)


def test_what_was_not_measured_is_refused(measured: CollectiveTimes) -> None:
    with pytest.raises(ProfileError, match=r"collectives.csv: field 'op': found 'all_gather': .* 4 ranks: all_reduce"):
        measured.all_gather_s(1024)
    curve = Curve(np.array([8.0]), np.array([1e-6]))
    with pytest.raises(ProfileError, match="field 'ranks': found 8: accepted: a measured number: 2, 4"):
        MeasuredCollectives({"all_reduce": {2: curve, 4: curve}}, 8, source="collectives.csv")


def test_a_formula_interpolates_between_its_own_points_as_a_table() -> None:
    """A table made of a ring's own times gives them back between the points: linear is exact for alpha and beta."""
    formula = LinkCollectives(switched_group(4, 100 * GB, 2 * US), algorithm="ring")
    sizes = 1024 * 4.0 ** np.arange(8)
    table = MeasuredCollectives({"all_reduce": {4: Curve(sizes, formula.all_reduce_s(sizes))}}, 4, source="made")
    between = sizes[:-1] * 2.0
    assert table.all_reduce_s(between) == pytest.approx(formula.all_reduce_s(between))


def test_both_kinds_have_one_interface() -> None:
    topology = Topology(TopologyFile((NodeFile(2, host_port=PortFile(32 * GB, 1 * US)),)))
    kinds: list[CollectiveTimes] = [
        LinkCollectives(group_of(topology, topology.places)),
        MeasuredCollectives({"all_reduce": {2: Curve(np.array([8.0]), np.array([1e-6]))}}, 2, source="made"),
    ]
    assert [float(kind.all_reduce_s(8)) > 0 for kind in kinds] == [True, True]
