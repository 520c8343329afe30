"""The page of a sweep: what is not beaten, any column over any other, and the table.

A sweep is a results.csv with a line per point; study.json beside it says what was varied and what makes one better.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from harness.reports.colours import ROLES
from harness.reports.page import Page, Section, data, escape, folded, notes, prose, table, verdict_line
from harness.sweeps.below_table import failure_lines, time_lines
from harness.sweeps.capacity_table import capacity_table
from harness.sweeps.devices import COLUMN as DEVICES
from harness.sweeps.devices import device_lines
from harness.sweeps.front_table import headers
from harness.sweeps.study import Limits
from harness.sweeps.view import in_view
from harness.sweeps.wording import figure, within
from traces.decoding import decode_json, read_bytes
from traces.errors import InputError

RESULTS, STUDY = "results.csv", "study.json"

STEADY = "in_system.is_steady"
"""The column that says whether a point's figures depend on the length of its trace; shown where they are known to."""
MOST_ROWS = 500
"""Points in the page's table; the file has all."""
MOST_NUMBERS = 150_000
"""Numbers behind the chart; of more, every so many-th point is left out."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A table of points: columns by name, a text per point; numbers where all texts that are not empty are some.

    Attributes:
        cells: [n] texts of each column.
        numbers: [n] of the columns that hold numbers; None where a cell is empty.
        study: what study.json holds; None where there is none.
    """

    cells: dict[str, list[str]]
    numbers: dict[str, list[float | None]]
    study: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.cells.values())))

    @property
    def columns(self) -> list[str]:
        """Those worth a reader's while: of a study, what was set and what decides; else all."""
        if self.study is None:
            return list(self.cells)
        varied = {name for point in self.study["points"] for name in point["overrides"]}
        differ = len({text for text in self.cells.get(DEVICES, ()) if text}) > 1
        names = ["sweep", "point", *(name for name in self.cells if name in varied), *([DEVICES] if differ else [])]
        names += [*self.decisive, "capacity"]
        names += [STEADY] if "false" in self.cells.get(STEADY, ()) else []
        names += ["is_feasible", "is_front", "reason"]
        return [name for name in dict.fromkeys(names) if any(self.cells.get(name, ()))]

    @property
    def decisive(self) -> list[str]:
        """Figures that decide about a study's points: its objectives, and what else it limits."""
        return (
            [] if self.study is None else list(dict.fromkeys([*self.study["objectives"], *self.study["constraints"]]))
        )

    @property
    def is_feasible(self) -> list[bool]:
        """[n] whether a point may be of use: it is not known to be outside the constraints, or not to hold."""
        outside = [text == "false" for text in self.cells.get("is_feasible", [""] * len(self))]
        roles = self.cells.get("capacity", [""] * len(self))
        return [not out and role != "did not hold" for out, role in zip(outside, roles, strict=True)]

    @property
    def n_beyond(self) -> int:
        """Points that are outside the constraints, of those with all figures that are limited."""
        names = [] if self.study is None else list(self.study["constraints"])
        known = [all(self.cells[name][i] for name in names if name in self.cells) for i in range(len(self))]
        outside = self.cells.get("is_feasible", [""] * len(self))
        return sum(text == "false" and is_known for text, is_known in zip(outside, known, strict=True))


def read_sweep(folder: Path) -> Sweep:
    """A sweep's results. Raises InputError when there are none, or rows are not as long as the header."""
    file = folder / RESULTS
    try:
        reader = csv.reader(io.StringIO(read_bytes(file).decode()))
    except UnicodeDecodeError as error:
        raise InputError(f"is not text ({error})", file=file) from None
    header = next(reader, [])
    rows = []
    for row in reader:
        if len(row) != len(header):
            accepted = f"{len(header)}, as the header"
            raise InputError(f"has {len(row)} cells", file=file, line=reader.line_num, accepted=accepted)
        rows.append(row)
    if not rows:
        raise InputError("holds no point", file=file)
    cells = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    numbers = {name: found for name, texts in cells.items() if (found := _numbers(texts)) is not None}
    study = folder / STUDY
    record = decode_json(read_bytes(study), dict[str, Any], file=study) if study.is_file() else None
    return Sweep(cells, numbers, record)


def _numbers(texts: list[str]) -> list[float | None] | None:
    """The numbers that texts are; None when one is none, or all are empty."""
    try:
        values = [float(text) if text else None for text in texts]
    except ValueError:
        return None
    known = [value for value in values if value is not None]
    return values if known and all(map(math.isfinite, known)) else None


def sweep_page(name: str, sweep: Sweep) -> Page:
    """The page."""
    study = sweep.study
    sections: tuple[Section, ...] = (Section("Points", explorer(sweep)), Section("Table", points_table(sweep)))
    if study is None:
        head = verdict_line(good=True, mark="", sentence=f"{len(sweep)} points.")
        return Page(f"Sweep {name}", head, sections)
    aims = ", ".join(f"{figure} {way}" for figure, way in study["objectives"].items())
    sentence = f"{len(sweep)} points, {study['n_failed']} failed; {len(study['front'])} are not beaten by {aims}."
    if not study["objectives"]:
        sentence = f"{len(sweep)} points, {study['n_failed']} failed."
    asked = {key: study[key] for key in ("study", "scenario")}
    if study.get("capacities") is not None:
        sentence = f"{len(study['capacities'])} variants, {len(sweep)} points tried, {study['n_failed']} failed; "
        sentence += f"{len(study['front'])} of the capacities are not beaten by {aims}."
    sections = (
        Section("Capacities", capacities(study)),
        Section("Front", point_table(sweep, study["front"])),
        *sections,
        Section("Notes", notes(study["notes"])),
        Section("Configuration", "".join(folded(what.capitalize(), value) for what, value in asked.items())),
    )
    head = verdict_line(good=not study["n_failed"], mark="", sentence=sentence) + grounds(sweep)
    return Page(f"Sweep {name}", head, sections)


def grounds(sweep: Sweep) -> str:
    """What a study's points are judged by: the limits, devices, what kinds of times they are of, why some have none."""
    if sweep.study is None:
        return ""
    limited = ", ".join(f"{name} {within(name, limits)}" for name, limits in limits_of(sweep.study).items())
    n = sweep.n_beyond
    said = [f"limits: {limited}; {n} point{' is' if n == 1 else 's are'} beyond them"] if limited else []
    return notes([*said, *device_lines(sweep.study), *time_lines(sweep.study), *failure_lines(sweep.study)])


def limits_of(study: dict[str, Any]) -> dict[str, Limits]:
    """What a study limits, by figure; what has no limit of its own, as of sweeps with several, is left out."""
    found = msgspec.convert(study["constraints"], dict[str, Limits])
    return {name: limits for name, limits in found.items() if limits != Limits()}


def capacities(study: dict[str, Any]) -> str:
    """The capacity of each variant; nothing of a study that asks for none."""
    if study.get("capacities") is None:
        return ""
    caption = f"The highest {study['study']['capacity']['key']} within the constraints, and what failed next above it"
    return table(*capacity_table(study), caption)


def point_table(sweep: Sweep, front: Sequence[int]) -> str:
    """The points that no other beats, by their numbers."""
    columns = [name for name in sweep.columns if name not in ("reason", "is_feasible", "is_front", "capacity")]
    rows = [[_cell(sweep, name, i) for name in columns] for i in front]
    caption = "No other point is as good by every objective and better by one"
    return table(_headers(sweep, columns), rows, caption) if rows else ""


def explorer(sweep: Sweep, colour: str = "is_front") -> str:
    """A chart whose axes and colours the reader chooses, at first those of `colour`."""
    varied = [column for column, values in sweep.numbers.items() if len(set(values)) > 1]
    if len(varied) < 2:
        return ""
    every = math.ceil(len(sweep) * len(varied) / MOST_NUMBERS)
    near = in_view([sweep.numbers[name] for name in sweep.decisive if name in sweep.numbers], sweep.is_feasible)
    drawn = [i for i, is_near in enumerate(near) if is_near][::every]
    numbers = {column: [_rounded(sweep.numbers[column][i]) for i in drawn] for column in varied}
    kinds = {
        column: [texts[i] for i in drawn]
        for column, texts in sweep.cells.items()
        if column not in sweep.numbers and 1 < len(set(texts)) <= ROLES
    }
    texts = [
        "<br>".join(f"{escape(column)} {escape(_cell(sweep, column, i))}" for column in sweep.columns) for i in drawn
    ]
    points = data({"numbers": numbers, "kinds": kinds, "text": texts})
    study = sweep.study or {"objectives": (), "constraints": ()}
    aims = [name for name in study["objectives"] if name in varied]
    if study.get("capacities") is not None:  # what limits the load, over the load
        aims = [name for name in (study["study"]["capacity"]["key"], *study["constraints"]) if name in varied]
        colour = "capacity"
    first, second = (aims[0], aims[1]) if len(aims) > 1 else (varied[0], aims[0] if aims else varied[-1])
    colour = colour if colour in kinds else ""
    controls = "".join(
        f"<label>{label} <select id='explore-{key}'>{_options(options, chosen)}</select></label>"
        for label, key, options, chosen in (
            ("across", "x", varied, first),
            ("up", "y", varied, second),
            ("coloured by", "colour", ["", *kinds, *varied], colour),
        )
    )
    thinned = f" Of {len(sweep):,} points, one in {every} is looked at." if every > 1 else ""
    if outside := near.count(False):
        thinned += f" {outside} far beyond the constraints lie outside the axes and are left out; the table has them."
    caption = f"Each point of the sweep that has both values.{thinned}"
    return (
        f"<div class='controls'>{controls}</div><figure><div class='chart' id='chart-explore' role='group' "
        f"aria-label='points of the sweep'></div><figcaption>{caption}</figcaption></figure>"
        f"<script type='application/json' id='data-points'>{points}</script>"
    )


def _rounded(value: float | None) -> float | None:
    """Six significant digits: more than a picture can show."""
    return None if value is None else float(f"{value:.6g}")


def _options(names: Sequence[str], chosen: str) -> str:
    shown = [(name, " selected" if name == chosen else "") for name in names]
    return "".join(f"<option value='{escape(n)}'{selected}>{escape(n) or 'nothing'}</option>" for n, selected in shown)


def points_table(sweep: Sweep) -> str:
    """All points, as far as a page should hold them."""
    rows = [[_cell(sweep, name, i) for name in sweep.columns] for i in range(min(len(sweep), MOST_ROWS))]
    said = [f"the first {MOST_ROWS} of {len(sweep):,} points"] if len(sweep) > MOST_ROWS else []
    said += ["what was set and what decides"] if len(sweep.columns) < len(sweep.cells) else []
    cut = prose(f"{' and '.join(said).capitalize()}; {RESULTS} has all.") if said else ""
    return cut + table(_headers(sweep, sweep.columns), rows, "Points")


def _headers(sweep: Sweep, columns: Sequence[str]) -> list[str]:
    """Columns' names, with the limits of what is limited."""
    return list(columns) if sweep.study is None else headers(columns, limits_of(sweep.study))


def _cell(sweep: Sweep, name: str, i: int) -> str:
    """What a table shows of a point: figures that decide as the terminal has them, else six digits."""
    value = sweep.numbers[name][i] if name in sweep.numbers else None
    return figure(name, value) if value is not None and name in sweep.decisive else _short(sweep.cells[name][i])


def _short(cell: str) -> str:
    """Six digits of a number that has more."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return cell if len(cell) <= len("123.456") else f"{value:.6g}"
