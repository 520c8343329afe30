"""The commands of docs/calibrate.md, run on the bundled captures: they print what the page says they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "calibrate.md"
NUMBER = re.compile(r"[-+]?\d[\d.]*(e[-+]\d+)?( ?(ms|µs|s|%)(?!\w))?")


def skeleton(text: str) -> list[str]:
    """Lines without their numbers, rules and spacing: another machine may round the last digit otherwise."""
    lines = [re.sub(r"[\s─]+", " ", NUMBER.sub("#", line)).strip() for line in text.splitlines()]
    return [line for line in lines if line]


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"}
    setting, shown, printed = "", [], []
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if command.startswith("B="):
                setting = command
                continue
            script = f"{setting}\n{command}"
            ran = subprocess.run(
                ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert not ran.stderr, ran.stderr
            shown += [f"$ {command}", *skeleton(output)]
            printed += [f"$ {command}", *skeleton(ran.stdout)]
    assert shown
    assert printed == shown
