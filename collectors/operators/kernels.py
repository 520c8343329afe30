"""Which kernels ran for which operator: kernels by the range of time in which they were launched."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """A call of an operator on the host's time line, microseconds."""

    operator: str
    begin_us: float
    end_us: float


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel: when the host launched it, and what it took wherever it ran, microseconds."""

    name: str
    launched_us: float
    took_us: float


def kernels_by_range(ranges: Sequence[Range], kernels: Sequence[Kernel]) -> dict[str, dict[str, float]]:
    """Microseconds by operator and kernel name; a kernel inside nested ranges counts for each of them.

    Calls of one operator never overlap.
    """
    totals: dict[str, dict[str, float]] = {}
    by_operator: dict[str, list[Range]] = {}
    for one in sorted(ranges, key=lambda one: one.begin_us):
        by_operator.setdefault(one.operator, []).append(one)
    for operator, own in by_operator.items():
        begins = [one.begin_us for one in own]
        took = totals.setdefault(operator, {})
        for kernel in kernels:
            at = bisect_right(begins, kernel.launched_us) - 1
            if at >= 0 and kernel.launched_us <= own[at].end_us:
                took[kernel.name] = took.get(kernel.name, 0.0) + kernel.took_us
    return totals


def leading(kernels: dict[str, float], most: int = 3, least_share: float = 0.05) -> list[str]:
    """The names of the kernels that took the most, the longest first; none below so small a share of the whole."""
    whole = sum(kernels.values())
    by_time = sorted(kernels.items(), key=lambda item: (-item[1], item[0]))
    return [name for name, took_us in by_time[:most] if took_us >= least_share * whole]
