"""docs/report.md shows what its commands print, and its Python runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "report.md"
NUMBER = re.compile(r"[-+]?\d[\d.]*")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def skeleton(text: str) -> list[str]:
    """Lines without their numbers: another machine may round the last digit otherwise."""
    return [NUMBER.sub("#", line).rstrip() for line in text.splitlines() if line.strip()]


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    setting, shown, printed = "", [], []
    for part in (part for block in blocks("console") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]):
        command, _, output = part.partition("\n")
        if command.startswith("B="):
            setting = command
            continue
        script = f"set -o pipefail\n{setting}\n{command}"
        ran = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        shown += [f"$ {command}", *skeleton(output)]
        printed += [f"$ {command}", *skeleton(ran.stdout)]
    assert len(shown) > 15
    assert printed == shown
    assert (tmp_path / "check" / "measured" / "meta.json").is_file()


def test_its_python_runs() -> None:
    (block,) = blocks("python")
    exec(compile(block, str(PAGE), "exec"), {})


def test_its_figures_are_those_of_the_code() -> None:
    from harness.reports import chart, latencies, over_time

    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"more than {chart.MOST_POINTS:,} values" in text
    assert f"than {latencies.MOST_DOTS:,} pairs the {latencies.FARTHEST} farthest" in text
    assert f"at most {over_time.MOST_WINDOWS} windows" in text
