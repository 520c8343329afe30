"""Figures of several runs in a table: each run's, and how far it is from the first run's, for better or worse.

A word stands only where everybody wants more of a figure, or less of it, and where both runs speak of the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.reports.page import table

Better = Literal["more", "less"]

FROM_TIMES = 2.0
"""From twice as much on, and from half of it down, a difference is told as a ratio."""


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of several runs.

    Attributes:
        label: what it is, with its unit where `text` has none.
        values: of each run; None: not known.
        text: how a value is written.
        better: which way everybody wants it; None: it depends, or the runs are not alike in it.
        is_share: of a whole: it differs by points, not by a part of itself.
        unlike: of each run, whether this figure of it and of the first run cannot be called better or worse; empty:
            all can.
    """

    label: str
    values: Sequence[float | None]
    text: Callable[[float], str]
    better: Better | None = None
    is_share: bool = False
    unlike: Sequence[bool] = ()

    @property
    def is_known(self) -> bool:
        """Whether any run has it."""
        return any(value is not None for value in self.values)


def compared_table(
    names: Sequence[str], rows: Iterable[Row], caption: str, unlike: Sequence[bool] | None = None
) -> str:
    """A line per figure that some run has; behind the first run's, each run's and its difference. Empty without any.

    Args:
        names: of the runs.
        rows: the figures.
        caption: of the table.
        unlike: of each run, whether its figures are of other requests than the first's, so that no word is said.
    """
    first, *others = names
    columns = ["", first, *(column for name in others for column in (name, f"to {first}"))]
    lines = [_line(row, unlike or [False] * len(names)) for row in rows if row.is_known]
    return table(columns, lines, caption) if lines else ""


def _line(row: Row, unlike: Sequence[bool]) -> list[str]:
    first, *others = row.values
    cells = [row.label, _text(row, first)]
    own = row.unlike or [False] * len(row.values)
    for value, *is_unlike in zip(others, unlike[1:], own[1:], strict=True):
        better = None if any(is_unlike) else row.better
        cells += [_text(row, value), difference(value, first, better=better, is_share=row.is_share)]
    return cells


def _text(row: Row, value: float | None) -> str:
    return "–" if value is None else row.text(value)


def difference(value: float | None, first: float | None, *, better: Better | None, is_share: bool = False) -> str:
    """How far a value is from the first run's: `+12.3% worse`, `2.4 times, better`, `-3.1 points`, `same`."""
    if value is None or first is None:
        return "–"
    if value == first:
        return "same"
    word = "" if better is None else ("better" if (value > first) == (better == "more") else "worse")
    if is_share:
        return _of_note(f"{100 * (value - first):+.1f}", " points", word)
    if not first or not value:  # no figure here is below 0
        return _with_word("up from 0" if first == 0 else "down to 0", word, ", ")
    ratio = value / first
    if ratio >= FROM_TIMES or ratio <= 1 / FROM_TIMES:
        return _with_word(f"{ratio:.3g} times", word, ", ")
    return _of_note(f"{100 * (ratio - 1):+.1f}", "%", word)


def _of_note(number: str, unit: str, word: str) -> str:
    """What rounds to nothing is no better and no worse to a reader."""
    return _with_word(number + unit, word if float(number) else "")


def _with_word(text: str, word: str, between: str = " ") -> str:
    return f"{text}{between}{word}" if word else text
