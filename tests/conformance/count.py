"""How much of vLLM's scheduler is compared: random scenarios by seed, and counts of what they exercised.

    .venv/bin/python -m tests.conformance.count [SCENARIOS] [FIRST_SEED] [--drafts] [--elsewhere] [--stages]

prints one JSON line. Where the two differ it prints the difference in its smallest form, keeps it as a case, and exits
with 1. With `--drafts` every engine drafts tokens; with `--elsewhere` another engine computed two thirds of the
prompts; with `--stages` it is a pipeline. The engine's environment must be there (scripts/install_engine.sh).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

from simulator.scheduling.options import EngineOptions
from simulator.scheduling.rules import OPTIONS_SINCE, REFERENCE, version_of
from tests.conformance.compare import difference
from tests.conformance.judge import Judge
from tests.conformance.mismatch import reported
from tests.conformance.scenario import (
    Scenario,
    State,
    draw_drafter,
    draw_elsewhere,
    draw_newer_options,
    draw_scenario,
    draw_stages,
)

COUNTED = (
    "scenarios",
    "steps",
    "preemptions",
    "prefix hits",
    "prefix-hit tokens",
    "aborts",
    "early stops",
    "priority steps",
    "asynchronous steps",
    "whole prompts steps",
)
"""What is counted: a prefix hit is an admission that found blocks in the prefix cache."""

DRAFTS = ("drafts", "drafted tokens", "accepted tokens")
"""What is counted too where engines draft."""


FROM_ELSEWHERE = "prompts from elsewhere"
"""What is counted too where another engine computed prompts."""


def seeded_scenario(
    seed: int, version: str, *, drafts: bool = False, elsewhere: bool = False, stages: bool = False
) -> Scenario:
    """A random scenario, the same for a seed but for options that this vLLM version does not have."""
    rng = np.random.default_rng(seed)

    def pick(low: int, high: int) -> int:
        return int(rng.integers(low, high, endpoint=True))

    scenario = draw_newer_options(pick, draw_scenario(pick))
    scenario = draw_drafter(pick, scenario) if drafts else scenario
    scenario = draw_elsewhere(pick, scenario) if elsewhere else scenario
    return as_known(draw_stages(pick, scenario) if stages else scenario, version)


def as_known(scenario: Scenario, version: str) -> Scenario:
    """The scenario without options that came later than this vLLM version.

    Drafts, KV from elsewhere and pipelines are only compared with the reference's.
    """
    own = version_of(version)
    assert own is not None
    if own != REFERENCE:
        options = msgspec.structs.replace(scenario.options, speculative_config=None)
        arrivals = tuple(msgspec.structs.replace(arrival, elsewhere=None) for arrival in scenario.arrivals)
        scenario = msgspec.structs.replace(scenario, options=options, arrivals=arrivals, pipeline_parallel_size=1)
    later = {name: getattr(EngineOptions(), name) for name, since in OPTIONS_SINCE.items() if own < since}
    return msgspec.structs.replace(scenario, options=msgspec.structs.replace(scenario.options, **later))


def counted(
    judge: Judge,
    n_scenarios: int,
    first_seed: int = 0,
    *,
    drafts: bool = False,
    elsewhere: bool = False,
    stages: bool = False,
) -> tuple[Counter[str], list[Scenario]]:
    """Compare so many scenarios. Returns counts of what they exercised, and those in which the two differ.

    The judge goes on to the next scenario while ours runs in this one.
    """
    counts = Counter(dict.fromkeys(COUNTED, 0))
    differing = []
    scenarios = [
        seeded_scenario(seed, judge.version, drafts=drafts, elsewhere=elsewhere, stages=stages)
        for seed in range(first_seed, first_seed + n_scenarios)
    ]
    with ThreadPoolExecutor(1) as ahead:
        for scenario, verdict in zip(scenarios, ahead.map(judge.verdict, scenarios), strict=True):
            count(scenario, verdict.states, counts)
            if verdict.speculation is not None:
                counts.update(dict(zip(DRAFTS, verdict.speculation, strict=True)))
            if difference(scenario, verdict) is not None:
                differing.append(scenario)
    return counts, differing


def count(scenario: Scenario, states: tuple[State, ...], counts: Counter[str]) -> None:
    """Add what a scenario exercised."""
    n_steps = sum(bool(state.batch) for state in states)
    counts["scenarios"] += 1
    counts["steps"] += n_steps
    counts["aborts"] += sum(arrival.aborted is not None for arrival in scenario.arrivals)
    if n_elsewhere := sum(arrival.elsewhere is not None for arrival in scenario.arrivals):
        counts[FROM_ELSEWHERE] += n_elsewhere
    counts["early stops"] += sum(arrival.stops_after is not None for arrival in scenario.arrivals)
    started: set[str] = set()
    for state in states:
        counts["preemptions"] += len(state.preempted)
        started.difference_update(state.preempted)
        for request_id, _, computed in state.batch:
            if request_id not in started and computed:
                counts["prefix hits"] += 1
                counts["prefix-hit tokens"] += computed
            started.add(request_id)
    options = scenario.options
    counts["priority steps"] += n_steps * (options.scheduling_policy == "priority")
    counts["asynchronous steps"] += n_steps * options.async_scheduling
    counts["whole prompts steps"] += n_steps * (not options.enable_chunked_prefill)


def main() -> None:
    """Print the counts of the seeds that the command line names."""
    asked = {name: f"--{name}" in sys.argv for name in ("drafts", "elsewhere", "stages")}
    numbers = [int(argument) for argument in sys.argv[1:] if not argument.startswith("--")]
    with Judge() as judge:
        counts, differing = counted(judge, *(numbers or [300]), **asked)
        print(json.dumps({"vllm": judge.version, **counts, "mismatches": len(differing)}))
        if differing:
            sys.exit(reported(judge, differing[0]))


if __name__ == "__main__":
    main()
