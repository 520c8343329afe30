"""What a cluster drew while it served: power over time and energy, by component, from the record of its steps.

A device is active while a step is under way on its instance, on standby for some seconds after it, and idle else. The
host is busy while an instance of its node is. What is drawn all the time is constant, and what is sent costs so much a
bit. Power is constant between two events, so that every figure here is an exact sum and not a sample.

Every component of every node is known or None; what is None is in no sum and is never 0 (`PowerRun.unknown`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from profiles.device import DevicePower
from simulator.kv.tiers import Move
from simulator.network.topology import Place
from simulator.network.transfers import Network
from simulator.power.curves import Curve, Spans, constant, spread, summed
from simulator.power.nodes import COMPONENTS, NodePower
from simulator.power.sent import BITS, Sent, sent_beside
from traces.capture import Series
from traces.steps import Batches, Floats, Ints, Steps
from traces.windows import Grid


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
        begins_s, ends_s, widths_s = grid.begins_s(), grid.ends_s(), grid.widths_s()
        found = {
            f"power_w.{name}": (self.by_s(name, ends_s) - self.by_s(name, begins_s)) / widths_s
            for name in self.components
        }
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
    unknown = _unknown(machines, nodes)
    drawn = _Drawn([name for name in COMPONENTS if name not in unknown], len(steps))
    unpriced: list[str] = []
    for one in work:
        beside = by_rank.get(one.machine.rank)
        drawn.add_devices(one, beside)
        node = nodes[one.machine.places[0].node]
        drawn.add_collectives(one, node)
        if beside is not None:
            unpriced += drawn.add_beside(one, beside, node)
    for number, node in enumerate(nodes):
        drawn.add_node(number, node, work)
    sent = None if network is None and not moves else sent_beside(network or Network(), nodes, drawn.serving, moves)
    missing = [*unknown.values(), *(sent.unknown if sent else ()), *_unpriced_collectives(machines, nodes), *unpriced]
    return PowerRun(
        end_s,
        {name: summed(curves) for name, curves in drawn.serving.items()},
        {name: summed(curves) for name, curves in drawn.idle.items()},
        drawn.step_j,
        sent,
        tuple(dict.fromkeys(missing)),
        tuple(_outside(work, len(steps))),
    )


# -- what a rank's steps draw ----------------------------------------------------------------------------------------


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
    """A rank's steps, [n_own]: their numbers in the record, when its devices were at them, and what was in them."""

    machine: Machine
    own: Ints
    spans: Spans
    n_prefill_tokens: Ints
    n_decode_tokens: Ints
    n_requests: Ints

    @property
    def n_tokens(self) -> Ints:
        """Tokens of each."""
        return self.n_prefill_tokens + self.n_decode_tokens


def _work(machine: Machine, steps: Steps) -> _Work:
    """With stages, a batch is under way from its planning on; else from when the one before it has left the device."""
    own = np.flatnonzero(steps.instance == machine.rank)
    end_s, begin_s = steps.end_s[own], steps.scheduled_s[own]
    if machine.stages == 1 and len(own):
        begin_s = np.maximum(begin_s, np.concatenate([[0.0], end_s[:-1]]))
    counts = steps.n_prefill_tokens[own], steps.n_decode_tokens[own], steps.n_requests[own]
    return _Work(machine, own, Spans(begin_s, end_s), *counts)


def _each_w(work: _Work, power: DevicePower, beside: Beside | None) -> Floats:
    """Watts that a rank's devices draw in each step, [n_own]: those of one stage, the others are at rest meanwhile."""
    spans, stages, devices = work.spans, work.machine.stages, len(work.machine.places)
    each_w = active_w(power, work.n_prefill_tokens, work.n_decode_tokens) * devices / stages
    if beside is None:
        return each_w
    lengths_s = spans.lengths_s
    waits: Floats = np.divide(beside.waiting_s, lengths_s, out=np.zeros(len(lengths_s)), where=lengths_s > 0)
    waits = np.minimum(waits, 1.0)
    standby_w = (power.standby_w or power.idle_w) * devices / stages
    return each_w * (1 - waits) + standby_w * waits


def _rest(work: _Work, power: DevicePower) -> Curve:
    """What all devices of a rank draw at rest: idle, on standby behind a step, or while a batch is in another stage."""
    spans, stages, devices = work.spans, work.machine.stages, len(work.machine.places)
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
    return summed(resting)


# -- the sum ---------------------------------------------------------------------------------------------------------


class _Drawn:
    """What is drawn, added up by component; nothing is added to a component that is not known.

    Attributes:
        serving: curves drawn for steps.
        idle: curves drawn beside.
        step_j: [n_steps] energy of each step.
    """

    def __init__(self, known: Sequence[str], n_steps: int) -> None:
        self.serving: dict[str, list[Curve]] = {name: [] for name in known}
        self.idle: dict[str, list[Curve]] = {name: [] for name in known}
        self.step_j = {name: np.zeros(n_steps) for name in known}

    def add_devices(self, work: _Work, beside: Beside | None) -> None:
        """What the devices of a rank draw; `beside` says how long they wait."""
        power = work.machine.power
        if "devices" in self.serving and power is not None:
            each_w = _each_w(work, power, beside)
            self.serving["devices"].append(work.spans.sum(each_w))
            self.idle["devices"].append(_rest(work, power))
            self.step_j["devices"][work.own] += each_w * work.spans.lengths_s

    def add_collectives(self, work: _Work, node: NodePower) -> None:
        """What the devices of a rank send each other in its steps, at an even rate in each."""
        machine, j_per_bit = work.machine, node.j_per_bit("links")
        if j_per_bit is not None and machine.link_bytes_per_token is not None:
            n_bytes = work.n_tokens * machine.link_bytes_per_token + work.n_requests * machine.link_bytes_per_request
            self._add_evenly("links", work, n_bytes * BITS * j_per_bit)

    def add_beside(self, work: _Work, beside: Beside, node: NodePower) -> list[str]:
        """What a rank draws beside its devices. Returns what of it is not known."""
        unknown = list(beside.unknown)
        for name, joules in beside.drawn_j.items():
            self._add_evenly(name, work, joules)
        for name, watts in beside.idle_w.items():
            if name in self.idle:
                self.idle[name].append(constant(watts))
        for name, n_bytes in beside.sent_bytes.items():
            if (j_per_bit := node.j_per_bit(name)) is not None:
                self._add_evenly(name, work, n_bytes * BITS * j_per_bit)
            elif name in self.serving and n_bytes.any():
                unknown.append(f"energy of {n_bytes.sum() / 1e9:.3f} GB over {name} to memories beside the devices")
        return unknown

    def _add_evenly(self, component: str, work: _Work, joules: Floats) -> None:
        """Energy of a rank's steps, [n_own], at an even rate in each; steps that take no time draw none."""
        if component in self.serving:
            self.serving[component].append(spread(work.spans, joules))
            self.step_j[component][work.own] += np.where(work.spans.lengths_s > 0, joules, 0.0)

    def add_node(self, number: int, node: NodePower, work: Sequence[_Work]) -> None:
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
        own_s = weights * (share.energy_j(spans.end_s) - share.energy_j(spans.begin_s))  # of each step, by devices
        for name, (idle_w, busy_w) in node.levels().items():
            if name in self.serving:
                self.serving[name].append(Curve(at_work.edges_s, np.where(busy, busy_w, 0.0)))
                self.idle[name].append(Curve(at_work.edges_s, np.where(busy, 0.0, idle_w)))
                np.add.at(self.step_j[name], own, own_s * busy_w)


# -- what is not known -----------------------------------------------------------------------------------------------


def _unknown(machines: Sequence[Machine], nodes: Sequence[NodePower]) -> dict[str, str]:
    """Components that some node does not describe, and what is to be said of them."""
    unknown = {}
    if any(machine.power is None for machine in machines):
        unknown["devices"] = "power of devices"
    for name in COMPONENTS[1:]:
        if any(name not in node.levels() for node in nodes):
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


def _outside(work: Sequence[_Work], n_steps: int) -> list[str]:
    """Steps whose tokens lie outside what their device's power was described for."""
    count = 0
    for one in work:
        if one.machine.power is not None and one.machine.power.active_w_by_tokens is not None:
            points = one.machine.power.active_w_by_tokens
            count += int(((one.n_tokens < points[0][0]) | (one.n_tokens > points[-1][0])).sum())
    return [f"power of {count} of {n_steps} steps read beyond active_w_by_tokens, at its end"] if count else []
