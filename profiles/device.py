"""What a device and a link are, as far as they cost, with the source of every number."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from traces.decoding import decode_yaml
from traces.errors import InputError

Above0 = Annotated[float, msgspec.Meta(gt=0)]


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An accelerator. None: not known, which a prediction that needs it refuses.

    Attributes:
        name: as profiles and clusters spell it.
        aliases: other spellings, the driver's own among them.
        memory_bytes: memory that the device's runtime reports (`torch.cuda.mem_get_info`), which vLLM's
            `gpu_memory_utilization` is a share of; less than the nominal size, and than what nvidia-smi shows.
        memory_bandwidth_bytes_per_s: peak.
        peak_flops_per_s: dense matrix peak by dtype, without sparsity.
        tdp_w: rated board power.
        sources: where each number is from, by field.
    """

    name: str
    aliases: tuple[str, ...] = ()
    memory_bytes: Above0
    memory_bandwidth_bytes_per_s: Above0 | None = None
    peak_flops_per_s: dict[str, Above0] = {}
    tdp_w: Above0 | None = None
    sources: dict[str, str]


class LinkSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link between devices: what it carries each way, and what it takes before the first byte arrives."""

    name: str
    bandwidth_bytes_per_s: Above0
    latency_s: Annotated[float, msgspec.Meta(ge=0)]
    sources: dict[str, str]


Spec = TypeVar("Spec", DeviceSpec, LinkSpec)


def read_device(path: Path) -> DeviceSpec:
    """A device from its YAML file. Raises InputError with file, line and field, and for a number without a source."""
    return _with_sources(decode_yaml(path, DeviceSpec), path)


def read_link(path: Path) -> LinkSpec:
    """A link from its YAML file. Raises InputError with file, line and field, and for a number without a source."""
    return _with_sources(decode_yaml(path, LinkSpec), path)


def _with_sources(spec: Spec, path: Path) -> Spec:
    for name, value in msgspec.structs.asdict(spec).items():
        stated = name not in ("name", "aliases", "sources") and value not in (None, {})
        if stated and not spec.sources.get(name, "").strip():
            raise InputError("is missing", file=path, field=f"sources.{name}", accepted="where the number is from")
    return spec
