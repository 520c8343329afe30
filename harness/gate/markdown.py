"""A result as Markdown (GitHub's, with tables) for a pull request or a job's summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.gate.causes import TITLE, baseline_line, in_a_line
from harness.gate.text import headline, laid_out, shown, tally
from harness.gate.verdict import Checked, ScenarioCheck, Verdict


def markdown(checked: Checked) -> str:
    """The sentence, what changed, a line per scenario, then each scenario's figures; those that failed come first."""
    ordered = sorted(checked.scenarios, key=lambda scenario: scenario.passed)
    overview = [(scenario.name, _mark(scenario), tally(scenario)) for scenario in ordered]
    parts = [
        f"## {_plain(headline(checked))}",
        *_changed(checked),
        _table(("scenario", "", "figures"), overview),
        *(part for scenario in ordered for part in _scenario(scenario)),
        f"Suite `{_plain(checked.suite)}`, servetwin {checked.version}.",
    ]
    if checked.reason is not None:
        parts.append(f"The baseline is updated: {_plain(checked.reason)}")
    return "\n\n".join(parts) + "\n"


def _changed(checked: Checked) -> list[str]:
    if not (told := in_a_line(checked)):
        return []
    since = "" if checked.since is None else f". {_plain(baseline_line(checked.since))}."
    return [f"{TITLE}{since}", "\n".join(f"- **{_plain(name)}**: {_plain(why)}" for name, why in told.items())]


def _scenario(scenario: ScenarioCheck) -> list[str]:
    parts = [f"### {_plain(scenario.name)}: {_mark(scenario)}"]
    if rows := shown(scenario):
        parts.append(_verdicts(rows))
    if rest := tuple(verdict for verdict in scenario.verdicts if verdict not in rows):
        counted = tally(replace(scenario, verdicts=rest))
        parts += [f"<details><summary>{len(rest)} more: {counted}</summary>", _verdicts(rest), "</details>"]
    if scenario.notes:
        parts.append("\n".join(f"- {_plain(note)}" for note in scenario.notes))
    return parts


def _mark(scenario: ScenarioCheck) -> str:
    return "passed" if scenario.passed else "**FAILED**"


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    tables = [_table(columns, [cells(one) for one in those]) for columns, cells, those in laid_out(verdicts) if those]
    return "\n\n".join(tables)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """`**` is ours; whatever a name or a reason holds is plain."""
    return text if text == "**FAILED**" else _plain(text)


def _plain(text: str) -> str:
    """The text on one line, with what Markdown or HTML would take for its own made harmless."""
    flat = "".join(character for character in " ".join(text.split()) if character.isprintable())
    for character in "\\`*_[]|~":
        flat = flat.replace(character, f"\\{character}")
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
