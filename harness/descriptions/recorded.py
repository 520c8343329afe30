"""The scenario that a capture is of, as a file to begin with: what ran, with the options that it recorded."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from harness.descriptions.agreement import KNOWN_OPTIONS, PARALLELISM
from simulator.scheduling.rules import version_of
from traces.capture import Capture, read_capture
from traces.errors import InputError

PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
NO_TEXT = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
"""Words that YAML does not read as text."""


CUSTOM_ALL_REDUCE = "disable_custom_all_reduce"
"""vLLM's option, which a scenario says of an instance's `collectives`."""


def with_device(capture: Capture, device: str | None) -> Capture:
    """The capture with the device that whoever imports it names; as it is without one.

    Raises InputError when the capture says another device itself, or the name is empty.
    """
    if device is None:
        return capture
    if not device.strip():
        raise InputError(field="--device", found=device, accepted="the device's name (`servetwin profile devices`)")
    own = capture.meta.device
    if own not in (None, device):
        raise InputError("the run says its device itself", field="--device", found=device, accepted=own)
    notes = capture.meta.notes if own else (*capture.meta.notes, f"the device is {device}, as told at the import")
    return replace(capture, meta=msgspec.structs.replace(capture.meta, device=device, notes=notes))


def scenario_text(folder: Path, trace: Path | None = None) -> str:
    """A scenario of a capture's engine, serving the capture's own requests or another trace.

    It is valid as it stands where an engine is one device. How several are linked no capture says: `fabric` is to be
    added, or a profile that measured their collectives.

    Raises:
        InputError: the capture cannot be read, or does not say its device.
    """
    meta = read_capture(folder).meta
    if meta.device is None:
        accepted = (
            "a capture of `collect replay --device NAME` or of `capture import --device NAME`, or a scenario of your "
            "own that names the device"
        )
        raise InputError("does not say its device", file=folder, accepted=accepted)
    recorded = {name: value for name, value in meta.engine_options.items() if value is not None}
    if recorded.get("dtype") == "auto":
        del recorded["dtype"]  # the model's own, which the capture does not tell
    if meta.num_gpu_blocks is not None:
        recorded["num_gpu_blocks"] = meta.num_gpu_blocks
    spread = {name: recorded.pop(name) for name in PARALLELISM if name in recorded}
    if recorded.get(CUSTOM_ALL_REDUCE) and spread.get("tensor_parallel_size", 1) > 1:
        spread["collectives"] = {CUSTOM_ALL_REDUCE: recorded.pop(CUSTOM_ALL_REDUCE)}
    engine = {name: recorded.pop(name) for name in KNOWN_OPTIONS if name in recorded}
    ran = " ".join((meta.engine or "its engine is not known").split())
    lines = [f"# What {folder.absolute().name} recorded; {ran}."]
    if recorded:
        lines.append(f"# Recorded, and not simulated: {', '.join(sorted(recorded))}.")
    if "collectives" in spread:
        lines.append("# The collectives' option needs a `fabric` with a `link`; without one, take it out.")
    lines.append(f"trace: {_flow(os.path.relpath(folder / 'trace.jsonl.gz' if trace is None else trace))}")
    lines.append(f"cluster: {_flow({'instances': [{'model': meta.model, 'device': meta.device, **spread}]})}")
    lines += ["engine:", *(f"  {name}: {_flow(value)}" for name, value in engine.items())] if engine else []
    version = version_of(meta.engine)
    if version is not None:
        lines.append(f'engine_version: "{version[0]}.{version[1]}"')
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    match value:
        case dict():
            return "{" + ", ".join(f"{name}: {_flow(one)}" for name, one in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_flow, value)) + "]"
        case str() if PLAIN.fullmatch(value) and value.lower() not in NO_TEXT:
            return value
    return json.dumps(value, ensure_ascii=False)
