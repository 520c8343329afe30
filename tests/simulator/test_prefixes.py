"""Prefixes as an engine knows them: hashes of large blocks, and only shared ones, change nothing but the cost."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.kv.prefixes import BlockHashes, Prefixes
from simulator.routing import RoundRobin
from simulator.simulate import simulate
from tests.engines import engine, trace
from traces.hashes import refined
from traces.trace import Trace


class Turns(RoundRobin):
    """A user's router: engines behind it are told of every block."""

    def __init__(self, seed: int) -> None:
        super().__init__()


def test_hashes_are_made_when_somebody_looks_at_them() -> None:
    hashes = BlockHashes((7, 8), 4)
    assert list(hashes) == list(refined((7, 8), 4))
    assert (len(hashes), len(hashes[:6]), hashes[1:3]) == (8, 6, refined((7, 8), 4)[1:3])


def test_hashes_that_one_request_has_alone_are_not_told() -> None:
    made = trace((0.0, 64, 1), (0.0, 64, 1), hashes=[(1, 2, 3), (1, 2, 9)], size=16)
    prefixes = Prefixes(made)
    assert [prefixes.shared(row, 16) for row in made.rows] == [(1, 2), (1, 2)]
    assert [prefixes.shared(row, 32) for row in made.rows] == [(2,), (2,)]
    assert Prefixes(made, is_whole=False).shared(made.rows[0], 16) == (1, 2, 3)


@st.composite
def shared_prompts(draw: st.DrawFn) -> tuple[Trace, dict[str, object]]:
    """Requests that share prefixes of large blocks, and an engine of few small ones."""
    parts = draw(st.sampled_from([2, 4]))
    lengths = st.tuples(st.floats(0, 0.3), st.integers(1, 160), st.integers(1, 40))
    rows = sorted(draw(st.lists(lengths, min_size=1, max_size=14)))
    hashes = []
    for i, (_, prompt, output) in enumerate(rows):
        group, shared = draw(st.integers(1, 2)), draw(st.integers(0, prompt // (4 * parts)))
        known = draw(st.integers(shared, (prompt + output) // (4 * parts)))
        hashes.append(tuple(1000 * group + j if j < shared else 10**6 * (i + 1) + j for j in range(known)))
    options = {
        "block_size": 4,
        "num_gpu_blocks": 52 + draw(st.integers(0, 60)),
        "max_num_seqs": draw(st.integers(1, 8)),
        "max_num_batched_tokens": draw(st.integers(10, 70)),
        "async_scheduling": draw(st.booleans()),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 10])),
        "scheduling_policy": draw(st.sampled_from(["fcfs", "priority"])),
    }
    return trace(*rows, hashes=hashes, size=4 * parts), options


@settings(max_examples=150, deadline=None)
@given(shared_prompts(), st.integers(1, 2), st.sampled_from(["round_robin", "prefix_aware"]))
def test_how_hashes_are_told_changes_nothing(scenario: tuple[Trace, dict[str, object]], n: int, routing: str) -> None:
    """Shared hashes of large blocks; of small ones; and every hash of every small block."""
    made, options = scenario
    cluster = Cluster((engine(**options),) * n, routing=routing)  # type: ignore[arg-type]
    assert made.hash_block_size is not None
    rows = [
        msgspec.structs.replace(row, block_hashes=refined(row.block_hashes or (), made.hash_block_size // 4))
        for row in made.rows
    ]
    small = replace(made, rows=tuple(rows), hash_block_size=4)
    told = simulate(made, cluster).capture
    again = simulate(small, cluster).capture
    assert told.outcomes == again.outcomes
    assert told.steps is not None
    assert again.steps is not None
    assert told.steps.kv_cached is not None
    assert told.steps.kv_cached.tolist() == again.steps.kv_cached.tolist()  # type: ignore[union-attr]
    if routing == "round_robin":
        everything = simulate(small, replace(cluster, routing="tests.simulator.test_prefixes:Turns"))
        assert everything.capture.outcomes == told.outcomes
