"""Links and paths of described clusters."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path as FilePath

import pytest

from simulator.network.links import Path
from simulator.network.topology import (
    FabricFile,
    InterNodeFile,
    MemoryFile,
    NodeFile,
    Place,
    PortFile,
    Topology,
    TopologyFile,
    llmservingsim_memory,
    llmservingsim_topology,
    ring_way,
)
from simulator.network.transfers import Network
from traces.decoding import decode_yaml
from traces.errors import InputError

GB = 1e9
US = 1e-6
PCIE = PortFile(32 * GB, 1 * US)
SWITCH = InterNodeFile("switch", 50 * GB, 4 * US)


def one_node(kind: str, devices: int = 4) -> Topology:
    return Topology(TopologyFile((NodeFile(devices, FabricFile(kind, 100 * GB, 2 * US)),)))  # type: ignore[arg-type]


def names(path: Path) -> list[str]:
    return [link.name for link in path]


def latency_s(path: Path) -> float:
    return sum(link.latency_s for link in path)


@pytest.mark.parametrize(
    ("kind", "crossed"),
    [
        ("full_mesh", ["node0.dev0>dev2"]),
        ("switch", ["node0.dev0.up", "node0.dev2.down"]),
        ("ring", ["node0.dev0>dev1", "node0.dev1>dev2"]),
        ("bus", ["node0.bus"]),
    ],
)
def test_each_fabric_has_its_path(kind: str, crossed: list[str]) -> None:
    path = one_node(kind).path(Place(0, 0), Place(0, 2))
    assert names(path) == crossed
    assert {link.bandwidth_bytes_per_s for link in path} == {100 * GB}
    assert latency_s(path) == pytest.approx(2 * US * (2 if kind == "ring" else 1))


@pytest.mark.parametrize("kind", ["full_mesh", "switch", "ring", "bus"])
def test_all_pairs_are_tied_by_simple_paths_over_links_made_once(kind: str) -> None:
    topology = one_node(kind, 5)
    paths = {(a, b): topology.path(a, b) for a, b in product(topology.places, repeat=2)}
    for (a, b), path in paths.items():
        assert bool(path) == (a != b)
        assert len(set(path)) == len(path)
        assert topology.path(a, b) == path
    n_links = {"full_mesh": 5 * 4, "switch": 2 * 5, "ring": 2 * 5, "bus": 1}
    assert len(topology.links) == n_links[kind]


def test_a_ring_goes_the_shorter_way() -> None:
    assert ring_way(5, 0, 2) == [(0, 1), (1, 2)]
    assert ring_way(5, 0, 3) == [(0, 4), (4, 3)]
    assert ring_way(4, 1, 3) == [(1, 2), (2, 3)]  # both ways are equally long
    assert ring_way(2, 1, 0) == [(1, 0)]


def test_without_a_fabric_devices_meet_over_their_host_ports() -> None:
    """So that messages between devices and KV blocks on their way to the host share the same links."""
    topology = Topology(TopologyFile((NodeFile(2, host_port=PCIE),)))
    a, b = topology.places
    assert names(topology.path(a, b)) == ["node0.dev0.host_up", "node0.dev1.host_down"]
    assert set(topology.path(a, b)) & set(topology.to_host(a))


def test_between_nodes_a_path_goes_from_nic_to_nic() -> None:
    node = NodeFile(4, FabricFile("switch", 100 * GB, 2 * US))
    two_nics = InterNodeFile("switch", 50 * GB, 4 * US, nics_per_node=2)
    path = Topology(TopologyFile((node, node), two_nics)).path(Place(0, 3), Place(1, 2))
    assert names(path) == ["node0.nic1.up", "node1.nic0.down"]
    assert latency_s(path) == pytest.approx(4 * US)
    mesh = Topology(TopologyFile((node, node, node), InterNodeFile("full_mesh", 50 * GB, 4 * US)))
    assert names(mesh.path(Place(2, 3), Place(1, 2))) == ["node2.nic0>node1.nic0"]


def test_devices_share_the_memory_of_their_host_and_not_their_ports() -> None:
    topology = Topology(TopologyFile((NodeFile(2, host_port=PCIE, host_memory=MemoryFile(40 * GB, 0)),)))
    network, (a, b) = Network(), topology.places
    network.start(topology.to_host(a), 40 * GB, 0.0)
    network.start(topology.from_host(b), 40 * GB, 0.0)
    assert [t.end_s for t in network.advance(math.inf)] == pytest.approx([2.0 + 1 * US] * 2)
    assert {link.name for link in topology.links} == {"node0.dev0.host_up", "node0.host_memory", "node0.dev1.host_down"}


def test_cxl_devices_are_reached_through_the_port_by_all() -> None:
    node = NodeFile(1, host_port=PCIE)
    topology = Topology(TopologyFile((node, node), SWITCH, (MemoryFile(60 * GB, 0.25 * US),) * 2))
    assert names(topology.to_cxl(Place(1, 0), 1)) == ["node1.dev0.host_up", "cxl1"]
    assert names(topology.from_cxl(0, Place(0, 0))) == ["cxl0", "node0.dev0.host_down"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (TopologyFile((NodeFile(2),)), r"field 'nodes\[0\]': nothing ties 2 devices together.*host_port"),
        (TopologyFile((NodeFile(1), NodeFile(1))), "field 'inter_node': is missing: accepted: what ties 2 nodes"),
    ],
)
def test_what_is_not_tied_together_is_refused(file: TopologyFile, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Topology(file)


def test_what_is_not_there_is_refused() -> None:
    topology = Topology(TopologyFile((NodeFile(1), NodeFile(2, host_port=PCIE)), SWITCH))
    with pytest.raises(InputError, match=r"found '2 of node 1': accepted: .* which have 1, 2"):
        topology.path(Place(0, 0), Place(1, 2))
    with pytest.raises(InputError, match=r"field 'nodes\[0\]': describes no way to the host's memory"):
        topology.to_host(Place(0, 0))
    with pytest.raises(InputError, match="field 'cxl_devices': found 0"):
        topology.to_cxl(Place(0, 0), 0)


def test_only_a_mesh_or_a_switch_of_one_node_connects_each_with_each() -> None:
    for kind, expected in {"full_mesh": True, "switch": True, "ring": False, "bus": False}.items():
        topology = one_node(kind)
        assert topology.is_fully_connected(topology.places) is expected
    assert not Topology(TopologyFile((NodeFile(2, host_port=PCIE),))).is_fully_connected([Place(0, 0), Place(0, 1)])
    nodes = Topology(TopologyFile((NodeFile(2, FabricFile("switch", GB, 0)),) * 2, SWITCH))
    assert not nodes.is_fully_connected([Place(0, 0), Place(1, 0)])


def test_a_description_is_read_from_yaml(tmp_path: FilePath) -> None:
    file = tmp_path / "topology.yaml"
    text = """
nodes:
- {devices: 8, fabric: {kind: switch, bandwidth_bytes_per_s: 450e9, latency_s: 2e-6}}
- {devices: 1, host_port: {bandwidth_bytes_per_s: 25e9, latency_s: 1e-6}}
inter_node: {kind: switch, bandwidth_bytes_per_s: 50e9, latency_s: 4e-6, nics_per_node: 8}
"""
    file.write_text(text)
    assert len(Topology(decode_yaml(file, TopologyFile)).places) == 9
    file.write_text(text.replace("kind: switch, bandwidth_bytes_per_s: 450e9", "kind: torus, bandwidth_bytes_per_s: 1"))
    with pytest.raises(InputError, match=r"topology.yaml:3: field 'nodes\[0\].fabric.kind'"):
        decode_yaml(file, TopologyFile)


# -- LLMServingSim's cluster files -----------------------------------------------------------------------------------


def test_one_value_holds_for_every_pair() -> None:
    """Their GB of a link are 2**30 bytes."""
    topology = Topology(llmservingsim_topology([2, 1], [3], 16, 20000))
    for a, b in ((Place(0, 0), Place(0, 1)), (Place(0, 1), Place(1, 0))):
        (link,) = topology.path(a, b)
        assert (link.bandwidth_bytes_per_s, link.latency_s) == (16 * 2**30, pytest.approx(20 * US))


def test_a_list_is_for_inside_and_between_nodes() -> None:
    """dual_node_moe_dp_ep_intra_inter_instance.json: two nodes of two devices, dimensions [tp, dp]."""
    topology = Topology(llmservingsim_topology([2, 2], [2, 2], [128, 16], [500, 20000]))
    (inside,) = topology.path(Place(1, 0), Place(1, 1))
    between = {topology.path(Place(0, a), Place(1, b)) for a, b in product(range(2), repeat=2)}
    assert (inside.bandwidth_bytes_per_s, inside.latency_s) == (128 * 2**30, pytest.approx(0.5 * US))
    assert {(path[0].bandwidth_bytes_per_s, round(path[0].latency_s / US, 9)) for path in between} == {(16 * 2**30, 20)}
    assert len(between) == 4  # each pair has a link of its own


def test_dimensions_of_one_value_and_of_one_device_are_one() -> None:
    three = llmservingsim_topology([4, 4], [2, 2, 2], [900, 900, 100], [0, 0, 20000])
    assert three == llmservingsim_topology([4, 4], [4, 2], [900, 100], [0, 20000])
    assert llmservingsim_topology([2], [1, 2], [900, 100], 5) == llmservingsim_topology([2], [2], 100, 5)
    alone = Topology(llmservingsim_topology([1], [1], 16, 0, [llmservingsim_memory(256, 100)]))
    (memory,) = alone.to_host(Place(0, 0))
    assert (memory.bandwidth_bytes_per_s, memory.latency_s) == (256 * GB, pytest.approx(1e-7))


@pytest.mark.parametrize(
    ("devices_per_node", "dims", "link_bw", "message"),
    [
        ([4], [2, 2], [900, 100], "field 'link_bw, link_latency': found .* another for between nodes"),
        ([2, 2, 2, 2], [2, 2, 2], [900, 100, 10], "field 'link_bw, link_latency'"),
        ([4], [4], [900, 100], r"field 'link_bw': found \[900, 100\]: accepted: one value, or one for each of 1"),
        ([4], [2], 900, r"field 'dims': found \[2\]: accepted: dimensions of 4 devices"),
    ],
)
def test_other_lists_are_refused(devices_per_node: list[int], dims: list[int], link_bw: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        llmservingsim_topology(devices_per_node, dims, link_bw, 0)  # type: ignore[arg-type]
