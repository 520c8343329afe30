"""Collectives of an engine, and KV and collectives of others, over the same links: each takes longer for the other.

A step's collectives are hundreds of short messages between computations. They are taken as what they amount to: so many
bytes on each link, at an even rate while a step goes on evenly. KV transfers have what they leave of the link.

In return a step takes longer. Beside KV its collectives have a max-min fair share of the link, as one transfer more
would have: a step of `D` seconds with `S` bytes on a link of bandwidth `B` goes on as if it took
`D + S / share - S / B`, from one moment to the next at which some KV begins or ends, as far as that is known when the
step is planned; on the worst link of each exchange.

Ranks that step together send at the same moments: what they send on a link is one sum.

KV that comes later in a step slows only the next one. Bytes are a ring's, whatever the algorithm, without padding.
Other engines' collectives slow it as `talking.py` says, by what is known of these engines when the step is planned.
Links that nobody else crosses change nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import msgspec
import numpy as np

from profiles.model import ModelSpec, dtype_bytes
from simulator.network.collectives import Operation, traffic
from simulator.network.links import Link, Path
from simulator.network.topology import Place, Topology
from simulator.network.transfers import Network, fair_rates
from simulator.scheduling.plan import StepPlan
from simulator.steps.partition import expert_groups, layer_passes, stage_layers
from simulator.steps.step_time import StepCost, StepTimeModel, reads_batches
from simulator.steps.talking import Neighbour, Talk, beside_s, talk_of
from traces.steps import Floats


@dataclass(frozen=True, slots=True)
class Exchange:
    """What devices send each other at once in a step: a group's collectives, or one stage's output to the next.

    Attributes:
        per_token: bytes on each link for each token of the step, of ranks that step together of the largest.
        per_request: likewise for each request.
        per_entering: likewise for each token of all ranks, which enters the experts that they share.
    """

    per_token: Mapping[Link, float]
    per_request: Mapping[Link, float]
    per_entering: Mapping[Link, float] = field(default_factory=dict)

    def only(self, links: Collection[Link]) -> Exchange:
        """What of it crosses these links."""
        kinds = (self.per_token, self.per_request, self.per_entering)
        return Exchange(*({link: n_bytes for link, n_bytes in kind.items() if link in links} for kind in kinds))

    @property
    def links(self) -> tuple[Link, ...]:
        """The links that it crosses."""
        return tuple(dict.fromkeys((*self.per_token, *self.per_request, *self.per_entering)))

    def link_bytes(self, n_tokens: int, n_requests: int, n_entering: int = 0) -> dict[Link, float]:
        """Bytes of a step on each link."""
        found = {link: n_tokens * n_bytes for link, n_bytes in self.per_token.items()}
        for count, kind in ((n_requests, self.per_request), (n_entering, self.per_entering)):
            for link, n_bytes in kind.items():
                found[link] = found.get(link, 0.0) + count * n_bytes
        return found


def exchanges(
    topology: Topology,
    places: Sequence[Place],
    model: ModelSpec,
    dtype: str,
    *,
    tensor: int,
    stages: int,
    split: bool = False,
) -> tuple[Exchange, ...]:
    """What an engine's devices send each other, as `simulator.steps.partition.communication` times it.

    Ranks that step together send at the same moments, and so they are one exchange.

    Args:
        topology: the links between them.
        places: the devices, rank by rank, and of a rank stage by stage.
        model: its dimensions.
        dtype: of hidden states.
        tensor: devices that share each layer.
        stages: pipeline stages.
        split: the devices of a rank split its tokens before the experts (`use_sequence_parallel_moe`).
    """
    width = dtype_bytes(dtype)
    hidden = model.hidden_size * width
    starts = range(0, len(places), tensor * stages)
    # By stage, the devices of each rank that share its layers.
    groups = [[places[at + i * tensor : at + (i + 1) * tensor] for at in starts] for i in range(stages)]
    found = []
    for i, (of_ranks, layers) in enumerate(zip(groups, stage_layers(model.num_layers, stages), strict=True)):
        logits = model.vocab_size * width if i == stages - 1 else 0.0
        passes = layer_passes(split=split) * layers + 2 * (i == 0)
        per_token = _of_all(topology, of_ranks, "all_gather", passes * hidden)
        found.append(Exchange(per_token, _of_all(topology, of_ranks, "all_gather", logits)))
        # Hidden states and router logits of all to each, and the sums back to whose they are: either pass of a ring
        # sends as much of its bytes.
        between_ranks = expert_groups(of_ranks, split=split)
        entering = layers * (2 * hidden + model.num_experts * width)
        found.append(Exchange({}, {}, _of_all(topology, between_ranks, "all_gather", entering)))
    for of_ranks, after in pairwise(groups):
        # Hidden states and residual; each device sends its share to its like, and the next stage gathers them.
        pairs = [pair for own, to in zip(of_ranks, after, strict=True) for pair in zip(own, to, strict=True)]
        found.append(Exchange(_summed([(topology.path(a, b), 2 * hidden / tensor) for a, b in pairs]), {}))
        found.append(Exchange(_of_all(topology, after, "all_gather", 2 * hidden), {}))
    return tuple(one for one in found if one.links)


def _of_all(
    topology: Topology, groups: Sequence[Sequence[Place]], operation: Operation, n_bytes: float
) -> dict[Link, float]:
    """Bytes by link of an operation of so many bytes in each of these groups."""
    return _summed([sent for group in groups for sent in traffic(topology, group, operation, n_bytes)])


def _summed(sent: Sequence[tuple[Path, float]]) -> dict[Link, float]:
    """Bytes by link."""
    by_link: dict[Link, float] = {}
    for path, n_bytes in sent:
        for link in path:
            by_link[link] = by_link.get(link, 0.0) + n_bytes
    return {link: n_bytes for link, n_bytes in by_link.items() if n_bytes}


@dataclass(frozen=True, slots=True)
class _Rates:
    """Bytes per second from one moment to another, [n] each, in order."""

    begin_s: Floats
    end_s: Floats
    rate: Floats


@dataclass(frozen=True, slots=True)
class _Spell:
    """Steps alike: when the last of them ends, and what they put on each link."""

    end_s: float
    rates: dict[Link, _Rates]


class SharedLinks:
    """The step times of an engine some of whose links others use too, and what its collectives leave of these.

    Attributes:
        reads_batches: as the model's.
        links: that others use.
        now_s: when the next step is planned.
        talk: what its last step does on them; None: it has run none.
        neighbours: other engines that talk over them, as they are known now.
    """

    def __init__(
        self,
        model: StepTimeModel,
        own: Sequence[Exchange],
        links: Collection[Link],
        network: Network,
        *,
        stages: int,
        talked_over: Collection[Link] = (),
        ranks: int = 1,
        dummy_tokens: int = 1,
    ) -> None:
        """Nothing is under way.

        Args:
            model: of its steps, alone on its links.
            own: what its devices send each other.
            links: that KV may cross.
            network: the KV on them.
            stages: pipeline stages, which several steps pass through at once.
            talked_over: links that other engines' collectives cross.
            ranks: that step together.
            dummy_tokens: of the batch that a rank without requests computes beside the others.
        """
        self.talk: Talk | None = None
        self.neighbours: tuple[Neighbour, ...] = ()
        self.reads_batches = reads_batches(model)
        crossing = [one.only({*links, *talked_over}) for one in own]
        self._exchanges = [one for one in crossing if one.links]
        self.links = tuple(dict.fromkeys(link for one in self._exchanges for link in one.links))
        self._ranks = ranks
        self._dummy_tokens = dummy_tokens
        self.now_s = 0.0
        self._on_links = frozenset(link for link in self.links if link in links)
        self._talked_over = frozenset(link for link in self.links if link in talked_over)
        self._model = model
        self._network = network
        self._in_turn = stages == 1
        self._spells: deque[_Spell] = deque()
        self._last_end_s = 0.0
        # Of the plan that was priced last: how much longer it takes, and how fast its bytes cross links beside KV.
        self._extra_s = 0.0
        self._slowly: dict[Link, list[tuple[float, float]]] = {}
        self._n_slowed = 0
        self._slowed_s = 0.0
        # Likewise for other engines' collectives.
        self._beside_s = 0.0
        self._n_beside = 0
        self._sum_beside_s = 0.0
        for link in self.links:
            if link in self._on_links:
                network.share_with(link, self)

    def price(self, plan: StepPlan) -> StepCost:
        """Seconds of each repeat, with the links as they are now."""
        cost = self._model.price(plan)
        self._slowly = {}
        self._extra_s = self._longer_s(plan, float(cost.device_s[0]))
        self._beside_s = beside_s(self._alone_s(plan), self.neighbours, self._begin_s)
        extra_s = self._extra_s + self._beside_s
        if not extra_s:
            return cost
        operators = cost.operators
        if operators is not None:
            operators = msgspec.structs.replace(operators, communication_s=operators.communication_s + extra_s)
        return replace(cost, device_s=cost.device_s + extra_s, operators=operators)

    def count(self, plan: StepPlan, times: int) -> None:
        """Count `times` steps of the plan that was priced last."""
        self._model.count(plan, times)
        if self._extra_s:
            self._n_slowed += times
            self._slowed_s += times * self._extra_s
        if self._beside_s:
            self._n_beside += times
            self._sum_beside_s += times * self._beside_s

    def notes(self) -> tuple[str, ...]:
        """What the model has to say."""
        return self._model.notes()

    @property
    def slowed(self) -> tuple[int, float]:
        """Steps that took longer for KV on their links, and by how many seconds together."""
        return self._n_slowed, self._slowed_s

    @property
    def beside(self) -> tuple[int, float]:
        """Steps that took longer for other engines' collectives on their links, and by how many seconds together."""
        return self._n_beside, self._sum_beside_s

    def is_beside(self, other: SharedLinks) -> bool:
        """Whether another engine talks over any of the same links."""
        return other is not self and not self._talked_over.isdisjoint(other.links)

    def ran(self, plan: StepPlan, scheduled_s: Floats, end_s: Floats) -> None:
        """A plan is run: its steps are planned and end at these times, [n_steps] each."""
        begin_s = scheduled_s
        if self._in_turn:
            begin_s = np.maximum(scheduled_s, np.concatenate([[self._last_end_s], end_s[:-1]]))
        link_bytes: dict[Link, float] = {}
        for one in self._exchanges:
            for link, n_bytes in one.link_bytes(*self._sizes(plan)).items():
                link_bytes[link] = link_bytes.get(link, 0.0) + n_bytes
        lasts_s = end_s - begin_s
        rates = {}
        for link, n_bytes in link_bytes.items():
            rate = np.divide(n_bytes, lasts_s, out=np.zeros(len(lasts_s)), where=lasts_s > 0)
            rates[link] = _Rates(begin_s, end_s, rate)
        for link, pieces in self._slowly.items():
            edges_s = float(begin_s[0]) + np.cumsum([0.0, *(seconds for seconds, _ in pieces)])
            rates[link] = _Rates(edges_s[:-1], edges_s[1:], np.array([rate for _, rate in pieces]))
        self._forget_before(self._network.now_s)
        if self._on_links:
            self._spells.append(_Spell(float(end_s[-1]), rates))
        self._last_end_s = float(end_s[-1])
        longer_s = self._extra_s + self._beside_s
        self.talk = talk_of(self._alone_s(plan), float(begin_s[-1]), float(end_s[-1]), longer_s)
        self._network.shared_anew(self._on_links, float(begin_s[0]))

    def stop(self, now_s: float) -> None:
        """The engine fails: nothing of it is under way."""
        self._spells.clear()
        self.talk = None
        self._last_end_s = 0.0
        self._network.shared_anew(self._on_links, now_s)

    def rate(self, link: Link, at_s: float) -> tuple[float, float]:
        """Bytes per second of collectives on a link from this moment on, and until when as far as that is known."""
        rate, until_s = 0.0, np.inf
        for spell in self._spells:
            if (own := spell.rates.get(link)) is None:
                continue
            i = int(np.searchsorted(own.end_s, at_s, side="right"))
            if i == len(own.end_s):
                continue
            if own.begin_s[i] > at_s:
                until_s = min(until_s, float(own.begin_s[i]))
            else:
                rate += float(own.rate[i])
                until_s = min(until_s, float(own.end_s[i]))
        return rate, until_s

    @property
    def is_shared_now(self) -> bool:
        """Whether KV is on the links, or on its way to them, or another engine talks there."""
        talks = any(one.is_due or (one.talk and one.talk.end_s > self.now_s) for one in self.neighbours)
        return talks or self._carries_kv

    @property
    def _carries_kv(self) -> bool:
        return bool(self._network.on(self._on_links))

    @property
    def _begin_s(self) -> float:
        """When a step begins that is planned now."""
        return max(self.now_s, self._last_end_s) if self._in_turn else self.now_s

    def _sizes(self, plan: StepPlan) -> tuple[int, int, int]:
        """Tokens and requests of the largest rank in a step, and tokens of all ranks."""
        together = (plan, *plan.alongside)
        tokens = [one.n_tokens for one in together] + [self._dummy_tokens] * (self._ranks - len(together))
        return max(tokens), max(one.n_requests for one in together), sum(tokens)

    def _alone_s(self, plan: StepPlan) -> list[dict[Link, float]]:
        """Of each exchange of a step the seconds that it takes alone on each link."""
        return [
            {link: n_bytes / link.bandwidth_bytes_per_s for link, n_bytes in one.link_bytes(*self._sizes(plan)).items()}
            for one in self._exchanges
        ]

    def _longer_s(self, plan: StepPlan, step_s: float) -> float:
        """How much longer a step takes, that would take `step_s` alone, for the KV that is known of now."""
        if not self._carries_kv:
            return 0.0
        now_s, network = self.now_s, self._network
        kv = [
            _Under(one.path, max(0.0, one.first_byte_s - now_s), network.left_bytes(one, now_s))
            for one in network.under_way.values()
            if one.path
        ]
        longer_s = 0.0
        for exchange in self._exchanges:
            longest_s = 0.0
            for link, n_bytes in exchange.link_bytes(*self._sizes(plan)).items():
                if n_bytes and link in self._on_links and any(link in one.path for one in kv):
                    pieces = _beside(link, n_bytes, step_s, kv)
                    longest_s = max(longest_s, sum(seconds for seconds, _ in pieces) - step_s)
                    self._slowly[link] = [*self._slowly.get(link, ()), *pieces]
            longer_s += longest_s
        return longer_s

    def _forget_before(self, now_s: float) -> None:
        while self._spells and self._spells[0].end_s <= now_s:
            self._spells.popleft()


def shared_notes(engines: Collection[SharedLinks], *, has_kv: bool) -> list[str]:
    """How much longer the steps of all engines took for KV, where there is any, and for each other's collectives."""
    whom = {"KV": [one.slowed for one in engines]} if has_kv and engines else {}
    if any(one.is_beside(other) for one in engines for other in engines):
        whom["other engines"] = [one.beside for one in engines]
    notes = []
    for who, slowed in whom.items():
        steps, seconds = sum(n for n, _ in slowed), sum(seconds for _, seconds in slowed)
        longer = f"{steps} steps took {seconds:.6g} s longer"
        notes.append(f"{longer} for {who} on links of their collectives, as planned")
    return notes


@dataclass(frozen=True, slots=True)
class _Under:
    """A transfer under way: its path, when its first byte comes from now on, and what is still to come."""

    path: Path
    begins_s: float
    left_bytes: float


def _beside(link: Link, n_bytes: float, step_s: float, kv: Sequence[_Under]) -> list[tuple[float, float]]:
    """A step beside the KV on one link: pieces of so many seconds, and its bytes per second in each.

    From one moment to the next at which KV begins or ends, the step goes on as if it were so all the time.
    """
    pieces: list[tuple[float, float]] = []
    at_s, to_do, left = 0.0, 1.0, list(kv)
    while True:
        now = [one for one in left if one.begins_s <= at_s]
        later_s = min([one.begins_s for one in left if one.begins_s > at_s], default=np.inf)
        *beside, share = fair_rates([*(one.path for one in now), (link,)])
        slow_s = step_s + n_bytes / share - n_bytes / link.bandwidth_bytes_per_s
        if slow_s <= 0:
            return pieces
        talks = n_bytes / share / slow_s
        alone = fair_rates([one.path for one in now])
        rates = [talks * one + (1 - talks) * other for one, other in zip(beside, alone, strict=True)]
        ends = [one.left_bytes / rate for one, rate in zip(now, rates, strict=True)]
        lasts_s = min([later_s - at_s, *ends])
        if lasts_s >= to_do * slow_s:
            return [*pieces, (to_do * slow_s, n_bytes / slow_s)]
        pieces.append((lasts_s, n_bytes / slow_s))
        at_s, to_do = at_s + lasts_s, to_do - lasts_s / slow_s
        carried = {id(one): rate * lasts_s for one, rate in zip(now, rates, strict=True)}
        left = [replace(one, left_bytes=one.left_bytes - carried.get(id(one), 0.0)) for one in left]
        left = [one for one in left if one.left_bytes > 1e-6]
