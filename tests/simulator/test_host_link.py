"""KV of tiers and weights over the same links to the host: closed forms, bytes, and the same bits however steps run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.engine import Engine
from simulator.fleet import Failure
from simulator.kv.host_link import HostLink, HostWay
from simulator.kv.tiers import KVTierFile
from simulator.scheduling.plan import StepPlan
from simulator.simulate import Simulation, simulate
from simulator.steps.step_time import OperatorTimes, StepCost
from simulator.steps.weight_offload import OffloadedModel, Way, WeightOffload
from tests.engines import LinearStepTime, engine, trace
from traces.errors import InputError
from traces.steps import STEP_COLUMNS
from traces.trace import Trace

KV_BYTES = 100.0
SPEED = 1e5


class Layers(LinearStepTime):
    """Steps of 10 ms, all of it matrix products."""

    def __init__(self) -> None:
        super().__init__(0.01)

    def price(self, plan: StepPlan) -> StepCost:
        operators = OperatorTimes(0.01, 0.0, np.zeros(plan.repeat), 0.0)
        return replace(super().price(plan), operators=operators)


def offload(way: Way = "copy", n_bytes: float = 1000.0) -> WeightOffload:
    """One of two layers, whose weights take 10 ms to come."""
    return WeightOffload((n_bytes, 0.0), way, SPEED)


def made(
    weights: WeightOffload | None, *, link: str = "host", devices: int = 1, tier_speed: float = 1e9, **options: object
) -> Cluster:
    bare = engine(**{"num_gpu_blocks": 8, **options})  # type: ignore[arg-type]
    own: Engine = replace(
        bare,
        step_time=Layers() if weights is None else OffloadedModel(Layers(), weights),
        kv_bytes_per_token=KV_BYTES,
        host_link=HostLink(SPEED, devices),
        offload=weights,
    )
    file = KVTierFile(name="host", capacity_bytes=1e6, bandwidth_bytes_per_s=tier_speed, link=link)  # type: ignore[arg-type]
    return Cluster((own,), kv_tiers=(file,))


def prompts(*each: tuple[float, tuple[int, ...], int]) -> Trace:
    rows = [(at_s, 16 * len(hashes) + 1, output) for at_s, hashes, output in each]
    return trace(*rows, hashes=[hashes for _, hashes, _ in each], size=16)


AGAIN = prompts((0.0, (1, 2, 3, 4), 1), (1.0, (5, 6, 7, 8), 1), (2.0, (1, 2, 3, 4), 1))
"""The third prompt is loaded, 6,400 bytes but for what is still on the GPU."""


def ttft_s(cluster: Cluster) -> float:
    outcome = simulate(AGAIN, cluster).capture.outcomes[2]
    return (outcome.first_token_s or 0) - outcome.arrival_s


# -- closed forms ------------------------------------------------------------------------------------------------------


def test_a_load_takes_the_time_of_its_bytes_on_the_links_of_all_devices() -> None:
    """Of seven blocks four are the second prompt's and one has its last token: 3,200 bytes of two are loaded."""
    times_s = [ttft_s(made(None, devices=devices)) for devices in (1, 2)]
    assert times_s == pytest.approx([0.032 + 0.01, 0.016 + 0.01])
    assert ttft_s(made(None, link="own")) == pytest.approx(0.01, abs=1e-4)
    assert ttft_s(made(None, tier_speed=SPEED / 2)) == pytest.approx(0.064 + 0.01)


def test_a_load_has_what_weights_leave_and_weights_have_half_beside_it() -> None:
    """Copies take 10 of a step's 20 ms, so that a load has half of the link; a step beside it takes 10 + 20."""
    way = HostWay(HostLink(SPEED))
    assert way.takes_s(1000.0, "in") == pytest.approx(0.01)
    way.weights(1000.0, 0.0, 0.02)
    assert way.takes_s(1000.0, "in") == pytest.approx(0.02)
    assert way.takes_s(1000.0, "out") == pytest.approx(0.01)
    way.moves(0.02, 0.08, 3000.0, "in")
    assert way.takes_s(1000.0, "in") == pytest.approx(0.03)
    way.now_s = 0.09
    assert way.loads == []
    assert way.takes_s(1000.0, "in") == pytest.approx(0.01)


def running_beside_a_load(weights: WeightOffload, link: str) -> np.ndarray:
    """Steps of a request beside which the KV of another is loaded, while it decodes."""
    rows = prompts((0.0, (1, 2, 3), 1), (0.1, (11,), 60), (0.3, (5, 6, 7), 1), (0.6, (1, 2, 3), 1))
    run = simulate(rows, made(weights, link=link, num_gpu_blocks=9))
    return np.diff(run.capture.outcomes[1].token_times_s or ())


@pytest.mark.parametrize(
    ("way", "beside_s"),
    [("copy", [0.03, 0.002 + 28 / 30 * 0.02]), ("in_place", [0.025, 0.025, 0.014 + 11 / 25 * 0.015])],
)
def test_steps_take_longer_while_kv_comes(way: Way, beside_s: list[float]) -> None:
    """A layer's 5 ms and 10 of its weights, in turn or at once; beside KV 20 of the weights.

    A block of KV takes 32 ms beside copies, which leave half of the link, and two take 64 beside weights that are read
    in place, for two thirds of the time.
    """
    alone_s = {"copy": 0.02, "in_place": 0.015}[way]
    own, shared = (running_beside_a_load(offload(way), link) for link in ("own", "host"))
    # A step that computes a prompt is as long as any other.
    assert own == pytest.approx(alone_s)
    slow = shared[shared > alone_s * 1.001]
    assert slow == pytest.approx(beside_s)
    assert shared.min() == pytest.approx(alone_s)


def test_weights_that_come_in_time_are_not_slowed() -> None:
    """Of a prefetched layer 100 bytes take 1 ms of 10, or 2."""
    steps_s = [running_beside_a_load(offload("prefetch", 100.0), link).max() for link in ("own", "host")]
    assert steps_s[0] == pytest.approx(steps_s[1])


def test_what_was_slowed_is_said() -> None:
    rows = prompts((0.0, (1, 2, 3), 1), (0.1, (11,), 60), (0.3, (5, 6, 7), 1), (0.6, (1, 2, 3), 1))
    notes = simulate(rows, made(offload(), num_gpu_blocks=9)).capture.meta.notes
    (said,) = [note for note in notes if "longer for KV on the links of their weights" in note]
    assert not said.startswith("0 steps")


def test_a_link_that_nobody_describes_is_refused() -> None:
    cluster = made(None)
    (own,) = cluster.engines
    with pytest.raises(InputError, match="'host_link': is missing"):
        simulate(AGAIN, replace(cluster, engines=(replace(own, host_link=None),)))
    far = KVTierFile(name="far", capacity_bytes=1e6, bandwidth_bytes_per_s=1e9, link="host", memory="remote")
    with pytest.raises(InputError, match=r"kv_tiers\.link.*accepted: own with memory remote"):
        simulate(AGAIN, replace(cluster, kv_tiers=(far,)))


# -- properties --------------------------------------------------------------------------------------------------------


def same(rows: Trace, cluster: Cluster) -> Simulation:
    fast, slow = (simulate(rows, cluster, fast_forward=fast_forward) for fast_forward in (True, False))
    assert fast.capture.outcomes == slow.capture.outcomes
    assert fast.capture.steps is not None
    assert slow.capture.steps is not None
    for name in STEP_COLUMNS:
        np.testing.assert_array_equal(getattr(fast.capture.steps, name), getattr(slow.capture.steps, name))
    for name, series in fast.capture.series.items():
        np.testing.assert_array_equal(series.value, slow.capture.series[name].value)
    return fast


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.01, 0.2]), st.integers(0, 2), st.integers(1, 4), st.integers(1, 40)),
        min_size=2,
        max_size=14,
    ),
    st.sampled_from([None, "copy", "in_place", "prefetch"]),
    st.booleans(),
    st.integers(9, 24),
    st.booleans(),
)
def test_fast_forward_changes_nothing_and_no_byte_is_faster_than_the_link(
    rows: list[tuple[float, int, int, int]], way: Way | None, asynchronous: bool, blocks: int, fails: bool
) -> None:
    at_s, each = 0.0, []
    for gap_s, family, n_hashes, output in rows:
        at_s += gap_s
        each.append((at_s, tuple(100 * family + i for i in range(n_hashes)), output))
    weights = None if way is None else offload(way)
    cluster = made(weights, async_scheduling=asynchronous, num_gpu_blocks=blocks, max_num_seqs=4)
    if fails:
        cluster = replace(cluster, failures=(Failure(instance=0, at_s=0.15, for_s=0.1),))
    run = same(prompts(*each), cluster)
    for move in run.moves:
        assert move.end_s - move.begin_s >= move.n_bytes / SPEED * (1 - 1e-9)
