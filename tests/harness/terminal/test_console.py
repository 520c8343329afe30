"""What is printed stands there as it was written."""

from __future__ import annotations

import pytest

from harness.scoring.tables import print_validation
from harness.terminal.console import console, table

NOTES = [
    "server: 2 of 9 readings failed (mostly: [nothing])",
    "server: 1 of 9 readings failed (mostly: [the power reading state is deactivated])",
    "series of [/] and :warning:",
]


def test_what_stands_in_brackets_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    out = console()
    for note in NOTES:
        out.print(f"note: {note}", style="dim")
    out.print(table("[title]", ["[column]"], [("[cell]",)]))
    printed = capsys.readouterr().out
    assert all(f"note: {note}\n" in printed for note in NOTES)
    assert all(word in printed for word in ("[title]", "[column]", "[cell]"))


def test_a_validation_prints_its_notes_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    error = {"mape": 0.1, "n": 3}
    print_validation({"valid": True, "n_requests": 0, "series": {"power_w": error}, "notes": NOTES})
    printed = capsys.readouterr().out
    assert all(f"note: {note}\n" in printed for note in NOTES)
