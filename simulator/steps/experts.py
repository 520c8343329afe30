"""How long a mixture-of-experts layer takes: which rank holds which experts, what each has to do, and the slowest.

With expert parallelism every rank sees all tokens of the data-parallel group and computes the pairs (a token and an
expert it chose) whose experts it holds; all wait for the slowest. What a rank takes is read from the profile's table,
measured on one rank with every token's `top_k` pairs spread evenly over so many experts. The kernel is a grouped matrix
product over pairs (vLLM `model_executor/layers/fused_moe/`): each expert reached reads its weights once, and each
pair is a row of work, the rows of an expert padded to a tile. So the point to read is the one with as many rows and as
many experts, and hence as many rows per expert and as much padding:

    tokens = pairs on the rank / top_k,    experts = experts reached on the rank

A token that has one pair on a rank is one row there and not `top_k`; counting the tokens that have any pair on a rank,
T * (1 - (1 - 1/ranks)^top_k), would make nearly all of them do all their work everywhere. vLLM drops pairs of other
ranks before the product, where its kernel can (0.32 `fused_moe/experts/triton_moe.py`, `skip_invalid`).

Not modelled: what a rank does for tokens without a pair on it (gate, activation and sum over all tokens' rows in
versions before 0.32's `moe_sum` with an expert map), experts reached by one layer's tokens depending on another's, and
uneven rows per expert within a rank, which only padding would feel.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np

from profiles.interpolation import extend_linear, fill_inside
from profiles.kept import source_digest
from profiles.profile import MoeRows
from simulator.steps import draws, gates
from simulator.steps.draws import LAYOUT, Draws, half_octaves, kept_draws
from simulator.steps.gates import Gate
from traces.errors import InputError
from traces.steps import Floats, Ints

Mode = Literal["expected", "sampled"]
"""A layer takes its expected time, or a time drawn for each layer of each step."""

N_DRAWS = 512
"""Draws of chance that stand for all; the standard error of the slowest rank's excess is its spread by the root."""


@dataclass(frozen=True)
class Placement:
    """Which experts each rank holds; an expert on several is replicated, and its pairs are split evenly.

    Attributes:
        experts: by rank, the experts it holds; one that it holds twice counts twice.
    """

    experts: tuple[tuple[int, ...], ...]

    @cached_property
    def slots(self) -> tuple[Ints, Ints, Ints]:
        """Expert, rank, and replicas of that expert, of each place that holds one, [n_slots] each."""
        expert = np.array([expert for held in self.experts for expert in held], dtype=np.int64)
        rank = np.repeat(np.arange(len(self.experts)), [len(held) for held in self.experts])
        return expert, rank, np.bincount(expert)[expert]

    @cached_property
    def _starts(self) -> Ints:
        """The first slot of each rank, [n_ranks]."""
        starts: Ints = np.cumsum([0, *(len(held) for held in self.experts[:-1])])
        return starts

    def sums(self, values: Floats | Ints) -> Floats:
        """Sums of [..., n_slots] over the slots of each rank, [..., n_ranks]."""
        sums: Floats = np.add.reduceat(values, self._starts, axis=-1)
        return sums

    def check(self, n_experts: int) -> None:
        """Raise InputError unless every rank holds an expert and every expert is held by one, and no others are."""
        for rank, held in enumerate(self.experts):
            if not held:
                raise InputError(
                    f"rank {rank} holds none", field="experts.placement", accepted="an expert on each rank"
                )
        found = set(self.slots[0].tolist())
        if wrong := found.symmetric_difference(range(n_experts)):
            what = "is held by no rank" if min(wrong) in range(n_experts) else "is none of the model's"
            accepted = f"each of experts 0 to {n_experts - 1} on a rank"
            raise InputError(f"expert {min(wrong)} {what}", field="experts.placement", accepted=accepted)


def linear(n_experts: int, ranks: int, redundant: int = 0) -> Placement:
    """Runs of experts, the first ranks one more where they do not divide: vLLM's default.

    vLLM 0.32 `fused_moe/expert_map_manager.py::determine_expert_map`. `redundant` copies of the first experts follow
    behind the last, as its load balancer begins (`distributed/eplb/eplb_state.py`). Raises InputError.
    """
    slots = [*range(n_experts), *(i % n_experts for i in range(redundant))]
    each, left = divmod(_checked(len(slots), ranks), ranks)
    starts = [rank * each + min(rank, left) for rank in range(ranks + 1)]
    return Placement(tuple(tuple(slots[starts[rank] : starts[rank + 1]]) for rank in range(ranks)))


def round_robin(n_experts: int, ranks: int) -> Placement:
    """Expert e on rank e % ranks (same source; vLLM takes it for models with expert groups and some backends only)."""
    _checked(n_experts, ranks)
    return Placement(tuple(tuple(range(rank, n_experts, ranks)) for rank in range(ranks)))


def _checked(slots: int, ranks: int) -> int:
    if not 1 <= ranks <= slots:
        raise InputError(field="experts.ranks", found=ranks, accepted=f"1 to {slots}, an expert each")
    return slots


@dataclass(frozen=True, slots=True)
class Load:
    """What each rank has to do in a layer, [..., n_ranks] each: pairs to compute, and experts that have any."""

    pairs: Floats
    experts: Floats


def expected_load(gate: Gate, placement: Placement, n_tokens: int) -> Load:
    """Expected load of each rank in each row of the gate, [n_rows, n_ranks]: sums over its experts of n*q, 1-(1-q)^n.

    A replica has its share of the expert's q: vLLM deals pairs to replicas by a hash of the token
    (0.32 `fused_moe/router/base_router.py`).
    """
    expert, _, replicas = placement.slots
    q = gate.shares[:, expert] / replicas
    return Load(placement.sums(n_tokens * q), placement.sums(1 - (1 - q) ** n_tokens))


def drawn_load(placement: Placement, chosen: Ints, rng: np.random.Generator) -> Load:
    """Load of each rank, [n, n_ranks], when `chosen` [n, n_experts] tokens have chosen each expert."""
    expert, _, replicas = placement.slots
    pairs = chosen[:, expert]
    left, undealt = chosen.copy(), np.bincount(expert)
    for slot in np.flatnonzero(replicas > 1):
        own = expert[slot]
        pairs[:, slot] = rng.binomial(left[:, own], 1 / undealt[own])
        left[:, own] -= pairs[:, slot]
        undealt[own] -= 1
    return Load(placement.sums(pairs), placement.sums((pairs > 0).astype(np.int64)))


class _Table:
    """One rank's time over tokens and experts, whole: bilinear inside, and by these rules outside.

    Fewer tokens than were measured with so many experts: as with the fewest, since reading the weights is what takes
    the time; fewer experts than any: as with the fewest, a kernel's floor; more of either: linear from the last two.
    """

    def __init__(self, rows: MoeRows) -> None:
        self.tokens, self.experts = np.unique(rows.n_tokens), np.unique(rows.n_experts)
        grid = np.full((len(self.experts), len(self.tokens)), np.nan)
        grid[np.searchsorted(self.experts, rows.n_experts), np.searchsorted(self.tokens, rows.n_tokens)] = rows.time_s
        axes = (self.experts, self.tokens)
        self.grid = extend_linear(axes, fill_inside(axes, grid))

    def time_s(self, tokens: Floats, experts: Floats) -> Floats:
        """Seconds, of the arrays' common shape."""
        i, i_next, u = _bracket(self.experts, experts)
        j, j_next, v = _bracket(self.tokens, tokens)
        low = self.grid[i, j] + v * (self.grid[i, j_next] - self.grid[i, j])
        high = self.grid[i_next, j] + v * (self.grid[i_next, j_next] - self.grid[i_next, j])
        time_s: Floats = low + u * (high - low)
        return time_s


def _bracket(axis: Floats, at: Floats) -> tuple[Ints, Ints, Floats]:
    """Places below and above each value, and the weight of the upper: 0 below the axis, over 1 above it."""
    if len(axis) == 1:
        none = np.zeros(np.shape(at), dtype=np.int64)
        return none, none, np.zeros(np.shape(at))
    at = np.maximum(at, axis[0])
    low = np.minimum(axis.searchsorted(at, side="right") - 1, len(axis) - 2)
    return low, low + 1, (at - axis[low]) / (axis[low + 1] - axis[low])


class ExpertTimes:
    """Time of a step's mixture-of-experts layers, the slowest rank's.

    The expected time of a layer is that of the rank with most to do on the average, from expected loads, exactly; and
    what chance adds, since in each layer another rank is the slowest: the mean, over `N_DRAWS` draws of a layer's
    choices, of the slowest rank's time, less that of expected loads. It is drawn once at sizes half an octave
    apart, with a fixed seed, and is linear between them. In mode `sampled` a layer takes one of these draws' times
    instead of their mean.

    A gate that was recorded step by step has its chance in it: its rows are taken as they are, in mode `sampled` one
    after another, over again at the end.
    """

    def __init__(
        self,
        rows: MoeRows,
        gate: Gate,
        placement: Placement,
        *,
        num_layers: int,
        parts: int = 1,
        mode: Mode = "expected",
        seed: int = 0,
        instance: int = 0,
    ) -> None:
        """Nothing is drawn yet.

        Args:
            rows: the profile's table of one rank.
            gate: how tokens choose.
            placement: which experts are where.
            num_layers: layers of the model, all alike.
            parts: devices that share each expert of the table, where tensor parallelism splits experts and the table
                has whole ones: each reads a part of the weights and computes a part of each row, which costs what so
                many fewer whole experts and rows do.
            mode: expected or sampled.
            seed: of what is sampled.
            instance: number of the engine, so that engines of one seed differ.

        Raises:
            InputError: the placement is not one of the gate's experts.
        """
        placement.check(gate.n_experts)
        self._table = _Table(rows)
        self._gate = gate
        self._placement = placement
        self._num_layers = num_layers
        self._parts = parts
        self._is_sampled = mode == "sampled"
        self._key = np.array([seed, instance], dtype=np.uint64)
        self._layer_s: dict[int, float] = {}
        self._own_s: dict[int, Floats] = {}
        self._chance = _chance(self._table, gate, placement, parts)
        self._steps = 0
        self._outside: Counter[str] = Counter()
        self._beyond: dict[int, tuple[str, ...]] = {}

    def layer_s(self, n_tokens: int) -> float:
        """Expected seconds of one layer that so many tokens enter, over all data-parallel ranks together."""
        layer_s = self._layer_s.get(n_tokens)
        if layer_s is None:
            layer_s = float(self._rows_s(n_tokens).mean() + self._chance_s(n_tokens).mean())
            self._layer_s[n_tokens] = layer_s
        return layer_s

    def layers_s(self, n_tokens: int, first_step: int, repeat: int) -> Floats:
        """Seconds of all layers in each of `repeat` steps of so many tokens, [repeat].

        What is sampled depends on the seed, the instance and the step's number (and the layer), and on nothing that
        happened before, so that a step costs the same however steps are grouped, and no two steps share their draws.
        """
        if not self._is_sampled:
            return np.full(repeat, self._num_layers * self.layer_s(n_tokens))
        rows_s = self._rows_s(n_tokens)
        own_s = rows_s[np.arange(first_step, first_step + repeat) % len(rows_s)]
        chance_s = self._chance_s(n_tokens)
        at = self._uniform(first_step, repeat) * len(chance_s)
        sampled_s: Floats = self._num_layers * own_s + chance_s[at.astype(np.int64)].sum(axis=1)
        return sampled_s

    def _uniform(self, first_step: int, repeat: int) -> Floats:
        """Uniform numbers of each layer of each step, [repeat, num_layers]: each step owns a run of a counter.

        Philox is such a generator: its n-th block of four numbers is a function of key and n (Salmon et al., SC 2011).
        """
        blocks = -(-self._num_layers // 4)
        counter = np.array([first_step * blocks, 0, 0, 0], dtype=np.uint64)
        rng = np.random.Generator(np.random.Philox(key=self._key, counter=counter))
        return rng.random((repeat, 4 * blocks))[:, : self._num_layers]

    def _rows_s(self, n_tokens: int) -> Floats:
        """Of each row of the gate, the time of the rank with most to do by expected loads, [n_rows]; kept."""
        if n_tokens not in self._own_s:
            self._look_up(n_tokens)
        return self._own_s[n_tokens]

    def _look_up(self, n_tokens: int) -> None:
        """Read the table at expected loads: times, and on which of its sides the load of some rank lies."""
        if not n_tokens:
            self._own_s[n_tokens], self._beyond[n_tokens] = np.zeros(len(self._gate.shares)), ()
            return
        load, rows = expected_load(self._gate, self._placement, n_tokens), self._gate.top_k * self._parts
        self._own_s[n_tokens] = _slowest_s(self._table, load, rows, self._parts)
        tokens, experts = load.pairs.max() / rows, np.rint(load.experts.max() / self._parts)
        beyond = {
            "experts: tokens per rank": tokens > self._table.tokens[-1] * (1 + 1e-9),
            "experts: more reached per rank": experts > self._table.experts[-1],
            "experts: fewer reached per rank": experts < self._table.experts[0],
        }
        self._beyond[n_tokens] = tuple(what for what, is_beyond in beyond.items() if is_beyond)

    def _chance_s(self, n_tokens: int) -> Floats:
        """What chance adds to a layer's time, [n_draws]; one zero where there is none or its mean is."""
        alone = len(self._placement.experts) == 1
        if self._gate.is_recorded or not n_tokens or (alone and not self._is_sampled):
            return np.zeros(1)
        return self._chance.at(n_tokens)

    def count(self, n_tokens: int, times: int) -> None:
        """Take note that a step of so many tokens was run so many times."""
        self._steps += times
        if n_tokens not in self._beyond:
            self._look_up(n_tokens)
        for what in self._beyond[n_tokens]:
            self._outside[what] += times

    def notes(self) -> tuple[str, ...]:
        """How experts were taken to be chosen and placed, and how many steps were priced beyond the table, by axis."""
        ranks = len(self._placement.experts)
        mode = "a draw for each layer of each step" if self._is_sampled else "expected times"
        notes = [f"experts: chosen by the gate '{self._gate.source}' on {ranks} ranks, {mode}"]
        if self._parts > 1:
            notes.append(f"experts: {self._parts} devices share each, a part of a measured whole expert's time")
        notes += [
            f"{count} of {self._steps} steps priced beyond the profile's measured range: {what}"
            for what, count in sorted(self._outside.items())
        ]
        return tuple(notes)


def _chance(table: _Table, gate: Gate, placement: Placement, parts: int) -> Draws:
    """What chance adds to the time of the slowest rank, as draws in ascending order, by tokens.

    The draws at one size are those of the next smaller with more tokens, so that they change smoothly with it.
    """
    digest = hashlib.sha256(source_digest(LAYOUT, __file__, gates.__file__, draws.__file__))
    for values in (table.tokens, table.experts, table.grid, gate.shares):
        digest.update(f"{values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    digest.update(f"{gate.top_k} {placement.experts} {parts} {N_DRAWS}".encode())
    return kept_draws(digest.hexdigest(), N_DRAWS, partial(_added_s, table, gate, placement, parts))


def _added_s(table: _Table, gate: Gate, placement: Placement, parts: int) -> Iterator[Floats]:
    """Draws of what chance adds, [N_DRAWS], at each size that draws are made of."""
    rng, rows = np.random.default_rng(0), gate.top_k * parts
    chosen, last = np.zeros((N_DRAWS, gate.n_experts), dtype=np.int64), 0
    for size in half_octaves():
        chosen += gate.draw(rng, np.full(N_DRAWS, size - last))
        load, mean = drawn_load(placement, chosen, rng), expected_load(gate, placement, size)
        yield np.sort(_slowest_s(table, load, rows, parts) - _slowest_s(table, mean, rows, parts))
        last = size


def _slowest_s(table: _Table, load: Load, pairs_per_token: int, parts: int) -> Floats:
    """Time of the rank that takes longest, [...] of loads [..., n_ranks]."""
    slowest_s: Floats = table.time_s(load.pairs / pairs_per_token, load.experts / parts).max(axis=-1)
    return slowest_s


def placement_of(name: str, n_experts: int, ranks: int, *, redundant: int = 0) -> Placement:
    """The placement that a scenario names: `linear` or `round_robin`. Raises InputError."""
    match name:
        case "linear":
            return linear(n_experts, ranks, redundant)
        case "round_robin" if not redundant:
            return round_robin(n_experts, ranks)
        case "round_robin":
            # vLLM falls back to linear then, with a warning (`determine_expert_placement_strategy`).
            raise InputError(field="experts.redundant", found=redundant, accepted="0 with round_robin")
    raise InputError(field="experts.placement", found=name, accepted="linear, round_robin")


def given_placement(experts: Sequence[Sequence[int]]) -> Placement:
    """A placement by rank, as a user or a load balancer states it."""
    return Placement(tuple(tuple(held) for held in experts))
