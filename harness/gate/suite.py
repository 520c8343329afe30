"""A suite: which scenarios are checked, against what, and how far off they may be. One YAML file, typed and strict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from harness.descriptions.scenario import Text
from harness.gate import change, drift, fidelity
from harness.gate.figures import CHANGING, FIGURES, SAID_OF_CHANGES, SIMULATED
from harness.gate.tolerance import Tolerance, parse_of_change, parse_tolerance
from traces.decoding import Document, read_document
from traces.errors import InputError, nearest

Parse = Callable[[str, str, str], Tolerance]
"""Reads a tolerance from its text, its figure's name, and where it stands."""

Tolerances = dict[str, Any]
"""As they are written; `tolerance.parse_tolerance` says what is wrong with one."""


class ScenarioEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scenario of a suite as the user writes it.

    Attributes:
        scenario: its file.
        capture: the measured run that it is judged against; None: drift and canary alone.
        set: overrides of the scenario's keys.
        score_fitted: also score requests that the scenario's calibration was fitted to, as the side before a change.
        fidelity: tolerances over those of the suite, by figure.
        drift: likewise.
        change_from: another scenario of the suite, which this one is a change of; both need a capture. None: of none.
        change: tolerances over those of the suite, by figure.
    """

    scenario: Text
    capture: Text | None = None
    set: tuple[Text, ...] = ()
    score_fitted: bool = False
    fidelity: Tolerances = {}
    drift: Tolerances = {}
    change_from: Text | None = None
    change: Tolerances = {}


class SuiteFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A suite as the user writes it. Paths are relative to the file.

    Attributes:
        scenarios: a `ScenarioEntry` each, by name.
        baseline: file of what they gave before; None: only fidelity is judged.
        fidelity: tolerances of every scenario, by figure; None: `fidelity.DEFAULT`.
        drift: likewise; `default` is of all figures that are not named, and `report` is no limit.
        change: of every scenario that is a change of another, likewise; None: `change.DEFAULT`.
    """

    scenarios: Annotated[dict[Text, Any], msgspec.Meta(min_length=1)]
    baseline: Text | None = None
    fidelity: Tolerances | None = None
    drift: Tolerances = {}
    change: Tolerances | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A scenario of a suite as it is checked.

    Attributes:
        name: in the suite.
        scenario: its file.
        capture: the measured run; None without one.
        overrides: of the scenario's keys.
        score_fitted: whether requests that the calibration was fitted to are scored too.
        fidelity: tolerances by figure; none without a capture.
        drift: tolerances by figure; None: report only.
        drift_default: of all other figures.
        change_from: name of the scenario that it is a change of; None: of none.
        change: tolerances of every figure that is told of the change; None: report only.
    """

    name: str
    scenario: Path
    capture: Path | None
    overrides: tuple[str, ...]
    fidelity: dict[str, Tolerance]
    drift: dict[str, Tolerance | None]
    drift_default: Tolerance | None
    change_from: str | None = None
    change: dict[str, Tolerance | None] = field(default_factory=dict)
    score_fitted: bool = False


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite as it is checked.

    Attributes:
        path: its file.
        baseline: file of what its scenarios gave before; None without one.
        entries: its scenarios.
    """

    path: Path
    baseline: Path | None
    entries: tuple[Entry, ...]


def read_suite(path: Path) -> Suite:
    """Read a suite. Raises InputError with file, line and field, also for what would have no effect."""
    document = read_document(path)
    file = document.convert(SuiteFile)
    if file.drift and file.baseline is None:
        raise document.error(["drift"], "has no effect without a baseline")
    stated = fidelity.DEFAULT if file.fidelity is None else file.fidelity
    within = _fidelity(document, stated, ["fidelity"])
    moved = _drift(document, file.drift, ["drift"])
    changing = _change(document, change.DEFAULT if file.change is None else file.change, ["change"])
    entries = []
    for name in file.scenarios:
        at = ["scenarios", name]
        entry = _part(document, at).convert(ScenarioEntry)
        if entry.capture is None and file.baseline is None:
            raise document.error(at, "is judged by nothing", accepted="a capture, or a baseline of the suite")
        if entry.fidelity and entry.capture is None:
            raise document.error([*at, "fidelity"], "has no effect without a capture")
        if entry.score_fitted and entry.capture is None:
            raise document.error([*at, "score_fitted"], "has no effect without a capture")
        if entry.drift and file.baseline is None:
            raise document.error([*at, "drift"], "has no effect without a baseline of the suite")
        if entry.change and entry.change_from is None:
            raise document.error([*at, "change"], "has no effect without change_from")
        own = within | _fidelity(document, entry.fidelity, [*at, "fidelity"])
        drifts = moved | _drift(document, entry.drift, [*at, "drift"])
        changes = changing | _change(document, entry.change, [*at, "change"])
        entries.append(
            Entry(
                name,
                path.parent / entry.scenario,
                None if entry.capture is None else path.parent / entry.capture,
                entry.set,
                {} if entry.capture is None else own,
                {figure: tolerance for figure, tolerance in drifts.items() if figure != "default"},
                drifts.get("default", drift.DEFAULT),
                entry.change_from,
                {} if entry.change_from is None else _of_change(changes),
                entry.score_fitted,
            )
        )
    _check_changes(document, file, entries)
    return Suite(path, None if file.baseline is None else path.parent / file.baseline, tuple(entries))


def _part(document: Document, at: Sequence[str]) -> Document:
    """What stands at these keys, with its lines. Raises InputError unless it is a mapping."""
    value, tree = document.value, document.tree
    for name in at:
        value = value[name]
        tree = next(node for key, node in tree.value if key.value == name)
    if not isinstance(value, dict):
        raise document.error(at, accepted="a mapping with a scenario")
    return Document(document.path, value, tree)


def _fidelity(document: Document, stated: Mapping[str, Any], at: Sequence[str]) -> dict[str, Tolerance]:
    return {name: _tolerance(document, name, text, at, FIGURES) for name, text in stated.items()}


def _drift(document: Document, stated: Mapping[str, Any], at: Sequence[str]) -> dict[str, Tolerance | None]:
    return _or_report(document, stated, at, (*SIMULATED, "default"), parse_tolerance)


def _change(document: Document, stated: Mapping[str, Any], at: Sequence[str]) -> dict[str, Tolerance | None]:
    return _or_report(document, stated, at, (*CHANGING, "default"), parse_of_change)


def _or_report(
    document: Document, stated: Mapping[str, Any], at: Sequence[str], known: Sequence[str], parse: Parse
) -> dict[str, Tolerance | None]:
    """Tolerances by figure; None: report only."""
    return {
        name: None if text == drift.REPORT and name in known else _tolerance(document, name, text, at, known, parse)
        for name, text in stated.items()
    }


def _of_change(stated: Mapping[str, Tolerance | None]) -> dict[str, Tolerance | None]:
    """Every figure that is told of a change, in the order of their names' table, with its tolerance."""
    default = stated.get("default")
    told = [name for name in CHANGING if name in stated or name in SAID_OF_CHANGES]
    return {name: stated.get(name, default) for name in told}


def _check_changes(document: Document, file: SuiteFile, entries: Sequence[Entry]) -> None:
    """Raise InputError for a scenario that is a change of what it cannot be held against."""
    captures = {entry.name: entry.capture for entry in entries}
    for entry in entries:
        if entry.change_from is None:
            continue
        at = ["scenarios", entry.name, "change_from"]
        others = [name for name in captures if name != entry.name]
        if entry.change_from == entry.name:
            raise document.error(at, "is the scenario itself", accepted=", ".join(others) or "another scenario")
        if entry.change_from not in captures:
            raise document.error(at, accepted=nearest(entry.change_from, others))
        if entry.capture is None:
            raise document.error(at, "has no effect without a capture")
        if captures[entry.change_from] is None:
            raise document.error(at, accepted="a scenario with a capture: what it did before was not measured")
        if captures[entry.change_from] == entry.capture:
            raise document.error(at, "has the same capture", accepted="a capture of before and one of after")
    if file.change is not None and not any(entry.change_from for entry in entries):
        raise document.error(["change"], "has no effect: no scenario has change_from")


def _tolerance(
    document: Document,
    name: str,
    text: Any,
    at: Sequence[str],
    known: Sequence[str],
    parse: Parse = parse_tolerance,
) -> Tolerance:
    if name not in known:
        raise document.error([*at, name], "is unknown", accepted=nearest(name, known))
    try:
        return parse(str(text), name, name)
    except InputError as error:
        raise document.error([*at, name], accepted=error.accepted) from None
