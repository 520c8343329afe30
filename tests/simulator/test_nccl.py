"""NCCL's own model and vLLM's kernel: against sums made by hand, vLLM's rules, and times that others measured."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.network.collectives import Group, Hop, LinkCollectives, group_of, switched_group
from simulator.network.nccl import (
    KERNEL_BYTES,
    KERNEL_SHARE,
    KERNEL_SHOT_S,
    NcclCollectives,
    kernel_s,
    kernel_shots,
    kernel_sums,
)
from simulator.network.topology import FabricFile, InterNodeFile, LinkKind, NodeFile, Place, Topology, TopologyFile
from tests.benchmarks.collectives import SYSTEMS, System, errors, kernel_errors, kernel_fit
from traces.errors import InputError

GB, US, KIB, MIB = 1e9, 1e-6, 1024.0, 1024.0**2
HOPPER = 450 * GB


def hopper(ranks: int, disable_custom_all_reduce: bool = True) -> NcclCollectives:
    group = switched_group(ranks, HOPPER, 0.0)
    return NcclCollectives(group, "nvlink", "9.0", disable_custom_all_reduce=disable_custom_all_reduce)


# -- NCCL ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "steps"), [(2, 2), (4, 6), (8, 14)])
def test_a_small_sum_is_a_call_and_its_steps(ranks: int, steps: int) -> None:
    assert hopper(ranks).all_reduce_s(0.0) == pytest.approx(6.6 * US + steps * 0.6 * US)
    assert hopper(ranks).all_gather_s(0.0) == pytest.approx(6.6 * US + steps / 2 * 0.6 * US)
    assert hopper(ranks).reduce_scatter_s(0.0) == hopper(ranks).all_gather_s(0.0)
    assert hopper(ranks).all_to_all_s(0.0) == pytest.approx(7.2 * US)


def test_each_size_has_its_protocol() -> None:
    """Eight Hoppers: flags with every 4 bytes at 141 GB/s at most, 8 bytes in 128, and none."""
    links = 20.6 / 25 * HOPPER
    for n_bytes, call_s, step_s, bytes_per_s in (
        (64 * KIB, 6.6, 0.6, 141 * GB),
        (16 * MIB, 14.0, 1.9, 0.92 * links),
        (1024 * MIB, 8.4, 3.4, links),
    ):
        expected_s = (call_s + 14 * step_s) * US + 14 / 8 * n_bytes / bytes_per_s
        assert hopper(8).all_reduce_s(n_bytes) == pytest.approx(expected_s)


def test_over_pcie_there_is_no_middle_protocol() -> None:
    times, links = NcclCollectives(switched_group(4, 32 * GB, 0.0), "pcie", "8.0"), 12 / 15.75 * 32 * GB
    small, large = 64 * KIB, 64 * MIB
    assert times.all_gather_s(small) == pytest.approx((6.6 + 3 * 1.0) * US + 3 / 4 * small / (links / 2))
    assert times.all_gather_s(large) == pytest.approx((8.4 + 3 * 5.7) * US + 3 / 4 * large / links)


@pytest.mark.parametrize(
    ("capability", "share", "most_ll"),
    [
        ("7.0", 20 / 25, 39),
        ("8.0", 20 / 25, 87.7),
        ("8.6", 12 / 14.0625, 87.7),
        ("9.0", 20.6 / 25, 141),
        ("10.3", 40.1 / 50, 282),
    ],
)
def test_each_generation_has_its_links(capability: str, share: float, most_ll: float) -> None:
    """Links so fast that LL is at its most; and of the largest sizes, all that NCCL counts on."""
    fast = NcclCollectives(switched_group(2, 1000 * GB, 0.0), "nvlink", capability)
    assert fast.all_gather_s(256 * KIB) == pytest.approx(7.2 * US + 128 * KIB / (most_ll * GB))
    usual = NcclCollectives(switched_group(2, 100 * GB, 0.0), "nvlink", capability)
    assert usual.all_gather_s(1e12) == pytest.approx(5e11 / (share * 100 * GB), rel=1e-3)


def test_an_all_to_all_knows_two_protocols() -> None:
    times, links = hopper(8), 20.6 / 25 * HOPPER
    least_s = min(7.2 * US + 7 * 256 * KIB / (141 * GB), 11.8 * US + 7 * 256 * KIB / links)
    assert times.all_to_all_s(2 * MIB) == pytest.approx(least_s)


def test_groups_that_exchange_at_once_share_what_they_must() -> None:
    """Two pairs on one bus have half of it each, and what they send takes twice as long."""
    topology = Topology(TopologyFile((NodeFile(4, FabricFile("bus", 32 * GB, 1 * US, "pcie")),)))
    pairs = [[Place(0, 0), Place(0, 1)], [Place(0, 2), Place(0, 3)]]
    assert topology.link_kind(pairs[0]) == "pcie"
    alone, both = (NcclCollectives(group_of(topology, pairs[0], beside), "pcie", "8.9") for beside in ([], pairs[1:]))
    assert both.all_gather_s(1e9) - both.all_gather_s(0) > 1.9 * (alone.all_gather_s(1e9) - alone.all_gather_s(0))


def test_between_nodes_the_kind_says_nothing() -> None:
    node = NodeFile(2, FabricFile("switch", HOPPER, 1 * US, "nvlink"))
    topology = Topology(TopologyFile((node, node), InterNodeFile("switch", 50 * GB, 5 * US)))
    assert topology.link_kind(topology.places[:2]) == "nvlink"
    assert topology.link_kind(topology.places) is None


@pytest.mark.parametrize("capability", [None, "6.1"])
@pytest.mark.parametrize("kind", ["nvlink", "pcie"])
def test_devices_that_nccl_does_not_know_are_refused(kind: LinkKind, capability: str | None) -> None:
    group = switched_group(2, HOPPER, 0.0)
    with pytest.raises(InputError, match=rf"'fabric.link': found '{kind}, compute capability {capability}'"):
        NcclCollectives(group, kind, capability)


def test_a_rank_alone_takes_no_time() -> None:
    alone, sizes = hopper(1, disable_custom_all_reduce=False), np.array([0.0, 1e3, 1e9])
    for operation in (alone.all_reduce_s, alone.all_gather_s, alone.reduce_scatter_s, alone.all_to_all_s):
        assert operation(sizes).tolist() == [0.0, 0.0, 0.0]


# -- vLLM's own all-reduce -------------------------------------------------------------------------------------------


def test_one_shot_reads_all_and_two_shots_read_parts() -> None:
    """Four ranks on a switch: three others' bytes come down one link; in two shots a quarter of them, twice."""
    group, link = switched_group(4, 100 * GB, 0.0), KERNEL_SHARE * 100 * GB
    one, two = kernel_s(np.array([256 * KIB, 512 * KIB]), group)
    assert one == pytest.approx(KERNEL_SHOT_S + 3 * 256 * KIB / link)
    assert two == pytest.approx(2 * (KERNEL_SHOT_S + 3 * 512 * KIB / 4 / link))


def test_the_kernel_is_used_where_vllm_says() -> None:
    sizes = np.array([16, 17, KERNEL_BYTES - 16, KERNEL_BYTES])
    ours, nccl = hopper(4, disable_custom_all_reduce=False).all_reduce_s(sizes), hopper(4).all_reduce_s(sizes)
    assert (ours != nccl).tolist() == [True, False, True, False]
    shots = [int(kernel_shots(size, n)) for n in (2, 4, 8) for size in (256 * KIB - 16, 256 * KIB, 512 * KIB)]
    assert shots == [1, 1, 1, 1, 1, 2, 1, 2, 2]


@pytest.mark.parametrize(
    ("ranks", "kind", "fully_connected", "sums"),
    [(2, "pcie", False, True), (4, "pcie", True, False), (4, "nvlink", True, True), (4, "nvlink", False, False),
     (3, "nvlink", True, False), (8, "nvlink", True, True), (16, "nvlink", True, False)],
)  # fmt: skip
def test_above_two_the_kernel_needs_nvlink_from_each_to_each(
    ranks: int, kind: LinkKind, fully_connected: bool, sums: bool
) -> None:
    hop = Hop(HOPPER, 0.0)
    assert kernel_sums(Group(ranks, hop, hop, fully_connected=fully_connected), kind) is sums


def test_a_note_says_by_what() -> None:
    (note,) = hopper(4, disable_custom_all_reduce=False).notes()
    assert note.endswith("nvlink, 450 GB/s from rank to rank, and vLLM's kernel for sums below 8 MiB")
    (note,) = hopper(4).notes()
    assert note.endswith("4 ranks: by NCCL's own model of nvlink, 450 GB/s from rank to rank")


# -- as others measured ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [one for one in SYSTEMS if one.kind == "nvlink"], ids=lambda one: one.name)
def test_it_is_nearer_to_what_was_measured_than_the_links_figures(system: System) -> None:
    """The mean error over operations, ranks and sizes is below a third, and two thirds of a plain ring's."""
    by_kind, by_figures = [], []
    for ranks in (2, 4, 8):
        group = system.group(ranks)
        kind = errors(system, ranks, NcclCollectives(group, system.kind, system.compute_capability))
        figures = errors(system, ranks, LinkCollectives(group))
        by_kind += [np.abs(kind[key]).mean() for key in kind]
        by_figures += [np.abs(figures[key]).mean() for key in figures]
    assert np.mean(by_kind) < 0.31
    assert np.mean(by_kind) < 0.65 * np.mean(by_figures)


def test_the_kernels_two_figures_are_those_of_the_tables() -> None:
    shot_s, share = kernel_fit(SYSTEMS)
    assert shot_s == pytest.approx(KERNEL_SHOT_S, rel=0.02)
    assert share == pytest.approx(KERNEL_SHARE, rel=0.02)
    for system in SYSTEMS:
        held_out = kernel_errors(system, *kernel_fit([one for one in SYSTEMS if one is not system]))
        assert np.abs(held_out).mean() < 0.36
