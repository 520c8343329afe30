"""Bring a campaign home: its captures and profiles into folders that can be committed, each checked, with a card.

    .venv/bin/python scripts/import_campaign.py OUT --captures harness/bundled/h200 --profiles profiles/bundled

OUT is what scripts/gpu_campaign.py wrote; nothing that was imported before is replaced. A capture that must not be
scored, one of a workload that was given, and one that is too large are refused, each with the reason; the others go on.
The card, CARD.md beside the captures, says what was measured, on what, and what the device drew.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np

from collectors.campaign.parts import CampaignRecord, unpack_bundles
from collectors.campaign.plan import GIVEN
from collectors.power.levels import Levels, derive_levels
from collectors.power.power_file import read_power
from profiles.profile_folder import read_profile, write_profile
from traces.capture import Capture, read_capture, write_capture
from traces.decoding import decode_json, read_bytes
from traces.errors import InputError
from traces.metrics import requests, total

CLIENT_NOTE = "the client's token times were left out on import; the engine's are those that metrics are of"


@dataclass(frozen=True, slots=True)
class Refused:
    """A part that was not imported, and why."""

    name: str
    reason: str


def slim(capture: Capture) -> Capture:
    """The capture without what the engine's own record says better: when the client saw each token."""
    if any(one.token_times_s is None for one in capture.outcomes):
        return capture
    outcomes = tuple(msgspec.structs.replace(one, client_token_times_s=None) for one in capture.outcomes)
    meta = msgspec.structs.replace(capture.meta, notes=(*capture.meta.notes, CLIENT_NOTE))
    return replace(capture, meta=meta, outcomes=outcomes)


def import_capture(folder: Path, out: Path, most_bytes: int) -> Capture | Refused:
    """Write a part's capture into a new folder, or say why not."""
    capture = read_capture(folder)
    if capture.meta.reasons:
        return Refused(out.name, f"must not be scored: {'; '.join(capture.meta.reasons)}")
    if GIVEN in capture.meta.notes:
        return Refused(out.name, GIVEN)
    with TemporaryDirectory() as temporary:
        slimmed = Path(temporary) / "capture"
        write_capture(slim(capture), slimmed)
        if (size := size_of(slimmed)) > most_bytes:
            return Refused(out.name, f"{size / 2**20:.1f} MiB, more than {most_bytes / 2**20:g}")
    write_capture(slim(capture), out)
    return capture


def size_of(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def device_facts(folder: Path) -> tuple[dict[str, Any], Levels | None]:
    """The rates of the bare device, and its levels of power; None: no power was recorded."""
    rates = decode_json(read_bytes(folder / "device.json"), dict[str, Any], file=folder / "device.json")
    if not (folder / "power.jsonl").is_file():
        return rates, None
    busy = [(begin_s, end_s) for begin_s, end_s in (rates[name]["window_s"] for name in ("copy", "matmul_bfloat16"))]
    return rates, derive_levels(read_power(folder / "power.jsonl"), busy)


def card(
    campaign: CampaignRecord, device: tuple[dict[str, Any], Levels | None] | None, kept: dict[str, Capture]
) -> str:
    """What was measured, on what, in Markdown."""
    gpu = campaign.host.get("gpu", {})
    name = f"{gpu['name']}, driver {gpu.get('driver')}, CUDA {gpu.get('cuda')}" if gpu else campaign.host.get("cpu")
    packages = ", ".join(f"{package} {version}" for package, version in campaign.host.get("packages", {}).items())
    lines = [f"# Measured on {name}", "", f"With {packages}; random weights. docs/campaign.md says how.", ""]
    lines += list(_device_lines(*device)) if device is not None else []
    lines += ["| capture | requests | requests/s | TTFT p50 (ms) | TPOT p50 (ms) | E2EL p50 (s) | preempted | mean W |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [_row(name, capture) for name, capture in kept.items()]
    return "\n".join([*lines, ""])


def _device_lines(rates: dict[str, Any], levels: Levels | None) -> Iterator[str]:
    yield f"- copies: {rates['copy']['bytes_per_s'] / 1e9:.1f} GB/s, read and written"
    yield f"- bfloat16 matrix products: {rates['matmul_bfloat16']['flops_per_s'] / 1e12:.3g} TFLOP/s"
    for component, own in (levels.components if levels is not None else {}).items():
        for state in ("idle", "standby", "active"):
            if (level := getattr(own, state)) is not None:
                quartiles = f"quartiles {level.p25_w:.1f} to {level.p75_w:.1f}, {level.n} samples"
                yield f"- {component} {state}: {level.median_w:.1f} W ({quartiles})"
    yield ""


def _row(name: str, capture: Capture) -> str:
    figures = requests(capture.outcomes)
    span_s = max(one.finish_s or 0.0 for one in capture.outcomes)
    power = capture.series.get("power_w.devices")
    within = None if power is None else power.value[(power.time_s > 0) & (power.time_s <= span_s)]
    cells = [name, str(len(capture.outcomes)), f"{len(capture.outcomes) / span_s:.2f}"]
    for values, scale in ((figures.ttft_s, 1e3), (figures.tpot_s, 1e3), (figures.e2el_s, 1.0)):
        cells.append(f"{float(np.nanmedian(values)) * scale:.4g}")
    cells += [str(total(capture.outcomes, "num_preemptions"))]
    cells += ["–" if within is None or not len(within) else f"{within.mean():.1f}"]
    return f"| {' | '.join(cells)} |"


def bring_home(source: Path, captures: Path, profiles: Path, most_bytes: int, only: list[str]) -> list[Refused]:
    """Import the parts of a campaign that are complete. Returns those that were refused. Raises InputError."""
    campaign = decode_json(read_bytes(source / "campaign.json"), CampaignRecord, file=source / "campaign.json")
    device: tuple[dict[str, Any], Levels | None] | None = None
    kept: dict[str, Capture] = {}
    refused = [Refused(one.name, one.status) for one in campaign.parts if one.status in ("failed", "no time left")]
    with TemporaryDirectory() as folder:
        done = Path(folder) / "done"
        there = unpack_bundles(source, done)
        if unknown := sorted(set(only) - set(there)):
            raise InputError(field="--only", found=", ".join(unknown), accepted=", ".join(there))
        for name in there:
            part = Path(folder) / name
            with tarfile.open(done / f"{name}.tar.gz") as tar:
                tar.extractall(part, filter="data")
            if name == "device":
                device = device_facts(part)
            if only and name not in only:
                continue
            if (part / "capture").is_dir():
                found = import_capture(part / "capture", captures / name, most_bytes)
                if isinstance(found, Refused):
                    refused.append(found)
                else:
                    kept[name] = found
            if (part / "profile").is_dir():
                profile = read_profile(part / "profile")
                write_profile(profile, profiles / profile.meta.device.replace(" ", "-") / profile.meta.model)
    captures.mkdir(parents=True, exist_ok=True)
    (captures / "CARD.md").write_text(card(campaign, device, kept))
    return refused


def main() -> None:
    """Import what the command line names; exits with 3 when a part was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", type=Path, help="the campaign's --out")
    parser.add_argument("--captures", type=Path, required=True, help="folder for the captures, one each, and the card")
    parser.add_argument("--profiles", type=Path, required=True, help="folder for the profiles, by device and model")
    parser.add_argument("--only", action="append", default=[], help="one part; may be repeated; default: all")
    parser.add_argument("--most-mib", type=float, default=2.0, help="most MiB of a capture")
    chosen = parser.parse_args()
    most_bytes = round(chosen.most_mib * 2**20)
    try:
        refused = bring_home(chosen.campaign, chosen.captures, chosen.profiles, most_bytes, chosen.only)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    for one in refused:
        print(f"not imported: {one.name}: {one.reason}")
    print((chosen.captures / "CARD.md").read_text())
    if refused:
        sys.exit(3)


if __name__ == "__main__":
    main()
