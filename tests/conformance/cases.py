"""Small scenarios that are kept, each with what vLLM did in it: replayed first in every run, with or without vLLM.

A file of `cases/` holds the scenario, what it is about, and the states of each vLLM version it was judged by: those
between which a rule changed, or just one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from tests.conformance.scenario import Scenario, State

CASES = Path(__file__).with_name("cases")


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario, what it shows, and vLLM's states by version."""

    about: str
    scenario: Scenario
    judged: dict[str, tuple[State, ...]]


def read_cases(folder: Path = CASES) -> dict[str, Case]:
    """All cases by name."""
    return {file.stem: msgspec.json.decode(file.read_bytes(), type=Case) for file in sorted(folder.glob("*.json"))}


def write_case(name: str, case: Case, folder: Path = CASES) -> Path:
    """Write a case, an arrival and a state a line. Returns its file."""
    scenario = msgspec.to_builtins(case.scenario)
    arrivals = ",\n   ".join(_line(arrival) for arrival in scenario.pop("arrivals"))
    judged = ",\n".join(
        f'  "{version}": [\n   ' + ",\n   ".join(_line(state) for state in states) + "\n  ]"
        for version, states in case.judged.items()
    )
    rest = ",\n".join(f"  {_line(key)}: {_line(value)}" for key, value in scenario.items())
    text = (
        f'{{\n "about": {_line(case.about)},\n "scenario": {{\n{rest},\n  "arrivals": [\n   {arrivals}\n  ]\n }},\n'
        f' "judged": {{\n{judged}\n }}\n}}\n'
    )
    file = folder / f"{name}.json"
    file.write_text(text, encoding="utf-8")
    return file


def keep(scenario: Scenario, version: str, states: tuple[State, ...], about: str, folder: Path = CASES) -> Path:
    """Keep a scenario in which the two differed, under a name that is the same every time. Returns its file."""
    digest = hashlib.sha256(msgspec.json.encode(scenario)).hexdigest()[:10]
    return write_case(f"found-{digest}", Case(about=about, scenario=scenario, judged={version: states}), folder)


def _line(value: object) -> str:
    return msgspec.json.encode(value).decode()
