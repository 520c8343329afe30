"""docs/formats.md: its commands print what it shows."""

from __future__ import annotations

from pathlib import Path

from tests.pages import shown_and_printed


def test_the_page_shows_what_is_printed(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("formats.md", tmp_path)
    assert shown == printed
