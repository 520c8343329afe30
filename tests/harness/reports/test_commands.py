"""The commands from outside: their help, and how they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import servetwin
from tests.harness.reports.runs import run
from traces.capture import write_capture

COMMANDS = ["report", "figures", "capture timeline", "capture table", "capture serve", "capture openmetrics"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    ran = servetwin(*command.split(), "--help")
    assert ran.returncode == 0
    assert f"Example: servetwin {command} " in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("report", "nowhere"), 2, "nowhere: no such folder or file: accepted: a capture, a validation"),
        (("figures", "run", "--out", "f", "--format", "gif"), 2, "found 'gif': accepted: png, svg, pdf"),
        (("capture", "timeline", "run", "--from", "1h", "--out", "t.json"), 2, "nothing happens in this time"),
        (("capture", "timeline", "run", "--from", "soon", "--out", "t.json"), 2, "accepted: a duration above 0"),
        (("capture", "table", "run", "--of", "days", "--out", "t.csv"), 2, "accepted: requests, steps, series"),
        (("capture", "serve", "run", "--speed", "0"), 2, "'--speed': found 0.0: accepted: a number above 0"),
        (("capture", "openmetrics", "run", "--at", "noon", "--out", "r.om"), 2, "accepted: a time as 2026-01-31T12:00"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_capture(run(3), tmp_path / "run")
    ran = servetwin(*arguments)
    assert ran.returncode == code
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
