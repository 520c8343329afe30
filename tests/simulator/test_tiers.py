"""KV tiers: what is loaded and when, what is evicted, and that nothing of it depends on how fast the simulator runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.engine import Role
from simulator.fleet import Failure
from simulator.kv.tiers import KVTierFile, new_tier
from simulator.kv_transfer import KVTransfer
from simulator.network.topology import FabricFile, InterNodeFile, NodeFile, Place, Topology, TopologyFile
from simulator.scheduling.scheduler import Scheduler
from simulator.service import Service
from simulator.simulate import Simulation, simulate
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


def apart(*tiers: KVTierFile, n_prefill: int = 1, **decode: object) -> Cluster:
    """Prefill engines of 5 blocks with tiers behind them, and one decode engine, each with a link to each other."""
    engines = []
    for i in range(n_prefill + 1):
        is_last = i == n_prefill
        own = engine(LinearStepTime(0.01), **({"num_gpu_blocks": 20, **decode} if is_last else {"num_gpu_blocks": 6}))
        role: Role = "decode" if is_last else "prefill"
        engines.append(replace(own, role=role, places=(Place(0, i),), kv_bytes_per_token=BYTES))
    fabric = FabricFile("full_mesh", 1e6, 0.001)
    topology = Topology(TopologyFile((NodeFile(n_prefill + 1, fabric),)))
    return Cluster(tuple(engines), topology=topology, kv_tiers=tiers)


def test_tiers_stand_behind_prefill_engines_where_roles_are_apart() -> None:
    """The third prompt's 32 evicted tokens are loaded by the prefill engine; the decode engine has no tiers."""
    assert cached(simulate(AGAIN, apart())) == [0, 0, 16]
    run = simulate(AGAIN, apart(tier()))
    assert cached(run) == [0, 0, 48]
    assert "KV tier host: 32 tokens loaded (0.000 GB)" in "\n".join(run.capture.meta.notes)
    service = Service(AGAIN, apart(tier()), fast_forward=True)
    schedulers = [rank.scheduler for rank in service.ranks]
    found = [isinstance(one, Scheduler) and one.kv_cache_manager.tiers is not None for one in schedulers]
    assert found == [True, False]


def test_a_load_delays_the_prompt_and_the_kv_behind_it() -> None:
    """3 s of load as above, 10 ms of prefill; what the decode engine lacks over 1 MB/s; 10 ms of its own."""
    late = prompts((0.0, (1, 2, 3)), (1.0, (4, 5, 6)), (20.0, (1, 2, 3)))
    run = simulate(late, apart(tier(bandwidth_bytes_per_s=1280.0, latency_s=0.5), enable_prefix_caching=False))
    last = run.capture.outcomes[2]
    assert last.scheduled_s == pytest.approx(20.0 + 3200 / 1280 + 0.5)
    assert last.first_token_s == pytest.approx(last.scheduled_s + 0.01 + 0.001 + 6400 / 1e6 + 0.01)


def test_a_store_that_prefill_engines_share_outlives_one_of_them() -> None:
    failure = (Failure(instance=0, at_s=0.5, for_s=10.0),)
    made = prompts((0.0, (1, 2, 3)), (1.0, (1, 2, 3)), (2.0, (1, 2, 3)))
    own, shared = (
        cached(simulate(made, replace(apart(tier(shared=shared), n_prefill=2), failures=failure)))
        for shared in (False, True)
    )
    assert (own, shared) == ([0, 0, 48], [0, 48, 48])


def over_nics(own: Cluster, bandwidth_bytes_per_s: float = 1e6) -> Cluster:
    """The prefill engines of a cluster on a node, its decode engine on the next, and a NIC for each node."""
    n_prefill = len(own.engines) - 1
    fabric = FabricFile("full_mesh", 1e9, 0.0)
    nodes = (NodeFile(n_prefill, fabric), NodeFile(1))
    topology = Topology(TopologyFile(nodes, InterNodeFile("switch", bandwidth_bytes_per_s, 0.0)))
    places = [*((Place(0, i),) for i in range(n_prefill)), (Place(1, 0),)]
    engines = (replace(one, places=place) for one, place in zip(own.engines, places, strict=True))
    return replace(own, engines=tuple(engines), topology=topology)


ONE = prompts((0.0, (1, 2, 3)))
"""49 tokens: three chunks of 1600 bytes written from second 0 on, 4900 bytes of KV sent after 10 ms."""


def test_kv_has_what_writes_to_a_remote_store_leave_of_a_nic() -> None:
    """4,800 bytes at 0.1 MB/s take 48 ms; KV has 0.9 MB/s until 15.44 ms."""
    slow = tier(memory="remote", bandwidth_bytes_per_s=1e5)
    alone, beside = (
        simulate(ONE, over_nics(apart(one))).capture.outcomes[0].first_token_s for one in (tier(memory="host"), slow)
    )
    assert alone == pytest.approx(0.010 + 0.0064 + 0.010)
    assert beside == pytest.approx(0.010 + 6400 / 0.9e6 + 0.010)


def test_a_nic_limits_a_remote_store_and_no_other() -> None:
    """Chunks of 1600 bytes: 1.6 ms each over 1 MB/s, in a microsecond into the host's memory."""
    for memory, lasts_s in (("remote", 0.0016), ("host", 1.6e-6)):
        own = tier(memory=memory)
        moves = simulate(ONE, over_nics(apart(own))).moves
        assert [move.end_s - move.begin_s for move in moves] == pytest.approx([lasts_s] * 3)


def test_a_write_beside_kv_has_a_fair_share_of_the_nic() -> None:
    """The first prompt's KV, 49,600 bytes over 1 MB/s, is under way when the second's chunk is written."""
    rows = [(0.0, 16 * 30 + 10, 1), (0.03, 17, 1)]
    made = trace(*rows, hashes=[(), (7,)], size=16)
    own = over_nics(apart(tier(memory="remote"), num_gpu_blocks=60))
    prefill = replace(own.engines[0], num_gpu_blocks=60)
    (move,) = simulate(made, replace(own, engines=(prefill, own.engines[1]))).moves
    assert move.begin_s == pytest.approx(0.03)
    assert move.end_s - move.begin_s == pytest.approx(1600 / 0.5e6)


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


def test_what_moves_is_recorded_as_it_moves() -> None:
    """Six chunks written through the host's memory, three of them evicted to CXL, and two loaded."""
    host = tier(capacity_bytes=3 * 1600, memory="host", bandwidth_bytes_per_s=16e3)
    run = simulate(AGAIN, cluster(host, tier(name="cxl", write="back", memory="cxl")))
    moved = {
        (name, crosses): [move for move in run.moves if (move.tier, move.crosses) == (name, crosses)]
        for name, crosses in {(move.tier, move.crosses) for move in run.moves}
    }
    through, read, back = moved["host", ("links", "dram")], moved["host", ("dram",)], moved["cxl", ("links", "cxl")]
    assert [round(move.end_s - move.begin_s, 9) for move in through[:6]] == [0.1] * 6
    assert len(through) == 6 + 2  # what is loaded from CXL is written through again
    evicted = sum(move.n_bytes for move in read)
    assert evicted == 5 * 1600
    loaded = 2 * 1600
    assert sum(move.n_bytes for move in back) == pytest.approx(evicted + loaded)


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
            memory=draw(st.sampled_from(["host", "remote"])),
            eviction=draw(st.sampled_from(["lru", "fifo"])),
        )
    ]
    if draw(st.booleans()):
        tiers.append(tier(name="store", shared=True, chunk_tokens=32, bandwidth_bytes_per_s=1e5, memory="remote"))
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
    blocks, count = draw(st.integers(10, 24)), draw(st.integers(1, 2))
    made = prompts(*each, output=draw(st.sampled_from([1, 20, 60])))
    own = cluster(*tiers, count=count, num_gpu_blocks=blocks, **options)
    if draw(st.booleans()):
        return made, own
    ours = apart(*tiers, n_prefill=count, num_gpu_blocks=blocks, **options)
    prefill = [replace(one, role="prefill", places=(Place(0, i),)) for i, one in enumerate(own.engines)]
    kv_transfer = KVTransfer(when=draw(st.sampled_from(["at_end", "layer_by_layer"])))
    ours = replace(ours, engines=(*prefill, ours.engines[-1]), kv_transfer=kv_transfer)
    return made, over_nics(ours, draw(st.sampled_from([1e5, 1e6]))) if draw(st.booleans()) else ours


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
            twice = own.is_disaggregated  # the prompt's last token is computed once more
            assert computed[i] + (outcome.cached_tokens or 0) == row.prompt_tokens + row.output_tokens - 1 + twice
    for one in own.kv_tiers:
        held = fast.capture.series[f"kv_tier_{one.name}_bytes"].value
        assert (held <= one.capacity_bytes * (1 if one.shared else len(own.engines))).all()
