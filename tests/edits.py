"""Files that are made wrong in one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    """What replaces a text, which must be there, once in the file of that name in a folder."""

    def apply(folder: Path) -> None:
        file = folder / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return apply
