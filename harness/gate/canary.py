"""The canary: what a scenario's requests, all sent at once, make the scheduler and the KV cache do, counted.

Without arrivals in between, the batches of an engine follow from decisions alone: steps that take longer change none
of these counts, and a change of any decision is likely to change one. They must be equal to the baseline's.
"""

from __future__ import annotations

from harness.gate.baseline import Stored
from harness.gate.drift import equal_or_failed
from harness.gate.verdict import Verdict
from simulator.simulate import Simulation
from traces.metrics import total


def counts_of(at_once: Simulation) -> dict[str, int | None]:
    """The counts of a simulation of all requests at once; None where they are not recorded."""
    steps, outcomes = at_once.capture.steps, at_once.capture.outcomes
    return {
        "steps": at_once.n_steps,
        "prefix_hit_tokens": total(outcomes, "cached_tokens"),
        "preemptions": total(outcomes, "num_preemptions"),
        "output_tokens": sum(outcome.output_tokens for outcome in outcomes),
        "peak_kv_blocks": None if steps is None else int(steps.kv_blocks.max(initial=0)),
        "num_gpu_blocks": at_once.capture.meta.num_gpu_blocks,
    }


def judge_canary(now: Stored, before: Stored) -> list[Verdict]:
    """A verdict per count."""
    names = dict.fromkeys((*now.counts, *before.counts))
    return [equal_or_failed("canary", name, now.counts.get(name), before.counts.get(name)) for name in names]
