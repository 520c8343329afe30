"""A trace file that is read line by line: its lines, its digest, and what there is to say of it afterwards.

A format's reader is a generator of numbered rows over a `Source`, which holds no more of the file than a line. `whole`
makes a `Trace` of what it yields.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Self

import msgspec

from traces.errors import InputError
from traces.trace import Trace, TraceRow, checked_rows

Numbered = tuple[int, TraceRow]
"""A row and the line of the file on which it stands, counted from 1."""


@dataclass(slots=True)
class Source:
    """A file that is being read. Its notes are complete once its rows are.

    As a context manager it closes the file at the end: a row that is refused leaves generators half run, and with them
    the file open for as long as anybody keeps the error.

    Attributes:
        path: the file.
        notes: what the reader assumed.
        counts: how many rows something is to be said of; `{n}` in the sentence is the number.
        hash_block_size: tokens per hash of a row, where rows have any.
    """

    path: Path
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    hash_block_size: int | None = None
    _file: IO[bytes] | None = None
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, each with its number. Raises InputError when the file cannot be read."""
        for number, line in enumerate(self._all_lines(), start=1):
            if line.strip():
                yield number, line

    def text_lines(self) -> Iterator[str]:
        """Every line as text, blank ones too, without a byte order mark. Raises InputError."""
        for number, line in enumerate(self._all_lines(), start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"is not text ({error})", file=self.path, line=number) from None

    def _all_lines(self) -> Iterator[bytes]:
        with self.opened() as stream:
            for line in stream:
                self._digest.update(line)
                yield line

    def digest_whole(self) -> None:
        """Take the digest of a file that is not read by lines."""
        with self.opened() as stream:
            while part := stream.read(1 << 20):
                self._digest.update(part)

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The file's bytes, unpacked if its name ends in .gz. Raises InputError when they cannot be read."""
        try:
            with self._open() as stream:
                yield stream
        except FileNotFoundError:
            raise InputError("no such file", file=self.path) from None
        except IsADirectoryError:
            raise InputError("is a folder", file=self.path, accepted="a file") from None
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"cannot be read ({error})", file=self.path) from None

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            self._file = self.path.open("rb")
        except ValueError as error:  # a name with a null byte
            raise InputError(f"cannot be read ({error})", file=self.path) from None
        with self._file:
            if self.path.suffix != ".gz":
                yield self._file
                return
            with gzip.open(self._file, "rb") as unpacked:
                yield unpacked  # type: ignore[misc]

    def share_read(self) -> float:
        """How much of the file was read so far, by its bytes on the disk: 0 before it is opened, 1 when it is closed.

        A few rows may be read ahead. A pipe's length is not known: 0 until it is closed.
        """
        if self._file is None:
            return 0.0
        if self._file.closed:
            return 1.0
        size = os.fstat(self._file.fileno()).st_size
        return min(self._file.tell() / size, 1.0) if size else 0.0

    def sha256(self) -> str:
        """Digest of the bytes read so far; of the file, once its rows are read."""
        return "sha256:" + self._digest.hexdigest()

    def all_notes(self) -> tuple[str, ...]:
        """What is to be said of the file, once its rows are read."""
        return (*self.notes, *(sentence.replace("{n}", str(n)) for sentence, n in self.counts.items()))

    def empty(self, line: int, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a request has nothing to serve, which is then counted: such a row is left out."""
        if prompt_tokens and output_tokens:
            return False
        what = "output" if prompt_tokens else "prompt"
        self.counts[f"{{n}} requests of 0 {what} tokens were left out: there is nothing to serve"] += 1
        return True


def first_line(path: Path) -> tuple[int, bytes]:
    """The first line of a file that is not blank, and its number; (0, b"") where there is none. Raises InputError."""
    with Source(path) as source:
        return next(source.lines(), (0, b""))


Reader = Callable[[Source], Iterable[Numbered]]
"""Yields the rows of a file in its order. Raises InputError with file, line and field."""


def whole(path: Path, rows: Reader) -> Trace:
    """Everything that a reader yields, in order of arrival. Raises InputError."""
    with Source(path) as source:
        numbered = list(rows(source))
    late = sum(second[1].arrival_s < first[1].arrival_s for first, second in pairwise(numbered))
    if late:
        numbered.sort(key=lambda row: row[1].arrival_s)
        source.notes.append(f"not in order of arrival ({late} rows arrive before the row above them): sorted")
        if (first_s := numbered[0][1].arrival_s) < 0:
            numbered = [(n, msgspec.structs.replace(r, arrival_s=r.arrival_s - first_s)) for n, r in numbered]
    checked = checked_rows([row for _, row in numbered], path, [line for line, _ in numbered])
    hashed = any(row.block_hashes is not None for row in checked)
    return Trace(
        checked, source.hash_block_size if hashed else None, str(path), source.sha256(), tuple(source.all_notes())
    )


def since_first(numbered: Iterable[tuple[int, int, TraceRow]]) -> Iterator[Numbered]:
    """Rows with their arrivals in nanoseconds of some calendar, made seconds since the first row.

    A row that arrived before the first one gets a negative arrival here; `whole` moves all rows by it.
    """
    first_ns: int | None = None
    for line, arrival_ns, row in numbered:
        first_ns = arrival_ns if first_ns is None else first_ns
        yield line, msgspec.structs.replace(row, arrival_s=(arrival_ns - first_ns) / 1e9)
