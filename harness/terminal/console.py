"""The terminal: plain tables, facts and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 160
"""Columns where there is no terminal to ask: enough that no table is cut."""

WIDEST = 10_000
"""Columns of text that a table is measured in."""


Padding = tuple[int, int, int, int]
"""Of cells, as CSS counts: above, right, below, left."""
APART: tuple[Padding, ...] = (0, 1, 0, 1), (0, 1, 0, 0), (0, 0, 0, 0)
"""Three spaces between columns, two, or one."""


def console(*, stderr: bool = False) -> Console:
    """The terminal; plain text of a fixed width when it is none. What stands in brackets or colons is printed so."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not found.is_terminal:
        found = Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=WIDTH)
    return found


def table(
    title: str, columns: list[str], rows: Sequence[tuple[str, ...]], *, broken: Callable[[str], str] | None = None
) -> Table:
    """A table whose columns but the first are right-aligned, for standard output.

    Where it is wider than the terminal, headers are `broken` into lines, if that is said; then columns stand closer,
    and what is still too wide goes on in the next line: nothing is cut.
    """
    out = console()
    made = _made(title, columns, rows, APART[0])
    if broken is not None and not _fits(out, made):
        columns = [broken(column) for column in columns]
    for padding in APART:
        made = _made(title, columns, rows, padding)
        if _fits(out, made):
            break
    return made


def _fits(out: Console, made: Table) -> bool:
    from rich.measure import Measurement

    return Measurement.get(out, out.options.update(max_width=WIDEST), made).maximum <= out.width


def _made(title: str, columns: list[str], rows: Sequence[tuple[str, ...]], padding: Padding) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, padding=padding)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
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
