"""vLLM's balancer between data-parallel ranks: what it is told and when, and whom it then chooses.

tests/live/test_balancer.py compares it with vLLM's own, choice by choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from simulator.cluster import Cluster
from simulator.routing import new_router
from simulator.scheduling.rules import rules_of
from simulator.service import Service
from simulator.simulate import simulate
from simulator.vllm_dp import Coordinator, Report, VllmBalancer
from tests.engines import engine, trace
from traces.trace import TraceRow

ROW = TraceRow(request_id="r", arrival_s=0.0, prompt_tokens=64, output_tokens=8)


@dataclass
class Seen:
    """A rank that says what it is given to say."""

    n_waiting: int = 0
    n_running: int = 0
    reports: list[Report] = field(default_factory=list)

    def take_reports(self) -> list[Report]:
        reports, self.reports = self.reports, []
        return reports

    def says(self, time_s: float, waiting: int, running: int, kv_usage: float = 0.0, *, arrived: bool = False) -> None:
        self.reports.append(Report(time_s, arrived, waiting, running, kv_usage))


def choices(balancer: VllmBalancer, ranks: list[Seen], n: int, now_s: float = 0.0) -> list[int]:
    return [balancer.choose(ROW, (), ranks, now_s) for _ in range(n)]


def old(*, steps_together: bool = True) -> VllmBalancer:
    return VllmBalancer((0, 19), steps_together=steps_together)


def test_a_word_is_of_the_last_whole_step() -> None:
    coordinator = Coordinator(2, steps_together=True, interval_s=0.1)
    assert coordinator.word(0.06) == [(0, 0, 0.0), (0, 0, 0.0)]  # the first, once nothing has come for 50 ms
    for step, time_s in enumerate((0.07, 0.11, 0.15), start=1):
        coordinator.hear(0, Report(time_s, False, 0, step, 0.5))
        coordinator.hear(1, Report(time_s, False, 0, 10 * step, 0.5))
    # Due 100 ms after the last, at 0.15: the step that reports then is not whole yet.
    assert coordinator.word(0.16) == [(0, 2, 0.5), (0, 20, 0.5)]
    assert coordinator.word(0.24) is None
    assert coordinator.word(0.26) == [(0, 3, 0.5), (0, 30, 0.5)]


def test_a_word_of_ranks_that_do_not_step_together_is_of_the_moment() -> None:
    coordinator = Coordinator(2, steps_together=False, interval_s=0.1)
    assert coordinator.word(0.01) == [(0, 0, 0.0), (0, 0, 0.0)]
    coordinator.hear(1, Report(0.02, False, 3, 1, 0.5))
    coordinator.hear(0, Report(0.09, False, 1, 1, 0.5))
    assert coordinator.word(0.09) is None
    assert coordinator.word(0.11) == [(1, 1, 0.5), (3, 1, 0.5)]


def test_nothing_new_is_told_every_five_seconds() -> None:
    coordinator = Coordinator(1, steps_together=False, interval_s=0.1)
    assert coordinator.word(0.0) == [(0, 0, 0.0)]
    assert coordinator.word(4.9) is None
    assert coordinator.word(5.1) == [(0, 0, 0.0)]


def test_up_to_0_26_waiting_counts_four_times_and_its_own_until_it_is_told_again() -> None:
    ranks = [Seen(), Seen()]
    balancer = old()
    assert choices(balancer, ranks, 1) == [0]  # the lowest of equals
    ranks[1].says(0.01, 0, 3)
    assert choices(balancer, ranks, 1, now_s=0.02) == [1]  # its own request counts as 4, nothing is told yet
    assert choices(balancer, ranks, 3, now_s=0.2) == [0, 1, 0]  # 0 < 3; 4 > 3; 4 < 7
    ranks[0].says(0.3, 2, 0)
    assert choices(balancer, ranks, 1, now_s=0.5) == [1]  # 8 > 3


def test_a_new_word_forgets_a_request_that_is_on_its_way() -> None:
    ranks = [Seen(), Seen()]
    balancer = old()
    ranks[0].says(0.04, 0, 1)
    assert choices(balancer, ranks, 1, now_s=0.08) == [0]
    ranks[0].says(0.1, 0, 2)
    # The word of 0.09 has one of its two requests, that of 0.19 both, and not the one that was sent meanwhile.
    assert choices(balancer, ranks, 1, now_s=0.14) == [1]
    assert choices(balancer, ranks, 1, now_s=0.2) == [1]


def test_from_0_25_on_equals_are_taken_in_turn() -> None:
    ranks = [Seen(), Seen(), Seen()]
    assert choices(VllmBalancer((0, 25), steps_together=True), ranks, 4) == [0, 1, 2, 0]


def test_from_0_27_on_its_own_requests_are_known_exactly_and_a_queue_counts_where_kv_is_short() -> None:
    ranks = [Seen(n_waiting=5), Seen(n_running=2)]
    assert choices(VllmBalancer((0, 27), steps_together=True), ranks, 1) == [1]
    relaxed, tight = Seen(), Seen()
    relaxed.says(0.0, 2, 8, 0.5)
    tight.says(0.0, 2, 7, 1.0)
    assert choices(VllmBalancer((0, 27), steps_together=True), [relaxed, tight], 1, now_s=0.1) == [0]  # 10, 9 + 6


def test_before_0_27_ranks_that_do_not_step_together_report_nothing() -> None:
    ranks = [Seen(), Seen()]
    ranks[0].says(0.0, 9, 9)
    assert choices(old(steps_together=False), ranks, 2, now_s=1.0) == [0, 1]


@pytest.mark.parametrize(("version", "chosen"), [((0, 21), 0), ((0, 22), 1)])
def test_from_0_22_on_ranks_also_report_what_has_just_come(version: tuple[int, int], chosen: int) -> None:
    ranks = [Seen(), Seen()]
    ranks[0].says(0.0, 3, 0, arrived=True)
    assert choices(VllmBalancer(version, steps_together=True), ranks, 1, now_s=0.2) == [chosen]


def test_a_rank_reports_each_round_of_its_loop_once_somebody_has_asked() -> None:
    rows = trace(*[(0.01 * i, 32, 4) for i in range(4)])
    service = Service(rows, Cluster((engine(),)), fast_forward=True)
    (rank,) = service.ranks
    assert rank.take_reports() == []
    service.run()
    reports = rank.take_reports()
    assert [report.with_arrivals for report in reports] == [False, True] * (len(reports) // 2)
    assert reports[0].n_waiting == 0
    assert reports[1].n_waiting == 1
    assert max(report.n_running for report in reports) > 1
    assert reports[-1][2:4] == (0, 0)
    assert rank.take_reports() == []


def test_a_simulation_follows_the_version_of_its_engines() -> None:
    rows = trace(*[(0.02 * i, 64, 20) for i in range(40)])
    dealt = {
        version: [
            outcome.instance
            for outcome in simulate(
                rows, Cluster((replace(engine(), ranks=2, rules=rules_of(version)),), routing="vllm_dp")
            ).capture.outcomes
        ]
        for version in ((0, 19), (0, 32))
    }
    assert dealt[0, 19] != dealt[0, 32]
    assert all(abs(sum(map(bool, ranks)) - 20) <= 4 for ranks in dealt.values())
    assert isinstance(new_router("vllm_dp", version=(0, 19), steps_together=True), VllmBalancer)
