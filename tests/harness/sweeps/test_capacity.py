"""Capacities: found exactly, the same whatever runs them, and no more claimed than was tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.reports.report import report
from harness.reports.sweep_page import read_sweep
from harness.sweeps.capacity import TOLERANCE, Capacity, find_capacities, ladder_of, most_tried, shortfalls
from harness.sweeps.folder import StudyFolder
from harness.sweeps.points import Point, Result, read_inputs
from harness.sweeps.record import SHORT, is_short
from harness.sweeps.study import CapacityFile, Limits, read_study
from harness.sweeps.sweep import sweep
from harness.sweeps.trials import Progress, Trial, Trials
from tests.command_line import ok
from tests.harness.sweeps.studies import GRID, WRITTEN, contents, points_of, reported, write_study, written
from traces.errors import InputError

SEATS = """\
grid: {cluster.instances.0.count: [1, 2]}
capacity: {key: concurrency, low: 1, high: 12}
objectives: {concurrency: max, tpot_s.mean: min}
constraints: {ttft_s.p90: {max: 0.09}}
"""


def figures(ttft_s: float | None, *, is_steady: bool | None = None, n_left_out: int = 0) -> dict[str, Any]:
    """Of a run, as far as a capacity depends on them."""
    there = {"halfway": 5, "at_last_arrival": 19, "is_steady": is_steady}
    return {
        "n_requests": 40,
        "n_left_out": n_left_out,
        "metrics": {"ttft_s": {"p90": ttft_s}, "e2el_s": {"mean": 1.0}, "duration_s": 100.0},
        "in_system": there,
    }


class Made:
    """Workers whose results are made by a function of what a point sets; the last point asked for ends first."""

    def __init__(self, made: Callable[[dict[str, Any]], Result]) -> None:
        self.made = made
        self.rounds: list[int] = []

    def results(self, points: Sequence[Point]) -> Iterator[tuple[int, Result]]:
        if points:
            self.rounds.append(len(points))
        for i in reversed(range(len(points))):
            yield i, self.made(points[i].overrides)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("asked"), "capacity: {key: seed, low: 1, high: 9}\nconstraints: {}")


def found(
    folder: Path,
    capacity: str,
    holds: Callable[[dict[str, Any]], bool],
    variants: Sequence[dict[str, Any]] = ({},),
) -> tuple[list[Capacity], Made]:
    """The capacities of variants of which `holds` says where they hold."""
    text = f"capacity: {{{capacity}}}\nconstraints: {{ttft_s.p90: {{max: 0.15}}}}\n"
    study = read_study(write_study(folder, text))
    workers = Made(lambda overrides: Result(figures=figures(0.1 if holds(overrides) else 0.2)))
    inputs = read_inputs(study.scenario_path)
    assert study.file.capacity is not None
    most = most_tried(study.file.capacity)
    reports = [Progress(0)]
    trials = Trials(study, inputs, StudyFolder(folder / "none"), workers, reports.append, most)
    trials.folder.keep = lambda point, result: None  # type: ignore[method-assign]
    capacities = find_capacities(trials, variants, study.file.capacity)
    assert reports[-1].n_done <= most * len(variants)
    return capacities, workers


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("limit", [1, 2, 3, 63, 64, 98, 99])
def test_whole_numbers_are_found_exactly(limit: int, at_once: int, asked: Path) -> None:
    keys = f"key: concurrency, low: 1, high: 100, at_once: {at_once}"
    (one,), workers = found(asked.parent, keys, lambda point: point["concurrency"] <= limit)
    assert one.highest is not None
    assert one.next_above is not None
    assert (one.highest.value, one.next_above.value) == (limit, limit + 1)
    assert isinstance(one.highest.value, int)
    assert workers.rounds[0] == 2
    assert len(workers.rounds) <= 1 + math.ceil(math.log(99, at_once + 1))
    assert [tried.held for tried in one.tried] == [tried.value <= limit for tried in one.tried]


@pytest.mark.parametrize("limit", [0.25, 0.26, 1.0, 3.7, 15.9])
@pytest.mark.parametrize("tolerance", [None, 0.3, 0.01])
def test_other_numbers_are_found_within_the_tolerance(limit: float, tolerance: float | None, asked: Path) -> None:
    keys = "key: think_s, low: 0.25, high: 16" + ("" if tolerance is None else f", tolerance: {tolerance}")
    (one,), _ = found(asked.parent, keys, lambda point: point["think_s"] <= limit)
    assert one.highest is not None
    assert one.next_above is not None
    assert one.highest.value <= limit < one.next_above.value
    assert one.next_above.value / one.highest.value <= 1 + (tolerance or TOLERANCE) + 1e-5


@given(
    low=st.floats(1e-3, 1e3),
    factor=st.floats(1.01, 1e4),
    tolerance=st.one_of(st.none(), st.floats(0.001, 1)),
)
def test_rungs_rise_from_low_to_high_by_the_tolerance(low: float, factor: float, tolerance: float | None) -> None:
    ladder = ladder_of(CapacityFile(key="a", low=low, high=low * factor, tolerance=tolerance))
    some = [ladder[rung] for rung in sorted({0, 1, ladder.n // 2, ladder.n - 1, ladder.n})]
    assert (ladder[0], ladder[ladder.n]) == (low, low * factor)
    assert some == sorted(set(some))
    assert all(ladder[i + 1] / ladder[i] <= (1 + (tolerance or TOLERANCE)) * 1.0001 for i in range(min(ladder.n, 50)))


def test_a_whole_ratio_has_no_rung_more_by_rounding() -> None:
    assert ladder_of(CapacityFile(key="a", low=0.25, high=16, tolerance=1)).n == 6


def test_ends_as_far_apart_as_numbers_are_have_a_ladder() -> None:
    asked = CapacityFile(key="a", low=1e-308, high=1e308, at_once=3)
    ladder = ladder_of(asked)
    assert [ladder[0], ladder[ladder.n // 2], ladder[ladder.n]] == [1e-308, 1.0, 1e308]
    assert most_tried(asked) < 30
    assert most_tried(CapacityFile(key="a", low=-(2**53), high=2**53)) == 2 + 54


@pytest.mark.parametrize("high", ["1" + 400 * "0", str(2**53 + 1), ".inf"])
def test_numbers_that_no_float_tells_apart_are_refused(high: str, tmp_path: Path) -> None:
    text = f"capacity: {{key: concurrency, low: 1, high: {high}}}\nconstraints: {{ttft_s.p90: {{max: 1}}}}\n"
    with pytest.raises(InputError, match=r"yaml:2: field 'capacity\.high': found"):
        read_study(write_study(tmp_path, text))


@pytest.mark.parametrize(
    ("key", "low", "said"), [("load.speed", "1", 1), ("load.speed", "1.0", 0), ("concurrency", "1", 0)]
)
def test_whole_ends_of_a_key_that_takes_others_are_noted(key: str, low: str, said: int, tmp_path: Path) -> None:
    text = f"capacity: {{key: {key}, low: {low}, high: 3}}\nconstraints: {{ttft_s.p90: {{max: 100}}}}\n"
    notes = sweep(write_study(tmp_path, text), tmp_path / "out", workers=1).record["notes"]
    assert notes.count("only whole numbers were tried, as low and high are: low: 1.0 tries those between too") == said


def test_variants_are_searched_side_by_side(asked: Path) -> None:
    limits = {0: 3, 1: 40, 2: 99}
    capacities, workers = found(
        asked.parent,
        "key: concurrency, low: 1, high: 100",
        lambda point: point["concurrency"] <= limits[point["seed"]],
        [{"seed": seed} for seed in limits],
    )
    assert [one.highest.value for one in capacities if one.highest] == list(limits.values())
    assert workers.rounds[:4] == [6, 3, 3, 3]


def test_what_does_not_hold_at_low_has_no_capacity(asked: Path) -> None:
    (one,), workers = found(asked.parent, "key: concurrency, low: 4, high: 9", lambda point: False)
    assert one.highest is None
    assert one.next_above is not None
    assert (one.next_above.value, workers.rounds) == (4, [2])


def test_what_holds_at_high_is_that_or_more(asked: Path) -> None:
    (one,), workers = found(asked.parent, "key: concurrency, low: 4, high: 9", lambda point: True)
    assert one.highest is not None
    assert (one.highest.value, one.next_above, workers.rounds) == (9, None, [2])


def test_of_values_that_hold_again_above_the_lower_one_counts(asked: Path) -> None:
    islands = {1, 2, 3, 4, 5, 10, 11}
    keys = "key: concurrency, low: 1, high: 16, at_once: 4"
    (one,), _ = found(asked.parent, keys, lambda point: point["concurrency"] in islands)
    assert one.highest is not None
    assert one.next_above is not None
    assert (one.highest.value, one.next_above.value) == (5, 6)
    assert [tried.value for tried in one.held_above] == [10]
    (one,), _ = found(asked.parent, "key: concurrency, low: 1, high: 16", lambda point: point["concurrency"] == 16)
    assert (one.highest, [tried.value for tried in one.held_above]) == (None, [16])


def trial(given: dict[str, Any] | None, reason: str | None = None) -> Trial:
    from harness.sweeps.pareto import flat

    return Trial(Point({}, ""), Result(figures=given, reason=reason), flat(given or {}), None, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (figures(0.15), []),
        (figures(0.15, is_steady=True), []),
        (figures(0.2), ["ttft_s.p90 200 ms"]),
        (figures(None), ["ttft_s.p90 has no value"]),
        (
            figures(0.1, is_steady=False),
            ["not steady: 5 to 19 in the system"],
        ),
        (figures(0.1, n_left_out=3), ["3 of 40 requests not finished"]),
        (None, ["failed: no room"]),
    ],
)
def test_why_a_value_does_not_hold_is_said(given: dict[str, Any] | None, said: list[str]) -> None:
    limits = {"ttft_s.p90": Limits(max=0.15)}
    assert shortfalls(trial(given, None if given else "no room"), limits) == said


def test_a_run_is_short_by_its_own_requests() -> None:
    assert is_short({"duration_s": SHORT - 0.1, "e2el_s.mean": 1.0})
    assert not is_short({"duration_s": SHORT, "e2el_s.mean": 1.0})
    assert not is_short({"duration_s": None, "e2el_s.mean": None})


# From here on with simulations.


def test_a_capacity_is_the_highest_that_holds(tmp_path: Path) -> None:
    swept = sweep(write_study(tmp_path, SEATS), tmp_path / "out", workers=2)
    assert len(swept.record["capacities"]) == 2
    for i, one in enumerate(swept.record["capacities"]):
        assert one["overrides"] == {"cluster.instances.0.count": i + 1}
        highest, above = one["highest"], one["next_above"]
        assert above["value"] == highest["value"] + 1
        at, beyond = (points_of(swept)[each["point"]] for each in (highest, above))
        assert at["overrides"] == one["overrides"] | {"concurrency": highest["value"]}
        assert at["figures"]["concurrency"] == highest["value"]
        assert at["figures"]["metrics"]["ttft_s"]["p90"] <= 0.09 < beyond["figures"]["metrics"]["ttft_s"]["p90"]
        assert above["shortfalls"][0].startswith("ttft_s.p90 ")
        assert (at["capacity"], beyond["capacity"]) == ("highest", "did not hold")
        assert [tried["value"] for tried in one["tried"]] == sorted(tried["value"] for tried in one["tried"])
    # One engine is beaten by two, at their capacities; other points than those are on no front.
    assert set(swept.record["front"]) <= {one["highest"]["point"] for one in swept.record["capacities"]}
    assert swept.record["front"]


def test_it_is_what_trying_every_value_finds(tmp_path: Path) -> None:
    one, _ = sweep(write_study(tmp_path, SEATS), tmp_path / "out", workers=2).record["capacities"]
    grid = f"grid: {{concurrency: {list(range(1, 13))}}}\nobjectives: {{e2el_s.mean: min}}\n"
    every = points_of(sweep(write_study(tmp_path, grid), tmp_path / "every", workers=2))
    held = [point["figures"]["metrics"]["ttft_s"]["p90"] <= 0.09 for point in every]
    assert one["highest"]["value"] == sum(held)
    assert held == sorted(held, reverse=True)


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    study = write_study(tmp_path, SEATS)
    for n in (1, 2):
        sweep(study, tmp_path / str(n), workers=n)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_search_goes_on_where_it_was(tmp_path: Path) -> None:
    study, out = write_study(tmp_path, SEATS), tmp_path / "out"
    sweep(study, out, workers=1)
    first = contents(out)
    for file in sorted((out / "points").iterdir())[::3]:
        file.unlink()
    (out / "study.json").unlink()
    last = reported(study, out)[-1]
    assert 0 < last.n_known < last.n_done
    assert contents(out) == first
    again = reported(study, out)[-1]
    assert again.n_known == again.n_done
    assert contents(out) == first


def test_points_that_a_grid_has_run_are_known(tmp_path: Path) -> None:
    out = tmp_path / "out"
    grid = "grid: {cluster.instances.0.count: [1, 2], concurrency: [1, 12]}\nobjectives: {e2el_s.mean: min}\n"
    sweep(write_study(tmp_path, grid), out, workers=1)
    assert reported(write_study(tmp_path, SEATS), out)[-1].n_known == 4


def test_the_command_prints_a_row_for_each_variant(tmp_path: Path) -> None:
    printed = ok("sweep", write_study(tmp_path, SEATS), "--out", tmp_path / "out")
    record = written(tmp_path / "out")
    assert "Highest concurrency within the constraints" in printed
    assert "ttft_s.p90 ≤ 90 ms" in printed
    assert f"2 variants, {record['n_points']} points tried: on the front " in printed
    assert "Points that no other beats" not in printed
    for one in record["capacities"]:
        assert f"{one['next_above']['value']}   {one['next_above']['shortfalls'][0]}" in printed
    assert set(WRITTEN) < set(contents(tmp_path / "out"))


def test_the_report_has_the_capacities(tmp_path: Path) -> None:
    out = tmp_path / "out"
    swept = sweep(write_study(tmp_path, SEATS), out, workers=1)
    sweep(write_study(tmp_path, GRID), tmp_path / "grid", workers=1)
    (page,) = report([out])
    text = page.read_text()
    assert f"2 variants, {len(points_of(swept))} points tried, 0 failed; " in text
    assert " of the capacities are not beaten by concurrency max, tpot_s.mean min." in text
    section = text[text.index("<section id='capacities'>") : text.index("<section id='front'>")]
    for one in swept.record["capacities"]:
        assert f"<td>{one['highest']['value']}</td>" in section
        assert one["next_above"]["shortfalls"][0] in section
    assert "<option value='concurrency' selected>" in text
    assert "<option value='ttft_s.p90' selected>" in text
    assert "<option value='capacity' selected>" in text
    (both,) = report([out, tmp_path / "grid"], tmp_path / "both.html")
    assert text.count("<section id='capacities'>") == both.read_text().count("<section id='capacities'>") == 1
    (plain,) = report([tmp_path / "grid"])
    assert "capacit" not in plain.read_text().partition("<main")[2].partition("<noscript")[0]


def test_the_report_marks_points_that_are_not_steady(tmp_path: Path) -> None:
    text = "grid: {cluster.instances.0.count: [1, 4]}\nobjectives: {e2el_s.mean: min}\n"
    sweep(write_study(tmp_path, text), tmp_path / "out", workers=1)
    assert "in_system.is_steady" in read_sweep(tmp_path / "out").columns
    steady = "grid: {cluster.instances.0.count: [4]}\nobjectives: {e2el_s.mean: min}\n"
    sweep(write_study(tmp_path, steady), tmp_path / "steady", workers=1)
    assert "in_system.is_steady" not in read_sweep(tmp_path / "steady").columns


def test_the_ends_of_the_search_are_said(tmp_path: Path) -> None:
    out = tmp_path / "out"
    none = write_study(tmp_path, SEATS.replace("0.09", "1.0e-6"))
    printed = ok("sweep", none, "--out", out)
    assert "< 1" in printed
    assert "note: 2 of 2 variants do not hold at 1, the least that is tried: they have no capacity" in printed
    assert "on the front none; 0 failed" in printed
    assert "nearest" not in printed
    most = write_study(tmp_path, SEATS.replace("0.09", "100"))
    printed = ok("sweep", most, "--out", out)
    assert "≥ 12" in printed
    assert "note: 2 of 2 variants hold at 12, the most that is tried: their capacity is that or more" in printed
    assert "note: 2 of 2 capacities are of runs that last less than 20 times their mean E2EL" in printed


def test_without_a_grid_it_is_the_scenarios_own(tmp_path: Path) -> None:
    text = "capacity: {key: concurrency, low: 1, high: 12}\nconstraints: {ttft_s.p90: {max: 0.09}}\n"
    swept = sweep(write_study(tmp_path, text), tmp_path / "out", workers=1)
    (one,) = swept.record["capacities"]
    assert one["overrides"] == {}
    assert swept.record["objectives"] == {"concurrency": "max"}
    assert swept.record["front"] == [one["highest"]["point"]]


def test_a_failed_value_is_not_held_and_counted(tmp_path: Path) -> None:
    text = SEATS.replace("cluster.instances.0.count: [1, 2]", "cluster.instances.0.device: [TESTGPU, NOGPU]")
    swept = sweep(write_study(tmp_path, text), tmp_path / "out", workers=1)
    good, bad = swept.record["capacities"]
    assert good["highest"] is not None
    assert bad["highest"] is None
    assert bad["next_above"]["shortfalls"][0].startswith("failed: ")
    assert "2 values failed and count as not held" in swept.record["notes"]


def test_samples_are_variants_too(tmp_path: Path) -> None:
    sample = "sample: {n: 4, ranges: {cluster.instances.0.count: [1, 2]}}"
    text = SEATS.replace("grid: {cluster.instances.0.count: [1, 2]}", sample)
    record = sweep(write_study(tmp_path, text), tmp_path / "out", workers=2).record
    assert len(record["capacities"]) == 2
    assert "2 of 4 drawn points were drawn before" in record["notes"]


def test_a_key_that_the_scenario_does_not_have_is_refused(tmp_path: Path) -> None:
    text = "capacity: {key: concurency, low: 1, high: 12}\nconstraints: {ttft_s.p90: {max: 1}}\n"
    with pytest.raises(InputError, match=r"yaml:2: field 'capacity': makes no scenario of concurency=1: .*concurrency"):
        sweep(write_study(tmp_path, text), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_points_that_are_not_steady_are_told_in_a_grid(tmp_path: Path) -> None:
    text = "grid: {cluster.instances.0.count: [1, 4]}\nobjectives: {e2el_s.mean: min}\n"
    swept = sweep(write_study(tmp_path, text), tmp_path / "out", workers=1)
    steady = [point["figures"]["in_system"]["is_steady"] for point in points_of(swept)]
    assert steady == [False, None]
    notes = swept.record["notes"]
    assert "1 points are not steady: the queue grows, and figures depend on the trace's length" in notes
    untold = "1 points have too few requests to tell whether their queue grows, 1 on the front"
    assert f"{untold}: a longer trace may wait longer" in notes


def test_a_capacity_of_too_few_requests_to_tell_is_counted(tmp_path: Path) -> None:
    asked = (
        "capacity: {key: load.request_rate, low: 90, high: 100, tolerance: 1}\nconstraints: {n_finished: {min: 40}}\n"
    )
    text = f"grid: {{cluster.instances.0.count: [4]}}\n{asked}"
    swept = sweep(write_study(tmp_path, text), tmp_path / "out", workers=1)
    (one,) = swept.record["capacities"]
    highest = swept.record["points"][one["highest"]["point"]]
    assert highest["figures"]["in_system"]["is_steady"] is None
    said = "1 of 1 capacities are of too few requests to tell whether their queue grows: a longer trace may have"
    assert f"{said} lower ones" in swept.record["notes"]
