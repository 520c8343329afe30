"""Pages of the documentation: their commands are run, and print what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def shown_and_printed(page: str, folder: Path) -> tuple[str, str]:
    """All `console` blocks of a page of docs/, as they stand there and as they are when run in `folder`."""
    (folder / "docs").symlink_to(ROOT / "docs")
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "COLUMNS": "120"}
    shown, printed = [], []
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            ran = subprocess.run(
                ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert not ran.stderr, ran.stderr
            shown.append(f"$ {command}\n{_trimmed(output)}")
            printed.append(f"$ {command}\n{_trimmed(ran.stdout)}")
    assert shown, f"{page} shows no commands"
    return "\n".join(shown), "\n".join(printed)


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
