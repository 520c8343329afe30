"""Searches try what the study decides, whatever the workers do, and find what is better."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.sweeps.points import Point, Result
from harness.sweeps.search import best_first, n_trials
from harness.sweeps.study import SearchFile
from harness.sweeps.sweep import sweep
from harness.sweeps.trials import Trial
from tests.harness.sweeps.studies import contents, points_of, reported, write_study
from traces.errors import InputError

TPE = """\
search:
  method: tpe
  n_trials: 10
  at_once: 3
  ranges:
    engine.max_num_seqs: {low: 1, high: 32, log: true}
    cluster.instances.0.count: [1, 2]
    engine.gpu_memory_utilization: {low: 0.5, high: 0.9}
objectives: {ttft_s.mean: min, tpot_s.mean: min}
constraints: {n_finished: {min: 40}}
"""

HALVING = """\
search:
  method: successive_halving
  n_trials: 9
  min_requests: 10
  eta: 2
  ranges: {engine.max_num_seqs: {low: 1, high: 32}}
objectives: {ttft_s.mean: min}
"""


@pytest.mark.parametrize("text", [TPE, HALVING])
def test_workers_do_not_change_what_is_tried(text: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    study = write_study(tmp_path, text)
    for n in (1, 2):
        sweep(study, tmp_path / str(n), workers=n)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    last = reported(study, tmp_path / "1")[-1]
    assert last.n_known == last.n_done


def test_tpe_takes_values_from_its_ranges(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    swept = sweep(write_study(tmp_path, TPE), tmp_path / "out", workers=2)
    overrides = [point["overrides"] for point in points_of(swept)]
    assert 3 < len(overrides) <= 10
    assert all(
        1 <= one["engine.max_num_seqs"] <= 32 and one["cluster.instances.0.count"] in (1, 2) for one in overrides
    )
    assert all(isinstance(one["engine.gpu_memory_utilization"], float) for one in overrides)


def test_tpe_goes_on_where_points_fail(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    ranges = "{cluster.instances.0.device: [TESTGPU, NOGPU], seed: {low: 0, high: 9}}"
    text = f"search: {{method: tpe, n_trials: 8, ranges: {ranges}}}\nobjectives: {{ttft_s.mean: min}}\n"
    swept = sweep(write_study(tmp_path, text), tmp_path / "out", workers=2)
    reasons = [point["reason"] for point in points_of(swept)]
    assert None in reasons
    assert any(reasons)


def test_successive_halving_serves_more_to_fewer(tmp_path: Path) -> None:
    swept = sweep(write_study(tmp_path, HALVING), tmp_path / "out", workers=2)
    points = points_of(swept)
    assert [point["first_requests"] for point in points] == [10] * 9 + [20] * 5 + [None] * 3
    assert [point["figures"]["n_requests"] for point in points] == [10] * 9 + [20] * 5 + [40] * 3
    ttft_s = {
        point["overrides"]["engine.max_num_seqs"]: point["figures"]["metrics"]["ttft_s"]["mean"] for point in points[:9]
    }
    went_on = {point["overrides"]["engine.max_num_seqs"] for point in points[9:14]}
    assert max(ttft_s[n] for n in went_on) <= min(ttft_s[n] for n in ttft_s.keys() - went_on)
    assert all(points[i]["first_requests"] is None for i in swept.record["front"])


def test_rounds_that_are_too_short_for_the_objective_are_refused(tmp_path: Path) -> None:
    study = write_study(tmp_path, HALVING.replace("ttft_s.mean", "ttft_s.p99"))
    with pytest.raises(InputError, match=r"'objectives.ttft_s.p99': has no value with 10 requests: accepted: more"):
        sweep(study, tmp_path / "out", workers=1)


def test_a_first_round_of_all_requests_is_refused(tmp_path: Path) -> None:
    study = write_study(tmp_path, HALVING.replace("min_requests: 10", "min_requests: 40"))
    with pytest.raises(InputError, match=r"'search.min_requests': found 40: accepted: fewer than the trace's 40"):
        sweep(study, tmp_path / "out", workers=1)


@pytest.mark.parametrize(("n", "first", "served"), [(18, 44, 18 + 6), (1, 1, 1), (9, 1, 9 + 3 + 1)])
def test_how_many_points_there_will_be_is_known(n: int, first: int, served: int) -> None:
    asked = SearchFile(method="successive_halving", n_trials=n, min_requests=first, ranges={"seed": [1]})
    assert n_trials(asked, 132) == served


def test_the_constraints_come_before_the_objectives() -> None:
    def trial(losses: float | None, excess: float | None) -> Trial:
        known = None if losses is None else (losses,)
        return Trial(Point({}, ""), Result(), {}, known, excess)

    assert best_first([trial(None, None), trial(1.0, 0.5), trial(3.0, 0), trial(2.0, 0), trial(0.0, 0.1)]) == [
        3,
        2,
        4,
        1,
        0,
    ]


def test_without_optuna_a_search_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"needs Optuna 5 or later.*\.\[search\]"):
        sweep(write_study(tmp_path, TPE), tmp_path / "out", workers=1)
