"""Pages of the documentation: their commands are run, and print what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests import warm

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"[-+]?\d[\d.]*(e[-+]\d+)?( ?(ms|µs|s|%)(?!\w))?")
SETTING = re.compile(r"([A-Z_]+)=")


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a language on a page of docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def shown_and_printed(
    page: str, folder: Path, *, numbers: bool = True, errors: bool = False
) -> tuple[list[str], list[str]]:
    """The lines of all `console` blocks of a page of docs/, as they stand there and as they are when run in `folder`.

    A command that sets a variable sets it for all that follow. Without `numbers`, lines are compared by `skeleton`;
    without `errors`, a command that prints one fails the test. `servetwin` is that of `tests.warm`.
    """
    (folder / "docs").symlink_to(ROOT / "docs")
    path = f"{warm.folder()}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "120"}
    environment.pop("GITHUB_STEP_SUMMARY", None)
    lines_of = trimmed if numbers else skeleton
    settings, shown, printed = "", [], []
    for command, output in _commands(page):
        setting = SETTING.match(command)
        value = f"\ndeclare -p {setting[1]}" if setting else ""
        ran = subprocess.run(
            ["bash", "-c", f"{settings}{command}{value}"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors else subprocess.PIPE,
            text=True,
            check=False,
        )
        assert errors or not ran.stderr, ran.stderr
        if setting:
            settings += ran.stdout
            continue
        shown += [f"$ {command}", *lines_of(output)]
        printed += [f"$ {command}", *lines_of(ran.stdout)]
    assert shown, f"{page} shows no commands"
    return shown, printed


def _commands(page: str) -> list[tuple[str, str]]:
    """Each command that a page shows, and what it shows below it."""
    parts = (part for block in blocks(page, "console") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:])
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def trimmed(text: str) -> list[str]:
    """Lines without what cannot be seen."""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def skeleton(text: str) -> list[str]:
    """Lines without their numbers, rules and spacing: another machine may round the last digit otherwise."""
    lines = [re.sub(r"[\s─]+", " ", NUMBER.sub("#", line)).strip() for line in text.splitlines()]
    return [line for line in lines if line]
