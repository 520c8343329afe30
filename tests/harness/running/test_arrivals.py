"""What was offered, and whether the engines kept up: by hand, and of queues whose load is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.running.arrivals import arrival_figures, is_untold
from harness.running.simulate import simulate_scenario
from tests.harness.scenarios import EXAMPLES, write_scenario
from traces.steps import Floats

UNKNOWN: dict[str, Any] = {
    "requests_offered_per_s": None,
    "in_system": {"halfway": None, "at_last_arrival": None, "is_steady": None},
}


def test_the_offered_rate_knows_nothing_of_the_drain() -> None:
    found = arrival_figures(np.array([3.0, 1.0, 2.0, 5.0]), np.array([90.0, 1.5, 5.0, 99.0]))
    assert found["requests_offered_per_s"] == 3 / 4
    # Halfway is the second of four: it alone is there. At the last, it has just ended.
    assert found["in_system"] == {"halfway": 1, "at_last_arrival": 2, "is_steady": None}  # of so few nothing is told


def test_rejected_requests_are_offered_and_never_in_the_system() -> None:
    found = arrival_figures(np.arange(5.0), np.array([np.nan, 9.0, np.nan, np.nan, 9.0]))
    assert found["requests_offered_per_s"] == 1.0
    assert found["in_system"] == {"halfway": 1, "at_last_arrival": 2, "is_steady": None}


def test_the_margin_is_two_standard_deviations() -> None:
    for n, is_steady in ((12, None), (14, False)):  # 12 is not above 2 √36, and 14 is above 2 √42
        found = arrival_figures(np.arange(float(2 * n)), np.full(2 * n, 1e3))
        assert found["in_system"] == {"halfway": n, "at_last_arrival": 2 * n, "is_steady": is_steady}


@pytest.mark.parametrize(("n", "is_steady"), [(10, None), (12, True)])
def test_a_run_is_steady_where_a_queue_at_twice_its_capacity_would_have_been_told(n: int, is_steady: bool) -> None:
    """One in the system at both: a margin of 2 √2 = 2.83 is below half of the 6 that come later, not of the 5."""
    found = arrival_figures(np.arange(float(n)), np.arange(float(n)) + 0.5)["in_system"]
    assert found == {"halfway": 1, "at_last_arrival": 1, "is_steady": is_steady}
    assert is_untold(found) == (is_steady is None)


@pytest.mark.parametrize("n", [1, 2, 8, 24, 30, 300])
def test_no_run_in_which_nobody_is_answered_is_steady(n: int) -> None:
    found = arrival_figures(np.arange(float(n)), np.full(n, 1e3))["in_system"]
    assert not found["is_steady"]
    assert is_untold(found) == (1 < n < 25)


@pytest.mark.parametrize("n", [20, 40, 100, 300])
def test_queues_at_twice_their_capacity_are_hardly_ever_called_steady(n: int) -> None:
    rng = np.random.default_rng(11)
    found = [arrival_figures(*_queue(2.0, n, rng))["in_system"]["is_steady"] for _ in range(40)]
    assert found.count(True) <= 2


@pytest.mark.parametrize(("load", "n", "least"), [(0.5, 10, 0), (0.5, 100, 36)])
def test_of_few_requests_a_queue_that_keeps_up_is_not_told_and_of_many_it_is(load: float, n: int, least: int) -> None:
    rng = np.random.default_rng(13)
    found = [arrival_figures(*_queue(load, n, rng))["in_system"]["is_steady"] for _ in range(40)]
    assert found.count(False) <= 2
    assert least <= found.count(True) <= least + 12


@pytest.mark.parametrize("arrivals_s", [[], [1.0], [2.0, 2.0]])
def test_what_has_no_span_has_no_rate(arrivals_s: list[float]) -> None:
    assert arrival_figures(np.array(arrivals_s), np.array(arrivals_s) + 1) == UNKNOWN


@pytest.mark.parametrize(("load", "least", "most"), [(0.5, 0, 3), (1.5, 38, 40)])
def test_queues_that_fall_behind_are_told_from_those_that_do_not(load: float, least: int, most: int) -> None:
    rng = np.random.default_rng(7)
    found = [arrival_figures(*_queue(load, 300, rng))["in_system"]["is_steady"] for _ in range(40)]
    assert least <= found.count(False) <= most


def _queue(load: float, n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Arrivals at random and ends behind one server that takes a second in the mean, [n] each."""
    arrivals_s = np.cumsum(rng.exponential(1 / load, n))
    ends_s, free_s = np.zeros(n), 0.0
    for i, service_s in enumerate(rng.exponential(1.0, n)):
        ends_s[i] = free_s = max(arrivals_s[i], free_s) + service_s
    return arrivals_s, ends_s


def test_a_scenario_offers_its_traces_rate(tmp_path: Path) -> None:
    _, found = simulate_scenario(write_scenario(tmp_path))
    assert found["requests_offered_per_s"] == pytest.approx(100.0)
    assert found["requests_offered_per_s"] > found["metrics"]["requests_per_s"]


def test_one_seat_of_one_engine_falls_behind() -> None:
    changes = ["engine.max_num_seqs=1", "cluster.instances.0.count=1"]
    (_, before), (_, after) = (simulate_scenario(EXAMPLES / "power.yaml", one) for one in ([], changes))
    assert (before["in_system"]["is_steady"], after["in_system"]["is_steady"]) == (True, False)
    assert not is_untold(UNKNOWN["in_system"])
    assert before["requests_offered_per_s"] == after["requests_offered_per_s"]


@pytest.mark.parametrize("name", ["closed_loop", "sessions"])
def test_where_requests_wait_for_answers_nothing_is_offered(name: str) -> None:
    _, found = simulate_scenario(EXAMPLES / f"{name}.yaml")
    assert found | UNKNOWN == found
