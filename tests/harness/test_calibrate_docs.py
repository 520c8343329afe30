"""The commands of docs/calibrate.md, run on the bundled captures: they print what the page says they print."""

from __future__ import annotations

from pathlib import Path

from tests.pages import shown_and_printed


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("calibrate.md", tmp_path, numbers=False)
    assert printed == shown
