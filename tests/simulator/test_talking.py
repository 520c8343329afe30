"""Collectives of several engines over one bus: closed forms, bytes, message by message, and nothing else changed."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.network.links import Link
from simulator.network.topology import FabricFile, NodeFile, Place, Topology, TopologyFile
from simulator.network.transfers import Network
from simulator.service import Service
from simulator.simulate import simulate
from simulator.steps.contention import Exchange
from simulator.steps.talking import Neighbour, Talk, beside_s, talk_of
from simulator.stream import Stream
from tests.engines import LinearStepTime, engine, trace
from tests.simulator.test_cluster import same_bytes
from traces.errors import InputError
from traces.trace import Trace

SPEED = 1e6
WIRE = Link("wire", SPEED, 0.0)


def on_one_bus(*bytes_per_token: float, kind: str = "bus", step_s: float = 0.02) -> Cluster:
    """Engines of two devices each, whose devices exchange so many bytes for each token of a step."""
    topology = Topology(TopologyFile((NodeFile(2 * len(bytes_per_token), FabricFile(kind, SPEED, 0.0)),)))  # type: ignore[arg-type]
    made = []
    for i, n_bytes in enumerate(bytes_per_token):
        path = topology.path(Place(0, 2 * i), Place(0, 2 * i + 1))
        made.append(replace(engine(LinearStepTime(step_s)), exchanges=(Exchange(dict.fromkeys(path, n_bytes), {}),)))
    return Cluster(tuple(made), topology=topology)


def gaps_s(cluster: Cluster, made: Trace) -> list[np.ndarray]:
    """Time between the tokens of each request."""
    return [np.diff(outcome.token_times_s or ()) for outcome in simulate(made, cluster).capture.outcomes]


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_engines", [2, 3])
def test_equal_engines_always_in_step_take_the_time_of_a_collective_once_more_for_each_other(n_engines: int) -> None:
    """Steps of 20 ms, of which 5 are a collective: it takes as many times as long as there are engines."""
    made = trace(*[(0.0, 1, 30)] * n_engines)
    run = simulate(made, on_one_bus(*[5000.0] * n_engines))
    for outcome in run.capture.outcomes:
        assert np.diff(outcome.token_times_s or ()) == pytest.approx(0.015 + n_engines * 0.005)
    extra_s = 30 * n_engines * (n_engines - 1) * 0.005
    said = f"{30 * n_engines} steps took {extra_s:.6g} s longer for other engines on links of their collectives"
    assert said in "\n".join(run.capture.meta.notes)


def of_ranks(cluster: Cluster, ranks: int = 2) -> Cluster:
    """The same with engines of ranks that step together, whose bytes are of each token of all ranks."""
    engines = tuple(
        replace(one, ranks=ranks, exchanges=tuple(Exchange({}, {}, own.per_token) for own in one.exchanges))
        for one in cluster.engines
    )
    return replace(cluster, engines=engines)


def test_engines_of_ranks_in_step_send_for_all_their_ranks() -> None:
    """Two engines of two ranks: one has a request on each, the other on one, and a dummy token beside it.

    2,500 bytes a token: of 20 ms there are 5 of a collective, in either; together they take 25.
    """
    made, cluster = trace(*[(0.0, 1, 30)] * 3), replace(of_ranks(on_one_bus(2500.0, 2500.0)), routing="round_robin")
    for gaps in gaps_s(cluster, made):
        assert gaps == pytest.approx(0.025)
    said = "60 steps took 0.3 s longer for other engines on links of their collectives"
    assert said in "\n".join(simulate(made, cluster).capture.meta.notes)


def test_of_two_in_step_the_longer_is_slowed_as_long_as_the_shorter_is_there() -> None:
    """15 + 2 * 2 ms, and 15 + 5 + 2: one ends before the other, and they do not meet again as they did."""
    talk = talk_of([{WIRE: 0.002}], 0.0, 0.019, 0.002)
    assert Neighbour(talk).longer_s(WIRE, 0.005, 0.0) == pytest.approx(0.002)
    assert Neighbour(talk).longer_s(WIRE, 0.001, 0.0) == pytest.approx(0.001)


def test_others_meet_by_chance() -> None:
    """A quarter of the other's step is talk, so that a quarter of the messages meet another."""
    talk = Talk(0.0, 0.02, {WIRE: 0.004}, {WIRE: 0.25})
    assert beside_s([{WIRE: 0.008}], [Neighbour(talk)], 0.013) == pytest.approx(0.002)
    assert beside_s([{WIRE: 0.008}], [Neighbour(talk)] * 2, 0.013) == pytest.approx(0.004)
    assert beside_s([{WIRE: 0.008}], [Neighbour(talk)], 0.02) == 0.0
    assert beside_s([{WIRE: 0.008}], [Neighbour(None)], 0.0) == 0.0
    assert beside_s([{WIRE: 0.008}], [Neighbour(talk, is_due=True)], 0.02) == pytest.approx(0.008)


def test_each_exchange_is_as_long_as_on_its_worst_link() -> None:
    other = Link("other", SPEED, 0.0)
    talk = Talk(0.0, 1.0, {WIRE: 0.1, other: 0.3}, {WIRE: 0.1, other: 0.3})
    both = [{WIRE: 0.01, other: 0.01}, {WIRE: 0.02}]
    assert beside_s(both, [Neighbour(talk)], 0.5) == pytest.approx(0.3 * 0.01 + 0.1 * 0.02)


def test_what_is_all_talk_takes_twice_as_long_whenever_it_begins() -> None:
    """20 ms of a collective a step: a request that comes later finds the link always taken."""
    first, second = gaps_s(on_one_bus(20_000.0, 20_000.0), trace((0.0, 1, 60), (0.113, 1, 20)))
    assert second == pytest.approx(0.04)
    assert first[:4] == pytest.approx(0.02)
    assert first[10:20] == pytest.approx(0.04)


# -- what does not change ----------------------------------------------------------------------------------------------


def test_on_links_of_their_own_engines_do_not_slow_each_other() -> None:
    made = trace(*[(0.01 * i, 20, 30) for i in range(8)])
    apart, silent = on_one_bus(5000.0, 5000.0, kind="full_mesh"), on_one_bus(0.0, 0.0)
    assert simulate(made, apart).capture.outcomes == simulate(made, silent).capture.outcomes
    slower = simulate(made, on_one_bus(5000.0, 5000.0)).capture.outcomes
    pairs = zip(slower, simulate(made, silent).capture.outcomes, strict=True)
    assert all((one.finish_s or 0) > (other.finish_s or 0) for one, other in pairs)


def test_an_engine_alone_is_not_slowed() -> None:
    (alone,) = gaps_s(on_one_bus(5000.0, 5000.0), trace((0.0, 1, 30)))
    assert alone == pytest.approx(0.02)


def test_more_bytes_slow_both() -> None:
    made = trace(*[(0.013 * i, 20, 30) for i in range(8)])
    ends = [max(o.finish_s or 0 for o in simulate(made, on_one_bus(n, n)).capture.outcomes) for n in (0, 500, 900)]
    assert ends[0] < ends[1] < ends[2]


def test_what_cannot_be_streamed_is_refused() -> None:
    with pytest.raises(InputError, match="links of one engine's collectives are another's too"):
        Stream(trace(), on_one_bus(5000.0, 5000.0))


# -- properties --------------------------------------------------------------------------------------------------------

ROWS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(1, 100), st.integers(1, 40)).map(lambda row: (round(row[0], 3), *row[1:])),
    min_size=2,
    max_size=20,
).map(sorted)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([50.0, 190.0]), st.integers(2, 3), st.booleans(), st.booleans())
def test_fast_forward_changes_nothing_of_ranks_in_step(
    rows: list[tuple[float, int, int]], per_token: float, ranks: int, asynchronous: bool, is_late: bool
) -> None:
    cluster = of_ranks(on_one_bus(per_token, per_token), ranks)
    own = engine(LinearStepTime(0.02, 3e-4), async_scheduling=asynchronous)
    engines = tuple(replace(one, options=own.options, step_time=own.step_time) for one in cluster.engines)
    made = trace(*(rows if is_late else [(0.0, *row[1:]) for row in rows]))
    same_bytes(made, replace(cluster, engines=engines))


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(2, 3), st.sampled_from([50.0, 190.0]), st.booleans(), st.booleans())
def test_fast_forward_changes_nothing_and_no_byte_is_lost(
    rows: list[tuple[float, int, int]], n_engines: int, per_token: float, asynchronous: bool, is_late: bool
) -> None:
    """Steps of 20 ms and 0.3 more a token, of which at most 0.19 are talk: a link is never taken more than wholly."""
    cluster = on_one_bus(*[per_token] * n_engines)
    own = engine(LinearStepTime(0.02, 3e-4), async_scheduling=asynchronous)
    engines = tuple(replace(one, options=own.options, step_time=own.step_time) for one in cluster.engines)
    made = trace(*(rows if is_late else [(0.0, *row[1:]) for row in rows]))
    run = same_bytes(made, replace(cluster, engines=engines))
    steps = run.capture.steps
    assert steps is not None
    n_bytes = per_token * float((steps.n_prefill_tokens + steps.n_decode_tokens).sum())
    assert n_bytes == pytest.approx(per_token * sum(row.prompt_tokens + row.output_tokens - 1 for row in made.rows))
    assert n_bytes <= SPEED * (steps.end_s.max() - min(row.arrival_s for row in made.rows))
    service = Service(made, replace(cluster, engines=engines), fast_forward=True)
    service.run()
    assert all(rank.scheduler.num_free_blocks == rank.num_blocks for rank in service.ranks)


def by_message(engines: list[tuple[float, float, int, float]], steps: int) -> list[float]:
    """Mean step of engines of (compute of a layer, its seconds of talk, layers, start), each message by itself."""
    network = Network()
    n_done, ends_s = [0] * len(engines), [[start_s] for *_, start_s in engines]
    talks_at = [(start_s + compute_s, i) for i, (compute_s, _, _, start_s) in enumerate(engines)]
    heapq.heapify(talks_at)
    under_way: dict[int, int] = {}
    while all(len(ends) <= steps for ends in ends_s):
        if talks_at and talks_at[0][0] <= network.next_event_s():
            at_s, i = heapq.heappop(talks_at)
            network.advance(at_s)
            under_way[network.start((WIRE,), engines[i][1] * SPEED, max(at_s, network.now_s)).number] = i
            continue
        for sent in network.advance(network.next_event_s()):
            i = under_way.pop(sent.number)
            n_done[i] += 1
            assert sent.end_s is not None
            if n_done[i] % engines[i][2] == 0:
                ends_s[i].append(sent.end_s)
            heapq.heappush(talks_at, (sent.end_s + engines[i][0], i))
    return [float(np.diff(ends).mean()) for ends in ends_s]


def by_step(engines: list[tuple[float, float, int, float]], steps: int) -> list[float]:
    """The same, as the simulator has it."""
    ends_s = [[start_s] for *_, start_s in engines]
    talks: list[Talk | None] = [None] * len(engines)
    while all(len(ends) <= steps for ends in ends_s):
        i = min(range(len(engines)), key=lambda i: ends_s[i][-1])
        compute_s, talk_s, layers, _ = engines[i]
        begin_s, own = ends_s[i][-1], [{WIRE: layers * talk_s}]
        longer_s = beside_s(own, [Neighbour(talk) for j, talk in enumerate(talks) if j != i], begin_s)
        ends_s[i].append(begin_s + layers * (compute_s + talk_s) + longer_s)
        talks[i] = talk_of(own, begin_s, ends_s[i][-1], longer_s)
    return [float(np.diff(ends).mean()) for ends in ends_s]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(1e-4, 1e-3), st.floats(5e-5, 1e-3), st.just(30), st.floats(1e-4, 0.01)),
        min_size=2,
        max_size=2,
        unique_by=lambda one: one[3],
    ).filter(lambda pair: abs(sum(pair[0][:2]) / sum(pair[1][:2]) - 1) > 0.05)
)
def test_steps_take_as_long_as_message_by_message(engines: list[tuple[float, float, int, float]]) -> None:
    """Within 15 % of a step, where layers are not as long; those that are keep the phase that they began with."""
    for exact_s, ours_s, (compute_s, talk_s, layers, _) in zip(
        by_message(engines, 40), by_step(engines, 40), engines, strict=True
    ):
        assert ours_s == pytest.approx(exact_s, rel=0.15)
        assert layers * (compute_s + talk_s) * (1 - 1e-9) <= ours_s <= layers * (compute_s + 2 * talk_s) * (1 + 1e-9)
