"""The page of a study says its limits, what its times are and why points failed, and keeps its axes for what counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.reports.sweep_page import Sweep, read_sweep, sweep_page
from harness.reports.sweeps_page import sweeps_page

ROWS = """\
point,reason,is_feasible,is_front,device,ttft_s.p95,n_requests,cost.total
0,,true,true,A,0.1,9,2
1,,true,false,A,0.14,9,3
2,,false,false,B,77,9,1
3,no room,,false,B,,,
4,no room,,false,B,,,
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    reasons = [None, None, None, "no room", "no room"]
    study = {
        "objectives": {"cost.total": "min"},
        "constraints": {"ttft_s.p95": {"min": None, "max": 0.15}},
        "front": [0],
        "n_failed": 2,
        "notes": [],
        "study": {},
        "scenario": {},
        "times": [{"times": "a bound; against no run", "points": [0, 1]}],
        "points": [{"overrides": {"device": "AABBB"[i]}, "reason": reason} for i, reason in enumerate(reasons)],
    }
    (tmp_path / "study.json").write_text(json.dumps(study))
    (tmp_path / "results.csv").write_text(ROWS)
    return read_sweep(tmp_path)


def test_limits_times_and_failures_stand_at_the_top(sweep: Sweep) -> None:
    head = sweep_page("study", sweep).head
    assert "<li>limits: ttft_s.p95 ≤ 150 ms; 1 point is beyond them</li>" in head
    assert "<li>times of device A: a bound; against no run</li>" in head
    assert "<li>points 3, 4 failed: no room</li>" in head


def test_what_decides_stands_first_with_its_unit_and_limit(sweep: Sweep) -> None:
    text = sweep_page("study", sweep).html()
    front = text[text.index("<section id='front'>") : text.index("<section id='points'>")]
    header = ["point", "device", "cost.<wbr>total", "ttft_s.<wbr>p95 ≤\u00a0150\u00a0ms"]
    places = [front.index(f">{name}</th>") for name in header]
    assert places == sorted(places)
    assert "<td>2</td><td>100 ms</td></tr>" in front
    assert sweep.columns == ["point", "device", "cost.total", "ttft_s.p95", "is_feasible", "is_front", "reason"]


def test_a_point_far_beyond_is_left_out_of_the_chart_and_counted(sweep: Sweep) -> None:
    text = sweep_page("study", sweep).html()
    points = text[text.index("id='data-points'>") :].partition("</script>")[0].partition(">")[2]
    drawn = json.loads(points)
    assert drawn["numbers"]["ttft_s.p95"] == [0.1, 0.14, None, None]
    assert len(drawn["text"]) == 4
    assert "1 far beyond the constraints lie outside the axes and are left out" in text
    assert "<td>77 s</td>" in text


def test_side_by_side_each_sweep_has_its_own_grounds(sweep: Sweep) -> None:
    text = sweeps_page({"one": sweep, "two": sweep}).html()
    assert text.count("<li>limits: ttft_s.p95 ≤ 150 ms; 1 point is beyond them</li>") == 2
    assert "<th scope='col'>ttft_s.<wbr>p95 ≤\u00a0150\u00a0ms</th>" in text
    assert sweep.study is not None
    free = Sweep(sweep.cells, sweep.numbers, {**sweep.study, "constraints": {}})
    assert "<th scope='col'>ttft_s.<wbr>p95</th>" in sweeps_page({"one": sweep, "two": free}).html()
