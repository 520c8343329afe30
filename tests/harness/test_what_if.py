"""The questions of docs/scenario.md: each is answered by its example, and its answer is not what it was without."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.running.simulate import simulate_scenario
from tests.pages import ROOT, shown_and_printed

QUESTIONS = re.findall(
    r"^\| [^|]+\? \| `(\w+\.yaml)` \| `([^`]+)` \|$", (ROOT / "docs" / "scenario.md").read_text(), flags=re.MULTILINE
)


def test_the_page_asks_questions() -> None:
    assert len(QUESTIONS) == 15


@pytest.mark.parametrize(("name", "override"), QUESTIONS)
def test_an_answer_depends_on_what_is_asked(name: str, override: str) -> None:
    path = ROOT / "docs" / "examples" / name
    (_, before), (_, after) = simulate_scenario(path), simulate_scenario(path, [override])
    assert after["n_finished"] > 0
    assert before["metrics"] != after["metrics"]


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("scenario.md", tmp_path)
    assert shown == printed
