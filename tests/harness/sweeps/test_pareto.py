"""Who is not beaten, against the definition; limits, and figures by name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.sweeps.pareto import beats, excess, flat, front, losses, ranked
from harness.sweeps.study import Limits

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=30)


@given(POINTS)
def test_a_point_is_on_the_front_or_beaten_by_one_that_is(points: list[tuple[float, ...]]) -> None:
    best = front(points)
    assert not any(beats(points[i], points[j]) for i in best for j in best)
    for i in set(range(len(points))) - set(best):
        assert any(beats(points[j], points[i]) for j in best)


@given(POINTS)
def test_nobody_is_ranked_before_one_that_beats_it(points: list[tuple[float, ...]]) -> None:
    order = ranked(points)
    assert sorted(order) == list(range(len(points)))
    for place, i in enumerate(order):
        assert not any(beats(points[j], points[i]) for j in order[place + 1 :])


def test_one_objective_ranks_by_it_alone() -> None:
    assert ranked([(3.0,), (1.0,), (2.0,), (1.0,)]) == [1, 3, 2, 0]


def test_what_should_be_large_is_turned() -> None:
    objectives = {"output_tokens_per_s": "max", "ttft_s.p99": "min"}
    assert losses({"output_tokens_per_s": 10, "ttft_s.p99": 0.5}, objectives) == (-10.0, 0.5)  # type: ignore[arg-type]
    assert losses({"output_tokens_per_s": 10, "ttft_s.p99": None}, objectives) is None  # type: ignore[arg-type]


def test_how_far_outside_its_limits_a_figure_is() -> None:
    limits = {"ttft_s.p99": Limits(max=0.5), "n_finished": Limits(min=10)}
    assert excess({"ttft_s.p99": 0.5, "n_finished": 10}, limits) == 0
    assert excess({"ttft_s.p99": 0.75, "n_finished": 8}, limits) == 0.5 + 0.2
    assert excess({"ttft_s.p99": None, "n_finished": 8}, limits) is None
    assert excess({"n_finished": 1}, {"n_finished": Limits(max=0)}) == 1


def test_figures_go_by_dotted_names() -> None:
    figures = {"metrics": {"ttft_s": {"p99": 1.0}}, "cost": {"total": 2.0, "notes": ["a"]}, "energy": None}
    assert flat(figures) == {"ttft_s.p99": 1.0, "cost.total": 2.0, "energy": None}
