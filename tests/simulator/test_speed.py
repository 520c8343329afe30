"""What a simulation does, counted: sweeps, prices, looks at requests. Times are for tests/benchmarks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from simulator.cluster import Cluster
from simulator.kv.kv_cache import KVCache
from simulator.scheduling.lockstep import Lockstep
from simulator.scheduling.lockstep_scheduler import LockstepScheduler
from simulator.scheduling.plan import StepPlan
from simulator.scheduling.scheduler import Scheduler
from simulator.simulate import Simulation, simulate
from simulator.steps.step_time import StepCost
from tests.engines import LinearStepTime, engine, trace
from traces.trace import Trace


class Counting(LinearStepTime):
    """Counts what it is asked."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__(0.01, 1e-5)
        self._counts = counts

    def price(self, plan: StepPlan) -> StepCost:
        self._counts["prices"] += 1
        return super().price(plan)


def counted(
    made: Trace, monkeypatch: pytest.MonkeyPatch, n: int = 1, **options: object
) -> tuple[Simulation, Counter[str]]:
    counts: Counter[str] = Counter()

    def count(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def counting(*args: object, **kwargs: object) -> object:
            counts[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(Scheduler, "schedule")
    count(LockstepScheduler, "_schedule_running")
    count(Lockstep, "join")
    count(KVCache, "cache")
    chosen = engine(Counting(counts), num_gpu_blocks=5000, max_num_batched_tokens=512, **options)
    return simulate(made, Cluster((chosen,) * n)), counts


ROWS = [(0.05 * i, 100 + 37 * i % 300, 20 + 53 * i % 200) for i in range(200)]


def test_steps_are_swept_and_priced_once_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    run, counts = counted(trace(*ROWS), monkeypatch)
    assert (run.n_steps, run.n_sweeps, counts["prices"]) == (1118, 520, 520)
    assert counts["schedule"] == 521


def test_a_request_joins_the_others_once_and_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, counts = counted(trace(*ROWS), monkeypatch)
    assert (counts["join"], counts["_schedule_running"]) == (200, 0)
    _, counts = counted(trace(*ROWS), monkeypatch, long_prefill_token_threshold=64, async_scheduling=True)
    assert counts["_schedule_running"] == 0


def test_hashes_cost_by_the_traces_blocks_and_only_where_they_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(0.1 * i, 640, 5) for i in range(20)]
    alone = trace(*rows, hashes=[tuple(100 * i + j for j in range(10)) for i in range(20)], size=64)
    _, counts = counted(alone, monkeypatch)
    assert counts["cache"] == 0
    same = trace(*rows, hashes=[tuple(range(10))] * 20, size=64)
    run, counts = counted(same, monkeypatch)
    # The first prompt comes in two chunks of 8 and 2 hashes; what is left of the others' last block is their own.
    assert sum(outcome.cached_tokens or 0 for outcome in run.capture.outcomes) == 19 * 624
    assert counts["cache"] == 10 + 19


def test_sweeps_grow_with_requests_and_not_with_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = counted(trace(*ROWS), monkeypatch, n=4)
    longer = trace(*((arrival_s, prompt, 5 * output) for arrival_s, prompt, output in ROWS))
    many, _ = counted(longer, monkeypatch, n=4)
    assert many.n_steps > 1.5 * run.n_steps
    assert many.n_sweeps < 1.2 * run.n_sweeps
    twice = replace(longer, rows=longer.rows[:100])
    half, _ = counted(twice, monkeypatch, n=4)
    assert many.n_sweeps < 2.2 * half.n_sweeps
