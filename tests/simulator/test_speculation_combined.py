"""Drafted tokens with prefill and decode apart, KV tiers, and ranks that step together: closed forms, conservation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.engine import Engine
from simulator.fleet import Failure
from simulator.kv.tiers import KVTierFile
from simulator.kv_transfer import KVTransfer
from simulator.network.topology import FabricFile, NodeFile, Place, Topology, TopologyFile
from simulator.scheduling.plan import StepPlan, without_drafts
from simulator.scheduling.scheduler import Scheduler
from simulator.scheduling.speculation import SpeculativeConfig
from simulator.service import Service
from simulator.simulate import Simulation, simulate
from simulator.steps.contention import Exchange
from simulator.steps.step_time import StepCost
from tests.engines import LinearStepTime, engine, trace
from tests.simulator.batches import batch
from traces.errors import InputError
from traces.outcome import Status
from traces.steps import STEP_COLUMNS
from traces.trace import Trace

KV_BYTES = 100.0


def drafter(*rates: float, method: str = "draft_model", **more: Any) -> SpeculativeConfig:
    given = {"num_speculative_tokens": len(rates), "acceptance_rates": rates, "draft_s": 0.0, **more}
    return msgspec.convert({"method": method, **given}, SpeculativeConfig)


def drafting(*rates: float, method: str = "draft_model", step: LinearStepTime | None = None, **options: Any) -> Engine:
    return engine(step, speculative_config=drafter(*rates, method=method), **options)


def apart(prefill: Engine, decode: Engine, *, kind: str = "full_mesh", **changes: Any) -> Cluster:
    """A prefill and a decode engine of one device each, tied by links of 1 MB/s."""
    topology = Topology(TopologyFile((NodeFile(2, FabricFile(kind, 1e6, 0.001)),)))  # type: ignore[arg-type]
    ends = (
        replace(prefill, role="prefill", places=(Place(0, 0),), kv_bytes_per_token=KV_BYTES),
        replace(decode, role="decode", places=(Place(0, 1),), kv_bytes_per_token=KV_BYTES),
    )
    return Cluster(ends, topology=topology, **changes)


def tokens_by_step(run: Simulation, request: int = 0) -> list[int]:
    return list(Counter(run.capture.outcomes[request].token_times_s or ()).values())


# -- prefill and decode apart ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("method", ["eagle", "mtp", "draft_model"])
def test_the_decode_engine_drafts(method: str, asynchronous: bool) -> None:
    """50 tokens of 10 ms, 4 blocks of KV of 1.6 ms, 1 of latency; a padded step brings one token, others 1 + k."""
    both = drafting(1, 1, 1, method=method, async_scheduling=asynchronous)
    run = simulate(trace((0.0, 50, 41)), apart(both, both))
    outcome = run.capture.outcomes[0]
    assert tokens_by_step(run) == [1, *[4] * 10]
    assert outcome.first_token_s == pytest.approx(0.01 + 0.001 + 0.0064 + 0.01)
    assert outcome.finish_s == pytest.approx((outcome.first_token_s or 0) + 10 * 0.01)
    assert run.speculation is not None
    assert run.speculation.num_accepted_tokens == 30


def test_the_first_step_behind_a_prompt_is_padded_to_a_draft() -> None:
    """vLLM 0.32 pads a decode that is new in a step; none of its drafts is accepted."""
    both = drafting(1, 1)
    run = simulate(trace((0.0, 50, 4)), apart(both, both), record_batches=True)
    assert run.capture.steps is not None
    assert run.capture.steps.batches is not None
    assert run.capture.steps.batches.new_tokens.tolist() == [50, 3, 3]
    assert run.speculation is not None
    assert (run.speculation.num_draft_tokens, run.speculation.num_accepted_tokens) == (4, 2)


def test_a_lookup_needs_only_the_decode_engine() -> None:
    lookup = engine(speculative_config=drafter(1, 1, 1, method="ngram", draft_rate=1.0))
    run = simulate(trace((0.0, 50, 41)), apart(engine(), lookup))
    assert tokens_by_step(run) == [1, *[4] * 10]


def test_a_drafter_with_kv_of_its_own_needs_it_on_both_sides() -> None:
    with pytest.raises(InputError, match=r"speculative_config.method': found 'eagle, none': accepted: one of them"):
        simulate(trace((0.0, 50, 4)), apart(engine(), drafting(1, 1, method="eagle")))
    simulate(trace((0.0, 50, 4)), apart(drafting(1, method="eagle"), drafting(1, 1, method="eagle")))


def test_what_is_sent_layer_by_layer_holds_no_drafts() -> None:
    """The second prompt of the two alike lacks one token on the prefill engine, and is padded there."""
    both = drafting(1, 1, 1, max_num_seqs=1)
    rows = trace((0.0, 17, 4), (1.0, 17, 4), hashes=[(1,), (1,)], size=16)
    service = Service(rows, apart(both, both, kv_transfer=KVTransfer(when="layer_by_layer")), fast_forward=True)
    service.run()
    assert service.handover is not None
    assert service.handover.n_bytes == pytest.approx(2 * 2 * 16 * KV_BYTES)
    plan = msgspec.structs.replace(batch([(17, 4, 16)]), drafts=np.array([3]))
    assert without_drafts(plan).new_tokens.tolist() == [1]


def test_a_request_waits_with_its_kv_until_its_drafts_have_room() -> None:
    """Three blocks of prompt, and 1 + 3 tokens and 3 of the drafter behind them: a block more than the prompt has."""
    both = drafting(1, 1, 1, method="eagle", num_gpu_blocks=5, max_model_len=64)
    run = simulate(trace((0.0, 48, 8), (0.0, 48, 8)), apart(drafting(1, 1, 1, method="eagle"), both))
    first, second = run.capture.outcomes
    assert (first.status, second.status) == (Status.FINISHED, Status.FINISHED)
    assert (second.first_token_s or 0) > (first.finish_s or 0)


# -- KV tiers ----------------------------------------------------------------------------------------------------------

HOST = KVTierFile(name="host", capacity_bytes=1e6, bandwidth_bytes_per_s=1e9)


def again(both: Engine, *tiers: KVTierFile) -> list[int | None]:
    """Cached tokens of a prompt that comes again behind another that takes its blocks on the GPU."""
    rows = [(0.0, 65, 2), (1.0, 65, 2), (2.0, 65, 2)]
    hashes: list[tuple[int, ...]] = [(1, 2, 3, 4), (5, 6, 7, 8), (1, 2, 3, 4)]
    made = Cluster((replace(both, kv_bytes_per_token=KV_BYTES),), kv_tiers=tiers)
    run = simulate(trace(*rows, hashes=hashes, size=16), made)
    return [outcome.cached_tokens for outcome in run.capture.outcomes]


@pytest.mark.parametrize(("method", "loaded"), [("draft_model", 64), ("eagle", 64), ("mtp", 48)])
def test_what_the_gpu_has_evicted_is_loaded_from_the_host(method: str, loaded: int) -> None:
    """vLLM's offloading connector leaves the last chunk out where it knows the drafter's layers: those of MTP."""
    both = drafting(1, 1, method=method, num_gpu_blocks=8)
    assert again(both, HOST)[2] == loaded
    assert (again(both)[2] or 0) < loaded


# -- ranks that step together ------------------------------------------------------------------------------------------


def test_ranks_that_step_together_draft_each_for_itself() -> None:
    made = Cluster((replace(drafting(1, 1, 1), ranks=2),))
    run = simulate(trace((0.0, 50, 41), (0.0, 50, 41)), made)
    assert tokens_by_step(run, 0) == tokens_by_step(run, 1) == [1, *[4] * 10]
    assert run.capture.outcomes[0].finish_s == run.capture.outcomes[1].finish_s == pytest.approx(0.11)
    assert {outcome.instance for outcome in run.capture.outcomes} == {0, 1}


# -- pipeline stages ---------------------------------------------------------------------------------------------------


class _Staged(LinearStepTime):
    """Two stages of equal time."""

    def price(self, plan: StepPlan) -> StepCost:
        return replace(super().price(plan), stages=(0.5, 0.5))


@pytest.mark.parametrize("method", ["eagle", "mtp", "draft_model"])
def test_a_pipeline_that_is_planned_ahead_drafts(method: str) -> None:
    """A step enters when all stages know what came of the one two plannings before: its own requests' last."""
    made = drafting(1, 1, 1, method=method, step=_Staged(host_s=0.002), async_scheduling=True)
    run = simulate(trace((0.0, 50, 41)), replace(made, pipeline_parallel_size=2))
    assert tokens_by_step(run) == [1, *[4] * 10]
    assert run.capture.outcomes[0].finish_s == pytest.approx(0.002 + 0.01 + 10 * 0.01)


# -- whatever is combined ----------------------------------------------------------------------------------------------

ROWS = st.lists(
    st.tuples(st.floats(0, 2), st.integers(1, 200), st.integers(1, 50)).map(lambda row: (round(row[0], 3), *row[1:])),
    min_size=1,
    max_size=20,
).map(sorted)


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Engines that draft: apart on links or a bus, with failures, behind tiers, or ranks that step together."""
    asynchronous = draw(st.booleans())
    method = draw(st.sampled_from(["eagle", "mtp", "draft_model", *([] if asynchronous else ["ngram"])]))
    rates = sorted(draw(st.lists(st.floats(0, 1), min_size=1, max_size=4)), reverse=True)
    more = {"draft_rate": 0.7} if method == "ngram" else {}
    options: dict[str, Any] = {
        "speculative_config": drafter(*rates, method=method, **more),
        "max_num_seqs": draw(st.sampled_from([2, 8])),
        "max_num_batched_tokens": draw(st.sampled_from([64, 512])),
        "num_gpu_blocks": draw(st.sampled_from([24, 60])),
        "async_scheduling": asynchronous,
    }
    step = LinearStepTime(0.01, 1e-4)
    both = replace(engine(step, **options), kv_bytes_per_token=KV_BYTES)
    match draw(st.sampled_from(["apart", "bus", "tiers", "ranks", *(["stages"] if asynchronous else [])])):
        case "stages":
            return Cluster((replace(both, step_time=_Staged(0.01, 1e-4, host_s=0.001), pipeline_parallel_size=2),))
        case "ranks":
            return Cluster((replace(both, ranks=draw(st.integers(2, 3))),))
        case "tiers":
            size, speed = {"capacity_bytes": 1e5, "chunk_tokens": 32}, {"bandwidth_bytes_per_s": 1e5}
            store = KVTierFile(name="store", shared=True, **size, **speed)  # type: ignore[arg-type]
            return Cluster((both,) * draw(st.integers(1, 2)), kv_tiers=(HOST, store)[: draw(st.integers(1, 2))])
        case "bus":
            made = apart(both, both, kind="bus")
            assert made.topology is not None
            (bus,) = made.topology.path(Place(0, 0), Place(0, 1))
            own = (Exchange({bus: 50.0}, {bus: 100.0}),)
            return replace(made, engines=tuple(replace(one, exchanges=own) for one in made.engines))
    transfer = KVTransfer(
        when=draw(st.sampled_from(["at_end", "layer_by_layer"])),
        failure_probability=draw(st.sampled_from([0.0, 0.4])),
    )
    failures = tuple(Failure(instance=i, at_s=0.4 + 0.3 * i, for_s=0.2) for i in range(draw(st.integers(0, 2))))
    return apart(both, both, kv_transfer=transfer, failures=failures)


def prompts(rows: list[tuple[float, int, int]]) -> Trace:
    """The rows, with prefixes of two families."""
    hashes = [tuple(1000 * (i % 2) + j for j in range(prompt // 16)) for i, (_, prompt, _) in enumerate(rows)]
    return trace(*rows, hashes=hashes, size=16)


@settings(max_examples=120, deadline=None)
@given(ROWS, clusters())
def test_nothing_is_lost_every_block_is_free_and_fast_forward_changes_nothing(
    rows: list[tuple[float, int, int]], cluster: Cluster
) -> None:
    made = prompts(rows)
    fast, slow = (simulate(made, cluster, fast_forward=fast_forward) for fast_forward in (True, False))
    assert fast.capture.outcomes == slow.capture.outcomes
    assert fast.capture.steps is not None
    assert slow.capture.steps is not None
    for name in STEP_COLUMNS:
        np.testing.assert_array_equal(getattr(fast.capture.steps, name), getattr(slow.capture.steps, name))
    for outcome, row in zip(fast.capture.outcomes, made.rows, strict=True):
        if outcome.status is Status.REJECTED:
            continue
        assert outcome.status is Status.FINISHED
        assert outcome.output_tokens == len(outcome.token_times_s or ()) == row.output_tokens
    counted = fast.speculation
    assert counted is not None
    assert counted.num_accepted_tokens == sum(counted.num_accepted_tokens_per_pos) <= counted.num_draft_tokens
    service = Service(made, cluster, fast_forward=True)
    service.run()
    for rank in service.ranks:
        assert isinstance(rank.scheduler, Scheduler)
        assert rank.scheduler.num_free_blocks == rank.num_blocks
        assert not rank.scheduler.incoming.holding
    assert service.handover is None or not service.handover.network.under_way


class _Watching:
    """A step-time model that keeps what it prices."""

    reads_batches = True

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []

    def price(self, plan: StepPlan) -> StepCost:
        self.plans.append(plan)
        return StepCost(np.full(plan.repeat, 0.01), np.zeros(plan.repeat))

    def count(self, plan: StepPlan, times: int) -> None:
        """Counts nothing."""

    def notes(self) -> tuple[str, ...]:
        return ()


def test_each_rank_says_what_it_verifies() -> None:
    watching = _Watching()
    made = replace(drafting(1, 1), ranks=2, step_time=watching)
    simulate(trace((0.0, 20, 9), (0.0, 20, 9)), Cluster((made,)))
    verified = [[one.n_draft_tokens for one in (plan, *plan.alongside)] for plan in watching.plans]
    assert verified == [[0, 0], [2, 2], [2, 2], [2, 2]]
