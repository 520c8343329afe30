"""What a device and a link are, as far as they cost, with the source of every number."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from traces.decoding import decode_yaml

Above0 = Annotated[float, msgspec.Meta(gt=0)]


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An accelerator. None: not known, which a prediction that needs it refuses.

    Attributes:
        name: as profiles and clusters spell it.
        aliases: other spellings.
        memory_bytes: memory that the driver reports.
        memory_bandwidth_bytes_per_s: peak.
        peak_flops_per_s: dense matrix peak by dtype.
        tdp_w: rated board power.
        sources: where each number is from, by field.
    """

    name: str
    aliases: tuple[str, ...] = ()
    memory_bytes: Above0
    memory_bandwidth_bytes_per_s: Above0 | None = None
    peak_flops_per_s: dict[str, float] = {}
    tdp_w: Above0 | None = None
    sources: dict[str, str]


class LinkSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link between devices: what it carries each way, and what it takes before the first byte arrives."""

    name: str
    bandwidth_bytes_per_s: Above0
    latency_s: Annotated[float, msgspec.Meta(ge=0)]
    sources: dict[str, str]


def read_device(path: Path) -> DeviceSpec:
    """A device from its YAML file. Raises InputError with file, line and field."""
    return decode_yaml(path, DeviceSpec)


def read_link(path: Path) -> LinkSpec:
    """A link from its YAML file. Raises InputError with file, line and field."""
    return decode_yaml(path, LinkSpec)
