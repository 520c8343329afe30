"""Engines that hold their sweeps back: what a router sees, and all that comes of it, is as if they had not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.kv.kv_cache import BlockHash, KVCache, n_blocks
from simulator.simulate import Simulation, simulate
from simulator.stream import Stream
from tests.engines import LinearStepTime, engine, trace
from tests.simulator.test_simulate import scenarios
from tests.simulator.test_stream import cluster_of, streamed
from traces.steps import STEP_COLUMNS
from traces.trace import Trace

ROUTERS = ["least_loaded", "power_of_two", "prefix_aware"]


def brought_up(made: Trace, cluster: Cluster) -> Simulation:
    """With every engine run up to every arrival."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulator.service.reads", lambda router: None)
        return simulate(made, cluster)


def assert_same(held: Simulation, all_run: Simulation) -> None:
    assert held.capture.outcomes == all_run.capture.outcomes
    assert held.capture.meta == all_run.capture.meta
    for name in (*STEP_COLUMNS, "kv_cached"):
        np.testing.assert_array_equal(getattr(held.capture.steps, name), getattr(all_run.capture.steps, name))
    assert held.n_sweeps <= all_run.n_sweeps


@settings(max_examples=200, deadline=None)
@given(scenarios(), st.integers(2, 4), st.sampled_from(ROUTERS), st.sampled_from([None, 0.2]))
def test_a_held_sweep_changes_nothing(
    scenario: tuple[Trace, dict[str, object]], n: int, routing: str, deadline_s: float | None
) -> None:
    made, options = scenario
    cluster = cluster_of(options, n, routing=routing, deadline_s=deadline_s)
    assert_same(simulate(made, cluster), brought_up(made, cluster))


def loaded(n_requests: int, n_engines: int, *, hashed: bool) -> Trace:
    """Two requests a second for each engine; every third prefix is one that others have had."""
    rng = np.random.default_rng(0)
    at_s = np.cumsum(rng.exponential(0.5 / n_engines, n_requests)).tolist()
    rows = [(at_s[i], 64 * (1 + i * 7 % 9), 20 + i * 31 % 150) for i in range(n_requests)]
    hashes = [
        tuple(1000 * (i % 40 if i % 3 else i + 100) + j for j in range(rows[i][1] // 16)) for i in range(n_requests)
    ]
    return trace(*rows, hashes=hashes if hashed else None, size=16 if hashed else None)


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("num_gpu_blocks", [100, 4000])  # too few, so that blocks are evicted and requests preempted
@pytest.mark.parametrize("routing", ROUTERS)
def test_under_load_with_prefixes(routing: str, num_gpu_blocks: int, async_scheduling: bool) -> None:
    made = loaded(300, 6, hashed=True)
    chosen = engine(
        LinearStepTime(0.012, 8e-5, 4e-8, 5e-4), num_gpu_blocks=num_gpu_blocks, async_scheduling=async_scheduling
    )
    cluster = Cluster((chosen,) * 6, routing=routing)
    held = simulate(made, cluster)
    assert_same(held, brought_up(made, cluster))
    assert tuple(streamed(made, cluster)[1]) == held.capture.outcomes


def test_blocks_are_counted_as_they_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    real = KVCache.n_found

    def checked(self: KVCache, hashes: Sequence[BlockHash], most: int) -> int:
        counted.append(n_blocks(self.find(hashes, most)))
        assert real(self, hashes, most) == counted[-1]
        return counted[-1]

    monkeypatch.setattr(KVCache, "n_found", checked)
    for per_hash in (1, 2):
        chosen = engine(LinearStepTime(0.012, 8e-5, 4e-8), num_gpu_blocks=400, block_size=16 // per_hash)
        simulate(loaded(300, 4, hashed=True), Cluster((chosen,) * 4, routing="prefix_aware"))
    assert max(counted) > 20


def test_many_engines_sweep_as_behind_a_router_that_looks_at_nothing() -> None:
    """Sweeps of 32 engines and 400 requests: they do not grow with the number of engines."""
    made = loaded(400, 32, hashed=False)
    n_sweeps = {}
    for routing in ("round_robin", *ROUTERS):
        cluster = Cluster((engine(LinearStepTime(0.012, 8e-5, 4e-8)),) * 32, routing=routing)
        n_sweeps[routing] = simulate(made, cluster).n_sweeps
        stream = Stream(Trace((), None, made.source, made.sha256), cluster)
        for _ in stream.serve(made.rows):
            pass
        assert stream.n_sweeps < 1.1 * n_sweeps["round_robin"]
    assert brought_up(made, cluster).n_sweeps > 4 * max(n_sweeps.values())
    assert max(n_sweeps.values()) < 1.1 * n_sweeps["round_robin"]
