"""CSV tables of measurements: columns as arrays, every cell checked, errors with file, line and field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from traces.decoding import read_bytes
from traces.errors import InputError, nearest
from traces.steps import Floats

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class CsvTable:
    """A CSV file's rows. Line i + 2 of the file is row i: line 1 has the names."""

    file: Path
    rows: pa.Table

    def numbers(self, name: str, *, above_0: bool = False) -> Floats:
        """A column of finite numbers, 0 or above, [n]. Raises InputError at the first cell that is not."""
        import pyarrow as pa

        column = self.rows.column(name)
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) or column.null_count:
            for i, value in enumerate(column.to_pylist()):
                try:
                    float(value)
                except (TypeError, ValueError):
                    raise InputError(file=self.file, line=i + 2, field=name, found=value, accepted="a number") from None
        values = np.asarray(column.to_numpy(), dtype=np.float64)
        bad = ~np.isfinite(values) | (values <= 0 if above_0 else values < 0)
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            accepted = "a finite number above 0" if above_0 else "a finite number, 0 or above"
            raise InputError(file=self.file, line=i + 2, field=name, found=float(values[i]), accepted=accepted)
        return values

    def texts(self, name: str) -> list[str]:
        """A column of texts, [n]."""
        return [str(value) for value in self.rows.column(name).to_pylist()]

    def check_unique(self, keys: Sequence[str]) -> None:
        """Raise InputError when two rows have the same values in `keys`."""
        values = np.column_stack([self.numbers(key) for key in keys])
        _, first, counts = np.unique(values, axis=0, return_index=True, return_counts=True)
        if (counts > 1).any():
            twice = values[first[counts > 1][0]]
            line = int(np.flatnonzero((values == twice).all(axis=1))[1]) + 2
            raise InputError("is measured twice", file=self.file, line=line, field=", ".join(keys))


def read_csv(file: Path, columns: Sequence[str], *, others: bool = False) -> CsvTable:
    """Read a CSV file that has these columns, and no others unless told so. Raises InputError."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    try:
        rows = pa_csv.read_csv(pa.BufferReader(read_bytes(file)))
    except pa.ArrowInvalid as error:
        raise InputError(f"is not CSV ({error})", file=file) from None
    for name in columns:
        if name not in rows.column_names:
            raise InputError("is missing", file=file, line=1, field=name, accepted=", ".join(columns))
    unknown = [name for name in rows.column_names if name not in columns]
    if unknown and not others:
        raise InputError("is unknown", file=file, line=1, field=unknown[0], accepted=nearest(unknown[0], columns))
    if rows.num_rows == 0:
        raise InputError("holds no rows", file=file)
    return CsvTable(file, rows)
