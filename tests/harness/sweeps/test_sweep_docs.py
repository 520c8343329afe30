"""The commands of docs/sweep.md print what the page shows, and its study is the one in the examples."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.sweeps.sweep import sweep
from tests.harness.test_calibrate_docs import skeleton

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "sweep.md").read_text(encoding="utf-8")
STUDIES = ROOT / "docs" / "examples" / "studies"


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    blocks = re.findall(r"```console\n\$ (.*?)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 3
    for command, shown in blocks:
        ran = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert not ran.stderr, ran.stderr
        assert skeleton(ran.stdout) == skeleton(shown), ran.stdout


def test_the_page_shows_the_example_as_it_is() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert shown in (STUDIES / "grid.yaml").read_text()


def test_the_search_of_the_examples_finds_a_front(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    swept = sweep(STUDIES / "search.yaml", tmp_path / "out", workers=2)
    best = [swept.record["points"][i] for i in swept.record["front"]]
    assert best
    assert all(point["figures"]["metrics"]["tpot_s"]["p95"] <= 0.012 for point in best)


@pytest.mark.parametrize("study", sorted(STUDIES.glob("*.yaml")), ids=lambda study: study.stem)
def test_an_example_says_what_it_asks(study: Path) -> None:
    assert study.read_text().startswith("# ")
