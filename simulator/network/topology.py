"""Where devices, hosts and memories are, and the links between them.

A description says how devices are tied together inside a node, how nodes are, and through what devices reach the
memories of hosts and of a CXL pool. A topology makes the links of it, each once, and answers with paths; it knows
neither what is sent nor when.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Annotated, Literal, NamedTuple

import msgspec

from profiles.device import Bandwidth, Latency
from simulator.network.links import Link, Path
from traces.errors import InputError

Count = Annotated[int, msgspec.Meta(ge=1)]
LinkKind = Literal["nvlink", "pcie"]


class FabricFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ties a node's devices together.

    `full_mesh`: a link from each device to each other one. `switch`: each device has a link up into a switch that never
    blocks, and one down. `ring`: links both ways between neighbours; the shorter way is taken, upward when both are
    equal. `bus`: one link that all share, in both directions together.

    Attributes:
        kind: one of these.
        bandwidth_bytes_per_s: of each link.
        latency_s: from a device to a neighbour; a switch's two links have half of it each.
        link: what the links are, by which NVIDIA's collectives take as long as NCCL predicts
            (`simulator.network.nccl`); None: as long as these figures say.
    """

    kind: Literal["full_mesh", "switch", "ring", "bus"]
    bandwidth_bytes_per_s: Bandwidth
    latency_s: Latency
    link: LinkKind | None = None


class InterNodeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ties nodes together.

    `switch`: each NIC has a link up into a switch that never blocks, and one down. `full_mesh`: a link from each NIC to
    each NIC of other nodes.

    Attributes:
        kind: one of these.
        bandwidth_bytes_per_s: of each link.
        latency_s: from a node to another; a switch's two links have half of it each.
        nics_per_node: NICs of a node, with links of their own; device i uses NIC i modulo their number.
    """

    kind: Literal["switch", "full_mesh"]
    bandwidth_bytes_per_s: Bandwidth
    latency_s: Latency
    nics_per_node: Count = 1


class PortFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device's way to its host, such as PCIe: a link up, to the host, and one down, of these figures each."""

    bandwidth_bytes_per_s: Bandwidth
    latency_s: Latency


class MemoryFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A memory beside the devices': one link that all its readers and writers share."""

    bandwidth_bytes_per_s: Bandwidth
    latency_s: Latency


class NodeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A host with devices.

    Attributes:
        devices: how many.
        fabric: what ties them together; None: they reach each other over their host ports.
        host_port: each device's way to the host; None: the host's memory and CXL devices are the only limit.
        host_memory: the host's memory; None: what is sent to the host is limited by the port alone.
    """

    devices: Count
    fabric: FabricFile | None = None
    host_port: PortFile | None = None
    host_memory: MemoryFile | None = None


class TopologyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cluster's links.

    Attributes:
        nodes: at least one.
        inter_node: what ties them together; None where there is but one.
        cxl_devices: memories that all devices of all nodes reach, each through its host port where it has one.
    """

    nodes: Annotated[tuple[NodeFile, ...], msgspec.Meta(min_length=1)]
    inter_node: InterNodeFile | None = None
    cxl_devices: tuple[MemoryFile, ...] = ()


class Place(NamedTuple):
    """A device: its node, and its number there, both from 0."""

    node: int
    device: int


class Topology:
    """A described cluster's links, and the paths over them."""

    def __init__(self, file: TopologyFile) -> None:
        """Raise InputError, naming the field, where devices or nodes have no way to each other."""
        for i, node in enumerate(file.nodes):
            if node.devices > 1 and node.fabric is None and node.host_port is None:
                accepted = "a fabric, or a host_port that takes its place"
                raise InputError(f"nothing ties {node.devices} devices together", field=_at(i), accepted=accepted)
        if len(file.nodes) > 1 and file.inter_node is None:
            raise InputError("is missing", field="inter_node", accepted=f"what ties {len(file.nodes)} nodes together")
        self._file = file
        self._links: dict[str, Link] = {}

    @property
    def places(self) -> tuple[Place, ...]:
        """Every device, node by node."""
        return tuple(Place(i, j) for i, node in enumerate(self._file.nodes) for j in range(node.devices))

    @property
    def links(self) -> tuple[Link, ...]:
        """The links that paths were asked for, in that order."""
        return tuple(self._links.values())

    def path(self, source: Place, target: Place) -> Path:
        """From a device to a device; () from one to itself. Raises InputError for a device that does not exist."""
        self._node(source)
        self._node(target)
        if source.node != target.node:
            return self._between_nodes(source, target)
        return () if source == target else self._inside(source.node, source.device, target.device)

    @property
    def has_nics(self) -> bool:
        """Whether each node has NICs with a link up into a switch and one down, whatever they are sent to."""
        return self._file.inter_node is not None and self._file.inter_node.kind == "switch"

    def nic(self, place: Place) -> tuple[Link, Link]:
        """A device's NIC: the link up into the switch between nodes, and the one down; there must be one."""
        self._node(place)
        between = self._file.inter_node
        assert between is not None
        at = f"node{place.node}.nic{place.device % between.nics_per_node}"
        figures = between.bandwidth_bytes_per_s, between.latency_s / 2
        return self._link(f"{at}.up", *figures), self._link(f"{at}.down", *figures)

    def to_host(self, source: Place) -> Path:
        """From a device to its host's memory. Raises InputError where the node describes no way there."""
        return self._up(source) + self._host_memory(source)

    def from_host(self, target: Place) -> Path:
        """From its host's memory to a device. Raises InputError as `to_host` does."""
        return self._host_memory(target) + self._down(target)

    def to_cxl(self, source: Place, number: int) -> Path:
        """From a device to a CXL device. Raises InputError for one that does not exist."""
        return (*self._up(source), self._cxl(number))

    def from_cxl(self, number: int, target: Place) -> Path:
        """From a CXL device to a device. Raises InputError for one that does not exist."""
        return (self._cxl(number), *self._down(target))

    def is_fully_connected(self, places: Sequence[Place]) -> bool:
        """Whether these are devices of one node, each with a way to each other that no third one is on.

        True of a full mesh and of a switch. vLLM asks NVML the same of NVLinks.
        """
        fabric = self._fabric_of(places)
        return fabric is not None and fabric.kind in ("full_mesh", "switch")

    def link_kind(self, places: Sequence[Place]) -> LinkKind | None:
        """What ties these devices to each other; None: they are not of one node, or it is not described."""
        fabric = self._fabric_of(places)
        return None if fabric is None else fabric.link

    def _fabric_of(self, places: Sequence[Place]) -> FabricFile | None:
        """What ties these devices of one node; None where they are of several."""
        node = self._node(places[0])
        return node.fabric if all(place.node == places[0].node for place in places) else None

    def _node(self, place: Place) -> NodeFile:
        nodes = self._file.nodes
        if not (0 <= place.node < len(nodes) and 0 <= place.device < nodes[place.node].devices):
            sizes = ", ".join(str(node.devices) for node in nodes)
            accepted = f"a device of the nodes described, which have {sizes}"
            raise InputError(field="device", found=f"{place.device} of node {place.node}", accepted=accepted)
        return nodes[place.node]

    def _link(self, name: str, bandwidth_bytes_per_s: float, latency_s: float) -> Link:
        """The link of this name, made when it is first asked for."""
        if name not in self._links:
            self._links[name] = Link(name, bandwidth_bytes_per_s, latency_s)
        return self._links[name]

    def _inside(self, number: int, source: int, target: int) -> Path:
        """Between two devices of a node."""
        node, at = self._file.nodes[number], f"node{number}"
        fabric = node.fabric
        if fabric is None:
            return self._up(Place(number, source)) + self._down(Place(number, target))
        bandwidth, latency_s = fabric.bandwidth_bytes_per_s, fabric.latency_s
        match fabric.kind:
            case "full_mesh":
                return (self._link(f"{at}.dev{source}>dev{target}", bandwidth, latency_s),)
            case "switch":
                up = self._link(f"{at}.dev{source}.up", bandwidth, latency_s / 2)
                return (up, self._link(f"{at}.dev{target}.down", bandwidth, latency_s / 2))
            case "ring":
                hops = ring_way(node.devices, source, target)
                return tuple(self._link(f"{at}.dev{i}>dev{j}", bandwidth, latency_s) for i, j in hops)
            case "bus":
                return (self._link(f"{at}.bus", bandwidth, latency_s),)

    def _between_nodes(self, source: Place, target: Place) -> Path:
        """From a device's NIC to another's. The NIC is taken to be the limit: the way to it has no link of its own."""
        between = self._file.inter_node
        assert between is not None
        bandwidth, latency_s = between.bandwidth_bytes_per_s, between.latency_s
        out, into = (f"node{place.node}.nic{place.device % between.nics_per_node}" for place in (source, target))
        if between.kind == "full_mesh":
            return (self._link(f"{out}>{into}", bandwidth, latency_s),)
        return self.nic(source)[0], self.nic(target)[1]

    def _up(self, place: Place) -> Path:
        return self._port(place, "host_up")

    def _down(self, place: Place) -> Path:
        return self._port(place, "host_down")

    def _port(self, place: Place, name: str) -> Path:
        """A device's link to or from its host; () where none is described."""
        port = self._node(place).host_port
        if port is None:
            return ()
        at = f"node{place.node}.dev{place.device}.{name}"
        return (self._link(at, port.bandwidth_bytes_per_s, port.latency_s),)

    def _host_memory(self, place: Place) -> Path:
        node = self._node(place)
        if node.host_memory is None:
            if node.host_port is None:
                accepted = "a host_port or a host_memory"
                raise InputError("describes no way to the host's memory", field=_at(place.node), accepted=accepted)
            return ()
        memory = node.host_memory
        return (self._link(f"node{place.node}.host_memory", memory.bandwidth_bytes_per_s, memory.latency_s),)

    def _cxl(self, number: int) -> Link:
        memories = self._file.cxl_devices
        if not 0 <= number < len(memories):
            raise InputError(field="cxl_devices", found=number, accepted=f"0 to {len(memories) - 1}")
        return self._link(f"cxl{number}", memories[number].bandwidth_bytes_per_s, memories[number].latency_s)


def ring_way(n_devices: int, source: int, target: int) -> list[tuple[int, int]]:
    """Hops of the shorter way round a ring, upward when both ways are equally long."""
    upward = (target - source) % n_devices
    step = 1 if upward <= n_devices - upward else -1
    places = [(source + step * i) % n_devices for i in range(min(upward, n_devices - upward) + 1)]
    return list(pairwise(places))


def _at(node: int) -> str:
    return f"nodes[{node}]"


# -- LLMServingSim 2.0 (serving/core/config_builder.py; ASTRA-sim's network_analytical) ------------------------------

LINK_GB = 2**30
"""Bytes of a GB of `link_bw` (ASTRA-sim network_analytical, common/NetworkFunction.cc: "1 GB is 2^30 B")."""
MEMORY_GB = 10**9
"""Bytes of a GB of `mem_bw`: a GB/s is a byte per nanosecond."""
NS = 1e-9


def llmservingsim_topology(
    devices_per_node: Sequence[int],
    dims: Sequence[int],
    link_bw: float | Sequence[float],
    link_latency: float | Sequence[float],
    host_memories: Sequence[MemoryFile | None] = (),
    cxl_devices: tuple[MemoryFile, ...] = (),
) -> TopologyFile:
    """The links of a LLMServingSim cluster: between any two devices one of their own, each way.

    Those of a pair that differs in several dimensions are of the outermost; ASTRA-sim takes the innermost
    (MultiDimTopology.cc), so that a transfer between nodes could go over a link inside one.

    Args:
        devices_per_node: of each node.
        dims: devices along each dimension, innermost first; their product is the number of devices.
        link_bw: GB/s (2**30 bytes) of each link, of all dimensions or one for each.
        link_latency: ns, likewise.
        host_memories: `cpu_mem` of each node; () when it is not to be used.
        cxl_devices: as many as `cxl_mem.num_devices`.

    Raises:
        InputError: lists that are not one value for each dimension, or whose values change anywhere but between nodes;
            dimensions of another number of devices.
    """
    if prod(dims) != sum(devices_per_node):
        raise InputError(field="dims", found=list(dims), accepted=f"dimensions of {sum(devices_per_node)} devices")
    speeds = _per_dimension(link_bw, len(dims), "link_bw")
    latencies = _per_dimension(link_latency, len(dims), "link_latency")
    levels: list[tuple[int, float, float]] = []
    for size, speed, latency in zip(dims, speeds, latencies, strict=True):
        if size > 1 and levels and levels[-1][1:] == (speed, latency):
            levels[-1] = (levels[-1][0] * size, speed, latency)
        elif size > 1:
            levels.append((size, speed, latency))
    inside = levels[0] if levels else (1, speeds[0], latencies[0])
    if len(levels) > 2 or (len(levels) == 2 and any(devices != inside[0] for devices in devices_per_node)):
        accepted = "one value, or one for inside a node and another for between nodes"
        raise InputError(field="link_bw, link_latency", found=(link_bw, link_latency), accepted=accepted)
    between = levels[-1] if levels else inside
    fabric = FabricFile("full_mesh", inside[1] * LINK_GB, inside[2] * NS)
    memories = host_memories or [None] * len(devices_per_node)
    return TopologyFile(
        nodes=tuple(
            NodeFile(devices, fabric if devices > 1 else None, host_memory=memory)
            for devices, memory in zip(devices_per_node, memories, strict=True)
        ),
        inter_node=InterNodeFile("full_mesh", between[1] * LINK_GB, between[2] * NS, max(devices_per_node))
        if len(devices_per_node) > 1
        else None,
        cxl_devices=cxl_devices,
    )


def llmservingsim_memory(mem_bw: float, mem_latency: float) -> MemoryFile:
    """A `cpu_mem` or a device of `cxl_mem`, of so many GB/s (10**9 bytes) and ns."""
    return MemoryFile(mem_bw * MEMORY_GB, mem_latency * NS)


def _per_dimension(value: float | Sequence[float], n_dims: int, field: str) -> list[float]:
    if isinstance(value, (int, float)):
        return [float(value)] * n_dims
    if len(value) != n_dims:
        raise InputError(field=field, found=list(value), accepted=f"one value, or one for each of {n_dims} dimensions")
    return [float(part) for part in value]
