"""Print how well links say what collectives take, beside NCCL's and vLLM's own, measured on six kinds of device.

    .venv/bin/python -m tests.benchmarks.collectives

The measured times are aiconfigurator-core's, of one node, at 512 bytes to 512 MiB; bandwidths are the datasheets'.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from harness.terminal.console import console, table
from profiles.aiconfigurator import aiconfigurator_collectives
from simulator.network.collectives import CollectiveTimes, Group, LinkCollectives, group_of
from simulator.network.nccl import KERNEL_BYTES, NcclCollectives, kernel_reads_s, kernel_shots, kernel_sums
from simulator.network.topology import FabricFile, LinkKind, NodeFile, Topology, TopologyFile
from traces.steps import Floats

RANKS = (2, 4, 8)
LATENCY_S = 2e-6
"""Of a link in a description that says nothing of its kind."""


@dataclass(frozen=True, slots=True)
class System:
    """A kind of device, by aiconfigurator's name: bytes per second of its links, each way, and its capability."""

    name: str
    kind: LinkKind
    bandwidth_bytes_per_s: float
    compute_capability: str

    def fabric(self) -> FabricFile:
        """Its links as a description has them: to a switch."""
        return FabricFile("switch", self.bandwidth_bytes_per_s, LATENCY_S, self.kind)

    def group(self, ranks: int) -> Group:
        """So many of them."""
        topology = Topology(TopologyFile((NodeFile(ranks, self.fabric()),)))
        return group_of(topology, topology.places)


SYSTEMS = (
    System("a100_sxm", "nvlink", 300e9, "8.0"),
    System("h100_sxm", "nvlink", 450e9, "9.0"),
    System("h200_sxm", "nvlink", 450e9, "9.0"),
    System("b200_sxm", "nvlink", 900e9, "10.0"),
    System("l40s", "pcie", 32e9, "8.9"),
    System("rtx_pro_6000_server", "pcie", 64e9, "12.0"),
)

OPERATIONS: dict[str, Callable[[CollectiveTimes, Floats], Floats]] = {
    "all_reduce": lambda times, n_bytes: times.all_reduce_s(n_bytes),
    "all_gather": lambda times, n_bytes: times.all_gather_s(n_bytes),
    "reduce_scatter": lambda times, n_bytes: times.reduce_scatter_s(n_bytes),
    "all_to_all": lambda times, n_bytes: times.all_to_all_s(n_bytes),
}

SIZES = ((0.0, 2.0**20), (2.0**20, 2.0**31))
"""From and to, in bytes: those of decodes, and those of prompts."""


def errors(system: System, ranks: int, times: CollectiveTimes) -> dict[tuple[str, int], Floats]:
    """Relative errors by operation and range of sizes, each [sizes]."""
    curves, _ = aiconfigurator_collectives(system.name, ranks)
    found = {}
    for name, said in OPERATIONS.items():
        curve = curves[name][ranks]
        of_sizes = said(times, curve.x) / curve.time_s - 1
        for i, (low, high) in enumerate(SIZES):
            found[name, i] = of_sizes[(curve.x >= low) & (curve.x < high)]
    return found


def kernel_fit(systems: Sequence[System]) -> tuple[float, float]:
    """Seconds of a shot of vLLM's kernel, and its share of the links' bandwidth, over these systems."""
    measured = [one for system in systems for one in _kernel_times(system)]
    shots, reads_s, time_s = (np.concatenate(parts) for parts in zip(*measured, strict=True))
    shot_us, share = least_squares(lambda x: np.log((shots * x[0] * 1e-6 + reads_s / x[1]) / time_s), [5.0, 0.6]).x
    return float(shot_us) * 1e-6, float(share)


def kernel_errors(system: System, shot_s: float, share: float) -> Floats:
    """Relative errors of vLLM's kernel with these two figures, all ranks and sizes of a system."""
    return np.concatenate([(n * shot_s + reads_s / share) / time_s - 1 for n, reads_s, time_s in _kernel_times(system)])


def _kernel_times(system: System) -> list[tuple[Floats, Floats, Floats]]:
    """By number of ranks: shots, seconds of reading at the full bandwidth, and measured seconds, each [sizes]."""
    found = []
    for ranks in RANKS:
        group = system.group(ranks)
        if kernel_sums(group, system.kind):
            curve = aiconfigurator_collectives(system.name, ranks)[0]["all_reduce"][ranks]
            of_kernel = (curve.x >= 1024) & (curve.x < KERNEL_BYTES)
            sizes = curve.x[of_kernel]
            found.append((kernel_shots(sizes, ranks) * 1.0, kernel_reads_s(sizes, group), curve.time_s[of_kernel]))
    return found


def main() -> None:
    """Print both tables."""
    shown = console()
    of_nvlink, of_pcie = ([one for one in SYSTEMS if one.kind == kind] for kind in ("nvlink", "pcie"))
    asked = [(one, RANKS) for one in of_nvlink] + [(one, ranks) for one in of_pcie for ranks in (RANKS[:1], RANKS[1:])]
    rows = [
        (f"{system.name}, {' to '.join(map(str, ranks[:: len(ranks) - 1 or 1]))}", *_cells(system, ranks))
        for system, ranks in asked
    ]
    columns = [f"{what}, {size}" for what in ("sums", "others") for size in ("below 1 MiB", "above")]
    shown.print(table("mean |error|, by the links' figures -> by their kind", ["ranks", *columns], rows))
    shot_s, share = kernel_fit(SYSTEMS)
    shown.print(f"vLLM's kernel: {shot_s * 1e6:.2f} us a shot, {share:.3f} of the bandwidth; a device left out:")
    for system in SYSTEMS:
        off = kernel_errors(system, *kernel_fit([one for one in SYSTEMS if one is not system]))
        shown.print(f"  {system.name}: {np.abs(off).mean():.0%}, mean {off.mean():+.0%}")


def _cells(system: System, ranks: Sequence[int]) -> list[str]:
    """All-reduces and other operations, small and large: error by figures, and by kind."""
    by_figures = [errors(system, n, LinkCollectives(system.group(n))) for n in ranks]
    by_kind = [
        errors(system, n, NcclCollectives(system.group(n), system.kind, system.compute_capability)) for n in ranks
    ]
    sums, *others = OPERATIONS
    return [
        " -> ".join(f"{_mean([found[name, i] for found in by for name in names]):.0%}" for by in (by_figures, by_kind))
        for names in ([sums], others)
        for i in range(len(SIZES))
    ]


def _mean(off: Sequence[Floats]) -> float:
    return float(np.abs(np.concatenate(off)).mean())


if __name__ == "__main__":
    sys.exit(main())
