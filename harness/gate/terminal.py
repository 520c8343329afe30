"""A result in the terminal: what changed where something failed, a table per scenario, then the sentence."""

from __future__ import annotations

from harness.gate.causes import TITLE, baseline_line, causes
from harness.gate.text import COLUMNS, cells, headline, shown, tally
from harness.gate.verdict import Checked
from harness.terminal.console import console, table


def print_checked(checked: Checked) -> None:
    """Print every scenario: its fidelity, what else did not pass, how many figures did what; notes where it failed.

    Where one failed, what changed stands first.
    """
    out = console()
    if not checked.passed:
        since = "" if checked.since is None else f". {baseline_line(checked.since)}"
        out.print(f"{TITLE}{since}")
        for name, sentences in causes(checked).items():
            out.print(f"  {name}")
            for one in sentences:
                out.print(f"    {one}")
        out.print()
    for scenario in checked.scenarios:
        title = f"{scenario.name}: {'PASSED' if scenario.passed else 'FAILED'}, {tally(scenario)}"
        rows = [cells(verdict) for verdict in shown(scenario)]
        out.print(table(title, list(COLUMNS), rows) if rows else f"{title}\n")
        if not scenario.passed:
            for note in scenario.notes:
                out.print(f"note: {note}", style="dim")
            out.print()
    out.print(f"\n{headline(checked)}")
