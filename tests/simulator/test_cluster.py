"""Several engines: closed forms, conservation, and the same bytes however the steps are run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.engine import Engine
from simulator.fleet import Autoscaling, Failure, Scaling
from simulator.kv_transfer import KVTransfer
from simulator.network.topology import FabricFile, NodeFile, Place, Topology, TopologyFile
from simulator.scheduling.scheduler import Scheduler
from simulator.service import Service
from simulator.simulate import Simulation, simulate
from simulator.steps.contention import Exchange
from tests.engines import LinearStepTime, engine, trace
from traces.errors import EngineError, InputError
from traces.outcome import Status
from traces.steps import STEP_COLUMNS
from traces.trace import Trace

KV_BYTES = 100.0


def links(n_devices: int, bandwidth_bytes_per_s: float = 1e6, latency_s: float = 0.001) -> Topology:
    """Devices of one node, each with a link to each other one."""
    return Topology(TopologyFile((NodeFile(n_devices, FabricFile("full_mesh", bandwidth_bytes_per_s, latency_s)),)))


def disaggregated(
    n_prefill: int = 1,
    n_decode: int = 1,
    *,
    topology: Topology | None = None,
    prefill: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
) -> Cluster:
    """Prefill engines on the first devices, decode engines on the next; `prefill` and `decode` change those."""
    made = []
    for i in range(n_prefill):
        own = engine(**(prefill or {}))
        made.append(replace(own, role="prefill", places=(Place(0, i),), kv_bytes_per_token=KV_BYTES))
    for i in range(n_prefill, n_prefill + n_decode):
        own = engine(**(decode or {}))
        made.append(replace(own, role="decode", places=(Place(0, i),), kv_bytes_per_token=KV_BYTES))
    return Cluster(tuple(made), topology=topology or links(n_prefill + n_decode))


def same_bytes(made: Trace, cluster: Cluster) -> Simulation:
    """The run, once it is sure that stepping one by one gives the same outcomes and the same steps."""
    fast, slow = (simulate(made, cluster, fast_forward=fast_forward) for fast_forward in (True, False))
    assert fast.capture.outcomes == slow.capture.outcomes
    assert fast.capture.steps is not None
    assert slow.capture.steps is not None
    for name in STEP_COLUMNS:
        np.testing.assert_array_equal(getattr(fast.capture.steps, name), getattr(slow.capture.steps, name))
    return fast


# -- several engines ---------------------------------------------------------------------------------------------------


def test_round_robin_deals_requests_out_in_turn() -> None:
    run = simulate(trace(*[(0.0, 10, 5)] * 7), Cluster((engine(),) * 3))
    assert [outcome.instance for outcome in run.capture.outcomes] == [0, 1, 2, 0, 1, 2, 0]
    assert "3 instances, requests routed by round_robin" in run.capture.meta.notes


def test_one_of_two_engines_serves_as_it_would_alone() -> None:
    rows = [(0.1 * i, 50 + i, 20) for i in range(20)]
    both = simulate(trace(*rows), Cluster((engine(),) * 2)).capture.outcomes
    alone = simulate(trace(*rows[::2]), engine()).capture.outcomes
    assert [outcome.token_times_s for outcome in both[::2]] == [outcome.token_times_s for outcome in alone]


def test_the_steps_of_all_engines_are_one_table_in_order_of_end() -> None:
    made = trace(*[(0.01 * i, 50 + i, 20) for i in range(20)])
    capture = simulate(made, Cluster((engine(), engine(max_num_seqs=2))), record_batches=True).capture
    assert capture.steps is not None
    assert capture.steps.batches is not None
    assert (np.diff(capture.steps.end_s) >= 0).all()
    assert set(capture.steps.instance.tolist()) == {0, 1}
    tokens = np.bincount(capture.steps.batches.request, weights=capture.steps.batches.new_tokens, minlength=20)
    assert tokens.tolist() == [row.prompt_tokens + row.output_tokens - 1 for row in made.rows]


# -- ranks that step together ------------------------------------------------------------------------------------------


def test_ranks_that_step_together_wait_for_the_slower_one() -> None:
    """A step takes 1 ms per token of decode history on the rank that leads, whatever the other computes."""
    together = replace(engine(LinearStepTime(step_s=0.01)), ranks=2)
    run = simulate(trace((0.0, 10, 100), (0.0, 10, 50)), Cluster((together,)))
    assert [outcome.instance for outcome in run.capture.outcomes] == [0, 1]
    assert run.capture.outcomes[0].finish_s == pytest.approx(1.0)
    assert run.capture.outcomes[1].finish_s == pytest.approx(0.5)
    assert run.n_steps == 150


def test_a_rank_without_requests_takes_no_step() -> None:
    run = simulate(trace((0.0, 10, 100)), Cluster((replace(engine(), ranks=4),)))
    assert run.capture.steps is not None
    assert set(run.capture.steps.instance.tolist()) == {0}


# -- prefill and decode apart ------------------------------------------------------------------------------------------


def test_a_request_goes_from_prefill_to_decode() -> None:
    """Prefill 10 ms; 7 blocks of 16 tokens of 100 bytes over 1 MB/s and 1 ms: 12.2 ms; then 10 steps of 10 ms."""
    (outcome,) = simulate(trace((0.5, 100, 10)), disaggregated()).capture.outcomes
    assert outcome.scheduled_s == 0.5
    assert outcome.first_token_s == pytest.approx(0.5 + 0.010 + 0.0122 + 0.010)
    assert outcome.finish_s == pytest.approx(0.5 + 0.010 + 0.0122 + 10 * 0.010)
    assert (outcome.output_tokens, outcome.instance) == (10, 1)


def test_two_prompts_share_the_link() -> None:
    """Both end their prefill at 10 ms and share 1 MB/s: 7 and 19 blocks arrive after 22.4 and 41.6 ms, and latency."""
    first, second = simulate(trace((0.0, 100, 1), (0.0, 300, 1)), disaggregated()).capture.outcomes
    assert first.first_token_s == pytest.approx(0.010 + 0.001 + 0.0224 + 0.010)
    assert second.first_token_s == pytest.approx(0.010 + 0.001 + 0.0416 + 0.010)


def test_what_the_decode_engine_has_cached_is_not_sent() -> None:
    rows = [(0.0, 64, 1), (1.0, 64, 1)]
    made = trace(*rows, hashes=[(1, 2, 3, 4), (1, 2, 3, 9)], size=16)
    first, second = simulate(made, disaggregated()).capture.outcomes
    assert first.finish_s == pytest.approx(0.010 + 0.001 + 0.0064 + 0.010)
    assert second.finish_s == pytest.approx(1.0 + 0.010 + 0.001 + 0.0016 + 0.010)


def test_a_slower_link_delays_the_first_token_and_nothing_after_it() -> None:
    made = trace(*[(0.2 * i, 200, 30) for i in range(20)])
    fast, slow = (simulate(made, disaggregated(topology=links(2, speed))).capture.outcomes for speed in (1e7, 1e6))
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours.first_token_s is not None
        assert theirs.first_token_s is not None
        assert theirs.first_token_s > ours.first_token_s
        assert np.diff(theirs.token_times_s or ()) == pytest.approx(np.diff(ours.token_times_s or ()))


def test_a_decode_engine_without_room_holds_up_the_prefill_engine() -> None:
    """Kept blocks are given back only when their content has been read."""
    made = trace(*[(0.0, 200, 50)] * 20)
    roomy = simulate(made, disaggregated()).capture.outcomes
    tight = simulate(made, disaggregated(decode={"num_gpu_blocks": 40})).capture.outcomes
    assert all(outcome.status is Status.FINISHED for outcome in tight)
    assert max(o.first_token_s or 0 for o in tight) > 2 * max(o.first_token_s or 0 for o in roomy)


def test_a_request_that_the_decode_engine_can_never_hold_is_rejected_and_its_kv_dropped() -> None:
    made = trace((0.0, 100, 5), (0.1, 700, 5), (0.2, 100, 5))
    run = simulate(made, disaggregated(decode={"num_gpu_blocks": 20}))
    assert [outcome.status for outcome in run.capture.outcomes] == [Status.FINISHED, Status.REJECTED, Status.FINISHED]
    assert "needs 44 KV blocks, the engine has 19" in (run.capture.outcomes[1].reason or "")


def test_roles_without_links_or_of_two_kinds_of_kv_are_refused() -> None:
    cluster = disaggregated()
    with pytest.raises(InputError, match="field 'fabric': is missing"):
        simulate(trace((0.0, 10, 5)), replace(cluster, topology=None))
    prefill, decode = cluster.engines
    other = replace(cluster, engines=(prefill, replace(decode, kv_bytes_per_token=50.0)))
    with pytest.raises(InputError, match="KV of one cannot be read by the other"):
        simulate(trace((0.0, 10, 5)), other)


def test_kv_that_leaves_layer_by_layer_arrives_with_the_prefill() -> None:
    """One of 10 layers computed after 1 ms, then 12.2 ms on the link: 3.2 ms after the prefill of 10 ms has ended."""
    cluster = disaggregated()
    engines = tuple(replace(one, num_layers=10) for one in cluster.engines)
    cluster = replace(cluster, engines=engines, kv_transfer=KVTransfer(when="layer_by_layer"))
    (outcome,) = simulate(trace((0.5, 100, 10)), cluster).capture.outcomes
    assert outcome.first_token_s == pytest.approx(0.5 + 0.001 + 0.0122 + 0.010)


def test_kv_that_is_lost_is_computed_again() -> None:
    """The decode engine prefills the prompt itself, in one step of 10 ms as any."""
    cluster = replace(disaggregated(), kv_transfer=KVTransfer(failure_probability=1.0))
    run = simulate(trace((0.5, 100, 10)), cluster)
    (outcome,) = run.capture.outcomes
    assert outcome.first_token_s == pytest.approx(0.5 + 0.010 + 0.0122 + 0.010)
    assert run.capture.steps is not None
    assert run.capture.steps.n_prefill_tokens.sum() == 200
    assert "KV of 1 prompts was lost on the way, and computed again" in run.capture.meta.notes


# -- pipeline stages ---------------------------------------------------------------------------------------------------


class StagedStepTime(LinearStepTime):
    """Stages of equal time."""

    def __init__(self, stages: int, step_s: float = 0.01, host_s: float = 0.0) -> None:
        super().__init__(step_s=step_s, host_s=host_s)
        self._stages = stages

    def price(self, plan: Any) -> Any:
        return replace(super().price(plan), stages=(1 / self._stages,) * self._stages)


def staged(stages: int, host_s: float = 0.0, **options: Any) -> Engine:
    return replace(engine(StagedStepTime(stages, host_s=host_s), **options), pipeline_parallel_size=stages)


def test_a_request_alone_gains_nothing_from_stages() -> None:
    """Its next token needs the one before."""
    (alone,) = simulate(trace((0.0, 10, 10)), engine()).capture.outcomes
    (piped,) = simulate(trace((0.0, 10, 10)), staged(4)).capture.outcomes
    assert piped.token_times_s == pytest.approx(alone.token_times_s)


def test_chunks_of_a_long_prompt_follow_each_other_through_the_stages() -> None:
    """8 chunks of 10 ms through 4 stages: the last enters after 7 stages' time and takes 4."""
    (outcome,) = simulate(trace((0.0, 512, 1)), staged(4, max_num_batched_tokens=64)).capture.outcomes
    assert outcome.first_token_s == pytest.approx((7 + 4) * 0.0025)


def test_two_batches_are_under_way_in_two_stages() -> None:
    """Two full prompts: the second batch is one stage behind the first, and stays there."""
    made = trace((0.0, 64, 20), (0.0, 64, 20))
    first, second = simulate(made, staged(2, max_num_batched_tokens=64)).capture.outcomes
    assert first.first_token_s == pytest.approx(0.010)
    assert second.first_token_s == pytest.approx(0.015)
    assert first.finish_s == pytest.approx(0.010 + 19 * 0.010)
    assert second.finish_s == pytest.approx(0.015 + 19 * 0.010)


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_planned_ahead_the_host_is_hidden_behind_the_stages(stages: int) -> None:
    """Each token passes through all stages, 12 ms, and the host takes 3 ms more where it waits for the one before."""
    host = StagedStepTime(stages, 0.012, host_s=0.003)
    ahead, waiting = (
        simulate(
            trace((0.0, 10, 10)),
            replace(engine(host, async_scheduling=asynchronous), pipeline_parallel_size=stages),
        ).capture.outcomes[0]
        for asynchronous in (True, False)
    )
    assert np.diff(ahead.token_times_s or ()) == pytest.approx(0.012)
    assert np.diff(waiting.token_times_s or ()) == pytest.approx(0.015)


def test_one_batch_more_than_stages_is_under_way() -> None:
    """Three full prompts in two stages of 5 ms; all three are planned by 3 ms, and the third enters when it can."""
    host = StagedStepTime(2, 0.010, host_s=0.001)
    own = engine(host, async_scheduling=True, max_num_batched_tokens=64)
    made = trace(*[(0.0, 64, 3)] * 3)
    run = simulate(made, replace(own, pipeline_parallel_size=2))
    steps = run.capture.steps
    assert steps is not None
    assert steps.scheduled_s[:3] == pytest.approx([0.0, 0.001, 0.002])
    assert steps.end_s[:3] == pytest.approx([0.011, 0.016, 0.021])


def test_a_step_enters_when_its_requests_tokens_have_left_the_last_stage() -> None:
    """Two batches in two stages of 5 ms follow each other without a gap, whether or not the host plans ahead."""
    made = trace((0.0, 64, 20), (0.0, 64, 20))
    own = staged(2, max_num_batched_tokens=64, async_scheduling=True)
    first, second = simulate(made, own).capture.outcomes
    assert np.diff(first.token_times_s or ()) == pytest.approx(0.010)
    assert (second.first_token_s, second.finish_s) == pytest.approx((0.015, 0.015 + 19 * 0.010))


# -- clients that give up, engines that fail, pools that grow ----------------------------------------------------------


def test_a_client_gives_up_at_its_deadline() -> None:
    """10 ms a token: the token of the step under way still comes, and the next never."""
    first, second = simulate(
        trace((0.0, 10, 100), (0.0, 10, 20)), Cluster((engine(),), deadline_s=0.305)
    ).capture.outcomes
    assert (first.status, first.reason) == (Status.ABORTED, "deadline")
    assert first.output_tokens == 31
    assert second.status is Status.FINISHED


def test_a_deadline_frees_the_seat_of_a_request() -> None:
    made = trace((0.0, 10, 1000), (0.0, 10, 5))
    waits, served = simulate(made, Cluster((engine(max_num_seqs=1),), deadline_s=1.0)).capture.outcomes
    assert (waits.status, served.status) == (Status.ABORTED, Status.ABORTED)
    assert served.output_tokens == 0
    assert served.first_token_s is None
    *_, third = simulate(
        trace((0.0, 10, 1000), (0.9, 10, 5)), Cluster((engine(max_num_seqs=1),), deadline_s=1.0)
    ).capture.outcomes
    assert third.status is Status.FINISHED
    assert third.scheduled_s == pytest.approx(1.0)


def test_a_failed_instance_starts_over_elsewhere() -> None:
    """The request has 20 tokens when its instance fails, and has to make them again."""
    cluster = Cluster((engine(), engine()), failures=(Failure(instance=0, at_s=0.2, for_s=5.0),))
    made = trace((0.0, 10, 50), (0.0, 10, 50), (0.3, 10, 5), (0.4, 10, 5), (6.0, 10, 5), (6.0, 10, 5))
    run = simulate(made, cluster)
    instances = [outcome.instance for outcome in run.capture.outcomes]
    assert instances[:4] == [1, 1, 1, 1]
    assert sorted(instances[4:]) == [0, 1]
    assert run.capture.outcomes[0].finish_s == pytest.approx(0.2 + 0.5)
    assert run.capture.outcomes[0].arrival_s == 0.0
    assert "1 failures of instances; 1 requests sent again" in run.capture.meta.notes


def test_requests_wait_for_the_only_instance_to_come_back() -> None:
    cluster = Cluster((engine(),), failures=(Failure(instance=0, at_s=0.2, for_s=5.0),))
    run = simulate(trace((0.0, 10, 50), (1.0, 10, 5)), cluster)
    assert [outcome.status for outcome in run.capture.outcomes] == [Status.FINISHED] * 2
    assert min(outcome.scheduled_s or 0 for outcome in run.capture.outcomes) == pytest.approx(5.2)


def test_a_pool_grows_when_it_is_full_and_shrinks_when_it_is_idle() -> None:
    scaling = Autoscaling(min_instances=1, up_above=0.8, down_below=0.1, start_s=1.0, interval_s=0.5)
    engines = (engine(max_num_seqs=4),) * 3
    made = trace(*[(0.01 * i, 10, 200) for i in range(40)], (60.0, 10, 5), (61.0, 10, 5))
    run = simulate(made, Cluster(engines, autoscaling=scaling))
    alone = simulate(made, Cluster(engines[:1]))
    assert "autoscaling from 1 instances of 3: 2 started" in run.capture.meta.notes
    assert {outcome.instance for outcome in run.capture.outcomes} >= {0}
    assert run.capture.outcomes[-1].instance == 0
    assert max(o.finish_s or 0 for o in run.capture.outcomes[:40]) <= max(
        o.finish_s or 0 for o in alone.capture.outcomes[:40]
    )


def test_a_closed_loop_sends_the_next_request_when_the_last_has_ended() -> None:
    """Two seats and 0.1 s to think: each request takes 50 ms, so that a seat starts one every 150 ms."""
    made = trace(*[(0.0, 10, 5)] * 6)
    run = simulate(made, Cluster((engine(),), concurrency=2, think_s=0.1))
    arrivals_s = [outcome.arrival_s for outcome in run.capture.outcomes]
    assert arrivals_s == pytest.approx([0.0, 0.0, 0.15, 0.15, 0.3, 0.3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"failures": (Failure(instance=2, at_s=0, for_s=1),)}, r"failures\[0\].instance': found 2: accepted: 0 to 1"),
        (
            {"failures": (Failure(instance=0, at_s=1, for_s=9), Failure(instance=0, at_s=2, for_s=1))},
            r"failures\[1\].at_s': found 2.*accepted: a time at which the instance is up",
        ),
        ({"autoscaling": Autoscaling(min_instances=3)}, "autoscaling.min_instances': found 3: accepted: at most 2"),
    ],
)
def test_what_a_cluster_does_not_have_cannot_fail_or_grow(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate(trace((0.0, 10, 5)), Cluster((engine(),) * 2, **changes))


def test_who_takes_the_seat_of_a_request_that_was_given_up_arrives_in_the_next_step() -> None:
    """Its arrival is known only once the engine has given the other up, in the middle of what could be one sweep."""
    rows = [(0.0, 1, 2), (0.0, 1, 2), (0.0, 1, 29), (0.0, 248, 27), (1.0, 177, 1), (2.0, 1, 1)]
    own = engine(num_gpu_blocks=30, max_num_seqs=2, max_num_batched_tokens=64)
    run = same_bytes(trace(*rows), Cluster((own,), deadline_s=0.3, concurrency=3))
    assert run.capture.outcomes[5].queued_s == pytest.approx(0.31)


# -- properties --------------------------------------------------------------------------------------------------------

ROWS = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 300), st.integers(1, 60)).map(lambda row: (round(row[0], 3), *row[1:])),
    min_size=1,
    max_size=40,
).map(sorted)


def on_a_bus(cluster: Cluster, bytes_per_token: float) -> Cluster:
    """The cluster's engines, all on one bus, over which devices of each send each other so many bytes a token too."""
    n_devices = len(cluster.engines)
    topology = Topology(TopologyFile((NodeFile(n_devices, FabricFile("bus", 1e6, 0.001)),)))
    (bus,) = topology.path(Place(0, 0), Place(0, 1))
    own = (Exchange({bus: bytes_per_token}, {bus: 100.0}),)
    return replace(cluster, topology=topology, engines=tuple(replace(one, exchanges=own) for one in cluster.engines))


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Any arrangement of small engines, some short of KV blocks."""
    options = {
        "max_num_seqs": draw(st.sampled_from([2, 8, 64])),
        "max_num_batched_tokens": draw(st.sampled_from([64, 512])),
        "num_gpu_blocks": draw(st.sampled_from([30, 60, 1000])),
        "async_scheduling": draw(st.booleans()),
    }
    routing = draw(st.sampled_from(["round_robin", "least_loaded", "power_of_two", "random"]))
    deadline_s = draw(st.sampled_from([None, 0.3, 2.0]))
    match draw(st.sampled_from(["apart", "together", "roles", "stages", "failing"])):
        case "apart":
            engines = tuple(engine(**options) for _ in range(draw(st.integers(1, 3))))
            return Cluster(engines, routing, deadline_s=deadline_s, concurrency=draw(st.sampled_from([None, 1, 3])))
        case "failing":
            return draw(failing(Cluster((engine(**options),) * 2, routing, deadline_s=deadline_s)))
        case "together":
            return Cluster((replace(engine(**options), ranks=draw(st.integers(2, 3))), engine(**options)), routing)
        case "stages":
            made = staged(draw(st.integers(2, 4)), host_s=draw(st.sampled_from([0.0, 0.004])), **options)
            return draw(failing(Cluster((made,) * draw(st.integers(1, 2)), routing, deadline_s=deadline_s)))
        case _:
            n_prefill, n_decode = draw(st.integers(1, 2)), draw(st.integers(1, 3))
            prefill = {"async_scheduling": draw(st.booleans()), "num_gpu_blocks": draw(st.sampled_from([30, 1000]))}
            made = disaggregated(n_prefill, n_decode, prefill=prefill, decode=options)
            kv_transfer = KVTransfer(
                when=draw(st.sampled_from(["at_end", "layer_by_layer"])),
                failure_probability=draw(st.sampled_from([0.0, 0.5])),
                kv_load_failure_policy=draw(st.sampled_from(["recompute", "fail"])),
            )
            made = replace(made, routing=routing, kv_transfer=kv_transfer, deadline_s=deadline_s)
            if draw(st.booleans()):
                made = on_a_bus(made, draw(st.sampled_from([50.0, 400.0])))
            if draw(st.booleans()):
                made = replace(made, autoscaling=draw(scalings()))
            made = draw(failing(made)) if draw(st.booleans()) else made
            if not made.failures and not kv_transfer.failure_probability:
                return replace(made, kv_transfer=KVTransfer(when=kv_transfer.when))
            return made


@st.composite
def scalings(draw: st.DrawFn) -> Autoscaling:
    """Pools of prefill and of decode instances, one of them or both, that start with one instance."""
    one = Scaling(up_above=0.1, down_below=0.05, start_s=0.2, interval_s=draw(st.sampled_from([0.05, 0.3])))
    other = Scaling(up_above=0.3, start_s=0.1, interval_s=0.07)
    return draw(
        st.sampled_from([Autoscaling(prefill=one), Autoscaling(decode=one), Autoscaling(prefill=other, decode=one)])
    )


@st.composite
def failing(draw: st.DrawFn, cluster: Cluster) -> Cluster:
    """The cluster with failures of its instances at any time, several at once too."""
    failures = []
    for i in range(len(cluster.engines)):
        at_s = 0.0
        for _ in range(draw(st.integers(0, 2))):
            at_s = round(at_s + draw(st.floats(0.001, 2)), 3)
            failures.append(Failure(instance=i, at_s=at_s, for_s=draw(st.sampled_from([0.01, 0.4, 3.0]))))
            at_s += failures[-1].for_s
    after = draw(st.sampled_from(["start_over", "go_on"])) if failures else "start_over"
    return replace(cluster, failures=tuple(failures), after_failure=after)


@settings(max_examples=150, deadline=None)
@given(ROWS, clusters())
def test_whatever_the_cluster_nothing_is_lost_and_fast_forward_changes_nothing(
    rows: list[tuple[float, int, int]], cluster: Cluster
) -> None:
    made = trace(*rows)
    run = same_bytes(made, cluster)
    for outcome, row in zip(run.capture.outcomes, made.rows, strict=True):
        if outcome.status is Status.REJECTED:
            continue
        complete = outcome.status is Status.FINISHED
        assert outcome.output_tokens == row.output_tokens if complete else outcome.output_tokens <= row.output_tokens
        assert outcome.token_times_s is not None
        assert list(outcome.token_times_s) == sorted(outcome.token_times_s)
        assert outcome.scheduled_s is None or outcome.scheduled_s >= min(row.arrival_s, outcome.arrival_s)


@settings(max_examples=100, deadline=None)
@given(ROWS, clusters())
def test_every_block_is_free_in_the_end_and_kv_is_sent_once(
    rows: list[tuple[float, int, int]], cluster: Cluster
) -> None:
    made = trace(*rows)
    service = Service(made, cluster, fast_forward=True)
    service.run()
    for rank in service.ranks:
        assert isinstance(rank.scheduler, Scheduler)
        assert rank.scheduler.num_free_blocks == rank.num_blocks
        assert not rank.arrivals
    if (handover := service.handover) is not None:
        sendings = 1 + sum(r.num_preemptions for k in service.ranks for r in k.requests)
        sendings += sum(service.n_sent_again(i) for i in range(len(made)))
        blocks = sum(-(-(row.prompt_tokens + row.output_tokens) // 16) for row in made.rows)
        most = blocks * 16 * KV_BYTES
        assert handover.n_bytes <= most * sendings
        # Each path is one link here: what the links carried is what was sent.
        network = handover.network
        carried = sum(float(network.carried_bytes(link, network.now_s)) for link in network.links)
        assert carried == pytest.approx(handover.n_bytes)
        assert 0 <= handover.n_dropped_bytes <= handover.n_bytes * (1 + 1e-9)
        assert not network.under_way


def test_a_stuck_cluster_names_who_waits_where() -> None:
    service = Service(trace((0.0, 10, 5), (0.0, 40, 5)), Cluster((engine(num_gpu_blocks=11),) * 2), fast_forward=True)
    scheduler = service.ranks[1].scheduler
    assert isinstance(scheduler, Scheduler)
    scheduler.kv_cache.allocate(9)
    with pytest.raises(EngineError, match="request '1' waits with 40 tokens on instance 1"):
        service.run()
