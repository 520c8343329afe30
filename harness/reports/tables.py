"""A capture's tables as files: CSV for everybody, Parquet for pandas."""

from __future__ import annotations

from pathlib import Path

from harness.files import new_file
from traces.capture import Capture
from traces.errors import InputError
from traces.frames import requests_frame, series_frame, steps_frame

TABLES = {"requests": requests_frame, "steps": steps_frame, "series": series_frame}


def write_table(capture: Capture, of: str, out: Path) -> int:
    """Write one of `TABLES` as a new file. Returns how many rows it has.

    Raises:
        InputError: there is no such table or format, steps were not recorded, or `out` exists.
    """
    if of not in TABLES:
        raise InputError(field="--of", found=of, accepted=", ".join(TABLES))
    if out.suffix not in (".csv", ".parquet"):
        raise InputError(field="--out", found=str(out), accepted="a name that ends in .csv or .parquet")
    frame = TABLES[of](capture)
    if frame is None:
        raise InputError(f"has no {of}: they were not recorded", field="--of")
    with new_file(out) as file:
        frame.to_csv(file, index=of != "steps") if out.suffix == ".csv" else frame.to_parquet(file)
    return len(frame)
