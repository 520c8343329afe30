"""Power and energy: closed forms, what a clock-watcher would add up, and nothing that is unknown in any sum."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.device import DevicePower
from simulator.kv.tiers import CROSSES, Memory, Move
from simulator.network.links import Link
from simulator.network.topology import Place
from simulator.network.transfers import Network
from simulator.power.curves import Curve, Spans, constant, summed
from simulator.power.nodes import HostPower, NodePower, PartPower
from simulator.power.run import Machine, PowerRun, power_run
from simulator.power.sent import BITS
from traces.steps import STEP_COLUMNS, Batches, Steps, steps_from_columns
from traces.windows import Grid

DEVICE = DevicePower(idle_w=30, standby_w=90, standby_s=18, active_w=300)
NODE = NodePower(
    host=HostPower(idle_w=100, active_w=140),
    dram=PartPower(idle_w=16, j_per_bit=6e-12),
    links=PartPower(idle_w=5, j_per_bit=4e-12),
    nic=PartPower(idle_w=11, j_per_bit=4e-12),
    storage=PartPower(idle_w=6),
    base_w=200,
)
HERE = (Place(0, 0),)


def record(*rows: tuple[int, float, float, int, int]) -> Steps:
    """Steps of (rank, scheduled_s, end_s, prefill tokens, decode tokens), ordered as a capture's are."""
    ordered = sorted(rows, key=lambda row: (row[2], row[0]))
    columns = {name: np.zeros(len(rows), dtype=np.int64) for name in STEP_COLUMNS}
    for i, name in enumerate(("instance", "scheduled_s", "end_s", "n_prefill_tokens", "n_decode_tokens")):
        columns[name] = np.array([row[i] for row in ordered])
    return steps_from_columns(columns)


def drawn(run: PowerRun, begin_s: float, end_s: float) -> float:
    """Joules of all components between two moments."""
    return float(sum(np.diff(run.by_s(name, [begin_s, end_s]))[0] for name in run.components))


# -- closed forms ------------------------------------------------------------------------------------------------------


def test_a_device_is_idle_at_work_on_standby_and_idle_again() -> None:
    run = power_run(record((0, 10.0, 12.0, 0, 1)), [Machine(0, HERE, DEVICE)], [NodePower()], 40.0)
    watts = run.series(Grid(0.0, 1.0, 40))["power_w.devices"].value
    assert list(watts) == [30.0] * 10 + [300.0] * 2 + [90.0] * 18 + [30.0] * 10
    assert run.total_j == pytest.approx(20 * 30 + 2 * 300 + 18 * 90)


def test_a_pause_shorter_than_the_standby_time_is_on_standby() -> None:
    steps = record((0, 0.0, 1.0, 0, 1), (0, 3.0, 4.0, 0, 1))
    run = power_run(steps, [Machine(0, HERE, DEVICE)], [NodePower()], 4.0)
    assert list(run.series(Grid(0.0, 1.0, 4))["power_w"].value) == [300.0, 90.0, 90.0, 300.0]


def test_a_device_without_standby_rests_at_once() -> None:
    power = DevicePower(idle_w=30, active_w=300)
    run = power_run(record((0, 0.0, 1.0, 0, 1)), [Machine(0, HERE, power)], [NodePower()], 2.0)
    assert run.total_j == 330


def test_prompts_and_decodes_draw_what_is_said_of_each() -> None:
    power = DevicePower(idle_w=30, active_prefill_w=300, active_decode_w=200)
    steps = record((0, 0.0, 1.0, 64, 0), (0, 1.0, 2.0, 0, 4), (0, 2.0, 3.0, 8, 4))
    run = power_run(steps, [Machine(0, HERE, power)], [NodePower()], 3.0)
    assert list(run.step_j["devices"]) == [300.0, 200.0, 300.0]


def test_power_by_tokens_is_linear_between_and_beyond_is_counted() -> None:
    power = DevicePower(idle_w=30, active_w_by_tokens=((1.0, 100.0), (101.0, 200.0)))
    steps = record((0, 0.0, 1.0, 0, 51), (0, 1.0, 2.0, 500, 0))
    run = power_run(steps, [Machine(0, HERE, power)], [NodePower()], 2.0)
    assert list(run.step_j["devices"]) == [150.0, 200.0]
    assert "power of 1 of 2 steps read beyond active_w_by_tokens, at its end" in run.notes


def test_a_cap_is_the_most_a_device_draws() -> None:
    power = DevicePower(idle_w=30, active_prefill_w=300, active_decode_w=150, power_cap_w=200, cap_slowdown="x.csv")
    steps = record((0, 0.0, 1.0, 64, 0), (0, 1.0, 2.0, 0, 4))
    run = power_run(steps, [Machine(0, HERE, power)], [NodePower()], 2.0)
    assert list(run.step_j["devices"]) == [200.0, 150.0]


def test_all_devices_of_a_rank_are_at_work_and_communication_is_part_of_it() -> None:
    run = power_run(
        record((0, 0.0, 1.0, 0, 1)),
        [Machine(0, (Place(0, 0), Place(0, 1)), DEVICE, link_bytes_per_token=1e9)],
        [NodePower(links=PartPower(idle_w=0, j_per_bit=4e-12))],
        1.0,
    )
    assert run.energy_j("devices") == 600
    assert run.energy_j("links") == pytest.approx(1e9 * BITS * 4e-12)


def test_each_batch_keeps_the_devices_of_one_stage_busy() -> None:
    """Two stages: with one batch under way one device works and the other waits, with two both work."""
    steps = record((0, 0.0, 2.0, 0, 1), (0, 1.0, 3.0, 0, 1))
    machine = Machine(0, (Place(0, 0), Place(0, 1)), DEVICE, stages=2, link_bytes_per_token=None)
    run = power_run(steps, [machine], [NodePower()], 4.0)
    assert list(run.series(Grid(0.0, 1.0, 4))["power_w.devices"].value) == [390.0, 600.0, 390.0, 180.0]


def test_a_host_is_busy_once_however_many_engines_it_has() -> None:
    """LLMServingSim adds the CPU's extra power for each instance, above what the CPU can draw."""
    steps = record((0, 0.0, 2.0, 0, 1), (1, 1.0, 3.0, 0, 1))
    machines = [Machine(0, HERE, DEVICE), Machine(1, (Place(0, 1),), DEVICE)]
    run = power_run(steps, machines, [NODE], 4.0)
    assert list(run.series(Grid(0.0, 1.0, 4))["power_w.host"].value) == [140.0, 140.0, 140.0, 100.0]
    assert run.step_j["host"] == pytest.approx([140 + 70, 70 + 140])
    assert run.idle_j("host") == 100


def test_kv_that_is_sent_costs_by_the_bit_on_every_link_it_crosses() -> None:
    network = Network()
    out, into = Link("node0.nic0.up", 1e9, 0.0), Link("node1.nic0.down", 1e9, 0.0)
    network.start((out, into), 1e9, 1.0)
    network.start((Link("node0.dev0>dev1", 1e9, 0.0),), 5e8, 0.0)
    network.start((Link("node0.host_memory", 1e9, 0.0),), 2e8, 0.0)
    network.advance(10.0)
    machines = [Machine(0, HERE, DEVICE), Machine(1, (Place(1, 0),), DEVICE)]
    run = power_run(record((0, 0.0, 1.0, 4, 0), (1, 2.0, 3.0, 0, 1)), machines, [NODE, NODE], 10.0, network)
    assert run.sent_j("nic") == pytest.approx(2 * 1e9 * BITS * 4e-12)
    assert run.sent_j("links") == pytest.approx(5e8 * BITS * 4e-12)
    assert run.sent_j("dram") == pytest.approx(2e8 * BITS * 6e-12)
    assert run.unknown == ()


# -- what is not known -------------------------------------------------------------------------------------------------


def test_what_is_not_known_is_in_no_sum_and_is_never_nothing() -> None:
    run = power_run(record((0, 0.0, 1.0, 0, 1)), [Machine(0, HERE, None)], [NodePower(base_w=50.0)], 2.0)
    assert run.components == ("base",)
    assert run.total_j == 100
    assert set(run.unknown) == {f"power of {name}" for name in ("devices", "host", "dram", "links", "nic", "storage")}
    assert "power_w.host" not in run.series(Grid(0.0, 1.0, 2))


def test_a_component_of_which_one_node_says_nothing_is_not_known() -> None:
    machines = [Machine(0, HERE, DEVICE), Machine(1, (Place(1, 0),), DEVICE)]
    run = power_run(record((0, 0.0, 1.0, 0, 1)), machines, [NODE, NodePower(base_w=1.0)], 2.0)
    assert "host" not in run.components
    assert run.energy_j("base") == 402


def test_bytes_without_an_energy_per_bit_are_told() -> None:
    network = Network()
    network.start((Link("node0.dev0>dev1", 1e9, 0.0), Link("cxl0", 1e9, 0.0)), 3e9, 0.0)
    network.advance(10.0)
    node = NodePower(links=PartPower(idle_w=5))
    run = power_run(record((0, 0.0, 1.0, 0, 1)), [Machine(0, HERE, DEVICE)], [node], 10.0, network)
    assert run.sent_j("links") == 0
    assert "energy of 3.000 GB sent over links" in run.unknown
    assert "energy of 3.000 GB sent over cxl" in run.unknown


def test_what_moves_to_and_from_a_tier_costs_by_the_bit() -> None:
    """1 GB at an even rate from 1 s to 3 s, over the links and in the memory of the second node."""
    moves = [Move("host", 1, 1.0, 3.0, 1e9, CROSSES["host"])]
    run = power_run(record(), [Machine(0, HERE, DEVICE)], [NODE, NODE], 4.0, moves=moves)
    assert run.sent_j("links") == pytest.approx(8e9 * 4e-12)
    assert run.sent_j("dram") == pytest.approx(8e9 * 6e-12)
    assert run.sent_j("nic") == 0
    assert np.diff(run.by_s("dram", [0.0, 1.0, 2.0, 3.0, 4.0])) - 2 * 16 == pytest.approx([0, 0.024, 0.024, 0])
    assert run.unknown == ()


@pytest.mark.parametrize(
    ("crosses", "unknown"),
    [
        (None, ("energy of 1.000 GB to and from KV tier far, of which no memory is said",)),
        (CROSSES["cxl"], ("energy of 1.000 GB over cxl to and from KV tier far",)),
        (CROSSES["remote"], ("energy of 1.000 GB over remote to and from KV tier far",)),
        (CROSSES["storage"], ("energy of 1.000 GB over storage to and from KV tier far",)),
    ],
)
def test_moves_without_an_energy_per_bit_are_told(crosses: tuple[str, ...] | None, unknown: tuple[str, ...]) -> None:
    moves = [Move("far", 0, 1.0, 3.0, 1e9, crosses)]
    assert power_run(record(), [Machine(0, HERE, DEVICE)], [NODE], 4.0, moves=moves).unknown == unknown


def test_collectives_without_an_energy_are_told() -> None:
    machine = Machine(0, (Place(0, 0), Place(0, 1)), DEVICE, link_bytes_per_token=None)
    run = power_run(record((0, 0.0, 1.0, 0, 1)), [machine], [NODE], 1.0)
    assert run.unknown == ("energy of what devices of an engine send each other",)


def test_nothing_was_served() -> None:
    run = power_run(record(), [Machine(0, HERE, DEVICE)], [NODE], 10.0)
    assert run.total_j == pytest.approx(10 * (30 + 100 + 16 + 5 + 11 + 6 + 200))


# -- curves ------------------------------------------------------------------------------------------------------------


def test_a_sum_of_curves_is_the_sum_of_their_watts() -> None:
    curve = summed([constant(1.0), Curve(np.array([0.0, 2.0]), np.array([0.0, 5.0]))])
    assert list(curve.at(np.array([0.0, 1.9, 2.0, 9.0]))) == [1.0, 1.0, 6.0, 6.0]
    assert list(curve.energy_j([0.0, 2.0, 3.0])) == [0.0, 2.0, 8.0]


def test_spans_that_touch_are_one() -> None:
    union = Spans(np.array([0.0, 1.0, 5.0]), np.array([1.0, 2.0, 6.0])).union()
    assert (list(union.begin_s), list(union.end_s)) == ([0.0, 5.0], [2.0, 6.0])


# -- properties --------------------------------------------------------------------------------------------------------

WATTS = st.floats(1.0, 1000.0)
SECONDS = st.floats(0.0, 30.0).map(lambda value: round(value, 3))


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Steps, list[Machine], list[NodePower]]:
    """One to three ranks on one or two nodes, each with up to eight steps."""
    n_nodes, rows, machines = draw(st.integers(1, 2)), [], []
    for rank in range(draw(st.integers(1, 3))):
        stages = draw(st.sampled_from([1, 1, 2]))
        idle, standby, prefill, decode = sorted(draw(st.tuples(WATTS, WATTS, WATTS, WATTS)))
        power = DevicePower(
            idle_w=idle, standby_w=standby, standby_s=draw(st.floats(0.1, 20.0)), active_prefill_w=prefill,
            active_decode_w=decode,
        )  # fmt: skip
        places = tuple(Place(draw(st.integers(0, n_nodes - 1)), 10 * rank + i) for i in range(stages))
        machines.append(Machine(rank, places, power, stages, draw(st.sampled_from([0.0, 1e6]))))
        ends: list[float] = []
        for _ in range(draw(st.integers(0, 8))):
            # At most as many under way as there are stages.
            earliest = ends[-stages] if len(ends) >= stages else 0.0
            scheduled = earliest + draw(SECONDS)
            ends.append(max([*ends[-1:], scheduled]) + draw(st.floats(0.001, 5.0)))
            rows.append((rank, scheduled, ends[-1], draw(st.integers(0, 50)), draw(st.integers(1, 9))))
    part = st.builds(PartPower, idle_w=WATTS, j_per_bit=st.sampled_from([1e-12, 6e-12]))
    host = st.tuples(WATTS, WATTS).map(lambda pair: HostPower(idle_w=min(pair), active_w=max(pair)))
    node = st.builds(NodePower, host=host, dram=part, links=part, nic=part, storage=part, base_w=WATTS)
    return record(*rows), machines, [draw(node) for _ in range(n_nodes)]


def watched_j(steps: Steps, machines: list[Machine], nodes: list[NodePower], end_s: float) -> float:
    """The energy as somebody would add it up who watches every moment, one after another."""
    spans = {}
    for machine in machines:
        own = [(steps[i].scheduled_s, steps[i]) for i in range(len(steps)) if steps[i].instance == machine.rank]
        if machine.stages == 1:
            befores = [0.0, *(step.end_s for _, step in own)]
            own = [(max(begin, before), step) for (begin, step), before in zip(own, befores, strict=False)]
        spans[machine.rank] = own
    marks = {0.0, end_s}
    for machine in machines:
        assert machine.power is not None
        for begin_s, step in spans[machine.rank]:
            marks |= {begin_s, step.end_s, step.end_s + (machine.power.standby_s or 0.0)}
    joules = 0.0
    for begin_s, until_s in pairwise(sorted(mark for mark in marks if mark <= end_s)):
        at_s, watts, busy_nodes = (begin_s + until_s) / 2, 0.0, set()
        for machine in machines:
            assert machine.power is not None
            assert machine.power.standby_s is not None
            now = [step for start_s, step in spans[machine.rank] if start_s < at_s < step.end_s]
            since = [step.end_s for _, step in spans[machine.rank] if step.end_s < at_s]
            raised = bool(now) or (bool(since) and at_s < max(since) + machine.power.standby_s)
            rest_w = machine.power.standby_w if raised else machine.power.idle_w
            assert rest_w is not None
            each = len(machine.places) / machine.stages
            for step in now:
                level = machine.power.active_prefill_w if step.n_prefill_tokens else machine.power.active_decode_w
                assert level is not None
                watts += level * each
            watts += rest_w * each * (machine.stages - len(now))
            busy_nodes |= {place.node for place in machine.places} if now else set()
        for number, node in enumerate(nodes):
            assert node.host is not None
            watts += (node.host.active_w if number in busy_nodes else node.host.idle_w) or 0.0
            watts += sum(part.idle_w for part in (node.dram, node.links, node.nic, node.storage) if part is not None)
            watts += node.base_w or 0.0
        joules += watts * (until_s - begin_s)
    for machine in machines:
        links = nodes[machine.places[0].node].links
        assert links is not None
        tokens = sum(step.n_prefill_tokens + step.n_decode_tokens for _, step in spans[machine.rank])
        joules += tokens * (machine.link_bytes_per_token or 0.0) * BITS * (links.j_per_bit or 0.0)
    return joules


MOVES = st.lists(
    st.tuples(SECONDS, st.floats(1e-9, 5.0), st.floats(1.0, 1e10), st.sampled_from(sorted(CROSSES))), max_size=8
)


@given(clusters(), MOVES)
def test_every_joule_is_counted_once(
    cluster: tuple[Steps, list[Machine], list[NodePower]], moved: list[tuple[float, float, float, Memory]]
) -> None:
    steps, machines, nodes = cluster
    ends = [float(steps.end_s.max(initial=0.0)), *(begin_s + lasts_s for begin_s, lasts_s, _, _ in moved)]
    end_s = max(ends) + 3.0
    moves = [Move("tier", 0, begin, begin + lasts, n_bytes, CROSSES[memory]) for begin, lasts, n_bytes, memory in moved]
    run = power_run(steps, machines, nodes, end_s, moves=moves)
    assert all("over cxl" in one or "over remote" in one for one in run.unknown)
    watched = watched_j(steps, machines, nodes, end_s)
    for move in moves:
        for name in move.crosses or ():
            part: PartPower | None = getattr(nodes[0], name, None)
            watched += 0.0 if part is None else move.n_bytes * BITS * (part.j_per_bit or 0.0)
    assert run.total_j == pytest.approx(watched, rel=1e-9)
    parts = [run.serving_j(name) + run.idle_j(name) + run.sent_j(name) for name in run.components]
    assert sum(parts) == pytest.approx(run.total_j, rel=1e-9)
    for name, part in zip(run.components, parts, strict=True):
        assert part == pytest.approx(run.energy_j(name), rel=1e-9, abs=1e-9 * run.total_j)


@given(clusters(), st.floats(0.05, 3.0))
def test_windows_of_the_series_add_up_to_the_energy(
    cluster: tuple[Steps, list[Machine], list[NodePower]], window_s: float
) -> None:
    steps, machines, nodes = cluster
    n = int(np.ceil(float(steps.end_s.max(initial=1.0)) / window_s))
    series = power_run(steps, machines, nodes, n * window_s).series(Grid(0.0, window_s, n))
    total_j = power_run(steps, machines, nodes, n * window_s).total_j
    assert series["power_w"].value.sum() * window_s == pytest.approx(total_j, rel=1e-9)
    parts = np.sum([one.value for name, one in series.items() if name != "power_w"], axis=0)
    assert parts == pytest.approx(series["power_w"].value, rel=1e-9)


@given(clusters(), st.lists(st.tuples(st.floats(0, 2), st.floats(0.01, 3)), min_size=1, max_size=8))
def test_windows_of_an_uneven_log_are_means_of_their_own_time(
    cluster: tuple[Steps, list[Machine], list[NodePower]], parts: list[tuple[float, float]]
) -> None:
    steps, machines, nodes = cluster
    gaps_s, widths_s = (np.array(column) for column in zip(*parts, strict=True))
    ends_s = np.cumsum(gaps_s + widths_s)
    spans_s = tuple(zip((ends_s - widths_s).tolist(), ends_s.tolist(), strict=True))
    run = power_run(steps, machines, nodes, float(steps.end_s.max(initial=1.0)))
    series = run.series(Grid(spans_s[0][0], 1.0, len(spans_s), uneven_s=spans_s))
    for name in run.components:
        found = series[f"power_w.{name}"].value
        for mean_w, (begin_s, end_s) in zip(found, spans_s, strict=True):
            (alone,) = run.series(Grid(begin_s, end_s - begin_s, 1))[f"power_w.{name}"].value
            assert mean_w == pytest.approx(alone, rel=1e-6, abs=1e-6)


@given(clusters())
def test_requests_share_all_energy_of_steps_and_no_other(
    cluster: tuple[Steps, list[Machine], list[NodePower]],
) -> None:
    steps, machines, nodes = cluster
    tokens = steps.n_prefill_tokens + steps.n_decode_tokens
    offsets, request, new = [0], [], []
    for number, count in enumerate(tokens.tolist()):
        first = count // 2
        for index, part in ((number % 3, first), (number % 3 + 1, count - first)):
            if part:
                request.append(index)
                new.append(part)
        offsets.append(len(request))
    kinds = (np.array(each, dtype=np.int64) for each in (offsets, request, new, [0] * len(new)))
    run = power_run(steps, machines, nodes, float(steps.end_s.max(initial=0.0)))
    shares = run.request_j(Batches(*kinds), 5)
    assert shares.sum() == pytest.approx(sum(run.serving_j(name) for name in run.components), rel=1e-9)
    assert shares[4] == 0
