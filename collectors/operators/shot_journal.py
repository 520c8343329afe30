"""Shots on disk as they are measured, so that a profile goes on where it was cut off: `OUT.recording/shots.jsonl`.

    {"kind": "header", "schema": ..., "identity": {...}}         at each start; what is measured, with which versions
    {"kind": "plan", "tp": 1, "plan": {...}}                     once for each tensor-parallel degree
    {"kind": "shot", "tp": 1, "took_s": ..., "answer": {...}}    in the order of the plan, pass after pass
    {"kind": "found", "name": ..., "value": ...}                 what else was found out

After `kill -9` at any moment everything but the last second is there. The folder goes when the profile is written.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from collectors.journal import Journal, read_journal
from collectors.operators.budget import Plan
from collectors.operators.samples import Answer, Samples
from collectors.operators.shots import Shot
from traces.decoding import decode_json
from traces.errors import InputError, shorten

SCHEMA = "servetwin.shots/1"


class Header(msgspec.Struct, tag="header", tag_field="kind", frozen=True):
    """What a run measures."""

    schema: str
    identity: dict[str, Any]


class Planned(msgspec.Struct, tag="plan", tag_field="kind", frozen=True):
    """What will be measured at a tensor-parallel degree."""

    tp: int
    plan: Plan


class Took(msgspec.Struct, tag="shot", tag_field="kind", frozen=True):
    """What an engine said of the next shot of a degree's plan, and the seconds it took to ask."""

    tp: int
    took_s: float
    answer: Answer


class Found(msgspec.Struct, tag="found", tag_field="kind", frozen=True):
    """A further fact, such as the device's."""

    name: str
    value: Any


Record = Header | Planned | Took | Found


@dataclass(slots=True)
class Measured:
    """What has been measured so far at one degree.

    Attributes:
        plan: what is to be.
        samples: by shot, of those that were measured.
        n_shots: measured, over all passes.
        spent_s: what that took.
    """

    plan: Plan
    samples: dict[Shot, Samples] = field(default_factory=dict)
    n_shots: int = 0
    spent_s: float = 0.0

    def next_shot(self) -> Shot:
        """The shot that is to be measured next."""
        return self.plan.shots[self.n_shots % len(self.plan.shots)]

    def add(self, answer: Answer, took_s: float) -> None:
        """Take in what an engine said of the next shot."""
        self.samples.setdefault(self.next_shot(), Samples()).add(answer)
        self.n_shots += 1
        self.spent_s += took_s


@dataclass(slots=True)
class Recorded:
    """All that was measured: by tensor-parallel degree, and further facts by name."""

    by_tp: dict[int, Measured] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        """Take in a record. Raises InputError for a shot before its plan."""
        match record:
            case Planned():
                self.by_tp[record.tp] = Measured(record.plan)
            case Took():
                if record.tp not in self.by_tp:
                    raise InputError("a shot stands before the plan")
                self.by_tp[record.tp].add(record.answer, record.took_s)
            case Found():
                self.found[record.name] = record.value


class ShotJournal:
    """What has been measured, on disk as in memory."""

    def __init__(self, journal: Journal, recorded: Recorded) -> None:
        self.recorded = recorded
        self._journal = journal

    def keep(self, record: Record) -> None:
        """Take in a record and write it."""
        self.recorded.take(record)
        self._journal.append(record)


@contextmanager
def shot_journal(out: Path, identity: dict[str, Any]) -> Iterator[ShotJournal]:
    """The journal beside `out`, with what an earlier run left in it; it goes on a good end, and when it has no plan.

    Args:
        out: the profile to be.
        identity: what is measured, under names that an error can show: options, model, versions.

    Raises:
        InputError: another run is writing it, or an earlier one measured something else, or left a damaged file.
    """
    folder = out.with_name(f"{out.name}.recording")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", file=folder) from None
    file = folder / "shots.jsonl"
    with _only_one(folder):
        recorded = read_shots(file, identity) if file.is_file() else Recorded()
        if not recorded.by_tp:
            file.unlink(missing_ok=True)
        try:
            with Journal(file, SCHEMA, identity=identity) as journal:
                yield ShotJournal(journal, recorded)
        except BaseException:
            if not recorded.by_tp:  # nothing to go on with
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def read_shots(path: Path, identity: dict[str, Any]) -> Recorded:
    """What an earlier run has measured, nothing when it did not get as far as a plan.

    Raises InputError when the file is damaged, or when that run measured something else; the error names what.
    """
    recorded = Recorded()
    other: InputError | None = None
    for line, text in read_journal(path):
        record: Record = decode_json(text, cast("type[Any]", Record), file=path, line=line)
        if isinstance(record, Header):
            other = other or _other(record, identity, path, line)
        try:
            recorded.take(record)
        except InputError as error:
            raise InputError(str(error), file=path, line=line) from None
    if other is not None and recorded.by_tp:
        raise other
    return recorded if recorded.by_tp else Recorded()


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Raise InputError when another process holds the folder; a killed one holds nothing."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError("another run is measuring into it", file=folder) from None
        yield


def _other(header: Header, identity: dict[str, Any], path: Path, line: int) -> InputError | None:
    """What that run measured otherwise; None when it is the same."""
    if header.schema != SCHEMA:
        return InputError(file=path, line=line, field="schema", found=header.schema, accepted=SCHEMA)
    wanted = msgspec.json.decode(msgspec.json.encode(identity))
    for name in sorted(header.identity.keys() | wanted.keys()):
        was, now = header.identity.get(name), wanted.get(name)
        if was != now:
            accepted = f"{shorten(was)} as in the run that was cut off, or another --out, or no {path.parent.name}"
            return InputError("differs", file=path, line=line, field=name, found=now, accepted=accepted)
    return None
