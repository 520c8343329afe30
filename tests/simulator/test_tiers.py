"""KV tiers: what is loaded and when, what is evicted, and that nothing of it depends on how fast the simulator runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.simulate import Simulation, simulate
from simulator.tiers import KVTierFile, new_tier
from simulator.topology import Place
from tests.engines import LinearStepTime, engine, trace
from traces.errors import InputError
from traces.outcome import Status
from traces.steps import STEP_COLUMNS
from traces.trace import Trace

BYTES = 100.0
"""KV of a token."""


def tier(**fields: object) -> KVTierFile:
    said = {"name": "host", "capacity_bytes": 1e6, "bandwidth_bytes_per_s": 1e9, **fields}
    return KVTierFile(**said)  # type: ignore[arg-type]


def cluster(*tiers: KVTierFile, count: int = 1, num_gpu_blocks: int = 6, **options: object) -> Cluster:
    own = engine(LinearStepTime(0.01), num_gpu_blocks=num_gpu_blocks, **options)
    return Cluster((replace(own, kv_bytes_per_token=BYTES),) * count, kv_tiers=tiers)


def prompts(*each: tuple[float, tuple[int, ...]], output: int = 1) -> Trace:
    """Prompts of 16 tokens for each hash and one more."""
    rows = [(at_s, 16 * len(hashes) + 1, output) for at_s, hashes in each]
    return trace(*rows, hashes=[hashes for _, hashes in each], size=16)


def cached(run: Simulation) -> list[int | None]:
    return [outcome.cached_tokens for outcome in run.capture.outcomes]


AGAIN = prompts((0.0, (1, 2, 3)), (1.0, (4, 5, 6)), (2.0, (1, 2, 3)))
"""The second prompt takes the first's blocks on a GPU of 5."""


def test_what_the_gpu_has_evicted_is_loaded_from_the_host() -> None:
    assert cached(simulate(AGAIN, cluster())) == [0, 0, 16]  # two of the first's blocks were evicted
    run = simulate(AGAIN, cluster(tier()))
    assert cached(run) == [0, 0, 48]
    assert "KV tier host: 32 tokens loaded (0.000 GB)" in "\n".join(run.capture.meta.notes)


def test_a_load_takes_the_time_of_its_bytes_on_the_link() -> None:
    """32 tokens of 100 bytes at 1280 bytes/s, after 0.5 s: 3 s, then a step of 10 ms."""
    late = prompts((0.0, (1, 2, 3)), (1.0, (4, 5, 6)), (20.0, (1, 2, 3)))
    run = simulate(late, cluster(tier(bandwidth_bytes_per_s=1280.0, latency_s=0.5)))
    last = run.capture.outcomes[2]
    assert last.scheduled_s == pytest.approx(20.0 + 3200 / 1280 + 0.5)
    assert last.first_token_s == pytest.approx(last.scheduled_s + 0.01)


def test_others_run_while_a_load_is_under_way() -> None:
    made = prompts((0.0, (1, 2)), (1.0, (4, 5, 6, 7)), (2.0, (1, 2)), (2.005, (9,)))
    outcomes = simulate(made, cluster(tier(latency_s=3.0))).capture.outcomes
    assert outcomes[3].finish_s is not None
    assert outcomes[3].finish_s < 3 < (outcomes[2].first_token_s or 0)


def test_loads_of_one_link_follow_each_other() -> None:
    made = prompts((0.0, (1, 2)), (0.5, (4, 5)), (1.0, (6, 7, 8, 9)), (2.0, (1, 2)), (2.0, (4, 5)), output=1)
    outcomes = simulate(made, cluster(tier(bandwidth_bytes_per_s=3200.0), num_gpu_blocks=8)).capture.outcomes
    times = [outcome.scheduled_s or 0.0 for outcome in outcomes[3:]]
    assert times[0] >= 2.4
    assert times[1] > times[0]


def test_a_chunk_can_be_loaded_when_it_has_been_written() -> None:
    """Six chunks of 1600 bytes at 1280 bytes/s: the third is there after 3.75 s."""
    outcomes = simulate(AGAIN, cluster(tier(bandwidth_bytes_per_s=1280.0))).capture.outcomes
    assert outcomes[2].scheduled_s == pytest.approx(3 * 1600 / 1280 + 3200 / 1280)


def test_writes_that_share_the_link_delay_loads() -> None:
    """All six chunks are written first: 7.5 s."""
    outcomes = simulate(AGAIN, cluster(tier(bandwidth_bytes_per_s=1280.0, duplex="half"))).capture.outcomes
    assert outcomes[2].scheduled_s == pytest.approx(6 * 1600 / 1280 + 3200 / 1280)


def test_a_tier_that_is_written_back_takes_what_the_one_before_evicts() -> None:
    host, store = tier(capacity_bytes=3 * 1600), tier(name="store", write="back")
    alone, both = simulate(AGAIN, cluster(host)), simulate(AGAIN, cluster(host, store))
    assert cached(alone) == [0, 0, 16]
    assert cached(both) == [0, 0, 48]
    # The first prompt's three chunks went back as the second's came.
    assert both.capture.series["kv_tier_store_bytes"].value[1] == 3 * 1600


def test_first_in_first_out_does_not_look_at_use() -> None:
    own = new_tier(tier(capacity_bytes=3 * 1600, eviction="fifo"), 16, BYTES)
    hashes = (1, 2, 3)
    for block in range(3):
        own.store(hashes, block, 0.0)
    own.touch(hashes)
    assert own.put(9, 1.0) == 1
    assert list(own.chunks) == [2, 3, 9]


def test_bytes_are_conserved() -> None:
    own = new_tier(tier(capacity_bytes=3 * 1600), 16, BYTES)
    for key in (1, 2, 3, 2, 4, 5, 1):
        own.put(key, 0.0)
    assert own.stored_bytes - own.num_evicted * own.chunk_bytes == len(own.chunks) * own.chunk_bytes


def test_a_shared_store_serves_what_another_engine_computed() -> None:
    made = prompts((0.0, (1, 2, 3)), (1.0, (1, 2, 3)))
    alone, shared = (cached(simulate(made, cluster(tier(shared=shared), count=2))) for shared in (False, True))
    assert (alone, shared) == ([0, 0], [0, 48])


def test_a_store_of_a_node_serves_that_node_alone() -> None:
    made = prompts((0.0, (1, 2, 3)), (1.0, (1, 2, 3)), (2.0, (1, 2, 3)))
    own = cluster(tier(shared="node"), count=3)
    placed = [replace(one, places=(Place(node, 0),)) for one, node in zip(own.engines, (0, 1, 0), strict=True)]
    assert cached(simulate(made, replace(own, engines=tuple(placed)))) == [0, 0, 48]


def test_chunks_are_stored_and_found_whole() -> None:
    run = simulate(AGAIN, cluster(tier(chunk_tokens=32)))
    assert cached(run) == [0, 0, 32]


def test_a_full_tier_evicts_what_was_used_least_recently() -> None:
    own = new_tier(tier(capacity_bytes=3 * 1600), 16, BYTES)
    hashes = (1, 2, 3)
    for block in range(3):
        own.store(hashes, block, 0.0)
    own.touch(hashes)
    own.store((9,), 0, 1.0)
    assert list(own.chunks) == [2, 1, 9]  # the end of a prefix goes before its beginning
    assert own.reach(hashes, 0, 3) == 2
    assert own.num_evicted == 1


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ((tier(chunk_tokens=24),), {}, "kv_tiers.chunk_tokens"),
        ((tier(capacity_bytes=1599),), {}, "kv_tiers.capacity_bytes"),
        ((tier(write="back"),), {}, "kv_tiers.write': found 'back': accepted: through, unless a tier"),
        ((tier(), tier(write="back", chunk_tokens=32)), {}, "kv_tiers.write"),
        ((tier(),), {"enable_prefix_caching": False}, "has no effect without enable_prefix_caching"),
    ],
)
def test_what_cannot_be_a_tier(files: tuple[KVTierFile, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate(AGAIN, cluster(*files, **options))


def test_series_of_a_tier() -> None:
    series = simulate(AGAIN, cluster(tier())).capture.series
    assert series["kv_tier_host_hit_tokens"].value.tolist()[-1] == 32
    assert series["kv_tier_host_bytes"].value.max() == 6 * 1600


@st.composite
def loads(draw: st.DrawFn) -> tuple[Trace, Cluster]:
    """Prompts over a few prefixes on one or two engines of few blocks, with one tier or two."""
    each = []
    at_s = 0.0
    for _ in range(draw(st.integers(2, 12))):
        at_s += draw(st.sampled_from([0.0, 0.004, 0.05, 0.3]))
        family = draw(st.integers(0, 2))
        each.append((at_s, tuple(100 * family + i for i in range(draw(st.integers(1, 5))))))
    tiers = [
        tier(
            capacity_bytes=draw(st.sampled_from([1600.0, 8000.0, 1e6])),
            latency_s=draw(st.sampled_from([0, 0.02])),
            bandwidth_bytes_per_s=draw(st.sampled_from([3e4, 1e9])),
            duplex=draw(st.sampled_from(["full", "half"])),
            eviction=draw(st.sampled_from(["lru", "fifo"])),
        )
    ]
    if draw(st.booleans()):
        tiers.append(tier(name="store", shared=True, chunk_tokens=32, bandwidth_bytes_per_s=1e5))
    elif draw(st.booleans()):
        tiers.append(
            tier(
                name="store",
                shared=draw(st.sampled_from([False, True, "node"])),
                write="back",
                bandwidth_bytes_per_s=1e5,
            )
        )
    options = {
        "max_num_batched_tokens": draw(st.sampled_from([64, 128])),
        "async_scheduling": draw(st.booleans()),
        "max_num_seqs": draw(st.sampled_from([2, 8])),
    }
    blocks = draw(st.integers(10, 24))
    made = prompts(*each, output=draw(st.sampled_from([1, 20, 60])))
    return made, cluster(*tiers, count=draw(st.integers(1, 2)), num_gpu_blocks=blocks, **options)


@settings(deadline=None, max_examples=150)
@given(loads())
def test_every_request_is_served_and_tokens_and_blocks_are_conserved(case: tuple[Trace, Cluster]) -> None:
    made, own = case
    fast, slow = (simulate(made, own, fast_forward=fast, record_batches=True) for fast in (True, False))
    assert fast.capture.outcomes == slow.capture.outcomes
    steps, one_by_one = fast.capture.steps, slow.capture.steps
    assert steps is not None
    assert one_by_one is not None
    for name in (*STEP_COLUMNS, "kv_cached"):
        np.testing.assert_array_equal(getattr(steps, name), getattr(one_by_one, name))
    assert fast.capture.meta.notes == slow.capture.meta.notes
    for name, series in fast.capture.series.items():
        np.testing.assert_array_equal(series.value, slow.capture.series[name].value)
    assert (steps.kv_blocks + steps.kv_cached <= own.engines[0].num_gpu_blocks - 1).all()
    assert steps.kv_cached is not None
    assert (steps.kv_cached >= 0).all()
    computed = np.bincount(steps.batches.request, weights=steps.batches.new_tokens, minlength=len(made))  # type: ignore[union-attr]
    for i, (row, outcome) in enumerate(zip(made.rows, fast.capture.outcomes, strict=True)):
        assert outcome.status is Status.FINISHED
        assert outcome.output_tokens == row.output_tokens
        if not outcome.num_preemptions:
            assert computed[i] + (outcome.cached_tokens or 0) == row.prompt_tokens + row.output_tokens - 1
    for one in own.kv_tiers:
        held = fast.capture.series[f"kv_tier_{one.name}_bytes"].value
        assert (held <= one.capacity_bytes * (1 if one.shared else len(own.engines))).all()
