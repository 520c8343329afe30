"""Several sweeps on one page: the points of all in one chart, and those that none of any sweep beats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.reports.page import Page, Section, folded, heading, notes, table, verdict_line
from harness.reports.sweep_page import Sweep, capacities, explorer, grounds, point_table, points_table
from harness.sweeps.pareto import front, losses

NAME = "sweep"
"""The column that says of which sweep a point is."""


def sweeps_page(sweeps: Mapping[str, Sweep]) -> Page:
    """Sweeps by name. Where all have the same objectives, what counts is which points none of any beats."""
    objectives = _common_objectives(sweeps)
    together = _together(sweeps, objectives)
    n_failed = sum(sweep.study["n_failed"] for sweep in sweeps.values() if sweep.study is not None)
    sentence = f"{len(sweeps)} sweeps side by side, {len(together)} points"
    sentence += f", {n_failed} failed." if n_failed else "."
    best: list[int] = []
    if objectives:
        best = _front(together, objectives)
        sentence += f" {len(best)} are not beaten by {', '.join(f'{name} {way}' for name, way in objectives.items())}."
    sections = (
        Section("Grounds", "".join(heading(name) + text for name, one in sweeps.items() if (text := grounds(one)))),
        Section("Best", _best(sweeps, objectives)),
        Section("Capacities", _of_each(sweeps, capacities)),
        Section("Front", point_table(together, best)),
        Section("Points", explorer(together, colour=NAME)),
        Section("Table", points_table(together)),
        Section("Notes", _of_each(sweeps, lambda study: notes(study["notes"]))),
        Section("Configuration", _of_each(sweeps, _configuration)),
    )
    return Page("Sweeps side by side", verdict_line(good=not n_failed, mark="", sentence=sentence), sections)


def _common_objectives(sweeps: Mapping[str, Sweep]) -> dict[str, Any]:
    """What all sweeps are to be good at; nothing where they differ, or one says nothing of it."""
    first, *others = ({} if sweep.study is None else sweep.study["objectives"] for sweep in sweeps.values())
    return dict(first) if all(other == first for other in others) else {}


def _together(sweeps: Mapping[str, Sweep], objectives: Mapping[str, Any]) -> Sweep:
    """All points as one table, whose first column is the sweep; what a sweep does not have stays empty."""
    columns = list(dict.fromkeys(name for sweep in sweeps.values() for name in sweep.cells))
    cells = {NAME: [name for name, sweep in sweeps.items() for _ in range(len(sweep))]}
    numbers: dict[str, list[float | None]] = {}
    for column in columns:
        cells[column] = [c for s in sweeps.values() for c in s.cells.get(column, [""] * len(s))]
        if all(column in sweep.numbers or not any(sweep.cells.get(column, ())) for sweep in sweeps.values()):
            numbers[column] = [n for s in sweeps.values() for n in s.numbers.get(column, [None] * len(s))]
    studies = [sweep.study for sweep in sweeps.values()]
    if None in studies:
        return Sweep(cells, numbers)
    known = [study for study in studies if study is not None]
    study: dict[str, Any] = {
        "objectives": objectives,
        "constraints": _common_limits(known),
        "points": [point for study in known for point in study["points"]],
        "front": [],
    }
    start = 0
    for sweep, one in zip(sweeps.values(), known, strict=True):
        study["front"] += [start + i for i in one["front"]]
        start += len(sweep)
    return Sweep(cells, numbers, study)


def _common_limits(studies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every figure that decides in a study, with its limits where all studies have the same."""
    first, *others = (study["constraints"] for study in studies)
    names = dict.fromkeys(name for study in studies for name in (*study["objectives"], *study["constraints"]))
    return {
        name: first[name] if name in first and all(o.get(name) == first[name] for o in others) else {} for name in names
    }


def _front(together: Sweep, objectives: Mapping[str, Any]) -> list[int]:
    """The points that none of any sweep beats: they are among those that their own sweep has on its front."""
    assert together.study is not None
    known = []
    for i in together.study["front"]:
        own = losses({name: together.numbers[name][i] for name in objectives}, objectives)
        if own is not None:
            known.append((i, own))
    return [known[k][0] for k in front([own for _, own in known])]


def _best(sweeps: Mapping[str, Sweep], objectives: Mapping[str, Any]) -> str:
    """The best value of each objective among the points on each sweep's own front."""
    rows = []
    for name, way in objectives.items():
        cells = [name, way]
        for sweep in sweeps.values():
            values = [value for i in _own_front(sweep) if (value := sweep.numbers[name][i]) is not None]
            cells.append(f"{(max if way == 'max' else min)(values):.6g}" if values else "–")
        rows.append(cells)
    return table(["objective", "", *sweeps], rows, "The best of each sweep, each objective by itself") if rows else ""


def _own_front(sweep: Sweep) -> list[int]:
    return [] if sweep.study is None else sweep.study["front"]


def _of_each(sweeps: Mapping[str, Sweep], body: Callable[[dict[str, Any]], str]) -> str:
    """What each sweep's study has to say, below its name."""
    found = [(name, body(sweep.study)) for name, sweep in sweeps.items() if sweep.study is not None]
    return "".join(heading(name) + text for name, text in found if text)


def _configuration(study: dict[str, Any]) -> str:
    return "".join(folded(what.capitalize(), study[what]) for what in ("study", "scenario"))
