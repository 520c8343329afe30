"""Calibrations and sweeps side by side: what is apart, and what none of them beats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from calibrate.calibration import FittedParameter, encode_calibration
from harness.reports.calibrations_page import calibrations_page
from harness.reports.report import page_of, report
from harness.reports.sweeps_page import sweeps_page
from tests.harness.reports.conftest import Open
from tests.harness.reports.runs import calibration


def fitted(dense: float) -> FittedParameter:
    return FittedParameter(dense, 0.01, "1", 1.0, 0.2, identified=True)


def write_calibration(folder: Path, name: str, dense: float) -> Path:
    before = calibration()
    one = msgspec.structs.replace(before, parameters={**before.parameters, "dense": fitted(dense)})
    (folder / name).write_bytes(encode_calibration(one))
    return folder / name


def test_calibrations_say_which_parameters_are_apart(tmp_path: Path) -> None:
    files = [write_calibration(tmp_path, name, dense) for name, dense in (("a.json", 1.1), ("b.json", 1.2))]
    (out,) = report(files, tmp_path / "both.html")
    text = out.read_text(encoding="utf-8")
    assert "2 calibrations side by side. Apart from a.json: dense." in text
    assert "1.2 ± 0.01 [+7.1]" in text  # 0.1 over 0.01 and 0.01, taken together
    assert "0 held" in text
    (same,) = report([files[0], write_calibration(tmp_path, "c.json", 1.11)], tmp_path / "same.html")
    assert "No parameter is apart from a.json&#x27;s." in same.read_text(encoding="utf-8")


def test_a_parameter_that_one_calibration_does_not_have_is_left_open(tmp_path: Path) -> None:
    one = calibration()
    other = msgspec.structs.replace(one, parameters={"dense": one.parameters["dense"]}, residuals={})
    text = calibrations_page({"all": one, "few": other}).html()
    assert "<td>–</td>" in text


def write_sweep(folder: Path, rows: Sequence[tuple[int, float, float]], front: list[int], way: str = "min") -> Path:
    study = {
        "objectives": {"ttft_s.mean": way, "cost.total": "min"},
        "constraints": {},
        "front": front,
        "n_failed": 0,
        "notes": [f"a note of {folder.name}"],
        "study": {},
        "scenario": {},
        "points": [{"overrides": {"engine.max_num_seqs": seats}} for seats, _, _ in rows],
    }
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps(study))
    lines = [f"{i},{str(i in front).lower()},{s},{t},{c}" for i, (s, t, c) in enumerate(rows)]
    header = "point,is_front,engine.max_num_seqs,ttft_s.mean,cost.total"
    (folder / "results.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder


@pytest.fixture
def sweeps(tmp_path: Path) -> list[Path]:
    """The fast is beaten by the cheap at one of the two points of its front."""
    fast = write_sweep(tmp_path / "fast", [(16, 0.2, 5.0), (32, 0.1, 9.0), (64, 0.3, 9.0)], [0, 1])
    return [fast, write_sweep(tmp_path / "cheap", [(8, 0.15, 4.0), (4, 0.5, 1.0)], [0, 1])]


def test_sweeps_have_one_front_of_what_none_of_them_beats(sweeps: list[Path]) -> None:
    text = page_of(sweeps).html()
    assert "2 sweeps side by side, 5 points. 3 are not beaten by ttft_s.mean min, cost.total min." in text
    front = text[text.index("<section id='front'>") : text.index("<section id='points'>")]
    assert [row.partition("</td>")[0] for row in front.split("<tr><td class=text>")[1:]] == ["fast", "cheap", "cheap"]
    best = text[text.index("<section id='best'>") : text.index("<section id='front'>")]
    assert "<td>0.1</td><td>0.15</td>" in best
    assert "a note of cheap" in text
    assert "<option value='sweep' selected>" in text


def test_sweeps_of_other_objectives_have_no_front_in_common(sweeps: list[Path], tmp_path: Path) -> None:
    other = write_sweep(tmp_path / "other", [(8, 0.15, 4.0)], [0], way="max")
    text = page_of([sweeps[0], other]).html()
    assert "2 sweeps side by side, 4 points." in text
    assert "<section id='front'>" not in text


def test_sweeps_that_varied_different_keys_leave_cells_empty(sweeps: list[Path], tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "results.csv").write_text("point,seed,ttft_s.mean\n0,1,0.4\n1,2,0.5\n")
    text = page_of([sweeps[0], tmp_path / "plain"]).html()
    assert "5 points." in text
    assert "<option value='seed'>" in text


def test_they_are_drawn(opened: Open, sweeps: list[Path]) -> None:
    page = opened(page_of(sweeps).html())
    assert [(trace["name"], trace["points"]) for trace in page.drawn("explore")] == [("fast", 3), ("cheap", 2)]
    assert page.said == []
    one = calibration()
    both = opened(calibrations_page({"a": one, "b": one}).html())
    assert [trace["name"] for trace in both.drawn("parameters")] == ["a", "b"]
    assert both.said == []


def test_the_same_sweeps_give_the_same_page(sweeps: list[Path]) -> None:
    from harness.reports.sweep_page import read_sweep

    read = {path.name: read_sweep(path) for path in sweeps}
    assert sweeps_page(read).html() == sweeps_page(read).html()
