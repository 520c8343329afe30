"""Links between devices, and paths over them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One direction of a wire, or all of a bus; a thing of its own, whatever others have the same figures.

    Attributes:
        name: unique in its topology.
        bandwidth_bytes_per_s: above 0.
        latency_s: before the first byte.
    """

    name: str
    bandwidth_bytes_per_s: float
    latency_s: float


Path = tuple[Link, ...]
"""Links that a transfer crosses, each once; none from a place to itself, which takes no time."""
