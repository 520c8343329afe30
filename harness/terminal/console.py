"""The terminal: plain tables, facts and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 160
"""Columns where there is no terminal to ask: enough that no table is cut."""


def console(*, stderr: bool = False) -> Console:
    """The terminal; plain text of a fixed width when it is none. What stands in brackets or colons is printed so."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not found.is_terminal:
        found = Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=WIDTH)
    return found


def table(title: str, columns: list[str], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table whose columns but the first are right-aligned."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        made.add_row(*row)
    return made


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def print_facts(facts: dict[str, Any]) -> None:
    """Print a mapping, a fact a line; a list, an entry a line."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        values = value if isinstance(value, list) else [value]
        for i, one in enumerate(values or ["–"]):
            sys.stdout.write(f"{name if i == 0 else '':<{width}}  {'–' if one is None else one}\n")
