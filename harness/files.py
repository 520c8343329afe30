"""A file, all of it or nothing; `traces.capture.new_folder` is the same for folders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from traces.errors import InputError


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A path of the same name to write to, which becomes `out` once the block ends well; else nothing is left behind.

    Raises InputError when `out` exists, or when nothing can be written where it should be, or the disk is full.
    """
    refuse_taken_file(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as inside:
            yield Path(inside) / out.name
            (Path(inside) / out.name).replace(out)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=out) from None


def refuse_taken_file(out: Path) -> None:
    """Raise InputError when a new file cannot be called so; asked before long work, and again when it is written."""
    if out.exists() or out.is_symlink():
        raise InputError("already exists", file=out, accepted="a new file")


def replace_file(file: Path, data: bytes) -> None:
    """Write a file whole, in place of what was there. Raises InputError when it cannot be written; nothing changes."""
    written = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        try:
            written.write_bytes(data)
            written.replace(file)
        finally:
            written.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=file) from None
