"""A file of JSON lines that grows while something is recorded: what was appended is on disk within a second.

After `kill -9` at any moment everything but the last second can be read: a line that was cut off is left out. A full
disk is reported at once and loses nothing: what could not be written is kept and tried again until the end.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from traces.decoding import lines, read_bytes
from traces.errors import CollectorError

FLUSH_EVERY_S = 0.5


def say(text: str) -> None:
    """Print a line to stderr, in the place of a line of progress."""
    print(f"\r\033[K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


class Journal:
    """Appends records to a file; a thread writes them out. Safe to append to from several threads.

    The first record of each opening is a header that pairs the host's two clocks; further openings of the same file
    go on behind what is there, without the line that was cut off.
    """

    def __init__(self, path: Path, schema: str, report: Callable[[str], None] = say, **header: Any) -> None:
        """Open the file, new or not. Raises CollectorError when it cannot be.

        Args:
            path: the file; its folder must exist.
            schema: name and version of what the records are.
            report: takes a line for a person, when the disk is full and when it no longer is.
            **header: what else the header says.
        """
        self.path = path
        self._report = report
        self._lock = threading.Lock()
        self._unwritten = bytearray()
        self._full = False
        self._closing = threading.Event()
        try:
            if path.is_file():
                _drop_cut_line(path)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise CollectorError(f"{path}: cannot be written ({error.strerror})") from None
        clocks = {"wall_ns": time.time_ns(), "monotonic_ns": time.monotonic_ns()}
        self.append({"kind": "header", "schema": schema, **clocks, **header})
        self.flush()
        self._thread = threading.Thread(target=self._flush_regularly, daemon=True)
        self._thread.start()

    def append(self, record: Any) -> None:
        """Add a record, anything that msgspec can encode; returns at once."""
        line = msgspec.json.encode(record) + b"\n"
        with self._lock:
            self._unwritten += line

    def flush(self) -> None:
        """Write out what has been appended. A full disk is reported, and tried again the next time."""
        with self._lock:
            try:
                while self._unwritten:
                    del self._unwritten[: os.write(self._file, self._unwritten)]
            except OSError as error:
                if not self._full:
                    self._report(f"{self.path}: cannot be written ({error.strerror}); kept in memory and tried again")
                self._full = True
                return
            if self._full:
                self._report(f"{self.path}: written again; nothing was lost")
            self._full = False

    def close(self) -> None:
        """Write out the rest. Raises CollectorError, with the number of bytes lost, when that cannot be done."""
        self._closing.set()
        self._thread.join()
        self.flush()
        os.close(self._file)
        if self._unwritten:
            raise CollectorError(f"{self.path}: the last {len(self._unwritten)} bytes could not be written")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _flush_regularly(self) -> None:
        while not self._closing.wait(FLUSH_EVERY_S):
            self.flush()


def read_journal(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and text of every whole line; what was cut off behind the last of them is left out.

    Raises InputError when the file cannot be read.
    """
    data = read_bytes(path)
    return lines(data[: data.rfind(b"\n") + 1])


def _drop_cut_line(path: Path) -> None:
    """Shorten a file to its whole lines, so that what follows starts on a line of its own."""
    with path.open("rb+") as stream:
        stream.seek(0, os.SEEK_END)
        end = whole = stream.tell()
        while whole:
            begin = max(0, whole - 65536)
            stream.seek(begin)
            found = stream.read(whole - begin).rfind(b"\n")
            whole = begin + found + 1 if found >= 0 else begin
            if found >= 0:
                break
        if whole < end:
            stream.truncate(whole)
