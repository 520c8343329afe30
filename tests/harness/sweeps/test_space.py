"""Grids in order, draws spread evenly, ranges that keep to themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.sweeps.space import Range, combinations, drawn


def test_the_last_key_changes_fastest() -> None:
    points = combinations({"a": [1, 2], "b": ["x", "y"]})
    assert [(point["a"], point["b"]) for point in points] == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


@given(low=st.integers(1, 1000), span=st.integers(1, 1000), log=st.booleans(), at=st.floats(0, 1, exclude_max=True))
def test_a_whole_range_gives_its_whole_numbers(low: int, span: int, log: bool, at: float) -> None:
    value = Range(low, low + span, log).at(at)
    assert isinstance(value, int)
    assert low <= value <= low + span


@given(low=st.floats(0.001, 1e6), factor=st.floats(1.001, 1e6), log=st.booleans(), at=st.floats(0, 1, exclude_max=True))
def test_a_range_is_not_left(low: float, factor: float, log: bool, at: float) -> None:
    assert low <= Range(low, low * factor, log).at(at) <= low * factor


def test_every_whole_number_is_as_likely_as_any_other() -> None:
    values = [Range(1, 4).at((i + 0.5) / 400) for i in range(400)]
    assert [values.count(value) for value in (1, 2, 3, 4)] == [100] * 4


def test_a_factor_counts_as_much_everywhere_with_log() -> None:
    middle = Range(1.0, 100.0, log=True).at(0.5)
    assert abs(middle - 10.0) < 1e-9


def test_each_part_of_a_range_is_drawn_from_once() -> None:
    points = drawn({"a": Range(0.0, 1.0), "b": [10, 20, 30, 40]}, 8, seed=3)
    assert sorted(int(point["a"] * 8) for point in points) == list(range(8))
    assert [sum(point["b"] == value for point in points) for value in (10, 20, 30, 40)] == [2, 2, 2, 2]
    assert points == drawn({"a": Range(0.0, 1.0), "b": [10, 20, 30, 40]}, 8, seed=3)
    assert points != drawn({"a": Range(0.0, 1.0), "b": [10, 20, 30, 40]}, 8, seed=4)


def test_equal_points_are_drawn_once() -> None:
    assert len(drawn({"a": [1, 2]}, 10, seed=0)) == 2
