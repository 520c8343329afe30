"""What a simulation depends on beside the scenario itself: the files that it names, and servetwin's own sources."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness

CODE = ("traces", "profiles", "simulator", "calibrate", "harness")
"""Folders whose sources decide what a simulation says."""

ROOT = Path(harness.__file__).parents[1]
"""Where they are."""

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


def files_digest() -> str:
    """Digest (SHA-256, hexadecimal) of the files of servetwin's own sources that a simulation depends on."""
    return _digest(lambda source: source)


def sources_digest() -> str:
    """The same of what Python reads in them: comments, docstrings and layout do not count. It takes about a second."""
    return _digest(lambda source: syntax(ast.parse(source)).encode())


def _digest(read: Callable[[bytes], bytes]) -> str:
    digest = hashlib.sha256()
    for folder in CODE:
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + read(file.read_bytes()))
    return digest.hexdigest()


_DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef


def syntax(node: Any) -> str:
    """A syntax tree without docstrings, as a text that is the same in Python 3.11, 3.12 and 3.13.

    Those differ in fields that are empty, which `ast.dump` writes or not, and in empty ends of f-strings.
    """
    if isinstance(node, list):
        return f"[{','.join(map(syntax, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = []
    for name in node._fields:
        value = getattr(node, name, None)
        if name == "body" and isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            value = node.body[1:]
        elif isinstance(node, ast.JoinedStr):
            value = [part for part in node.values if not isinstance(part, ast.Constant) or part.value]
        if value is not None and value != [] and not isinstance(value, ast.expr_context):
            parts.append(f"{name}={syntax(value)}")
    return f"{type(node).__name__}({','.join(parts)})"
