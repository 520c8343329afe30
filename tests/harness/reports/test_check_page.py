"""The page of a check names what failed, by how much, and since when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.gate.check import check
from harness.gate.outputs import outputs_of
from harness.gate.result import with_line
from harness.gate.verdict import Checked, ScenarioCheck, Status, Verdict
from harness.reports.check_page import check_page
from harness.reports.report import page_of, report
from tests.harness.gate.planted import plant
from tests.harness.gate.suites import write_suite_with_baseline
from tests.harness.reports.conftest import Open
from traces.errors import InputError

FAR = Verdict("fidelity", "ttft.mean", Status.FAILED, 0.1, 0.13, 0.3, (0.2, 0.4), "10%")
NEAR = Verdict("fidelity", "ttft.mean", Status.PASSED, 0.1, 0.101, 0.01, (-0.01, 0.03), "10%")
SLOW = Verdict("fidelity", "tpot.mean", Status.PASSED, 0.01, 0.0105, 0.05, (0.03, 0.07), "+1ms")
PAIRED = Verdict("fidelity", "e2el.mape", Status.PASSED, difference=0.056, tolerance="18%")
UNSURE = Verdict("fidelity", "itl.mean", Status.INCONCLUSIVE, tolerance="10%", why="not measured")
STEPS = Verdict("canary", "steps", Status.FAILED, 1202, 1203, 1 / 1202)


def checked(*verdicts: Verdict) -> Checked:
    return Checked("suite.yaml", "1.2.3", (ScenarioCheck("<chat>", verdicts, ("a note",)),))


def history(folder: Path, *results: Checked) -> Path:
    file = folder / "history.jsonl"
    for day, one in enumerate(results, start=1):
        file.write_text(with_line(file, one, at=f"2026-01-0{day}", commit=None))
    return file


def section(page: str, name: str) -> str:
    return page[page.index(f"<section id='{name}'>") :].partition("</section>")[0]


def test_a_planted_fault_is_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = write_suite_with_baseline(tmp_path)
    plant(monkeypatch, 1.5)
    (text,) = outputs_of(check(suite), result=tmp_path / "check.json").values()
    (tmp_path / "check.json").write_text(text)
    assert report([tmp_path / "check.json"]) == [tmp_path / "check.html"]
    page = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "<strong>FAILED</strong>1 of 1 scenario: tiny" in page
    failed = section(page, "what-failed")
    assert "drift at_once.duration" in failed
    assert "+50.00%" in failed
    assert "tiny tpot.mean" in section(page, "what-moved")
    assert "id='history'" not in page


def test_charts_set_errors_on_what_is_tolerated(tmp_path: Path) -> None:
    page = page_of([history(tmp_path, checked(FAR, SLOW, PAIRED, UNSURE, STEPS))])
    fidelity, moved = page.charts
    tolerated, error = fidelity.marks
    assert error.labels == ("ttft.mean", "tpot.mean", "e2el.mape")  # type: ignore[union-attr]
    assert tolerated.low.tolist() == [-0.1, 0.0, -0.18]  # type: ignore[union-attr]
    assert tolerated.high.tolist() == pytest.approx([0.1, 0.1, 0.18])  # type: ignore[union-attr]
    assert moved.marks[0].labels == ("<chat> steps (canary)",)  # type: ignore[union-attr]
    assert "&lt;chat&gt;" in page.html()
    assert "<chat>" not in page.html().replace("\\u003cchat>", "")


def test_a_history_says_since_when(tmp_path: Path) -> None:
    page = page_of([history(tmp_path, checked(FAR), checked(NEAR), checked(FAR), checked(FAR, STEPS))])
    text = page.html()
    assert "in the last 2 checks" in section(text, "what-failed")
    assert "now for the first time" in section(text, "what-failed")
    (curve,) = page.charts[-1].marks
    assert curve.y.tolist() == pytest.approx([30, 1, 30, 30])  # type: ignore[union-attr]
    rows = section(text, "history").split("<tr>")[2:]
    assert ["FAILED" in row for row in rows] == [True, True, False, True]
    assert "2026-01-04" in rows[0]


def test_several_results_are_one_history_in_their_order(tmp_path: Path) -> None:
    for name, one in (("monday", checked(NEAR)), ("tuesday", checked(FAR))):
        (text,) = outputs_of(one, result=tmp_path / f"{name}.json").values()
        (tmp_path / f"{name}.json").write_text(text)
    page = page_of([tmp_path / "monday.json", tmp_path / "tuesday.json"])
    assert page.title == "Check tuesday.json: suite.yaml"
    assert "now for the first time" in page.html()


def test_checks_of_different_suites_are_no_history(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (text,) = outputs_of(replace(checked(NEAR), suite=name), result=tmp_path / f"{name}.json").values()
        (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(InputError, match="one, two: accepted: checks of one suite"):
        page_of([tmp_path / "one.json", tmp_path / "two.json"])


def test_it_is_drawn(opened: Open, tmp_path: Path) -> None:
    page = opened(page_of([history(tmp_path, checked(NEAR, SLOW), checked(FAR, SLOW, STEPS))]).html())
    assert [trace["name"] for trace in page.drawn("fidelity-0")] == ["tolerated", "error"]
    assert [trace["points"] for trace in page.drawn("history-0")] == [2, 2]
    assert page.said == []


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    from harness.gate.result import read_results

    results = read_results(history(tmp_path, checked(NEAR), checked(FAR)))
    assert check_page("a", results).html() == check_page("a", results).html()
