"""What collectives take between NVIDIA devices of one node, by the kind of their links: NCCL's, and vLLM's own kernel.

NCCL predicts what each of its protocols takes round a ring, and uses the fastest (2.30 `src/graph/tuning.cc`,
`ncclTopoTuneModel`): so much for a call, so much for each step, and bytes at what the protocol leaves of the links. Its
trees, which win between nodes, and the sums of NVLink switches (NVLS) are left out. Bytes as in `collectives.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.network.collectives import Bytes, Group, Operation
from simulator.network.topology import LinkKind
from traces.errors import InputError
from traces.steps import Floats


@dataclass(frozen=True, slots=True)
class Protocol:
    """A way in which NCCL moves bytes.

    Attributes:
        call_s: of any operation (`baseLat`, of rings).
        step_s: from a rank to the next, by the kind of link (`hwLat`); it is not used over others.
        share: of the links' bandwidth that is left for data: `LL` sends a flag with every 4 bytes, `LL128` 8 bytes of
            flags in 128.
    """

    call_s: float
    step_s: dict[LinkKind, float]
    share: float


LL = Protocol(6.6e-6, {"nvlink": 0.6e-6, "pcie": 1.0e-6}, 0.5)
LL128 = Protocol(14.0e-6, {"nvlink": 1.9e-6}, 0.92)
SIMPLE = Protocol(8.4e-6, {"nvlink": 3.4e-6, "pcie": 5.7e-6}, 1.0)
PROTOCOLS = (LL, LL128, SIMPLE)

LL_BYTES_PER_S = {7: 39.0e9, 8: 87.7e9, 9: 141.0e9, 10: 282.0e9}
"""The most that LL moves in a node, by compute capability (`llMaxBws`); 10: that and later ones."""

NVLINK_SHARE = {7: 20.0 / 25, 8: 20.0 / 25, 9: 20.6 / 25, 10: 40.1 / 50}
"""What NCCL counts on of a link's bandwidth, by compute capability (2.30 `src/graph/topo.h`, SM80_NVLINK_BW and others,
over the datasheets' 25 and 50 GB/s each way)."""

BRIDGE_SHARE = 12.0 / 14.0625
"""The same of 8.6, workstations in pairs (SM86_NVLINK_BW over the 14.0625 GB/s of a link of theirs)."""

PCIE_SHARE = 12.0 / 15.75
"""The same of PCIe (topo.h, PCI_BW: 12 GB/s of a third generation's 16 lanes)."""

KERNEL_BYTES = 8192 * 1024
"""Below so many bytes vLLM's own kernel sums, where it can (vLLM 0.32 device_communicators/custom_all_reduce.py,
`max_size`). With symmetric memory vLLM has other limits, by device (all_reduce_utils.py, CUSTOM_ALL_REDUCE_MAX_SIZES).
"""

KERNEL_SHOT_S = 5.5e-6
KERNEL_SHARE = 0.64
"""What vLLM's kernel takes in a CUDA graph: so long a shot, and bytes at so much of the links' bandwidth. (An eager
engine copies first, which is left out.) Least squares of the logarithm over aiconfigurator-core 0.12's tables of six
devices, 2 to 8 ranks, 1 KiB to 8 MiB; a device that is left out of it is met within 5 to 35 %
(`tests/benchmarks/collectives.py`)."""


class NcclCollectives:
    """Times between devices of one node that their links tie, by the links' kind."""

    def __init__(
        self, group: Group, kind: LinkKind, compute_capability: str | None, *, disable_custom_all_reduce: bool = False
    ) -> None:
        """Choose by what.

        Args:
            group: the ranks; its bandwidths are the datasheet's, its latencies are not used.
            kind: of the links.
            compute_capability: of the devices, as "9.0".
            disable_custom_all_reduce: NCCL sums everything (vLLM's option of that name).

        Raises:
            InputError: devices whose compute capability is not known, or older than Volta's.
        """
        self._group, self._kind = group, kind
        generation = min(10, int(float(compute_capability or 0)))
        if generation not in NVLINK_SHARE:
            found = f"{kind}, compute capability {compute_capability}"
            accepted = "an NVIDIA device of 7.0 or more, or no link"
            raise InputError(field="fabric.link", found=found, accepted=accepted)
        nvlink_share = BRIDGE_SHARE if compute_capability == "8.6" else NVLINK_SHARE[generation]
        self._share = nvlink_share if kind == "nvlink" else PCIE_SHARE
        self._most_ll = LL_BYTES_PER_S[generation] if kind == "nvlink" else np.inf
        self._has_kernel = not disable_custom_all_reduce and kernel_sums(group, kind)

    def all_reduce_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has `n_bytes`; each gets their sum."""
        n, whole = self._group.n_ranks, np.asarray(n_bytes, dtype=np.float64)
        ring_s = self._fastest(2 * (n - 1), 2 * (n - 1) * whole / n, self._group.ring.bandwidth_bytes_per_s)
        if not self._has_kernel:
            return ring_s
        return np.where(kernel_takes(whole), kernel_s(whole, self._group), ring_s)

    def all_gather_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has its part; each gets all parts, `n_bytes` together."""
        n, whole = self._group.n_ranks, np.asarray(n_bytes, dtype=np.float64)
        return self._fastest(n - 1, (n - 1) * whole / n, self._group.ring.bandwidth_bytes_per_s)

    def reduce_scatter_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has `n_bytes`; each gets its part of their sum."""
        return self.all_gather_s(n_bytes)

    def all_to_all_s(self, n_bytes: Bytes) -> Floats:
        """Each rank has `n_bytes`, an equal part of them for each rank; all are sent at once.

        NCCL's model has none: one step is taken, and no LL128, which its sends do not use.
        """
        n, whole = self._group.n_ranks, np.asarray(n_bytes, dtype=np.float64)
        return self._fastest(min(1, n - 1), whole / n, self._group.pair.bandwidth_bytes_per_s, (LL, SIMPLE))

    def count(self, operation: Operation, n_bytes: float, times: int) -> None:
        """Nothing: formulas have no range."""

    def notes(self) -> tuple[str, ...]:
        """Where the times are from."""
        kernel = ", and vLLM's kernel for sums below 8 MiB" if self._has_kernel else ""
        return (
            f"collectives of {self._group.n_ranks} ranks: by NCCL's own model of {self._kind}, "
            f"{self._group.ring.bandwidth_bytes_per_s / 1e9:g} GB/s from rank to rank{kernel}",
        )

    def _fastest(
        self, steps: int, sent: Floats, bandwidth_bytes_per_s: float, among: Sequence[Protocol] = PROTOCOLS
    ) -> Floats:
        """Of the protocols, for so many steps in which a rank sends `sent` bytes in all; a rank alone calls nobody."""
        if not steps:
            return 0 * sent
        counted = self._share * bandwidth_bytes_per_s
        times_s = []
        for one in among:
            if self._kind in one.step_s:
                bytes_per_s = min(one.share * counted, self._most_ll if one is LL else np.inf)
                times_s.append(one.call_s + steps * one.step_s[self._kind] + sent / bytes_per_s)
        fastest: Floats = np.min(times_s, axis=0)
        return fastest


# -- vLLM's own all-reduce -------------------------------------------------------------------------------------------


def kernel_sums(group: Group, kind: LinkKind) -> bool:
    """Whether vLLM sums with its own kernel between these ranks.

    vLLM 0.32 custom_all_reduce.py, `__init__` and `should_custom_ar`: 2, 4, 6 or 8 of a node; above two only with
    NVLink from each to each. It asks besides whether devices reach each other's memory, which links are taken to mean.
    """
    return group.n_ranks == 2 or (group.n_ranks in (4, 6, 8) and kind == "nvlink" and group.fully_connected)


def kernel_takes(n_bytes: Bytes) -> npt.NDArray[np.bool_]:
    """Whether the kernel takes so many bytes, of the shape of `n_bytes`: a multiple of 16 below its limit."""
    whole = np.asarray(n_bytes, dtype=np.float64)
    takes: npt.NDArray[np.bool_] = (whole % 16 == 0) & (whole < KERNEL_BYTES)
    return takes


def kernel_shots(n_bytes: Bytes, n_ranks: int) -> npt.NDArray[np.int64]:
    """How often ranks read each other's bytes: each all of them once, or its part and then all sums.

    vLLM 0.32 csrc/custom_all_reduce.cuh, `allreduce`: of the shape of `n_bytes`.
    """
    below = 512 * 1024 if n_ranks <= 4 else 256 * 1024
    return np.where((n_ranks == 2) | (np.asarray(n_bytes) < below), 1, 2)


def kernel_reads_s(n_bytes: Bytes, group: Group) -> Floats:
    """What the reading alone would take at all of the links' bandwidth (`cross_device_reduce_1stage`, `_2stage`)."""
    whole, parts = np.asarray(n_bytes, dtype=np.float64), 2 / group.n_ranks
    one_shot = kernel_shots(whole, group.n_ranks) == 1
    seconds: Floats = np.where(one_shot, whole, parts * whole) / group.pair.bandwidth_bytes_per_s
    return seconds


def kernel_s(n_bytes: Bytes, group: Group) -> Floats:
    """Seconds of vLLM's kernel."""
    seconds: Floats = (
        kernel_shots(n_bytes, group.n_ranks) * KERNEL_SHOT_S + kernel_reads_s(n_bytes, group) / KERNEL_SHARE
    )
    return seconds
