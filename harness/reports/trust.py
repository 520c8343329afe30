"""How far to trust the figures of a page: the notes that decide whether they may be used, above all else."""

from __future__ import annotations

from collections.abc import Mapping

from harness.reports.page import Section, notes
from harness.terminal.caveats import weighty_notes
from traces.capture import CaptureMeta


def trust(meta: CaptureMeta) -> Section:
    """The notes of one run that decide; the section at the end has all."""
    return _section(weighty_notes(meta)[0])


def trust_each(metas: Mapping[str, CaptureMeta]) -> Section:
    """The same of runs by name: each note once, with the runs that have it."""
    weighty = {name: weighty_notes(meta)[0] for name, meta in metas.items()}
    said = {line: [name for name, own in weighty.items() if line in own] for own in weighty.values() for line in own}
    whose = {line: "all" if len(names) == len(metas) else ", ".join(names) for line, names in said.items()}
    return _section([f"{names}: {line}" for line, names in whose.items()])


def _section(lines: list[str]) -> Section:
    return Section("How far to trust it", notes(lines))
