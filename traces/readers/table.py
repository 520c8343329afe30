"""Tables with a header, row by row: cells by the column's name, as the counts and times that they state.

A number is written as numbers are: digits, perhaps a sign, a point and an exponent. What else Python would take for one
(`1_000`, `nan`, other scripts' digits) is refused with file, line and field.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from traces.errors import InputError, nearest
from traces.readers.source import Source

_WHOLE = re.compile(r"\+?[0-9]{1,19}(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_INSTANT = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})[ T](?P<h>[0-9]{2}):(?P<m>[0-9]{2}):(?P<s>[0-9]{2})(\.(?P<part>[0-9]{1,9}))?"
    r" ?(?P<zone>Z|UTC|[+-][0-9]{2}:?[0-9]{2})?"
)

LARGEST = 2**63 - 1
LONGEST_S = 1e9
"""More seconds (32 years) than a trace lasts: such a number is a date and not a time since the trace began."""


@dataclass(frozen=True, slots=True)
class Cells:
    """One row: texts by column.

    Attributes:
        file: the file.
        line: the row's line.
        text: the cells, as they stand there but for blanks around them.
    """

    file: Path
    line: int
    text: dict[str, str]

    def error(self, column: str, accepted: str) -> InputError:
        """An InputError about the cell of a column."""
        return InputError(file=self.file, line=self.line, field=column, found=self.text[column], accepted=accepted)

    def count(self, column: str) -> int:
        """A whole number from 0 on; `374.0` is one. Raises InputError."""
        text = self.text[column]
        if not _WHOLE.fullmatch(text) or (number := int(text.split(".")[0])) > LARGEST:
            raise self.error(column, "a whole number, not negative, of at most 63 bits")
        return number

    def signed(self, column: str) -> int:
        """A whole number. Raises InputError."""
        text = self.text[column]
        if not _WHOLE.fullmatch(text.removeprefix("-")) or abs(number := int(text.split(".")[0])) > LARGEST:
            raise self.error(column, "a whole number of at most 63 bits")
        return number

    def seconds(self, column: str, per_second: int = 1) -> float:
        """A time since the trace began, in seconds or `per_second`-ths of one. Raises InputError."""
        text = self.text[column]
        time_s = float(text) / per_second if _NUMBER.fullmatch(text) else -1.0
        if not 0 <= time_s <= LONGEST_S:
            raise self.error(column, f"a number from 0 to {LONGEST_S * per_second:.0e}")
        return time_s

    def instant_ns(self, column: str) -> tuple[int, bool]:
        """A date and time as nanoseconds since 1970, and whether it states its zone. Raises InputError."""
        found = instant_ns(self.text[column])
        if found is None:
            raise self.error(column, "a date and time, as 2023-11-16 18:17:03.9799600, with or without a zone")
        return found


def instant_ns(text: str) -> tuple[int, bool] | None:
    """Nanoseconds since 1970 of `YYYY-MM-DD HH:MM:SS[.f][zone]`, and whether it has a zone; exact to nine digits.

    Without a zone the time is counted as if it were UTC: only differences to others of its kind mean something. None
    when the text is no date and time.
    """
    match = _INSTANT.fullmatch(text)
    if match is None:
        return None
    try:
        days = date.fromisoformat(match["date"]).toordinal() - date(1970, 1, 1).toordinal()
    except ValueError:
        return None
    hours, minutes, seconds = int(match["h"]), int(match["m"]), int(match["s"])
    zone = match["zone"]
    ahead_s = 0 if zone in (None, "Z", "UTC") else _ahead_s(zone)
    if hours > 23 or minutes > 59 or seconds > 59 or abs(ahead_s) > 86400:
        return None
    whole_s = days * 86400 + hours * 3600 + minutes * 60 + seconds - ahead_s
    return whole_s * 10**9 + int((match["part"] or "").ljust(9, "0")), zone is not None


def _ahead_s(zone: str) -> int:
    """How far clocks of a zone, as `+05:30`, are ahead of UTC."""
    seconds = int(zone[1:3]) * 3600 + int(zone[-2:]) * 60
    return -seconds if zone.startswith("-") else seconds


def cells(source: Source, needed: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Cells]:
    """The rows of a CSV file (tabs where the header has any) with these columns, in any order and beside others.

    Columns that are in neither list are named in the notes. Raises InputError: a column is missing or stands twice, a
    row has more or fewer cells than the header, or is no CSV.
    """
    lines = source.text_lines()
    first = next(lines, "")
    reader = csv.reader(_again(first, lines), delimiter="\t" if "\t" in first else ",", strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                header = _header([cell.strip() for cell in row], needed, optional, source, reader.line_num)
                continue
            if len(row) != len(header):
                message, accepted = f"has {len(row)} cells", f"{len(header)}, as the header"
                raise InputError(message, file=source.path, line=reader.line_num, accepted=accepted)
            text = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
            yield Cells(source.path, reader.line_num, text)
    except csv.Error as error:
        raise InputError(f"is not CSV ({error})", file=source.path, line=reader.line_num) from None


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _header(header: list[str], needed: Sequence[str], optional: Sequence[str], source: Source, line: int) -> list[str]:
    for name in needed:
        if name not in header:
            accepted = f"a header with {', '.join(needed)}; here {nearest(name, header)}"
            raise InputError("is missing", file=source.path, line=line, field=name, accepted=accepted)
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise InputError("stands twice", file=source.path, line=line, field=twice)
    unread = [name for name in header if name not in (*needed, *optional)]
    if unread:
        source.notes.append(f"columns that were not read: {', '.join(unread)}")
    return header


def has_columns(first_line: bytes, names: Sequence[str]) -> bool:
    """Whether a first line is a CSV header with all of these."""
    try:
        header = next(csv.reader([first_line.decode("utf-8-sig")], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return False
    return set(names) <= {cell.strip() for cell in header}
