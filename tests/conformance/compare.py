"""A scenario through vLLM's own scheduler and through ours: the first difference, and a script that shows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import msgspec

from simulator.rules import REFERENCE_RULES, Rules, rules_of, version_of
from simulator.scheduler import Scheduler
from tests.conformance.judge import Verdict
from tests.conformance.scenario import Scenario, State, states_of

SCRIPT = '''\
"""{title}

Run it where vllm is installed: PYTHONPATH=. .venv-engine/bin/python THIS_FILE
"""

import msgspec

from tests.conformance.compare import difference
from tests.conformance.judge import judged
from tests.conformance.scenario import Scenario

SCENARIO = """
{scenario}
"""

scenario = msgspec.json.decode(SCENARIO, type=Scenario)
print(difference(scenario, judged(scenario)) or "no difference")
'''


@dataclass(frozen=True, slots=True)
class Difference:
    """The first tick in which the two differ, and in what."""

    tick: int
    what: str
    vllm: object
    ours: object

    def __str__(self) -> str:
        return f"tick {self.tick}: {self.what}: vLLM {self.vllm}, ours {self.ours}"


def our_states(scenario: Scenario, rules: Rules = REFERENCE_RULES) -> tuple[State, ...]:
    """The scenario through our scheduler."""
    sizes = {"num_gpu_blocks": scenario.num_gpu_blocks, "max_model_len": scenario.max_model_len}
    return tuple(states_of(scenario, Scheduler(scenario.options, **sizes, rules=rules)))


def difference(scenario: Scenario, verdict: Verdict) -> Difference | None:
    """What our scheduler, by the rules of the judge's version, first does otherwise; None when nothing."""
    version = version_of(verdict.version)
    assert version is not None
    return first_difference(verdict.states, our_states(scenario, rules_of(version)))


def first_difference(vllm: tuple[State, ...], ours: tuple[State, ...]) -> Difference | None:
    """The first tick whose states differ."""
    for tick, (expected, found) in enumerate(zip(vllm, ours, strict=False)):
        for name in State.__struct_fields__:
            if getattr(expected, name) != getattr(found, name):
                return Difference(tick, name, getattr(expected, name), getattr(found, name))
    if len(vllm) != len(ours):
        return Difference(min(len(vllm), len(ours)), "ticks", len(vllm), len(ours))
    return None


def script(scenario: Scenario, title: str) -> str:
    """A file that runs the scenario through both and prints the first difference."""
    return SCRIPT.format(title=title, scenario=pretty(scenario))


def pretty(scenario: Scenario) -> str:
    """A scenario as JSON, one arrival a line."""
    return msgspec.json.format(msgspec.json.encode(scenario), indent=1).decode()


def count(scenario: Scenario, states: tuple[State, ...], counts: Counter[str]) -> None:
    """Add what a scenario exercised: steps, preemptions, admissions that found a prefix, and so on."""
    started: set[str] = set()
    counts["scenarios"] += 1
    counts["aborts"] += sum(arrival.aborted is not None for arrival in scenario.arrivals)
    counts["early stops"] += sum(arrival.stops_after is not None for arrival in scenario.arrivals)
    for state in states:
        counts["steps"] += bool(state.batch)
        counts["preemptions"] += len(state.preempted)
        started.difference_update(state.preempted)
        for request_id, _, computed in state.batch:
            if request_id not in started and computed:
                counts["prefix hits"] += 1
                counts["prefix-hit tokens"] += computed
            started.add(request_id)
    for name, value in (
        ("priority", scenario.options.scheduling_policy == "priority"),
        ("asynchronous", scenario.options.async_scheduling),
        ("whole prompts", not scenario.options.enable_chunked_prefill),
    ):
        counts[f"{name} steps"] += sum(bool(state.batch) for state in states) if value else 0
