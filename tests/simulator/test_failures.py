"""Prefill and decode instances that fail, and pools of either that grow: closed forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from simulator.cluster import Cluster
from simulator.fleet import Autoscaling, Failure, Scaling
from simulator.kv_transfer import KVTransfer
from simulator.network.topology import Topology
from simulator.service import Service
from simulator.simulate import Simulation, simulate
from tests.engines import engine, trace
from tests.simulator import test_cluster
from tests.simulator.test_cluster import links
from traces.errors import EngineError, InputError
from traces.outcome import Outcome, Status

WHOLE = {"block_size": 25}
"""Blocks that the prompts here fill."""

ONE = trace((0.5, 100, 10))
"""Prompt computed at 0.510 s, KV there at 0.521 s, a token every 10 ms from 0.531 s on."""
LONG = trace((0.5, 1000, 10))
"""Prompt computed at 0.510 s, KV of 100,000 bytes on the link from 0.511 to 0.611 s."""


def disaggregated(n_prefill: int = 1, n_decode: int = 1, *, topology: Topology | None = None) -> Cluster:
    """As of `test_cluster`, with blocks that the prompts here fill."""
    return test_cluster.disaggregated(n_prefill, n_decode, topology=topology, prefill=WHOLE, decode=WHOLE)


def failing(cluster: Cluster, instance: int, at_s: float, **changes: Any) -> Cluster:
    return replace(cluster, failures=(Failure(instance=instance, at_s=at_s, for_s=5.0),), **changes)


def one(run: Simulation) -> Outcome:
    (outcome,) = run.capture.outcomes
    assert outcome.status is Status.FINISHED
    return outcome


def test_an_answer_whose_decode_instance_fails_goes_through_prefill_again() -> None:
    """Sent again at 0.555 s: prompt 0.565, KV 0.576, then 10 tokens elsewhere."""
    run = simulate(ONE, failing(disaggregated(1, 2), 1, 0.555))
    assert one(run).first_token_s == pytest.approx(0.586)
    assert one(run).finish_s == pytest.approx(0.676)
    assert (one(run).instance, one(run).output_tokens) == (2, 10)
    assert "1 failures of instances; 1 requests sent again" in run.capture.meta.notes


def test_an_answer_that_goes_on_has_its_tokens_in_the_prompt() -> None:
    """Four tokens by 0.561 s, the end of the step under way; 104 computed at 0.571, KV of 125 at 0.5845, six tokens."""
    run = simulate(ONE, failing(disaggregated(1, 2), 1, 0.555, after_failure="go_on"))
    outcome = one(run)
    assert outcome.token_times_s == pytest.approx([0.531, 0.541, 0.551, 0.561, *(0.5945 + 0.01 * i for i in range(6))])
    assert (outcome.prompt_tokens, outcome.output_tokens) == (100, 10)
    assert outcome.scheduled_s == pytest.approx(0.5)
    assert run.capture.steps is not None
    assert run.capture.steps.n_prefill_tokens.sum() == 204
    assert "1 of them went on behind 4 tokens that had come" in run.capture.meta.notes


def test_an_engine_that_does_all_goes_on_too() -> None:
    """Ten tokens by 0.1 s; eleven of prompt and answer, then the rest."""
    made = failing(Cluster((engine(), engine())), 0, 0.095, after_failure="go_on")
    run = simulate(trace((0.0, 10, 50)), made)
    assert one(run).token_times_s == pytest.approx([0.01 * (i + 1) for i in range(50)])
    assert run.n_steps == 50


def test_a_prompt_whose_prefill_instance_fails_starts_again_at_another() -> None:
    """A step of 10 ms under way is lost at 0.505 s with its output."""
    run = simulate(ONE, failing(disaggregated(2, 1), 0, 0.505))
    assert one(run).first_token_s == pytest.approx(0.505 + 0.010 + 0.011 + 0.010)
    assert run.capture.steps is not None
    assert run.capture.steps.n_prefill_tokens.sum() == 200


def test_kv_that_is_lost_with_its_prefill_instance_is_computed_by_the_decode_instance() -> None:
    run = simulate(LONG, failing(disaggregated(2, 1), 0, 0.56))
    assert one(run).first_token_s == pytest.approx(0.57)
    assert "KV of 1 prompts was lost on the way, and computed again" in run.capture.meta.notes


def test_kv_that_is_lost_with_its_prefill_instance_may_be_computed_by_another_prefill_instance() -> None:
    """Prompt 0.57, KV on the link from 0.571 to 0.671."""
    again = KVTransfer(kv_load_failure_policy="fail")
    run = simulate(LONG, failing(disaggregated(2, 1), 0, 0.56, kv_transfer=again))
    assert one(run).first_token_s == pytest.approx(0.681)


@pytest.mark.parametrize("policy", ["recompute", "fail"])
@pytest.mark.parametrize(("instance", "n_prefill", "n_decode"), [(0, 2, 1), (1, 1, 2)])
def test_a_transfer_under_way_is_dropped_and_its_bytes_are_counted(
    instance: int, n_prefill: int, n_decode: int, policy: Literal["recompute", "fail"]
) -> None:
    """49 ms of 1 MB/s, whichever end fails; and 100,000 bytes where the prompt is sent again."""
    made = disaggregated(n_prefill, n_decode)
    service = Service(
        LONG,
        failing(made, instance, 0.56, kv_transfer=KVTransfer(kv_load_failure_policy=policy)),
        fast_forward=True,
    )
    service.run()
    assert service.handover is not None
    assert service.handover.n_dropped_bytes == pytest.approx(49_000)
    sent_again = instance == 1 or policy == "fail"
    assert service.handover.n_bytes == pytest.approx(49_000 + 100_000 * sent_again)
    said = "KV of 1 prompts was under way when an instance failed; 0.000 GB of it had been sent"
    assert said in service.notes()


def test_kv_that_leaves_layer_by_layer_to_an_instance_that_fails_is_computed_again() -> None:
    """One of 10 layers computed after 1 ms; the decode instance fails at 0.505 s, in the middle of the prompt."""
    made = disaggregated(1, 2)
    engines = tuple(replace(each, num_layers=10) for each in made.engines)
    made = replace(made, engines=engines, kv_transfer=KVTransfer(when="layer_by_layer"))
    run = simulate(ONE, failing(made, 1, 0.505))
    # The step under way ends at 0.510 s; the prompt again, and its KV 2 ms behind it.
    assert one(run).first_token_s == pytest.approx(0.510 + 0.001 + 0.011 + 0.010)
    assert one(run).instance == 2


def test_requests_wait_for_the_only_instance_of_either_role() -> None:
    """The decode instance is back at 5.4 s; the KV has been kept since 0.51 s."""
    run = simulate(ONE, failing(disaggregated(1, 1), 1, 0.4))
    assert one(run).first_token_s == pytest.approx(5.4 + 0.011 + 0.010)
    assert run.capture.steps is not None
    assert run.capture.steps.n_prefill_tokens.sum() == 100
    run = simulate(ONE, failing(disaggregated(1, 1), 0, 0.4))
    assert one(run).first_token_s == pytest.approx(5.4 + 0.010 + 0.011 + 0.010)


def test_kv_that_is_lost_on_the_way_may_be_sent_again() -> None:
    again = KVTransfer(failure_probability=0.5, kv_load_failure_policy="fail")
    made = trace(*[(0.1 * i, 100, 10) for i in range(8)])
    service = Service(made, replace(disaggregated(1, 1), kv_transfer=again), fast_forward=True)
    service.run()
    assert service.handover is not None
    assert service.handover.n_lost > 0
    assert service.handover.n_bytes == pytest.approx((8 + service.handover.n_lost) * 100 * 100)
    assert sum(service.n_sent_again(i) for i in range(8)) == service.handover.n_lost


def test_pools_of_either_role_grow_by_their_own_keys() -> None:
    scaling = Scaling(up_above=0.1, down_below=0.01, start_s=0.1, interval_s=0.05)
    made = trace(*[(0.01 * i, 100, 60) for i in range(60)])
    cluster = disaggregated(3, 3, topology=links(6, 1e8))

    def used(autoscaling: Autoscaling) -> tuple[set[int], list[str]]:
        run = simulate(made, replace(cluster, autoscaling=autoscaling))
        assert run.capture.steps is not None
        notes = [note for note in run.capture.meta.notes if "autoscaling" in note]
        return set(run.capture.steps.instance.tolist()), notes

    grown, notes = used(Autoscaling(decode=scaling))
    assert grown == {0, 1, 2, 3, 4, 5}
    assert notes == ["autoscaling from 1 instances of 3 decode: 2 started"]
    never = Scaling(up_above=1e9)
    assert used(Autoscaling(prefill=never, decode=never))[0] == {0, 3}
    assert used(Autoscaling(prefill=never))[0] == {0, 3, 4, 5}


def test_an_instance_that_has_failed_is_not_started() -> None:
    """The second is down until 3 s, the third is started in its place."""
    scaling = Autoscaling(up_above=0.5, down_below=0.0, start_s=0.1, interval_s=0.05)
    failures = (Failure(instance=1, at_s=0.0, for_s=3.0),)
    made = trace(*[(0.1 + 0.02 * i, 10, 100) for i in range(30)])
    cluster = Cluster((engine(max_num_seqs=4),) * 3, "least_loaded", failures=failures, autoscaling=scaling)
    run = simulate(made, cluster)
    assert run.capture.steps is not None
    assert set(run.capture.steps.instance.tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("cluster", "changes", "message"),
    [
        (disaggregated(), {"autoscaling": Autoscaling()}, "field 'autoscaling': is not said of which pool"),
        (disaggregated(), {"autoscaling": Autoscaling(start_s=1)}, "field 'autoscaling': is not said of which pool"),
        (
            disaggregated(),
            {"autoscaling": Autoscaling(decode=Scaling(min_instances=2))},
            "autoscaling.decode.min_instances': found 2: accepted: at most 1",
        ),
        (
            Cluster((engine(),)),
            {"autoscaling": Autoscaling(prefill=Scaling())},
            "autoscaling.prefill': has no effect where prefill and decode are not apart",
        ),
        (Cluster((engine(),)), {"after_failure": "go_on"}, "after_failure': has no effect without failures"),
        (
            disaggregated(),
            {"kv_transfer": KVTransfer(failure_probability=1, kv_load_failure_policy="fail")},
            "kv_transfer.failure_probability': found 1: accepted: below 1",
        ),
        (
            disaggregated(),
            {"kv_transfer": KVTransfer(kv_load_failure_policy="fail")},
            "kv_transfer.kv_load_failure_policy': has no effect without failures or a failure_probability",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(cluster: Cluster, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate(ONE, replace(cluster, **changes))


def test_kv_that_nobody_comes_for_is_named() -> None:
    service = Service(ONE, disaggregated(), fast_forward=True)
    assert service.handover is not None
    service.handover.begin(0, service.ranks[0], service.ranks[1])
    with pytest.raises(EngineError, match="request '0' waits for KV from instance 0 on instance 1"):
        service.check_done()
