"""What is left of a scenario when everything that does not matter is taken away, and what is counted of one."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from simulator.scheduling.options import EngineOptions
from tests.conformance.cases import read_cases
from tests.conformance.compare import our_scheduler
from tests.conformance.count import COUNTED, DRAFTS, FROM_ELSEWHERE, as_known, counted, seeded_scenario
from tests.conformance.elsewhere import OfOurs
from tests.conformance.judge import Verdict, draft_counts
from tests.conformance.scenario import Arrival, Scenario, cached_blocks, states_of
from tests.conformance.shrink import SIMPLEST_OPTIONS, smallest


@pytest.mark.parametrize("seed", range(3))
def test_only_what_matters_is_left(seed: int) -> None:
    drawn = seeded_scenario(seed, "0.32.0")
    two = (Arrival(tick=3, prompt=99, output=9, hashes=(1, 2, 3)), Arrival(tick=5, prompt=1, output=70, priority=2))
    options = replace(drawn.options, max_num_seqs=9, watermark=0.2)
    scenario = replace(drawn, options=options, arrivals=(*drawn.arrivals, *two))

    def differs(one: Scenario) -> bool:
        prompts = [arrival.prompt for arrival in one.arrivals if len(arrival.hashes) >= 2]
        return max(prompts, default=0) > 50 and one.options.max_num_seqs >= 3 and one.options.watermark > 0

    small = smallest(scenario, differs)
    assert small.options == replace(SIMPLEST_OPTIONS, max_num_seqs=3, watermark=options.watermark)
    assert small.num_gpu_blocks == 2
    (arrival,) = small.arrivals
    assert arrival == Arrival(tick=0, prompt=51, output=1, hashes=arrival.hashes[:2])


def test_what_does_not_differ_any_simpler_stays() -> None:
    scenario = read_cases()["adaptive-threshold"].scenario
    assert smallest(scenario, lambda one: one == scenario) == scenario


class OurJudge:
    """Our own scheduler as the judge, but for the cache of one scenario."""

    version = "0.32.0"

    def __init__(self, wrong: int | None = None) -> None:
        self._n_judged = 0
        self._wrong = wrong

    def verdict(self, scenario: Scenario) -> Verdict:
        scheduler = our_scheduler(scenario)
        states = tuple(states_of(scenario, scheduler, OfOurs(scheduler)))
        cached = cached_blocks(scenario, scheduler)
        if self._n_judged == self._wrong:
            cached = tuple(n + 1 for n in cached)
        self._n_judged += 1
        speculation = draft_counts(scheduler.speculation)
        return Verdict(version=self.version, states=states, cached=cached, speculation=speculation)


def test_seeded_scenarios_exercise_every_rule() -> None:
    counts, differing = counted(OurJudge(), 30)  # type: ignore[arg-type]
    assert differing == []
    assert tuple(counts) == COUNTED
    assert counts["scenarios"] == 30
    assert all(counts[name] > 0 for name in COUNTED)


def test_seeded_scenarios_with_prompts_from_elsewhere_exercise_every_rule() -> None:
    counts, differing = counted(OurJudge(), 15, drafts=True, elsewhere=True)  # type: ignore[arg-type]
    assert differing == []
    assert counts[FROM_ELSEWHERE] > 50
    assert counts["drafts"] > 1000


def test_seeded_scenarios_with_drafts_exercise_every_rule() -> None:
    counts, differing = counted(OurJudge(), 20, drafts=True)  # type: ignore[arg-type]
    assert differing == []
    assert tuple(counts) == (*COUNTED, *DRAFTS)
    assert all(count > 0 for count in counts.values())
    assert seeded_scenario(3, "0.32.0", drafts=True).arrivals == seeded_scenario(3, "0.32.0").arrivals


def test_a_prefix_cache_that_holds_something_else_is_a_difference() -> None:
    _, differing = counted(OurJudge(wrong=2), 4)  # type: ignore[arg-type]
    assert differing == [seeded_scenario(2, "0.32.0")]


def test_drafts_are_compared_with_the_reference_alone() -> None:
    scenario = seeded_scenario(3, "0.32.0", drafts=True)
    assert as_known(scenario, "0.32.0") == scenario
    assert as_known(scenario, "0.33.0").options.speculative_config is None


def test_options_that_came_later_are_left_out() -> None:
    scenario = read_cases()["adaptive-threshold"].scenario
    newer = replace(scenario, options=replace(scenario.options, watermark=0.1))
    assert as_known(newer, "0.32.0") == newer
    assert as_known(newer, "0.24.0").options.watermark == 0.1
    assert not as_known(newer, "0.24.0").options.long_prefill_token_threshold_adaptive
    assert as_known(newer, "0.19.0").options.watermark == EngineOptions().watermark
