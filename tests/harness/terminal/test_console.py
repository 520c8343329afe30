"""What is printed stands there as it was written."""

from __future__ import annotations

import pytest

from harness.scoring.tables import print_validation
from harness.sweeps.wording import broken
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


COLUMNS = ["figure", "cluster.instances.0.device", "ttft_s.p95 ≤ 150 ms", "95 % interval"]
ROW = ("fidelity output_tokens_per_s", "AMD-EPYC-2vCPU", "120 ms", "[-10.4%, -6.1%]")


def printed_at(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of a table on a terminal of so many columns."""
    monkeypatch.setattr("harness.terminal.console.WIDTH", width)
    console().print(table("t", COLUMNS, [ROW], broken=broken))
    return capsys.readouterr().out.splitlines()


def test_where_there_is_room_a_table_is_wide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed_at(120, monkeypatch, capsys)
    assert all(column in lines[2] for column in COLUMNS)
    assert sum(all(cell in line for cell in ROW) for line in lines) == 1


@pytest.mark.parametrize("width", [90, 80, 60, 40])
def test_on_a_narrow_terminal_nothing_is_cut_and_figures_stay_whole(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed_at(width, monkeypatch, capsys)
    assert all(len(line) <= width for line in lines)
    assert "…" not in "".join(lines)
    assert any("120 ms" in line for line in lines)
    letters = sorted("".join("".join(line.split()) for line in lines[2:] if "─" not in line))
    assert letters == sorted("".join("".join(cell.split()) for cell in (*COLUMNS, *ROW)))


def test_columns_stand_closer_before_a_cell_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed_at(74, monkeypatch, capsys)  # of text alone, with broken headers, 28 + 14 + 10 + 15
    assert sum(ROW[0] in line and ROW[3] in line for line in lines) == 1
