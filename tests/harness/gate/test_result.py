"""Results that are kept: one in a file, or a line each in a history."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.gate.outputs import outputs_of
from harness.gate.result import read_results, with_line
from harness.gate.verdict import Checked, ScenarioCheck, Status, Verdict
from tests.harness.gate.suites import write_suite_with_baseline
from tests.harness.gate.test_cli import check
from traces.errors import InputError

FAILED = Verdict("fidelity", "ttft.p99", Status.FAILED, 0.1, 0.13, 0.3, (0.2, 0.4), "10%")
COUNTED = Verdict("canary", "steps", Status.PASSED, 1202, 1202, 0.0)
CHECKED = Checked("suite.yaml", "1.2.3", (ScenarioCheck("chat", (FAILED, COUNTED), ("a note",)),))


def keep(history: Path, checked: Checked, at: str) -> None:
    history.write_text(with_line(history, checked, at=at, commit="0123456789abcdef"))


def test_a_result_is_read_as_it_was(tmp_path: Path) -> None:
    (text,) = outputs_of(CHECKED, result=tmp_path / "check.json").values()
    (tmp_path / "check.json").write_text(text)
    (kept,) = read_results(tmp_path / "check.json")
    assert kept.checked == CHECKED
    assert kept.at is None
    assert isinstance(kept.checked.scenarios[0].verdicts[1].reference, int)


def test_a_history_has_a_line_for_each_check(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    green = replace(CHECKED, scenarios=(ScenarioCheck("chat", (COUNTED,)),))
    keep(history, green, "2026-01-31T12:00:00+00:00")
    keep(history, CHECKED, "2026-02-01T12:00:00+00:00")
    before, last = read_results(history)
    assert (before.checked, last.checked) == (green, CHECKED)
    assert (last.at, last.commit) == ("2026-02-01T12:00:00+00:00", "0123456789abcdef")


def test_a_file_that_is_no_history_of_the_suite_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--history.*accepted: a name that ends in .jsonl"):
        with_line(tmp_path / "check.json", CHECKED, at="", commit=None)
    keep(tmp_path / "history.jsonl", CHECKED, "")
    with pytest.raises(InputError, match=r"is the history of another suite: found 'suite.yaml': accepted: mine.yaml"):
        with_line(tmp_path / "history.jsonl", replace(CHECKED, suite="mine.yaml"), at="", commit=None)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"passed": 1}\n')
    with pytest.raises(InputError, match=r"history.jsonl:2: .*passed"):
        with_line(tmp_path / "history.jsonl", CHECKED, at="", commit=None)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match="holds no result"):
        read_results(tmp_path / "empty.jsonl")


def test_check_adds_to_its_history_with_the_other_outputs_or_not_at_all(tmp_path: Path) -> None:
    suite, history = write_suite_with_baseline(tmp_path), tmp_path / "history.jsonl"
    assert check(suite, "--history", history, GITHUB_SHA="abc").returncode == 0
    assert check(suite, "--history", history, "--set", "engine.max_num_seqs=1").returncode == 1
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["passed"] for line in lines] == [True, False]
    assert lines[0]["commit"] == "abc"
    assert lines[0]["at"] <= lines[1]["at"]
    (tmp_path / "folder").mkdir()
    assert check(suite, "--history", history, "--junit", tmp_path / "folder").returncode == 2
    assert len(read_results(history)) == 2
