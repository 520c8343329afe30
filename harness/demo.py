"""The demo: a bundled capture of a real engine, replayed by its twin, and how far off that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.compare import Validation, compare
from harness.validate import validate, write_validation
from traces.capture import read_capture

BUNDLED = Path(__file__).parent / "bundled"
LOADS = ("light", "prefix", "saturated")


def bundled_validation(load: str) -> tuple[Validation, dict[str, Any]]:
    """A bundled load validated, and its noise floor: its second recording scored against its first."""
    validation = validate(BUNDLED / f"{load}.yaml", BUNDLED / "captures" / f"{load}-1")
    floor = compare(validation.measured, read_capture(BUNDLED / "captures" / f"{load}-2"))
    return validation, floor


def demo(out: Path | None, load: str = "saturated") -> tuple[Validation, dict[str, Any]]:
    """Validate a bundled load; with `out`, write the result there. Needs no GPU, no server and no extra."""
    validation, floor = bundled_validation(load)
    if out is not None:
        write_validation(validation, out)
    return validation, floor
