"""CSV tables of measurements: columns as arrays, every cell checked, errors with file, line and field."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from traces.arrow import numpy_column
from traces.decoding import read_bytes
from traces.errors import InputError, nearest
from traces.steps import Floats

if TYPE_CHECKING:
    import pyarrow as pa

_ARROW_ROW = re.compile(r"Row #(\d+): (.*)")


@dataclass(frozen=True, slots=True)
class CsvTable:
    """A CSV file's rows, each cell still the text that stands in the file."""

    file: Path
    rows: pa.Table

    def has(self, name: str) -> bool:
        """Whether an optional column is there."""
        return name in self.rows.column_names

    def numbers(self, name: str, *, above_0: bool = False, whole: bool = False, gaps: bool = False) -> Floats:
        """A column of finite numbers, 0 or above, [n]. Raises InputError at the first cell that is not.

        Args:
            name: the column.
            above_0: 0 is wrong too.
            whole: so is a fraction.
            gaps: a cell may be empty, and reads as NaN.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = "whole number" if whole else "finite number"
        accepted = f"a {kind} above 0" if above_0 else f"a {kind}, 0 or above"
        cells = self.rows.column(name)
        empty = np.zeros(len(cells), dtype=np.bool_)
        if gaps:
            # Whatever takes a value of Python's, as `pc.equal` does, imports pandas too.
            empty = numpy_column(pc.cast(pc.binary_length(cells), pa.int64())) == 0
            cells = pc.replace_substring_regex(cells, pattern="^$", replacement="0")
        try:
            values = numpy_column(pc.cast(cells, pa.float64()))
        except pa.ArrowInvalid:
            i = next(i for i, text in enumerate(self.texts(name)) if not _is_number(text) and not empty[i])
            raise self.error(i, name, found=self.texts(name)[i], accepted=accepted) from None
        bad = (~np.isfinite(values) | (values <= 0 if above_0 else values < 0)) & ~empty
        if whole:
            bad |= values != np.floor(values)
        values[empty] = np.nan
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            raise self.error(i, name, found=float(values[i]), accepted=accepted)
        return values

    def texts(self, name: str) -> list[str]:
        """A column of texts, [n]."""
        return [str(value) for value in self.rows.column(name).to_pylist()]

    def check_unique(self, keys: Sequence[str]) -> None:
        """Raise InputError when two rows have the same values in `keys`."""
        values = np.column_stack([self.numbers(key) for key in keys])
        _, first, group = np.unique(values, axis=0, return_index=True, return_inverse=True)
        again = np.flatnonzero(first[group.reshape(-1)] != np.arange(len(values)))
        if again.size:
            raise self.error(int(again[0]), ", ".join(keys), "is measured twice")

    def error(
        self, row: int, field: str, message: str = "", *, found: object = None, accepted: str | None = None
    ) -> InputError:
        """What is wrong with a cell, with the line it stands on; blank lines count as lines."""
        line = _line(self.file, row + 1)
        return InputError(message, file=self.file, line=line, field=field, found=found, accepted=accepted)


def read_csv(file: Path, columns: Sequence[str], *, optional: Sequence[str] = (), others: bool = False) -> CsvTable:
    """Read a CSV file that has these columns, and no others unless told so. Raises InputError.

    Args:
        file: the file.
        columns: those that must be there.
        optional: those that may be.
        others: whether further ones are passed over.
    """
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    data = read_bytes(file)
    header = _header(data, file)
    _check_header(header, file, columns, optional, others=others)
    columns = [*columns, *(name for name in optional if name in header)]
    # Every column as text: what a cell means is decided when it is asked for, and an error can show it as it stands.
    convert = pa_csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns))
    try:
        rows = pa_csv.read_csv(pa.BufferReader(data), pa_csv.ReadOptions(use_threads=False), convert_options=convert)
    except pa.ArrowInvalid as error:
        if row := _ARROW_ROW.search(str(error)):  # counted from 1, the header included
            raise InputError(row[2], file=file, line=_line(file, int(row[1]) - 1)) from None
        raise InputError(f"is not CSV ({error})", file=file) from None
    if rows.num_rows == 0:
        raise InputError("holds no rows", file=file)
    return CsvTable(file, rows)


def _header(data: bytes, file: Path) -> list[str]:
    try:
        first = next((line for _, line in _lines(data)), b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"is not text ({error})", file=file, line=1) from None
    return next(csv.reader([first]), [])


def _check_header(
    header: Sequence[str], file: Path, columns: Sequence[str], optional: Sequence[str], *, others: bool
) -> None:
    known = [*columns, *optional]
    for name in known:
        if name in columns and name not in header:
            raise InputError("is missing", file=file, line=1, field=name, accepted=", ".join(columns))
        if header.count(name) > 1:
            raise InputError("stands twice", file=file, line=1, field=name, accepted=", ".join(known))
    unknown = [name for name in header if name not in known]
    if unknown and not others:
        raise InputError("is unknown", file=file, line=1, field=unknown[0], accepted=nearest(unknown[0], known))


def _is_number(text: str) -> bool:
    """Whether Arrow takes the text for a number; Python takes more."""
    import pyarrow as pa

    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _line(file: Path, index: int) -> int:
    """The line of the `index`-th row of the file, which is the header for 0."""
    return [number for number, _ in _lines(read_bytes(file))][index]


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """What Arrow takes for rows: every line but the empty ones, with its number, counted from 1."""
    return ((number, line) for number, line in enumerate(data.splitlines(), start=1) if line)
