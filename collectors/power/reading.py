"""What a power sensor is: the seam between the recorder and NVML, RAPL, an exporter, a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

Kind = Literal["gpu", "tpu", "cpu", "dram", "server", "command"]


class Component(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something whose power a sensor measures.

    Attributes:
        name: unique in a recording, as gpu0 or package-0.
        kind: components of one kind add up to a total.
        device: what it calls itself, as NVIDIA H200; None when it does not say.
    """

    name: str
    kind: Kind
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a sensor read of one component: a gauge, a counter or both, or why it could read neither.

    Attributes:
        watts: of the gauge; None: it has none.
        joules: of a counter from some moment on, without wraps; None: it has none.
        error: why nothing could be read; None when something was.
    """

    watts: float | None = None
    joules: float | None = None
    error: str | None = None


Reading = dict[str, Measured]
"""By name of the component, all of them."""


class Sensor(Protocol):
    """A source of power readings. What it lacks is not among its components, and never zero."""

    @property
    def name(self) -> str:
        """How records and messages call it."""

    @property
    def components(self) -> tuple[Component, ...]:
        """What it measures, found out when it was opened."""

    def read(self) -> Reading:
        """Measure now. Raises CollectorError, with the reason, when nothing at all could be read: a gap."""

    def close(self) -> None:
        """Let go of the sensor, and end a reading that is under way in another thread; may be called twice."""
