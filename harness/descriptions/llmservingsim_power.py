"""The `power` section of a node in LLMServingSim's cluster JSON, read as it is.

Facts from its `serving/core/power_model.py`. Watts of one device, CPU, DIMM, link, NIC or drive each; `energy_per_bit`
in pJ. What its code adds to the file, and is not in it, is stated here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any

import msgspec

from profiles.device import Above0, DevicePower
from simulator.power.nodes import AtLeast0, HostPower, NodePower, PartPower
from traces.decoding import Document

PJ = 1e-12

BUSY_UTILISATION = 0.7
"""Share of the CPU that is used while a model runs, where the file states less (`max(0.7 - util, 0)` in its code)."""

Number = Annotated[int, msgspec.Meta(ge=0)]


class NpuPower(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device's levels."""

    idle_power: Above0
    standby_power: Above0
    active_power: Above0
    standby_duration: AtLeast0


class CpuPower(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The node's CPU: linear in its utilisation, which is `util` all the time, and more while a model runs."""

    idle_power: Above0
    active_power: Above0
    util: Annotated[float, msgspec.Meta(ge=0, le=1)]


class DramPower(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One DIMM of so many GB, and what a bit costs."""

    dimm_size: Above0
    idle_power: AtLeast0
    energy_per_bit: AtLeast0


class LinkPower(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One link, how many there are, and what a bit costs."""

    num_links: Number
    idle_power: AtLeast0
    energy_per_bit: AtLeast0


class NicPower(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One NIC, and how many there are."""

    num_nics: Number
    idle_power: AtLeast0


class StoragePower(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One drive, and how many there are."""

    num_devices: Number
    idle_power: AtLeast0


class Power(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section; its code reads every part without asking whether it is there, so that all are needed."""

    base_node_power: AtLeast0
    npu: dict[str, NpuPower]
    cpu: CpuPower
    dram: DramPower
    link: LinkPower
    nic: NicPower
    storage: StoragePower


@dataclass(frozen=True, slots=True)
class NodeSaid:
    """What a node says that bears on power: its section, the hardware of its instances, and `cpu_mem`."""

    power: Power | None
    hardware: tuple[str, ...]
    cpu_mem: dict[str, Any] | None


def powers_of(nodes: Sequence[NodeSaid], document: Document) -> tuple[tuple[NodePower, ...], tuple[str, ...]]:
    """What each node draws, and what a reader should know of it; nothing where no node says any.

    Raises InputError where some say it and some do not: its code then leaves power out without a word.
    """
    silent = [i for i, node in enumerate(nodes) if node.power is None]
    if len(silent) == len(nodes):
        return (), ()
    if silent:
        raise document.error(["nodes", silent[0], "power"], "is missing", accepted="power of every node, or of none")
    found = []
    for i, node in enumerate(nodes):
        assert node.power is not None
        memory = node.cpu_mem or {}
        size, computes = memory.get("mem_size"), "pim_config" in memory
        found.append(_node_power(node.power, node.hardware, size, ["nodes", i], document, computes=computes))
    busy = f"at least {BUSY_UTILISATION:.0%} of the CPU is used while a model runs: LLMServingSim's own figure"
    return tuple(found), (f"power: {busy}, which its files do not state",)


def _node_power(
    power: Power,
    hardware: Sequence[str],
    memory_gb: Any,
    at: Sequence[str | int],
    document: Document,
    *,
    computes: bool = False,
) -> NodePower:
    """A node's section as ours.

    Args:
        power: the section.
        hardware: of the node's instances.
        memory_gb: the node's `cpu_mem.mem_size`; None: not stated.
        at: where the node stands in the file.
        document: the file.
        computes: the memory has a `pim_config`: its channels stand in for DIMMs, and what they draw is near memory's.

    Raises:
        InputError: no levels for a device that is used, or DIMMs of a memory whose size is not stated.
    """
    for name in hardware:
        if name not in power.npu:
            accepted = f"levels of {name}, which is used here"
            raise document.error([*at, "power", "npu"], "does not have them", accepted=accepted)
    if not isinstance(memory_gb, int | float) or memory_gb <= 0:
        accepted = "a number above 0: it says how many DIMMs there are"
        raise document.error([*at, "cpu_mem", "mem_size"], accepted=accepted)
    cpu, dram, link = power.cpu, power.dram, power.link
    span_w = cpu.active_power - cpu.idle_power
    # A memory takes whole DIMMs; its code rounds down, to none for a memory smaller than one.
    dimms = ceil(memory_gb / dram.dimm_size)
    return NodePower(
        devices={name: _device(npu) for name, npu in power.npu.items()},
        host=HostPower(
            idle_w=cpu.idle_power + span_w * cpu.util,
            active_w=cpu.idle_power + span_w * max(cpu.util, BUSY_UTILISATION),
        ),
        dram=PartPower(idle_w=0.0 if computes else dimms * dram.idle_power, j_per_bit=dram.energy_per_bit * PJ),
        links=PartPower(idle_w=link.num_links * link.idle_power, j_per_bit=link.energy_per_bit * PJ),
        # It has one energy for whatever is sent, inside a node or between nodes.
        nic=PartPower(idle_w=power.nic.num_nics * power.nic.idle_power, j_per_bit=link.energy_per_bit * PJ),
        storage=PartPower(idle_w=power.storage.num_devices * power.storage.idle_power),
        base_w=power.base_node_power,
    )


def _device(npu: NpuPower) -> DevicePower:
    rests = not npu.standby_duration
    return DevicePower(
        idle_w=npu.idle_power,
        standby_w=None if rests else npu.standby_power,
        standby_s=None if rests else npu.standby_duration,
        active_w=npu.active_power,
    )
