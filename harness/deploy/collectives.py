"""What an engine's devices take to talk: by its profile, by another's measured tables, or by the links between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.descriptions.cluster import InstanceSpec
from profiles.catalog import find_device
from profiles.profile import Profile
from simulator.network.collectives import CollectiveTimes, LinkCollectives, MeasuredCollectives, group_of
from simulator.network.nccl import NcclCollectives
from simulator.network.topology import Place, Topology
from traces.errors import InputError


def collectives_among(
    groups: Sequence[Sequence[Place]],
    spec: InstanceSpec,
    profile: Profile,
    topology: Topology | None,
    folders: Sequence[Path],
    *,
    sums: bool,
) -> CollectiveTimes:
    """Times among the devices of each group, where all groups exchange at once.

    Those that the profile measured with as many ranks are taken from it, others from the links, unless the description
    says which.

    Args:
        groups: of devices, equally many in each.
        spec: the engine.
        profile: of its device.
        topology: the links between devices; None: not described.
        folders: where devices are looked up.
        sums: whether anything is summed among them, which vLLM has a kernel for.

    Raises:
        InputError: links that are needed and not described, tables that lack the device or so many ranks, or vLLM's
            kernel switched off where nothing tells its times from NCCL's.
    """
    asked, (first, *others) = spec.collectives, groups
    measured = profile.collectives or {}
    by_profile = asked.source is None and any(len(first) in by_ranks for by_ranks in measured.values())
    kind = None if topology is None else topology.link_kind(first)
    by_kind = not by_profile and asked.source != "aiconfigurator" and kind is not None
    if asked.disable_custom_all_reduce and sums and not by_kind:
        field, accepted = "collectives.disable_custom_all_reduce", "false, unless `fabric.link` tells what sums take"
        raise InputError("has no effect", field=field, found=True, accepted=accepted)
    if by_profile:
        return MeasuredCollectives(measured, len(first), source=str(profile.path / "collectives.csv"))
    if asked.source == "aiconfigurator":
        from profiles.aiconfigurator import aiconfigurator_collectives, system_of

        system = system_of(find_device(spec.device, folders))
        curves, note = aiconfigurator_collectives(system, len(first))
        return MeasuredCollectives(curves, len(first), source=f"aiconfigurator's {system}", note=note)
    group = group_of(described(topology), first, others)
    if kind is None:
        return LinkCollectives(group)
    capability = find_device(spec.device, folders).compute_capability
    by_nccl_alone = asked.disable_custom_all_reduce or not sums
    return NcclCollectives(group, kind, capability, disable_custom_all_reduce=by_nccl_alone)


def described(topology: Topology | None) -> Topology:
    """The links. Raises InputError where there are none."""
    if topology is None:
        accepted = (
            "the links between devices, as fabric: {kind: switch, bandwidth_bytes_per_s: 450e9, latency_s: 2e-6}, "
            "perhaps with link: nvlink (docs/network.md); or a profile that measured collectives"
        )
        raise InputError("is missing", field="fabric", accepted=accepted)
    return topology
