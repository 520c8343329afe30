"""The commands of docs/sweep.md print what the page shows, and its study is the one in the examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.sweeps.sweep import sweep
from tests.pages import ROOT, blocks, shown_and_printed

STUDIES = ROOT / "docs" / "examples" / "studies"


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("sweep.md", tmp_path, numbers=False)
    assert printed == shown


def test_the_page_shows_the_examples_as_they_are() -> None:
    for shown, name in zip(blocks("sweep.md", "yaml"), ("grid", "capacity"), strict=True):
        assert shown in (STUDIES / f"{name}.yaml").read_text()


def test_the_search_of_the_examples_finds_a_front(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    swept = sweep(STUDIES / "search.yaml", tmp_path / "out", workers=2)
    best = [swept.record["points"][i] for i in swept.record["front"]]
    assert best
    assert all(point["figures"]["metrics"]["tpot_s"]["p95"] <= 0.012 for point in best)


@pytest.mark.parametrize("study", sorted(STUDIES.glob("*.yaml")), ids=lambda study: study.stem)
def test_an_example_says_what_it_asks(study: Path) -> None:
    assert study.read_text().startswith("# ")
