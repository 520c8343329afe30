"""What a cluster drew while it served: power over time and energy, by component, from the record of its steps.

A device is active while a step is under way on its instance, on standby for some seconds after it, and idle else. The
host is busy while an instance of its node is. What is drawn all the time is constant, and what is sent costs so much a
bit. Power is constant between two events, so that every figure here is an exact sum and not a sample.

Every component of every node is known or None; what is None is in no sum and is never 0 (`PowerRun.unknown`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from profiles.device import Above0, DevicePower
from simulator.kv.tiers import Move
from simulator.network.topology import Place
from simulator.network.transfers import Network
from traces.capture import Series
from traces.series import Grid
from traces.steps import Batches, Floats, Ints, Steps

AtLeast0 = Annotated[float, msgspec.Meta(ge=0)]

COMPONENTS = ("devices", "host", "dram", "links", "nic", "storage", "base")
"""What a node is made of."""

BITS = 8


class HostPower(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node's processors.

    Attributes:
        idle_w: while nothing is served.
        active_w: while an engine of the node has a step under way; None: as idle.
    """

    idle_w: Above0
    active_w: Above0 | None = None


class PartPower(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All parts of a kind in a node together: its memory, its links, its NICs, its storage.

    Attributes:
        idle_w: all the time.
        j_per_bit: for each bit that it carries; None: not known, and nothing is added for what it carries.
    """

    idle_w: AtLeast0
    j_per_bit: AtLeast0 | None = None


class NodePower(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a node draws. None: not known.

    Attributes:
        devices: by the device's name; one that is not named has the levels of its own file, if that has any.
        host: its processors.
        dram, links, nic, storage: all of a kind together.
        base_w: fans, board, losses of the supply: what none of the others explains.
    """

    devices: dict[str, DevicePower] = {}
    host: HostPower | None = None
    dram: PartPower | None = None
    links: PartPower | None = None
    nic: PartPower | None = None
    storage: PartPower | None = None
    base_w: AtLeast0 | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """The devices of one rank.

    Attributes:
        rank: its number, which is the steps' `instance`.
        places: its devices, at least one.
        power: of each of them; None: not known.
        stages: pipeline stages; as many batches can be under way, each on one stage.
        link_bytes_per_token: what its devices send each other for each token of a step, all of them together; None:
            not known.
        link_bytes_per_request: likewise for each request of a step.
    """

    rank: int
    places: tuple[Place, ...]
    power: DevicePower | None
    stages: int = 1
    link_bytes_per_token: float | None = 0.0
    link_bytes_per_request: float = 0.0


@dataclass(frozen=True, slots=True)
class Beside:
    """What a rank's steps draw beside its devices, and how long these wait in them, [n_own] each.

    Attributes:
        rank: its number.
        waiting_s: the devices wait, on standby.
        drawn_j: energy of each step by component, drawn at an even rate.
        idle_w: by component, all the time.
        sent_bytes: by component that carries them in each step.
        unknown: what is in no sum, in words.
    """

    rank: int
    waiting_s: Floats
    drawn_j: Mapping[str, Floats] = field(default_factory=dict)
    idle_w: Mapping[str, float] = field(default_factory=dict)
    sent_bytes: Mapping[str, Floats] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


# -- power that is constant between events ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curve:
    """Watts that are constant between edges.

    Attributes:
        edges_s: [n] ascending, the first 0.
        power_w: [n] from each edge to the next; the last for ever.
    """

    edges_s: Floats
    power_w: Floats

    def energy_j(self, at_s: npt.ArrayLike) -> Floats:
        """What was drawn from second 0 to each of these times, of the shape of `at_s`."""
        at = np.asarray(at_s, dtype=np.float64)
        by_edge = np.concatenate([[0.0], np.cumsum(self.power_w[:-1] * np.diff(self.edges_s))])
        i = np.maximum(np.searchsorted(self.edges_s, at, side="right") - 1, 0)
        energy: Floats = by_edge[i] + self.power_w[i] * np.maximum(at - self.edges_s[i], 0.0)
        return energy

    def at(self, at_s: Floats) -> Floats:
        """Watts from each of these times on, none of them before 0."""
        return self.power_w[np.searchsorted(self.edges_s, at_s, side="right") - 1]


@dataclass(frozen=True, slots=True)
class Spans:
    """Times at which something was under way, [n] each, in any order; they may overlap."""

    begin_s: Floats
    end_s: Floats

    def sum(self, amount: Floats) -> Curve:
        """The sum of the amounts, [n], of the spans that hold a time."""
        edges_s, edge = np.unique(np.concatenate([self.begin_s, self.end_s, [0.0]]), return_inverse=True)
        n, size = len(self.begin_s), len(edges_s)
        total = np.bincount(edge[: 2 * n], np.concatenate([amount, -amount]), size).cumsum()
        number = np.bincount(edge[: 2 * n], np.repeat([1.0, -1.0], n), size).cumsum()
        # Where no span is left the sum is nothing, whatever the last bit of a float says.
        return Curve(edges_s, np.where(number > 0, total, 0.0))

    def union(self) -> Spans:
        """The same times as spans that neither touch nor overlap, in order."""
        number = self.sum(np.ones(len(self.begin_s)))
        busy = np.concatenate([[False], number.power_w > 0, [False]])
        edges_s = np.append(number.edges_s, number.edges_s[-1])
        return Spans(edges_s[:-1][busy[1:-1] & ~busy[:-2]], edges_s[np.flatnonzero(busy[1:-1] & ~busy[2:]) + 1])


def constant(power_w: float) -> Curve:
    """The same from second 0 on."""
    return Curve(np.zeros(1), np.array([power_w]))


def summed(curves: Sequence[Curve]) -> Curve:
    """All of them together; nothing for none."""
    edges_s = np.unique(np.concatenate([np.zeros(1), *(curve.edges_s for curve in curves)]))
    return Curve(edges_s, np.sum([np.zeros(len(edges_s)), *(curve.at(edges_s) for curve in curves)], axis=0))


# -- what a step draws -----------------------------------------------------------------------------------------------


def active_w(power: DevicePower, n_prefill_tokens: Ints, n_decode_tokens: Ints) -> Floats:
    """Watts of one device in each of these steps, [n_steps]; a cap is the most it can be.

    A step that computes prompts beside decodes draws what computing prompts does: the more intense kernels set the
    power (Splitwise, arXiv 2311.18677, section III.G: power of the prompt phase grows with its tokens to the rated one,
    that of the token phase hardly with the batch).
    """
    tokens = n_prefill_tokens + n_decode_tokens
    if power.active_w is not None:
        watts = np.full(len(tokens), power.active_w)
    elif power.active_w_by_tokens is not None:
        points = np.array(power.active_w_by_tokens)
        watts = np.interp(tokens, points[:, 0], points[:, 1])
    else:
        assert power.active_prefill_w is not None
        assert power.active_decode_w is not None
        watts = np.where(n_prefill_tokens > 0, power.active_prefill_w, power.active_decode_w)
    return watts if power.power_cap_w is None else np.minimum(watts, power.power_cap_w)


@dataclass(frozen=True, slots=True)
class _Work:
    """A rank's steps: their numbers in the record, and when its devices were at them."""

    machine: Machine
    own: Ints
    spans: Spans


def _work(machine: Machine, steps: Steps) -> _Work:
    """With stages, a batch is under way from its planning on; else from when the one before it has left the device."""
    own = np.flatnonzero(steps.instance == machine.rank)
    end_s, begin_s = steps.end_s[own], steps.scheduled_s[own]
    if machine.stages == 1 and len(own):
        begin_s = np.maximum(begin_s, np.concatenate([[0.0], end_s[:-1]]))
    return _Work(machine, own, Spans(begin_s, end_s))


@dataclass(frozen=True, slots=True)
class _DevicesDraw:
    """Of all devices of a rank: what they draw in steps and at rest, and the energy of each step, [n_own]."""

    active: Curve
    rest: Curve
    step_j: Floats


def _devices(work: _Work, power: DevicePower, steps: Steps, beside: Beside | None) -> _DevicesDraw:
    """A batch keeps the devices of one stage busy; those of the others wait on standby meanwhile."""
    spans, stages = work.spans, work.machine.stages
    devices = len(work.machine.places)
    each_w = active_w(power, steps.n_prefill_tokens[work.own], steps.n_decode_tokens[work.own]) * devices / stages
    if beside is not None:
        lengths_s = spans.end_s - spans.begin_s
        waits = np.divide(beside.waiting_s, lengths_s, out=np.zeros(len(lengths_s)), where=lengths_s > 0)
        waits = np.minimum(waits, 1.0)
        each_w = each_w * (1 - waits) + (power.standby_w or power.idle_w) * devices / stages * waits
    busy = spans.union()
    resting = [constant(power.idle_w * devices), busy.sum(np.full(len(busy.begin_s), -power.idle_w * devices))]
    if power.standby_w is not None and power.standby_s is not None:
        until_s = np.minimum(busy.end_s + power.standby_s, np.append(busy.begin_s, np.inf)[1:][: len(busy.end_s)])
        above_w = (power.standby_w - power.idle_w) * devices
        resting.append(Spans(busy.end_s, until_s).sum(np.full(len(until_s), above_w)))
    if stages > 1:
        under_way = spans.sum(np.ones(len(spans.begin_s)))
        free = np.where(under_way.power_w > 0, np.maximum(stages - under_way.power_w, 0) / stages, 0.0)
        resting.append(Curve(under_way.edges_s, free * (power.standby_w or power.idle_w) * devices))
    return _DevicesDraw(spans.sum(each_w), summed(resting), each_w * (spans.end_s - spans.begin_s))


# -- a whole run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent beside the steps: over links, and to and from KV tiers.

    Attributes:
        network: the links and what they carried.
        j_per_bit: by link's name; a link that is not in it costs what nobody knows.
        component: that each link belongs to, by its name.
        tiers: what moves to and from tiers draws, by component; only where that is known.
    """

    network: Network
    j_per_bit: Mapping[str, float]
    component: Mapping[str, str]
    tiers: Mapping[str, Curve] = field(default_factory=dict)

    def energy_j(self, component: str, at_s: npt.ArrayLike) -> Floats:
        """What a component has drawn for it by each of these times."""
        at = np.asarray(at_s, dtype=np.float64)
        total = self.tiers[component].energy_j(at) if component in self.tiers else np.zeros(at.shape)
        at = np.minimum(at, self.network.now_s)
        for link in self.network.links:
            if self.component.get(link.name) == component and link.name in self.j_per_bit:
                total = total + self.network.carried_bytes(link, at) * BITS * self.j_per_bit[link.name]
        return total


@dataclass(frozen=True, slots=True)
class PowerRun:
    """What a run drew, from second 0 to its end.

    Every joule is in one of three parts: of a step, idle, or of something sent beside the steps. A step has what its
    devices draw in it and its share of what its node draws meanwhile, by devices; idle is all else.

    Attributes:
        end_s: the run's end.
        serving: watts drawn for steps, by component; only components that are known.
        idle: watts drawn beside.
        step_j: [n_steps] energy of each step, by component.
        sent: what was sent beside the steps; None: nothing.
        unknown: what is in no sum, in words.
        notes: what else a reader should know.
    """

    end_s: float
    serving: dict[str, Curve]
    idle: dict[str, Curve]
    step_j: dict[str, Floats]
    sent: Sent | None
    unknown: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def components(self) -> tuple[str, ...]:
        """Those that are known, in the order of `COMPONENTS`."""
        return tuple(name for name in COMPONENTS if name in self.idle)

    def by_s(self, component: str, at_s: npt.ArrayLike) -> Floats:
        """Joules of a component by each of these times; after the run's end it goes on at rest."""
        drawn = self.serving[component].energy_j(at_s) + self.idle[component].energy_j(at_s)
        return drawn + self._sent_j(component, at_s)

    def energy_j(self, component: str) -> float:
        """Joules of a component over the run."""
        return float(self.by_s(component, self.end_s))

    @property
    def total_j(self) -> float:
        """Joules of all known components over the run."""
        return sum(self.energy_j(name) for name in self.components)

    def serving_j(self, component: str) -> float:
        """Joules of a component's steps."""
        return float(self.step_j[component].sum())

    def idle_j(self, component: str) -> float:
        """Joules of a component while it served nothing."""
        return float(self.idle[component].energy_j(self.end_s))

    def sent_j(self, component: str) -> float:
        """Joules of what a component sent beside the steps."""
        return float(self._sent_j(component, self.end_s))

    def series(self, grid: Grid) -> dict[str, Series]:
        """Mean watts over each window, which stands at its end: `power_w`, and `power_w.<component>`."""
        edges_s = np.concatenate([[grid.start_s], grid.ends_s()])
        found = {f"power_w.{name}": np.diff(self.by_s(name, edges_s)) / grid.window_s for name in self.components}
        total = np.sum([np.zeros(grid.n), *found.values()], axis=0)
        return {name: Series(grid.ends_s(), watts) for name, watts in {"power_w": total, **found}.items()}

    def request_j(self, batches: Batches, n_requests: int) -> Floats:
        """Joules of each request, [n_requests]: of every step its tokens' share."""
        counts = np.diff(batches.offsets)
        step = np.repeat(np.arange(len(counts)), counts)
        tokens = np.bincount(step, batches.new_tokens, len(counts))
        each_j = np.sum([np.zeros(len(counts)), *self.step_j.values()], axis=0)
        shares_j = (each_j / np.maximum(tokens, 1))[step] * batches.new_tokens
        return np.bincount(batches.request, shares_j, n_requests).astype(np.float64)

    def _sent_j(self, component: str, at_s: npt.ArrayLike) -> Floats:
        return np.zeros(np.shape(at_s)) if self.sent is None else self.sent.energy_j(component, at_s)


def power_run(
    steps: Steps,
    machines: Sequence[Machine],
    nodes: Sequence[NodePower],
    end_s: float,
    network: Network | None = None,
    besides: Sequence[Beside] = (),
    moves: Sequence[Move] = (),
) -> PowerRun:
    """What a finished simulation drew.

    Args:
        steps: its record.
        machines: its ranks.
        nodes: what each node draws.
        end_s: the run's end, not before the last step's.
        network: links over which KV was sent; None: none were used.
        besides: of ranks that draw more than their devices do.
        moves: what moved to and from KV tiers.
    """
    by_rank = {one.rank: one for one in besides}
    work = [_work(machine, steps) for machine in machines]
    unknown, notes = _unknown(machines, nodes), _outside(work, steps)
    serving: dict[str, list[Curve]] = {name: [] for name in COMPONENTS if name not in unknown}
    idle: dict[str, list[Curve]] = {name: [] for name in serving}
    step_j = {name: np.zeros(len(steps)) for name in serving}
    unpriced: list[str] = []
    for one in work:
        if "devices" in serving and one.machine.power is not None:
            drawn = _devices(one, one.machine.power, steps, by_rank.get(one.machine.rank))
            serving["devices"].append(drawn.active)
            idle["devices"].append(drawn.rest)
            step_j["devices"][one.own] += drawn.step_j
        if "links" in serving:
            _add_collectives(one, nodes, steps, serving["links"], step_j["links"])
        if (extra := by_rank.get(one.machine.rank)) is not None:
            unpriced += _add_beside(one, extra, nodes, serving, idle, step_j)
    for number, node in enumerate(nodes):
        _add_node(number, node, work, serving, idle, step_j)
    sent = None if network is None and not moves else _sent(network or Network(), nodes, serving, moves)
    missing = (
        list(unknown.values()) + ([] if sent is None else _unpriced(sent)) + _unpriced_moves(moves, nodes, serving)
    )
    missing += _unpriced_collectives(machines, nodes) + unpriced
    return PowerRun(
        end_s,
        {name: summed(curves) for name, curves in serving.items()},
        {name: summed(curves) for name, curves in idle.items()},
        step_j,
        sent,
        tuple(dict.fromkeys(missing)),
        tuple(notes),
    )


def _add_node(
    number: int,
    node: NodePower,
    work: Sequence[_Work],
    serving: dict[str, list[Curve]],
    idle: dict[str, list[Curve]],
    step_j: dict[str, Floats],
) -> None:
    """What a node draws beside its devices: while steps are under way on it theirs, by devices; else idle."""
    here = [(one, sum(place.node == number for place in one.machine.places) / one.machine.stages) for one in work]
    here = [(one, weight) for one, weight in here if weight]
    spans = Spans(
        np.concatenate([np.zeros(0), *(one.spans.begin_s for one, _ in here)]),
        np.concatenate([np.zeros(0), *(one.spans.end_s for one, _ in here)]),
    )
    weights = np.concatenate([np.zeros(0), *(np.full(len(one.own), weight) for one, weight in here)])
    own = np.concatenate([np.zeros(0, dtype=np.int64), *(one.own for one, _ in here)])
    at_work = spans.sum(weights)
    busy = at_work.power_w > 0
    share = Curve(at_work.edges_s, np.divide(1.0, at_work.power_w, out=np.zeros(len(busy)), where=busy))
    portion = weights * (share.energy_j(spans.end_s) - share.energy_j(spans.begin_s))  # seconds that are a step's own
    for name, (idle_w, busy_w) in _levels(node).items():
        if name in serving:
            serving[name].append(Curve(at_work.edges_s, np.where(busy, busy_w, 0.0)))
            idle[name].append(Curve(at_work.edges_s, np.where(busy, 0.0, idle_w)))
            np.add.at(step_j[name], own, portion * busy_w)


def _levels(node: NodePower) -> dict[str, tuple[float, float]]:
    """Watts of a node's components but its devices, idle and busy; only those that are known."""
    levels: dict[str, tuple[float, float]] = {}
    if node.host is not None:
        busy_w = node.host.idle_w if node.host.active_w is None else node.host.active_w
        levels["host"] = (node.host.idle_w, busy_w)
    for name in ("dram", "links", "nic", "storage"):
        part: PartPower | None = getattr(node, name)
        if part is not None:
            levels[name] = (part.idle_w, part.idle_w)
    if node.base_w is not None:
        levels["base"] = (node.base_w, node.base_w)
    return levels


def _add_collectives(
    work: _Work, nodes: Sequence[NodePower], steps: Steps, serving: list[Curve], step_j: Floats
) -> None:
    """What the devices of a rank send each other in its steps, at an even rate in each."""
    machine, links = work.machine, nodes[work.machine.places[0].node].links
    if links is None or links.j_per_bit is None or machine.link_bytes_per_token is None:
        return
    tokens = steps.n_prefill_tokens[work.own] + steps.n_decode_tokens[work.own]
    n_bytes = tokens * machine.link_bytes_per_token + steps.n_requests[work.own] * machine.link_bytes_per_request
    _add_evenly(work, n_bytes * BITS * links.j_per_bit, serving, step_j)


def _add_evenly(work: _Work, joules: Floats, serving: list[Curve], step_j: Floats) -> None:
    """Energy of a rank's steps, [n_own], at an even rate in each; steps that take no time draw none."""
    lengths_s = work.spans.end_s - work.spans.begin_s
    lasts = lengths_s > 0
    joules = np.where(lasts, joules, 0.0)
    serving.append(work.spans.sum(np.divide(joules, lengths_s, out=np.zeros(len(joules)), where=lasts)))
    step_j[work.own] += joules


def _add_beside(
    work: _Work,
    beside: Beside,
    nodes: Sequence[NodePower],
    serving: dict[str, list[Curve]],
    idle: dict[str, list[Curve]],
    step_j: dict[str, Floats],
) -> list[str]:
    """What a rank draws beside its devices, of components that are known. Returns what is not."""
    node = nodes[work.machine.places[0].node]
    unknown = list(beside.unknown)
    for name, joules in beside.drawn_j.items():
        if name in serving:
            _add_evenly(work, joules, serving[name], step_j[name])
    for name, watts in beside.idle_w.items():
        if name in serving:
            idle[name].append(constant(watts))
    for name, n_bytes in beside.sent_bytes.items():
        part: PartPower | None = getattr(node, name)
        if name in serving and part is not None and part.j_per_bit is not None:
            _add_evenly(work, n_bytes * BITS * part.j_per_bit, serving[name], step_j[name])
        elif name in serving and n_bytes.any():
            unknown.append(f"energy of {n_bytes.sum() / 1e9:.3f} GB over {name} to memories beside the devices")
    return unknown


# -- what is not known -----------------------------------------------------------------------------------------------


def _unknown(machines: Sequence[Machine], nodes: Sequence[NodePower]) -> dict[str, str]:
    """Components that some node does not describe, and what is to be said of them."""
    unknown = {}
    if any(machine.power is None for machine in machines):
        unknown["devices"] = "power of devices"
    for name in COMPONENTS[1:]:
        field = "base_w" if name == "base" else name
        if any(getattr(node, field) is None for node in nodes):
            unknown[name] = f"power of {name}"
    return unknown


def _unpriced_collectives(machines: Sequence[Machine], nodes: Sequence[NodePower]) -> list[str]:
    """Collectives of ranks of several devices whose bytes, or energy per bit, are not known."""
    for machine in machines:
        links = nodes[machine.places[0].node].links
        bits_known = machine.link_bytes_per_token is not None
        silent = machine.link_bytes_per_token == 0 and machine.link_bytes_per_request == 0
        if links is not None and not silent and (links.j_per_bit is None or not bits_known):
            return ["energy of what devices of an engine send each other"]
    return []


def _outside(work: Sequence[_Work], steps: Steps) -> list[str]:
    """Steps whose tokens lie outside what their device's power was described for."""
    count = 0
    for one in work:
        if one.machine.power is not None and one.machine.power.active_w_by_tokens is not None:
            points = one.machine.power.active_w_by_tokens
            tokens = steps.n_prefill_tokens[one.own] + steps.n_decode_tokens[one.own]
            count += int(((tokens < points[0][0]) | (tokens > points[-1][0])).sum())
    return [f"power of {count} of {len(steps)} steps read beyond active_w_by_tokens, at its end"] if count else []


def _sent(network: Network, nodes: Sequence[NodePower], known: Mapping[str, object], moves: Sequence[Move]) -> Sent:
    """What links cost, by the names that `network.topology` gives them, and what moves to and from tiers does."""
    j_per_bit: dict[str, float] = {}
    component: dict[str, str] = {}
    for link in network.links:
        name, _, rest = link.name.partition(".")
        if not name.startswith("node"):
            continue  # a CXL memory, which no description of power knows
        kind = "nic" if rest.startswith("nic") else "dram" if rest == "host_memory" else "links"
        component[link.name] = kind
        part: PartPower | None = getattr(nodes[int(name.removeprefix("node"))], kind)
        if part is not None and part.j_per_bit is not None and kind in known:
            j_per_bit[link.name] = part.j_per_bit
    return Sent(network, j_per_bit, component, _moved(moves, nodes, known))


def _j_per_bit(component: str, node: NodePower) -> float | None:
    """What a bit costs that crosses a component of a node; None: not known."""
    part: PartPower | None = getattr(node, component, None)
    return None if part is None else part.j_per_bit


def _moved(moves: Sequence[Move], nodes: Sequence[NodePower], known: Mapping[str, object]) -> dict[str, Curve]:
    """What moves to and from tiers draws while it moves, by component.

    A move is taken to last a nanosecond at least: late in a long run, one may be shorter than what a float can tell.
    """
    curves: dict[str, Curve] = {}
    for component in known:
        own = [(move, _j_per_bit(component, nodes[move.node])) for move in moves if component in (move.crosses or ())]
        priced = [(move, j_per_bit) for move, j_per_bit in own if j_per_bit is not None]
        if priced:
            begin_s = np.array([move.begin_s for move, _ in priced])
            end_s = np.maximum(np.array([move.end_s for move, _ in priced]), begin_s + 1e-9)
            joules = np.array([move.n_bytes * BITS * j_per_bit for move, j_per_bit in priced])
            curves[component] = Spans(begin_s, end_s).sum(joules / (end_s - begin_s))
    return curves


def _unpriced_moves(moves: Sequence[Move], nodes: Sequence[NodePower], known: Mapping[str, object]) -> list[str]:
    """Bytes that moved to and from tiers without a known energy per bit; not of components that are not known."""
    crossed: dict[str, float] = {}
    for move in moves:
        if move.crosses is None:
            what = f"to and from KV tier {move.tier}, of which no memory is said"
            crossed[what] = crossed.get(what, 0.0) + move.n_bytes
        for component in move.crosses or ():
            is_told = component in COMPONENTS and component not in known
            if not is_told and _j_per_bit(component, nodes[move.node]) is None:
                what = f"over {component} to and from KV tier {move.tier}"
                crossed[what] = crossed.get(what, 0.0) + move.n_bytes
    return [f"energy of {n_bytes / 1e9:.3f} GB {what}" for what, n_bytes in crossed.items()]


def _unpriced(sent: Sent) -> list[str]:
    """Bytes that crossed links without a known energy per bit."""
    network = sent.network
    crossed: dict[str, float] = {}
    for link in network.links:
        if link.name not in sent.j_per_bit:
            kind = sent.component.get(link.name, "cxl")
            crossed[kind] = crossed.get(kind, 0.0) + float(network.carried_bytes(link, network.now_s))
    return [f"energy of {n_bytes / 1e9:.3f} GB sent over {kind}" for kind, n_bytes in crossed.items() if n_bytes]
