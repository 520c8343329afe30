"""A new file, all of it or nothing; `traces.capture.new_folder` is the same for folders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from traces.errors import InputError


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A path of the same name to write to, which becomes `out` once the block ends well; else nothing is left behind.

    Raises InputError when `out` exists, or when nothing can be written where it should be.
    """
    if out.exists():
        raise InputError("already exists", file=out, accepted="a new file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", file=out) from None
    with folder as inside:
        yield Path(inside) / out.name
        (Path(inside) / out.name).replace(out)
