"""What the parts of a node draw, as a cluster description says it: watts all the time, and joules a bit."""

from __future__ import annotations

from typing import Annotated

import msgspec

from profiles.device import Above0, DevicePower

AtLeast0 = Annotated[float, msgspec.Meta(ge=0)]

PARTS = ("dram", "links", "nic", "storage")
"""Components that carry bytes."""

COMPONENTS = ("devices", "host", *PARTS, "base")
"""What a node is made of."""


class HostPower(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node's processors.

    Attributes:
        idle_w: while nothing is served.
        active_w: while an engine of the node has a step under way; None: as idle.
    """

    idle_w: Above0
    active_w: Above0 | None = None


class PartPower(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All parts of a kind in a node together: its memory, its links, its NICs, its storage.

    Attributes:
        idle_w: all the time.
        j_per_bit: for each bit that it carries; None: not known, and nothing is added for what it carries.
    """

    idle_w: AtLeast0
    j_per_bit: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class NodePower(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a node draws. None: not known.

    Attributes:
        devices: by the device's name; one that is not named has the levels of its own file, if that has any.
        host: its processors.
        dram, links, nic, storage: all of a kind together.
        base_w: fans, board, losses of the supply: what none of the others explains.
    """

    devices: dict[str, DevicePower] = {}
    host: HostPower | None = None
    dram: PartPower | None = None
    links: PartPower | None = None
    nic: PartPower | None = None
    storage: PartPower | None = None
    base_w: AtLeast0 | None = None

    def part(self, component: str) -> PartPower | None:
        """One of `PARTS`; None: nothing is known of it, or it is none of them."""
        part: PartPower | None = getattr(self, component) if component in PARTS else None
        return part

    def j_per_bit(self, component: str) -> float | None:
        """What a bit costs that crosses a component; None: not known."""
        part = self.part(component)
        return None if part is None else part.j_per_bit

    def levels(self) -> dict[str, tuple[float, float]]:
        """Watts of its components but the devices, idle and busy; only of those that are known."""
        levels: dict[str, tuple[float, float]] = {}
        if self.host is not None:
            levels["host"] = (self.host.idle_w, self.host.idle_w if self.host.active_w is None else self.host.active_w)
        for name in PARTS:
            if (part := self.part(name)) is not None:
                levels[name] = (part.idle_w, part.idle_w)
        if self.base_w is not None:
            levels["base"] = (self.base_w, self.base_w)
        return levels
