"""A scenario through vLLM's own scheduler and through ours: the first difference."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.scheduling.choice import new_scheduler
from simulator.scheduling.rules import REFERENCE_RULES, Rules, rules_of, version_of
from simulator.scheduling.scheduler import Scheduler
from simulator.scheduling.spec import SchedulerSpec
from tests.conformance.elsewhere import OfOurs
from tests.conformance.judge import Verdict, draft_counts
from tests.conformance.scenario import Scenario, State, cached_blocks, states_of


@dataclass(frozen=True, slots=True)
class Difference:
    """The first tick in which the two differ, and in what."""

    tick: int
    what: str
    vllm: object
    ours: object

    def __str__(self) -> str:
        return f"tick {self.tick}: {self.what}: vLLM {self.vllm}, ours {self.ours}"


def our_scheduler(scenario: Scenario, rules: Rules = REFERENCE_RULES) -> Scheduler:
    """Ours for the scenario's engine."""
    spec = SchedulerSpec(
        scenario.options, scenario.num_gpu_blocks, scenario.max_model_len, rules, scenario.pipeline_parallel_size
    )
    scheduler = new_scheduler("native", spec)
    assert isinstance(scheduler, Scheduler)
    return scheduler


def our_states(scenario: Scenario, rules: Rules = REFERENCE_RULES) -> tuple[State, ...]:
    """The scenario through our scheduler."""
    scheduler = our_scheduler(scenario, rules)
    return tuple(states_of(scenario, scheduler, OfOurs(scheduler)))


def difference(scenario: Scenario, verdict: Verdict) -> Difference | None:
    """What our scheduler, by the rules of the judge's version, first does otherwise; None when nothing.

    After the last tick the prefix caches must hold the same, and as many drafts must have been verified.
    """
    version = version_of(verdict.version)
    assert version is not None
    scheduler = our_scheduler(scenario, rules_of(version))
    states = tuple(states_of(scenario, scheduler, OfOurs(scheduler)))
    if (found := first_difference(verdict.states, states)) is not None:
        return found
    cached = cached_blocks(scenario, scheduler)
    if cached != verdict.cached:
        return Difference(len(states), "cached blocks", verdict.cached, cached)
    counts = draft_counts(scheduler.speculation)
    if counts != verdict.speculation:
        return Difference(len(states), "drafts", verdict.speculation, counts)
    return None


def first_difference(vllm: tuple[State, ...], ours: tuple[State, ...]) -> Difference | None:
    """The first tick whose states differ."""
    for tick, (expected, found) in enumerate(zip(vllm, ours, strict=False)):
        for name in State.__struct_fields__:
            if getattr(expected, name) != getattr(found, name):
                return Difference(tick, name, getattr(expected, name), getattr(found, name))
    if len(vllm) != len(ours):
        return Difference(min(len(vllm), len(ours)), "ticks", len(vllm), len(ours))
    return None
