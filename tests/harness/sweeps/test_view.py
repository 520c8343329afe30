"""Points far beyond the constraints leave room for the others; headers are broken where they would be cut."""

from __future__ import annotations

from harness.sweeps.picture import Dot, pareto_svg
from harness.sweeps.view import in_view
from harness.sweeps.wording import broken


def test_what_is_no_further_away_than_points_are_apart_is_drawn() -> None:
    values = [2.0, 5.0, 8.0, 8.1, -1.0, -1.1, None]
    feasible = [True, True, False, False, False, False, False]
    assert in_view([values], feasible) == [True, True, True, False, True, False, True]


def test_one_column_far_away_is_enough_and_what_is_within_is_always_drawn() -> None:
    columns = [[1.0, 2.0, 1.5, 900.0], [1.0, 1.1, 9.0, 1.0]]
    assert in_view(columns, [True, True, False, True]) == [True, True, False, True]


def test_where_none_is_within_all_are_drawn() -> None:
    assert in_view([[1.0, 1e9]], [False, False]) == [True, True]
    assert in_view([[None, 1e9]], [True, False]) == [True, True]


def test_a_single_point_within_has_room_up_to_twice_its_value() -> None:
    assert in_view([[3.0, 6.0, 6.1, 0.0]], [True, False, False, False]) == [True, True, False, True]
    assert in_view([[0.0, 1.0, 1.1]], [True, False, False]) == [True, True, False]


def test_a_picture_counts_what_it_leaves_out() -> None:
    dots = [Dot((1.0, 2.0), "a", True, True), Dot((2.0, 3.0), "b", True, False), Dot((1.0, 900.0), "c", False, False)]
    picture = pareto_svg(["a", "b"], dots)
    assert picture.count("<circle") == 2
    assert "1 far beyond the limits" in picture
    assert "far beyond" not in pareto_svg(["a", "b"], dots[:2])
    alone = pareto_svg(["b"], [Dot((dot.values[1],), dot.text, dot.is_feasible, dot.is_front) for dot in dots])
    assert alone.count("<circle") == 2


def test_a_header_is_broken_behind_dots_and_underscores_and_before_its_limit() -> None:
    assert broken("cluster.instances.0.tensor_parallel_size").split("\n") == [
        "cluster.",
        "instances.0.",
        "tensor_parallel_",
        "size",
    ]
    assert broken("ttft_s.p95 ≤ 150 ms") == "ttft_s.p95\n≤ 150 ms"
    assert broken("point") == "point"
