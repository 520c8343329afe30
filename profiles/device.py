"""What a device and a link are, as far as they cost, with the source of every number."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from traces.decoding import decode_yaml, read_bytes
from traces.errors import InputError

Above0 = Annotated[float, msgspec.Meta(gt=0)]
Bandwidth = Annotated[float, msgspec.Meta(ge=1)]
"""Bytes per second, one at least."""
Latency = Annotated[float, msgspec.Meta(ge=0, le=60)]
"""Seconds, a minute at most."""
DeviceType = Literal["cuda", "cpu", "tpu"]
"""vLLM's `device_type`: cuda stands for AMD's GPUs too."""


class DevicePower(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device draws, by what it does. One of the three ways to say the active level is needed.

    Attributes:
        idle_w: at rest.
        standby_w: for so many seconds after work, while clocks are still up; None: it rests at once.
        standby_s: how long.
        active_w: in a step.
        active_prefill_w: in a step that computes prompts; a step that does both draws this.
        active_decode_w: in a step that only decodes.
        active_w_by_tokens: watts in a step of so many tokens, linear between; the widest say of how busy it is.
        tdp_w: rated power, which a cap is a share of; None: the device's own file says it.
        power_cap_w: the driver's limit; None: none.
        cap_slowdown: file of what a cap costs (`profiles.power_cap`); needed with a cap.
    """

    idle_w: Above0
    standby_w: Above0 | None = None
    standby_s: Above0 | None = None
    active_w: Above0 | None = None
    active_prefill_w: Above0 | None = None
    active_decode_w: Above0 | None = None
    active_w_by_tokens: tuple[tuple[Above0, Above0], ...] | None = None
    tdp_w: Above0 | None = None
    power_cap_w: Above0 | None = None
    cap_slowdown: str | None = None


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An accelerator. None: not known, which a prediction that needs it refuses.

    Attributes:
        name: as profiles and clusters spell it.
        aliases: other spellings, the driver's own among them.
        device_type: its kind, by which vLLM chooses options that nobody states.
        memory_bytes: memory that the device's runtime reports (`torch.cuda.mem_get_info`), which vLLM's
            `gpu_memory_utilization` is a share of; less than the nominal size, and than what nvidia-smi shows.
        memory_bandwidth_bytes_per_s: peak.
        peak_flops_per_s: dense matrix peak by dtype, without sparsity.
        tdp_w: rated board power.
        link_bandwidth_bytes_per_s: to other devices, each way, all links together: for a reader who writes a `fabric`.
        multiprocessors: streaming multiprocessors (compute units), which some kernels have a buffer for each of.
        compute_capability: NVIDIA's, as "8.6": by it vLLM chooses its kernels.
        power: what it was measured to draw.
        sources: where each number is from, by field.
    """

    name: str
    aliases: tuple[str, ...] = ()
    device_type: DeviceType = "cuda"
    memory_bytes: Above0
    memory_bandwidth_bytes_per_s: Bandwidth | None = None
    peak_flops_per_s: dict[str, Above0] = {}
    tdp_w: Above0 | None = None
    link_bandwidth_bytes_per_s: Bandwidth | None = None
    multiprocessors: Annotated[int, msgspec.Meta(ge=1)] | None = None
    compute_capability: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+\.[0-9]$")] | None = None
    power: DevicePower | None = None
    sources: dict[str, str]


class LinkSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link between devices: what it carries each way, and what it takes before the first byte arrives."""

    name: str
    bandwidth_bytes_per_s: Bandwidth
    latency_s: Latency
    sources: dict[str, str]


Spec = TypeVar("Spec", DeviceSpec, LinkSpec)


def read_device(path: Path) -> DeviceSpec:
    """A device from its YAML file. Raises InputError with file, line and field, and for a number without a source."""
    return _device(path, read_bytes(path))


@functools.lru_cache(maxsize=256)
def _device(path: Path, content: bytes) -> DeviceSpec:
    """Parsed again only when the content is another: a cluster asks for its devices three times, a study per point."""
    spec = _with_sources(decode_yaml(path, DeviceSpec), path)
    if spec.power is not None and (wrong := power_fault(spec.power)) is not None:
        raise InputError(file=path, field=f"power.{wrong[0]}", accepted=wrong[1])
    return spec


def power_fault(power: DevicePower) -> tuple[str, str] | None:
    """The field that makes a description of power no whole, and what is accepted; None: there is none."""
    phases = power.active_prefill_w, power.active_decode_w
    ways = [power.active_w is not None, phases != (None, None), power.active_w_by_tokens is not None]
    if sum(ways) != 1:
        return "active_w", "one of active_w, active_prefill_w with active_decode_w, and active_w_by_tokens"
    if (power.active_prefill_w is None) != (power.active_decode_w is None):
        return "active_prefill_w", "active_prefill_w and active_decode_w together"
    if (power.standby_w is None) != (power.standby_s is None):
        return "standby_s", "standby_w and standby_s together"
    tokens = [tokens for tokens, _ in power.active_w_by_tokens or ()]
    if power.active_w_by_tokens is not None and (len(tokens) < 2 or sorted(set(tokens)) != tokens):
        return "active_w_by_tokens", "at least two pairs of tokens and watts, tokens ascending"
    if (power.power_cap_w is None) != (power.cap_slowdown is None):
        return "cap_slowdown", "power_cap_w and cap_slowdown together: what a cap costs is measured"
    if power.power_cap_w is not None and power.power_cap_w <= power.idle_w:
        return "power_cap_w", f"more than idle_w {power.idle_w:g}"
    return None


def read_link(path: Path) -> LinkSpec:
    """A link from its YAML file. Raises InputError with file, line and field, and for a number without a source."""
    return _with_sources(decode_yaml(path, LinkSpec), path)


def _with_sources(spec: Spec, path: Path) -> Spec:
    for name, value in msgspec.structs.asdict(spec).items():
        stated = name not in ("name", "aliases", "device_type", "sources") and value not in (None, {})
        if stated and not spec.sources.get(name, "").strip():
            raise InputError("is missing", file=path, field=f"sources.{name}", accepted="where the number is from")
    return spec
