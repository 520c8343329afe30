"""Every command that README.md and docs/ show has the name and the options that the command line knows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from harness.cli import app
from tests.pages import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ENDS = {"|", "||", "&&", ";", ">", ">>", "<", "2>", "&", ")", "done"}


def shown(page: Path) -> list[list[str]]:
    """The words of each command of ours in the page's blocks, as far as the shell hands them to it."""
    found = []
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"(?:^|[\s(;])servetwin ", line)[1:]:
                words = shlex.shlex(part, posix=True, punctuation_chars=True)
                words.whitespace_split, words.commenters = True, "#"
                found.append(until_end(words))
    return found


def until_end(words: shlex.shlex) -> list[str]:
    kept: list[str] = []
    try:
        for word in words:
            if word in ENDS:
                break
            kept.append(word)
    except ValueError:  # a quote that ends on another line
        pass
    return kept


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_shows_commands_and_options_that_there_are(page: Path) -> None:
    for words in shown(page):
        command, rest = get_command(app), list(words)
        while rest and (inner := getattr(command, "commands", {}).get(rest[0])) is not None:
            command = inner
            rest.pop(0)
        assert not getattr(command, "commands", {}), f"servetwin {shlex.join(words)}: no such command"
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {
            "--help"
        }
        for word in rest:
            name = word.partition("=")[0]
            assert not name.startswith("--") or name in known, f"servetwin {shlex.join(words)}: no option {name}"


def test_the_pages_show_commands() -> None:
    assert sum(len(shown(page)) for page in PAGES) > 50
