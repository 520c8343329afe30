"""What can be simulated now: by which source of times, and how far off results with it were found to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from profiles.aiconfigurator_tables import DEVICES, PACKAGE, core_version
from profiles.catalog import BUNDLED, list_devices, list_profiles, with_bundled
from profiles.device import DeviceSpec
from traces.decoding import decode_yaml
from traces.errors import EngineError, installs

VALIDITY = BUNDLED / "validity.yaml"

KINDS = ("measured", "aiconfigurator", "roofline")
"""Of source, as a cluster description asks for it; an external simulator is of any device, and so in no list."""

COLLECTED, ANY = "dense; experts as collected", "any model"


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What docs/validity.md says of times of a source; what is None fits anything.

    Attributes:
        kind: of source, as a cluster description asks for it.
        source: who measured it.
        device, model: of the runs that it was scored on.
        section: heading in docs/validity.md.
        says: its figure, in short.
    """

    kind: str
    source: str | None = None
    device: str | None = None
    model: str | None = None
    section: str
    says: str


class Findings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of them; the first that fits counts."""

    entries: tuple[Finding, ...]


def catalogue(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """One row for each profile that is there, and for each device that a source describes. Raises InputError.

    Each row has the `kind` of source to ask for, device, model, types, engine, who measured it and when (`source`,
    `recorded_at`), `path` of a profile, and how well it was `validated`, with the `section` of docs/validity.md. A row
    of aiconfigurator's with a `path` is a profile: it is found as measured ones are.
    """
    everywhere = with_bundled(folders)
    findings = decode_yaml(VALIDITY, Findings).entries
    devices = list_devices(everywhere)
    rows = [*_measured(everywhere), *_aiconfigurator(devices), *_roofline(devices)]
    return [{**row, **_validated(row, findings)} for row in rows]


def _measured(folders: Sequence[Path]) -> list[dict[str, Any]]:
    names = ("device", "model", "dtype", "kv_cache_dtype", "engine", "recorded_at", "source")
    return [
        {"kind": _kind(info.meta.source), **{n: getattr(info.meta, n) for n in names}, "path": str(info.path)}
        for info in list_profiles(folders)
    ]


def _kind(source: str) -> str:
    """Of a profile's times: imported tables are in a profile's folder and are still nobody's measurement here."""
    return "aiconfigurator" if source.startswith(PACKAGE) else "measured"


def missing_tables() -> str | None:
    """What aiconfigurator's tables would add and how to install them; None where they are installed."""
    try:
        core_version()
    except EngineError:
        return f"not installed, would add {', '.join(DEVICES)}: {installs('aiconfigurator')}"
    return None


def _aiconfigurator(devices: Sequence[DeviceSpec]) -> list[dict[str, Any]]:
    """Devices of which aiconfigurator-core has tables; none without that extra."""
    from profiles.aiconfigurator import GEMMS
    from profiles.aiconfigurator_tables import current_version, product_types, systems

    try:
        there = systems()
    except EngineError:
        return []
    source, rows = f"{PACKAGE} {core_version()}", []
    for device in devices:
        system = next((name for name in (device.name, *device.aliases) if name in there), None)
        if system is not None:
            collected = product_types(system)
            types = ", ".join(dtype for dtype, names in GEMMS.items() if not set(names).isdisjoint(collected))
            row = _row("aiconfigurator", device.name, COLLECTED, types, source)
            rows.append({**row, "engine": f"vllm {current_version(system)}"})
    return rows


def _roofline(devices: Sequence[DeviceSpec]) -> list[dict[str, Any]]:
    """Devices with a peak and a bandwidth."""
    described = [one for one in devices if one.peak_flops_per_s and one.memory_bandwidth_bytes_per_s]
    return [_row("roofline", one.name, ANY, ", ".join(sorted(one.peak_flops_per_s)), "datasheet") for one in described]


def _row(kind: str, device: str, model: str, dtype: str, source: str) -> dict[str, Any]:
    row = {"kind": kind, "device": device, "model": model, "dtype": dtype, "kv_cache_dtype": "auto, fp8"}
    return {**row, "engine": None, "recorded_at": None, "source": source, "path": None}


def validated(kind: str, device: str, model: str) -> str | None:
    """What docs/validity.md has found of times of that kind, in short; None where it says nothing."""
    row = {"kind": kind, "source": None, "device": device, "model": model}
    return _validated(row, decode_yaml(VALIDITY, Findings).entries)["validated"]


def _validated(row: dict[str, Any], findings: Sequence[Finding]) -> dict[str, str | None]:
    for finding in findings:
        wanted = finding.kind, finding.source, finding.device, finding.model
        there = row["kind"], row["source"], row["device"], row["model"]
        if all(one in (None, other) for one, other in zip(wanted, there, strict=True)):
            return {"validated": finding.says, "section": finding.section}
    return {"validated": None, "section": None}
