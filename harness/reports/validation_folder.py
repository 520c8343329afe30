"""A validation on disk: its figures, both captures, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from harness.reports.validation_page import Compared, validation_page
from harness.running.predicted import intervals_csv
from harness.scoring.compare import Validation
from traces.capture import new_folder, write_capture


def write_validation(validation: Validation, out: Path) -> None:
    """Write validation.json, both captures under measured/ and simulated/, and report.html; all of it or nothing.

    Beside them, where there are any: intervals.csv, each request's, and attribution.json.
    """
    attribution = None if validation.attribution is None else msgspec.to_builtins(validation.attribution)
    compared = Compared(validation.result, validation.measured, validation.simulated, attribution)
    with new_folder(out) as folder:
        (folder / "validation.json").write_bytes(_pretty(validation.result))
        write_capture(validation.measured, folder / "measured")
        write_capture(validation.simulated, folder / "simulated")
        (folder / "report.html").write_text(validation_page(compared).html(), encoding="utf-8")
        if validation.intervals is not None:
            (folder / "intervals.csv").write_text(intervals_csv(validation.intervals, validation.simulated))
        if attribution is not None:
            (folder / "attribution.json").write_bytes(_pretty(attribution))


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
