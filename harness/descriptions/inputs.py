"""What a simulation depends on beside the scenario itself: the files that it names, and servetwin's own sources."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness

CODE = ("traces", "profiles", "simulator", "calibrate", "harness")
"""Folders whose sources decide what a simulation says."""

_OWN_RULE = re.compile(r"^(?P<module>[A-Za-z_][\w.]*):[A-Za-z_]\w*$")
"""A scheduling order, an eviction or a router of one's own: module:Class."""


def named_files(value: Any, folders: list[Path]) -> Iterator[Path]:
    """The files that texts anywhere in `value` name, relative to any of the folders, or as a module's rule."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from named_files(inner, folders)
    elif isinstance(value, str) and value:
        for folder in folders:
            for path in (folder / value, folder / value / "config.json"):
                if path.is_file():
                    yield path
        if (rule := _OWN_RULE.match(value)) and (source := _source_of(rule["module"])) is not None:
            yield source


def _source_of(module: str) -> Path | None:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return None if found is None or found.origin is None else Path(found.origin)


def sources_digest() -> str:
    """Digest (SHA-256, hexadecimal) of servetwin's own sources, as far as a simulation depends on them."""
    root = Path(harness.__file__).parents[1]
    digest = hashlib.sha256()
    for folder in CODE:
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
