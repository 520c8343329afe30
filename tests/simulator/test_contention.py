"""Collectives and KV on the same links: closed forms, conservation of bytes, and nothing else changed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.model import ModelSpec
from simulator.cluster import Cluster
from simulator.network.links import Link
from simulator.network.topology import FabricFile, NodeFile, Place, Topology, TopologyFile
from simulator.network.transfers import Network, fair_rates
from simulator.scheduling.plan import StepPlan
from simulator.service import Service
from simulator.simulate import simulate
from simulator.steps.contention import Exchange, SharedLinks, exchanges
from simulator.steps.step_time import OperatorTimes, StepCost
from tests.engines import LinearStepTime, engine, trace
from tests.simulator.plans import decode_plan
from tests.simulator.test_cluster import KV_BYTES, disaggregated, on_a_bus, same_bytes

SPEED = 1e6


class Taking:
    """A user of a link that takes so much of it from one moment to another."""

    def __init__(self, rate: float, begin_s: float, end_s: float) -> None:
        self._spell = (rate, begin_s, end_s)

    def rate(self, _: Link, at_s: float) -> tuple[float, float]:
        rate, begin_s, end_s = self._spell
        if at_s < begin_s:
            return 0.0, begin_s
        return (rate, end_s) if at_s < end_s else (0.0, np.inf)


def topology(kind: str, devices: int, latency_s: float = 0.0) -> Topology:
    return Topology(TopologyFile((NodeFile(devices, FabricFile(kind, SPEED, latency_s)),)))  # type: ignore[arg-type]


# -- what others leave of a link ---------------------------------------------------------------------------------------


def test_a_transfer_has_what_another_user_leaves() -> None:
    """0.1 MB in the first 0.1 s, 0.7 MB/s for 1 s, then all of the link."""
    link, network = Link("wire", SPEED, 0.0), Network()
    network.share_with(link, Taking(0.3e6, 0.1, 1.1))
    sent = network.start((link,), 1.05e6, 0.0)
    network.advance(np.inf)
    assert sent.end_s == pytest.approx(0.1 + 1.0 + 0.25)
    carried = network.carried_bytes(link, [0.1, 0.6, 1.1])
    assert carried == pytest.approx([0.1e6, 0.45e6, 0.8e6])


def test_a_transfer_has_at_least_what_it_would_have_beside_another() -> None:
    link, network = Link("wire", SPEED, 0.0), Network()
    network.share_with(link, Taking(SPEED, 0.0, 9.0))
    sent = network.start((link,), 1e6, 0.0)
    network.advance(np.inf)
    assert sent.end_s == pytest.approx(2.0)


def test_one_more_has_what_others_cannot_use() -> None:
    """Of two on a link of 1 MB/s, one has but 0.1 MB/s on its second link."""
    wide, narrow = Link("wide", SPEED, 0.0), Link("narrow", 0.1e6, 0.0)
    assert fair_rates([(wide, narrow), (wide,)]) == pytest.approx([0.1e6, 0.9e6])
    assert fair_rates([(wide, narrow), (wide,), (wide,)]) == pytest.approx([0.1e6, 0.45e6, 0.45e6])


# -- one transfer and the collectives of one engine ----------------------------------------------------------------


class Talking(LinearStepTime):
    """Steps of 20 ms, half of it communication."""

    def __init__(self) -> None:
        super().__init__(0.02)

    def price(self, plan: StepPlan) -> StepCost:
        operators = OperatorTimes(0.01, 0.0, np.zeros(plan.repeat), 0.0, communication_s=0.01)
        return replace(super().price(plan), operators=operators)


def two(kind: str = "bus") -> Cluster:
    """A prefill and a decode device; a decode step of one token sends 10,000 bytes to a third device."""
    made = topology(kind, 3)
    (link,) = made.path(Place(0, 1), Place(0, 2))
    prefill = replace(engine(block_size=25), role="prefill", places=(Place(0, 0),), kv_bytes_per_token=KV_BYTES)
    decode = replace(
        engine(Talking(), block_size=25),
        role="decode",
        places=(Place(0, 1),),
        kv_bytes_per_token=KV_BYTES,
        exchanges=(Exchange({link: 10_000.0}, {}),),
    )
    return Cluster((prefill, decode), topology=made)


BOTH = trace((0.0, 100, 60), (0.1, 1950, 5))


def test_steps_and_a_transfer_take_longer_for_each_other() -> None:
    """The KV, 195,000 bytes, leaves at 0.12 s as a step is planned.

    A step has half of the link for its 10,000 bytes and takes 30 ms; it leaves 20,000 bytes. In the tenth there are
    15,000 bytes left, for 22.5 ms, three quarters of it: it takes 27.5 ms.
    """
    run = simulate(BOTH, two())
    first, second = run.capture.outcomes
    times_s = [0.04 + 0.02 * i for i in range(5)] + [0.12 + 0.03 * i for i in range(1, 10)] + [0.4175, 0.4375]
    assert first.token_times_s is not None
    assert first.token_times_s[:16] == pytest.approx(times_s)
    assert second.first_token_s == pytest.approx(0.4375)
    assert "10 steps took 0.0975 s longer for KV on links of their collectives" in "\n".join(run.capture.meta.notes)
    network = run.network
    assert network is not None
    (bus,) = network.links
    # While both are there the link is full: KV, and 10,000 bytes a step.
    assert np.diff(network.carried_bytes(bus, [0.12, 0.39]))[0] + 9 * 10_000 == pytest.approx(0.27 * SPEED)
    carried = network.carried_bytes(bus, [0.39, 0.4, 0.4125])
    assert carried == pytest.approx([190_000, 190_000 + 20_000 / 3, 205_000])
    assert network.carried_bytes(bus, network.now_s) == pytest.approx(205_000)


def test_without_collectives_both_are_faster() -> None:
    cluster = two()
    alone = replace(cluster, engines=tuple(replace(one, exchanges=()) for one in cluster.engines))
    took = [simulate(BOTH, one).capture.outcomes[1].first_token_s or 0.0 for one in (cluster, alone)]
    assert took[0] > took[1] + 0.09


def test_on_links_of_their_own_nothing_changes() -> None:
    """In a full mesh the decode engine's collectives have a link that no KV crosses."""
    cluster = two("full_mesh")
    service = Service(BOTH, cluster, fast_forward=True)
    assert service.instances[1]._step_time is cluster.engines[1].step_time
    plain = replace(cluster, engines=tuple(replace(one, exchanges=()) for one in cluster.engines))
    assert simulate(BOTH, cluster).capture.outcomes == simulate(BOTH, plain).capture.outcomes


def test_what_a_step_takes_longer_is_communication() -> None:
    service = Service(BOTH, two(), fast_forward=True)
    assert service.handover is not None
    model = service.instances[1]._step_time
    (bus,) = service._shared[1].links
    service.handover.network.start((bus,), 1e6, 0.0)
    cost = model.price(decode_plan(1, 100))
    assert cost.device_s == pytest.approx(0.03)
    assert cost.operators is not None
    assert cost.operators.communication_s == pytest.approx(0.02)


def test_a_failed_engine_leaves_its_links() -> None:
    service = Service(BOTH, two(), fast_forward=True)
    shared = service._shared[1]
    (bus,) = shared.links
    shared.ran(decode_plan(1, 100), np.array([0.0]), np.array([0.02]))
    assert shared.rate(bus, 0.01) == (pytest.approx(500_000), 0.02)
    assert shared.rate(bus, 0.02) == (0.0, np.inf)
    shared.stop(0.01)
    assert shared.rate(bus, 0.01) == (0.0, np.inf)


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_sweeps_share_links_as_single_steps_do(async_scheduling: bool) -> None:
    made = trace(*[(0.05 * i, 40 + 150 * (i % 4), 60) for i in range(24)])
    cluster = on_a_bus(disaggregated(1, 2), 400.0)
    options = engine(async_scheduling=async_scheduling).options
    times = LinearStepTime(0.004, 1e-5, 1e-7)
    engines = tuple(replace(one, options=options, step_time=times) for one in cluster.engines)
    run = same_bytes(made, replace(cluster, engines=engines))
    assert any("longer for KV" in note and not note.startswith("0 ") for note in run.capture.meta.notes)
    assert run.n_sweeps < run.n_steps


# -- message by message ------------------------------------------------------------------------------------------------


def by_message(
    link: Link, layers: int, compute_s: float, n_bytes: float, kv_bytes: list[float], steps: int
) -> tuple[list[float], float]:
    """Steps of layers that compute and then exchange, each message a transfer of its own; ends of steps and of KV."""
    network, at_s, ends_s = Network(), 0.0, []
    kv = [network.start((link,), size, 0.0, "KV") for size in kv_bytes]
    for _ in range(steps):
        for _ in range(layers):
            at_s += compute_s
            message = network.start((link,), n_bytes, max(at_s, network.now_s))
            while message.end_s is None:
                network.advance(network.next_event_s())
            at_s = message.end_s
        ends_s.append(at_s)
    network.advance(np.inf)
    return ends_s, max(one.end_s or 0.0 for one in kv)


def by_step(
    link: Link, layers: int, compute_s: float, n_bytes: float, kv_bytes: list[float], steps: int
) -> tuple[list[float], float]:
    """The same, as the simulator has it."""
    network, at_s, ends_s = Network(), 0.0, []
    step_s = layers * (compute_s + n_bytes / link.bandwidth_bytes_per_s)
    own = Exchange({link: layers * n_bytes}, {})
    shared = SharedLinks(LinearStepTime(step_s), [own], [link], network, stages=1)
    kv = [network.start((link,), size, 0.0, "KV") for size in kv_bytes]
    for _ in range(steps):
        network.advance(at_s)
        shared.now_s = at_s
        plan = decode_plan(1, 100)
        begin_s, at_s = at_s, at_s + float(shared.price(plan).device_s[0])
        shared.ran(plan, np.array([begin_s]), np.array([at_s]))
        ends_s.append(at_s)
    network.advance(np.inf)
    return ends_s, max(one.end_s or 0.0 for one in kv)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(8, 40),
    st.floats(1e-4, 1e-3),
    st.floats(50, 1000),
    st.lists(st.floats(1e3, 2e5), min_size=1, max_size=3),
)
def test_steps_and_kv_end_as_they_do_message_by_message(
    layers: int, compute_s: float, n_bytes: float, kv_bytes: list[float]
) -> None:
    """Within a hundredth of the time, or two layers, in which shares alternate."""
    link, steps = Link("wire", SPEED, 0.0), 30
    exact, kv_end_s = by_message(link, layers, compute_s, n_bytes, kv_bytes, steps)
    ours, our_kv_end_s = by_step(link, layers, compute_s, n_bytes, kv_bytes, steps)
    layer_s = compute_s + n_bytes / SPEED * (1 + len(kv_bytes))
    assert ours == pytest.approx(exact, rel=0.01, abs=2 * layer_s)
    assert our_kv_end_s == pytest.approx(kv_end_s, rel=0.01, abs=2 * layer_s)


# -- what engines send -------------------------------------------------------------------------------------------------

MODEL = ModelSpec("m", 6, 64, 128, 4, 2, 16, 1000)


def test_bytes_of_a_ring_are_those_that_energy_counts() -> None:
    """(2 layers + 1) all-reduces of 2 (n - 1) times the hidden state, and n - 1 times the logits (docs/energy.md)."""
    places = [Place(0, i) for i in range(4)]
    (one,) = exchanges(topology("full_mesh", 4), places, MODEL, "bfloat16", tensor=4, stages=1)
    assert sum(one.per_token.values()) == pytest.approx(13 * 2 * 3 * 64 * 2)
    assert sum(one.per_request.values()) == pytest.approx(3 * 1000 * 2)
    assert len(one.per_token) == 4


def test_stages_send_what_energy_counts() -> None:
    places = [Place(0, i) for i in range(4)]
    found = exchanges(topology("full_mesh", 4), places, MODEL, "bfloat16", tensor=2, stages=2)
    total = sum(sum(one.per_token.values()) for one in found)
    assert total == pytest.approx(13 * 2 * 64 * 2 + 2 * 64 * 2 * 2)
    assert [len(one.per_request) for one in found] == [0, 2, 0, 0]


EXPERTS = ModelSpec("e", 6, 64, 128, 4, 2, 16, 1000, num_experts=8, num_experts_per_tok=2)


@pytest.mark.parametrize(("tensor", "stages", "ranks"), [(1, 1, 2), (1, 1, 4), (2, 1, 2), (2, 2, 3)])
def test_ranks_that_step_together_send_what_energy_counts(tensor: int, stages: int, ranks: int) -> None:
    """The same of each rank; and of each token that enters the experts (ranks - 1) (2 hidden + experts) in a layer."""
    n = tensor * stages * ranks
    places = [Place(0, i) for i in range(n)]
    found = exchanges(topology("full_mesh", n), places, EXPERTS, "bfloat16", tensor=tensor, stages=stages)
    of_one = exchanges(
        topology("full_mesh", n), places[: n // ranks], EXPERTS, "bfloat16", tensor=tensor, stages=stages
    )
    for kind in ("per_token", "per_request"):
        total, alone = (sum(sum(getattr(one, kind).values()) for one in made) for made in (found, of_one))
        assert total == pytest.approx(ranks * alone)
    entering = sum(sum(one.per_entering.values()) for one in found)
    assert entering == pytest.approx(tensor * 6 * (ranks - 1) * (2 * 64 + 8) * 2)
    assert not any(one.per_entering for one in of_one)


@pytest.mark.parametrize(("tensor", "stages", "ranks"), [(2, 1, 2), (4, 1, 2), (2, 2, 3)])
def test_ranks_that_split_tokens_send_what_energy_counts(tensor: int, stages: int, ranks: int) -> None:
    """An all-reduce and an all-gather in a layer, and of each token that enters (devices - 1) (2 hidden + experts)."""
    n = tensor * stages * ranks
    places = [Place(0, i) for i in range(n)]
    mesh = topology("full_mesh", n)
    found = exchanges(mesh, places, EXPERTS, "bfloat16", tensor=tensor, stages=stages, split=True)
    in_layers = (3 * 6 + 2) * (tensor - 1) * 64 * 2
    to_next_stage = (stages - 1) * 2 * 64 * 2 * tensor
    assert sum(sum(one.per_token.values()) for one in found) == pytest.approx(ranks * (in_layers + to_next_stage))
    entering = sum(sum(one.per_entering.values()) for one in found)
    assert entering == pytest.approx(6 * (tensor * ranks - 1) * (2 * 64 + 8) * 2)
    whole = exchanges(mesh, places, EXPERTS, "bfloat16", tensor=tensor, stages=stages)
    assert [sum(one.per_request.values()) for one in found] == [sum(one.per_request.values()) for one in whole]


def test_all_devices_that_split_tokens_are_one_ring() -> None:
    """Each of 2 x 2 devices sends 3 / 4 of the bytes to the next, of whichever rank that is."""
    places, made = [Place(0, i) for i in range(4)], topology("full_mesh", 4)
    found = exchanges(made, places, EXPERTS, "bfloat16", tensor=2, stages=1, split=True)
    (ring,) = [one.per_entering for one in found if one.per_entering]
    ways = [made.path(places[i], places[(i + 1) % 4])[0] for i in range(4)]
    assert ring == {link: pytest.approx(3 / 4 * 6 * (2 * 64 + 8) * 2) for link in ways}


def together(*tokens: int) -> StepPlan:
    """A step of ranks that decode so many requests each."""
    first, *others = (decode_plan(n, 100) for n in tokens)
    return msgspec.structs.replace(first, alongside=tuple(others))


@pytest.mark.parametrize(("tokens", "dummies", "n_bytes"), [((10, 30), 1, 7000), ((10,), 1, 2100), ((10,), 4, 2400)])
def test_bytes_of_a_step_are_those_of_all_ranks_once(tokens: tuple[int, ...], dummies: int, n_bytes: float) -> None:
    """100 bytes for each of the largest rank's tokens, 100 for each of two ranks': one without requests has dummies."""
    link, network = Link("wire", SPEED, 0.0), Network()
    exchange = Exchange({link: 100.0}, {}, {link: 100.0}).only([link])
    shared = SharedLinks(LinearStepTime(0.02), [exchange], [link], network, stages=1, ranks=2, dummy_tokens=dummies)
    shared.ran(together(*tokens), np.array([0.0]), np.array([0.02]))
    assert shared.rate(link, 0.01)[0] * 0.02 == pytest.approx(n_bytes)


def test_experts_of_all_ranks_and_a_transfer_share_a_link() -> None:
    """10,000 bytes of 40 tokens in 20 ms: beside KV half of the link, 30 ms, and the KV has the other 20,000."""
    link, network = Link("wire", SPEED, 0.0), Network()
    exchange = Exchange({}, {}, {link: 250.0})
    shared = SharedLinks(LinearStepTime(0.02), [exchange], [link], network, stages=1, ranks=2)
    kv = network.start((link,), 20_000.0, 0.0, "KV")
    network.advance(0.0)
    plan = together(10, 30)
    cost = shared.price(plan)
    assert cost.device_s == pytest.approx(0.03)
    shared.count(plan, 1)
    shared.ran(plan, np.array([0.0]), np.array([0.03]))
    network.advance(np.inf)
    assert kv.end_s == pytest.approx(0.03)
    assert network.carried_bytes(link, 0.03) + 40 * 250 == pytest.approx(0.03 * SPEED)


def test_one_device_sends_nothing() -> None:
    assert exchanges(topology("full_mesh", 2), [Place(0, 0)], MODEL, "bfloat16", tensor=1, stages=1) == ()


def test_switches_are_shared_by_what_goes_the_same_way() -> None:
    """Up from the first two devices: one link each for their ring and for KV to the other two."""
    made = topology("switch", 4)
    (one,) = exchanges(made, [Place(0, 0), Place(0, 1)], MODEL, "bfloat16", tensor=2, stages=1)
    kv = {link for a, b in ((0, 2), (1, 3)) for link in made.path(Place(0, a), Place(0, b))}
    assert {link.name for link in one.only(kv).per_token} == {"node0.dev0.up", "node0.dev1.up"}
    assert [a <= b for a, b in pairwise(sorted(one.per_token.values()))] == [True] * 3
