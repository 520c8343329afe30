"""How much of vLLM's scheduler is compared: random scenarios by seed, and counts of what they exercised.

    .venv/bin/python -m tests.conformance.count [SCENARIOS] [FIRST_SEED]

prints one JSON line. The engine's environment must be there (scripts/install_engine.sh).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import numpy as np

from simulator.rules import OPTIONS_SINCE, version_of
from tests.conformance.compare import count, difference
from tests.conformance.judge import Judge
from tests.conformance.scenario import Scenario, draw_newer_options, draw_scenario

MOST_SHOWN = 3


def seeded_scenario(seed: int, version: str) -> Scenario:
    """A random scenario, the same for a seed, of options that this vLLM version has."""
    rng = np.random.default_rng(seed)

    def pick(low: int, high: int) -> int:
        return int(rng.integers(low, high, endpoint=True))

    scenario = draw_scenario(pick)
    has_newer = (version_of(version) or (0, 0)) >= max(OPTIONS_SINCE.values())
    return draw_newer_options(pick, scenario) if has_newer else scenario


def counted(judge: Judge, n_scenarios: int, first_seed: int = 0) -> dict[str, Any]:
    """Compare so many scenarios: vLLM's version, counts, number of mismatching scenarios and the first of them."""
    counts: Counter[str] = Counter()
    mismatches = []
    for seed in range(first_seed, first_seed + n_scenarios):
        scenario = seeded_scenario(seed, judge.version)
        verdict = judge.verdict(scenario)
        count(scenario, verdict.states, counts)
        if (found := difference(scenario, verdict)) is not None:
            mismatches.append(f"seed {seed}: {found}")
    return {"vllm": judge.version, **counts, "mismatches": len(mismatches), "first": mismatches[:MOST_SHOWN]}


def main() -> None:
    """Print the counts of the seeds that the command line names."""
    numbers = [int(argument) for argument in sys.argv[1:]]
    with Judge() as judge:
        print(json.dumps(counted(judge, *(numbers or [300]))))


if __name__ == "__main__":
    main()
