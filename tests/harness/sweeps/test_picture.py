"""The picture is well-formed, holds every point, and keeps to its frame."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.sweeps.picture import HEIGHT, WIDTH, Dot, pareto_svg

SVG = "{http://www.w3.org/2000/svg}"
FIGURE = st.floats(-1e12, 1e12) | st.sampled_from([0.0, 1e-12])


def circles(picture: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(picture).iter(f"{SVG}circle"))


@example([(0.0, 5e-324)])
@given(st.lists(st.tuples(FIGURE, FIGURE), max_size=8))
def test_every_point_is_in_the_frame(values: list[tuple[float, float]]) -> None:
    found = circles(pareto_svg(["a", "b"], [Dot(pair, "one", True, False) for pair in values]))
    assert len(found) == len(values)
    assert all(0 < float(circle.get("cx", "")) < WIDTH and 0 < float(circle.get("cy", "")) < HEIGHT for circle in found)


@pytest.mark.parametrize(("objectives", "n_panels"), [(["a"], 1), (["a", "b"], 1), (["a", "b", "c"], 2)])
def test_there_is_a_panel_for_each_further_objective(objectives: list[str], n_panels: int) -> None:
    dots = [Dot(tuple(range(len(objectives))), "x < y & z", True, True)] * 2
    picture = pareto_svg(objectives, dots)
    assert len(circles(picture)) == 2 * n_panels
    assert "x &lt; y &amp; z" in picture


def test_what_is_of_no_use_is_hollow_and_the_front_comes_last() -> None:
    dots = [Dot((1.0, 2.0), "best", True, True), Dot((2.0, 3.0), "outside", False, False)]
    outside, best = circles(pareto_svg(["a", "b"], dots))
    assert (outside.get("fill"), best.get("fill")) == ("none", "#d55e00")
