"""Results of `check` on disk: one, as `--result` writes it, or many, as `--history` collects them, a line each."""

from __future__ import annotations

from pathlib import Path

import msgspec

from harness.gate.causes import as_json
from harness.gate.verdict import Checked, InputChange, ScenarioCheck, Since, Verdict
from traces.decoding import decode_json, read_bytes
from traces.errors import InputError


class KeptScenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of one scenario; as `ScenarioCheck`. Earlier versions kept no inputs, tolerances or baseline."""

    passed: bool
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    inputs: tuple[InputChange, ...] = ()
    tolerances: tuple[InputChange, ...] = ()
    change_from: str | None = None


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A result that was kept; as `Checked`, and of a history also when it was, and of which commit.

    Attributes:
        at: when it was checked, ISO 8601; None: nobody wrote it down.
        commit: what was checked; None likewise.
        what_changed: in words, by scenario; it follows from the rest.
    """

    passed: bool
    suite: str
    version: str
    reason: str | None
    scenarios: dict[str, KeptScenario]
    at: str | None = None
    commit: str | None = None
    since: Since | None = None
    what_changed: dict[str, str] = {}

    @property
    def checked(self) -> Checked:
        """The result itself."""
        scenarios = (
            ScenarioCheck(name, one.verdicts, one.notes, one.inputs, one.tolerances, one.change_from)
            for name, one in self.scenarios.items()
        )
        return Checked(self.suite, self.version, tuple(scenarios), self.reason, since=self.since)


def with_line(history: Path, checked: Checked, *, at: str, commit: str | None) -> str:
    """What a history holds once this result is its last line.

    Raises:
        InputError: the file is there and is no history, or one of another suite; its name is no history's.
    """
    if history.suffix != ".jsonl":
        raise InputError(field="--history", found=str(history), accepted="a name that ends in .jsonl")
    before = read_results(history) if history.exists() else []
    if before and before[-1].suite != checked.suite:
        raise InputError(
            "is the history of another suite", file=history, found=before[-1].suite, accepted=checked.suite
        )
    told = history.read_text(encoding="utf-8") if before else ""
    line = msgspec.json.encode({"at": at, "commit": commit, **as_json(checked)}).decode()
    return told + line + "\n"


def read_results(path: Path) -> list[Kept]:
    """The results in a file, oldest first: the lines of a .jsonl, else the one it holds. Raises InputError."""
    data = read_bytes(path)
    if path.suffix != ".jsonl":
        return [decode_json(data, Kept, file=path)]
    lines = [(number, line) for number, line in enumerate(data.splitlines(), start=1) if line.strip()]
    if not lines:
        raise InputError("holds no result", file=path)
    return [decode_json(line, Kept, file=path, line=number) for number, line in lines]
