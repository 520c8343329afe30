"""A study's folder: a file per point as soon as it is known, and what is written once all are.

    points/FINGERPRINT.json   what became of a point; written whole or not at all, so that an interrupt costs nothing
    study.json                what was asked, every point with its figures, the front
    results.csv, pareto.csv   a line per point; those on the front
    pareto.svg                the front as a picture

The last four are there for a study that has ended, and hold nothing of when, where and by whom it was run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.descriptions.written import text_of
from harness.files import replace_file
from harness.sweeps.points import Point, Result
from traces.decoding import decode_json, read_bytes
from traces.errors import InputError


class PointFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A point on disk."""

    overrides: dict[str, Any]
    first_requests: int | None
    result: Result


class StudyFolder:
    """The folder of one study, or of several with the same points."""

    def __init__(self, path: Path) -> None:
        """Open it; it is made when there is something to write. Raises InputError for a folder of something else."""
        self.path = path
        self.points = path / "points"
        self._has_begun = False
        if path.exists() and not self.points.is_dir() and (not path.is_dir() or any(path.iterdir())):
            raise InputError("already exists", file=path, accepted="a new or empty folder, or a study's, which goes on")

    def known(self, point: Point) -> Result | None:
        """What became of a point; None: it has not been run to an end. Raises InputError for a damaged file."""
        file = self._file(point)
        return decode_json(read_bytes(file), PointFile, file=file).result if file.exists() else None

    def keep(self, point: Point, result: Result) -> None:
        """Write what became of a point."""
        self._begin()
        kept = PointFile(overrides=point.overrides, first_requests=point.first_requests, result=result)
        replace_file(self._file(point), msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")

    def _begin(self) -> None:
        """Make the folder, and remove what an earlier study has written: nothing looks like this one's result yet."""
        if self._has_begun:
            return
        try:
            self.points.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot be written ({error.strerror})", file=self.path) from None
        self._has_begun = True
        for name in ("study.json", "results.csv", "pareto.csv", "pareto.svg"):
            (self.path / name).unlink(missing_ok=True)

    def end(self, files: Mapping[str, bytes]) -> None:
        """Write what the study has come to."""
        self._begin()
        for name, data in files.items():
            replace_file(self.path / name, data)

    def _file(self, point: Point) -> Path:
        return self.points / f"{point.fingerprint}.json"


def csv_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as CSV: a column for every name in any of them, in the order in which they first stand; empty: not known."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if row.get(name) is None else text_of(row[name]) for name in columns] for row in rows)
    return stream.getvalue().encode()
