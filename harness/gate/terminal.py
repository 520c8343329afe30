"""A result in the terminal: what changed where something failed, a table per scenario, then the sentence."""

from __future__ import annotations

from harness.gate.causes import TITLE, baseline_line, causes
from harness.gate.text import headline, laid_out, shown, tally
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
        (columns, cells, verdicts), *changes = laid_out(shown(scenario))
        rows = [cells(verdict) for verdict in verdicts]
        out.print(table(title, list(columns), rows) if rows else f"{title}\n")
        for columns, cells, verdicts in changes:
            rows = [cells(verdict) for verdict in verdicts]
            out.print(table(f"{scenario.name}: change from {scenario.change_from}", list(columns), rows))
        if not scenario.passed:
            for note in scenario.notes:
                out.print(f"note: {note}", style="dim")
            out.print()
    out.print(f"\n{headline(checked)}")
