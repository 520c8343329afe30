"""Files of what took long to make and can be made again: in the user's cache folder, found by what they are made of.

A file's key is a digest of all that its content depends on, the sources that make it included. So nothing that is
found is out of date, and results are the same with and without. Files lie in `$XDG_CACHE_HOME/servetwin/tables`, or
`~/.cache/servetwin/tables`; `SERVETWIN_CACHE=off` in the environment neither reads nor writes any. A file is written
aside and then renamed, so that others see all of it or nothing. One that is damaged (it carries a digest of itself)
counts as absent; where none can be written, none is kept. Both are counted in `COUNTS`, and change nothing but time.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from traces.errors import InputError

MOST_FILES = 256
"""Files that the folder keeps; the one that was written longest ago goes first."""
SWITCH = "SERVETWIN_CACHE"

COUNTS: Counter[str] = Counter()
"""What became of this process's files: `damaged`, `not written`; and whatever those who keep them count."""

_DIGEST_BYTES = 32


def folder() -> Path | None:
    """Where files are kept; None where they are not. The folder need not be there. Raises InputError."""
    switch = os.environ.get(SWITCH, "on")
    if switch not in ("on", "off"):
        raise InputError(field=SWITCH, found=switch, accepted="on, or off: keep no compiled tables in files")
    if switch == "off":
        return None
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "servetwin" / "tables"
    except RuntimeError:  # a user without a home
        return None


@cache
def source_digest(layout: str, *files: str) -> bytes:
    """Digest of what makes something: a file's layout, numpy's version, the kind of machine, and these sources."""
    digest = hashlib.sha256(f"{layout} {np.__version__} {platform.machine()}".encode())
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.digest()


def kept(key: str, layout: str) -> bytes | None:
    """What is kept under a key, in this layout; None when it is absent or damaged. Raises InputError as `folder`."""
    at = folder()
    if at is None or (data := _bytes_of(at / f"{key}.table")) is None:
        return None
    content = unsealed(data, layout)
    if content is None:
        COUNTS["damaged"] += 1
    return content


def keep(key: str, layout: str, content: bytes) -> None:
    """Keep something, all of it or nothing; what cannot be written is counted, since nothing depends on it.

    Raises InputError as `folder`.
    """
    at = folder()
    if at is None:
        return
    aside = None
    try:
        at.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=at, suffix=".new", delete=False) as stream:
            aside = Path(stream.name)
            stream.write(sealed(layout, content))
        aside.replace(at / f"{key}.table")
        _make_room(at)
    except OSError:
        COUNTS["not written"] += 1
        if aside is not None:
            with suppress(OSError):
                aside.unlink()


def sealed(layout: str, content: bytes) -> bytes:
    """A file: a digest of all that follows it, the layout's name, the content."""
    body = layout.encode() + b"\n" + content
    return hashlib.sha256(body).digest() + body


def unsealed(data: bytes, layout: str) -> bytes | None:
    """The content of a file; None when it is damaged or none of this layout."""
    name, _, content = data[_DIGEST_BYTES:].partition(b"\n")
    return content if _is_whole(data) and name == layout.encode() else None


def looked_at(at: Path) -> tuple[int, int]:
    """How many files a folder has, and how many of them are damaged."""
    found = [_bytes_of(file) for file in sorted(at.glob("*.table"))]
    return len(found), sum(data is None or not _is_whole(data) for data in found)


def _is_whole(data: bytes) -> bool:
    """Whether a file is what was written."""
    return hashlib.sha256(data[_DIGEST_BYTES:]).digest() == data[:_DIGEST_BYTES]


def _bytes_of(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _make_room(at: Path) -> None:
    """Remove the oldest files beyond `MOST_FILES`. Raises OSError."""
    files = list(at.glob("*.table"))
    if len(files) > MOST_FILES:
        for file in sorted(files, key=lambda file: file.stat().st_mtime)[: len(files) - MOST_FILES]:
            file.unlink(missing_ok=True)
