"""The demo: a bundled capture of a real engine, replayed by its twin, and how far off that is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from harness.reports.validation_folder import write_validation
from harness.scoring.compare import Repeat, Validation, compare
from harness.scoring.validate import validate
from traces.capture import read_capture

BUNDLED = Path(__file__).parent / "bundled"
LOADS = ("light", "prefix", "saturated")
WRITTEN = {"validation.json", "report.html", "measured", "simulated"}
"""What a demo's folder holds; an older one lacks `measured`."""


def bundled_validation(load: str) -> tuple[Validation, Repeat]:
    """A bundled load validated against its first recording, and what its second says."""
    first, second = (BUNDLED / "captures" / f"{load}-{number}" for number in (1, 2))
    validation = validate(BUNDLED / f"{load}.yaml", first)
    again = validate(BUNDLED / f"{load}.yaml", second).result
    return validation, Repeat(again, compare(validation.measured, read_capture(second)))


def demo(out: Path | None, load: str = "saturated") -> tuple[Validation, Repeat]:
    """Validate a bundled load; with `out`, write the result there, over an earlier demo's but over nothing else.

    Needs no GPU, no server and no extra. Raises InputError when `out` holds anything else.
    """
    validation, repeat = bundled_validation(load)
    validation.result["demo"] = load
    validation.result["second_recording"] = {"paired": repeat.again["paired"], "noise_floor": repeat.floor["paired"]}
    if out is not None:
        if _is_earlier_demo(out):
            shutil.rmtree(out)
        write_validation(validation, out)
    return validation, repeat


def _is_earlier_demo(out: Path) -> bool:
    """Whether a folder holds what an earlier demo wrote and nothing else, so that it may be replaced."""
    if not out.is_dir() or {path.name for path in out.iterdir()} | {"measured"} != WRITTEN:
        return False
    try:
        return "demo" in msgspec.json.decode((out / "validation.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return False
