"""The capacity of each variant: the highest value of a key at which it serves all requests within the constraints.

Values are tried on a ladder of rungs from `low` to `high`, and the bracket between the highest rung that held and the
lowest that did not is divided until they are neighbours. Vidur (Agrawal et al., MLSys 2024) searches the highest rate
of each deployment in this way; DistServe (Zhong et al., OSDI 2024) calls such a rate, for each GPU, goodput.

What is tried depends on the study alone: every round tries all variants, whatever the workers do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.sweeps.space import Overrides
from harness.sweeps.study import CapacityFile, Limits
from harness.sweeps.trials import Trial, Trials
from harness.sweeps.wording import missed

TOLERANCE = 0.05
"""Of a search that says none: the next value above a capacity is at most so much more, relative to it."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """The values that a search may try: rung 0 is `low`, rung `n` is `high`; whole numbers, or equal factors between.

    Factors are so small that a rung is at most the tolerance above the one below it. Values between have six digits.
    """

    low: int | float
    high: int | float
    n: int
    is_whole: bool

    def __getitem__(self, rung: int) -> int | float:
        """The value of a rung."""
        if self.is_whole:
            return self.low + rung
        if rung in (0, self.n):
            return float(self.high if rung else self.low)
        part = rung / self.n
        return float(f"{self.low ** (1 - part) * self.high**part:.6g}")


def ladder_of(asked: CapacityFile) -> Ladder:
    """The rungs that a search asks for."""
    if asked.is_whole:
        return Ladder(asked.low, asked.high, int(asked.high - asked.low), True)
    factor = math.log1p(TOLERANCE if asked.tolerance is None else asked.tolerance)
    ratio = math.log(asked.high) - math.log(asked.low)
    n = math.ceil(ratio / factor - 1e-9)  # a ratio that fits has no rung more by rounding
    return Ladder(asked.low, asked.high, max(n, 1), False)


@dataclass(frozen=True, slots=True)
class Tried:
    """A value that was tried.

    Attributes:
        value: of the key.
        trial: its point.
        shortfalls: why it did not hold; empty: it held.
    """

    value: int | float
    trial: Trial
    shortfalls: tuple[str, ...]

    @property
    def held(self) -> bool:
        """Whether all requests were served within the constraints, and no queue is known to have grown."""
        return not self.shortfalls


@dataclass(frozen=True, slots=True)
class Capacity:
    """What was found of one variant.

    Attributes:
        overrides: what the variant sets.
        tried: all values that were tried, rising.
    """

    overrides: Overrides
    tried: tuple[Tried, ...]

    @property
    def next_above(self) -> Tried | None:
        """The lowest that did not hold; None: all held, `high` too."""
        return next((one for one in self.tried if not one.held), None)

    @property
    def highest(self) -> Tried | None:
        """The highest that held below the lowest that did not; None: `low` did not."""
        above = self.next_above
        return next((one for one in reversed(self.tried) if above is None or one.value < above.value), None)

    @property
    def held_above(self) -> list[Tried]:
        """Those that held though a lower one did not: holding is not monotone there."""
        above = self.next_above
        return [] if above is None else [one for one in self.tried if one.held and one.value > above.value]


def find_capacities(trials: Trials, variants: Sequence[Overrides], asked: CapacityFile) -> list[Capacity]:
    """The capacity of each variant. Raises InputError for a value that makes no scenario."""
    ladder = ladder_of(asked)
    constraints = trials.study.file.constraints
    tried: list[dict[int, Tried]] = [{} for _ in variants]
    while round_ := [(i, rung) for i, known in enumerate(tried) for rung in _next_rungs(known, ladder.n, asked)]:
        found = trials.evaluate([{**variants[i], asked.key: ladder[rung]} for i, rung in round_])
        for (i, rung), trial in zip(round_, found, strict=True):
            tried[i][rung] = Tried(ladder[rung], trial, tuple(shortfalls(trial, constraints)))
    return [
        Capacity(overrides, tuple(known[rung] for rung in sorted(known)))
        for overrides, known in zip(variants, tried, strict=True)
    ]


def most_tried(asked: CapacityFile) -> int:
    """How many values of a variant a search tries, at most."""
    gap, n = ladder_of(asked).n, 2
    while gap > 1:
        within = min(asked.at_once, gap - 1)
        gap, n = -(-gap // (within + 1)), n + within
    return n


def _next_rungs(tried: Mapping[int, Tried], n: int, asked: CapacityFile) -> list[int]:
    """What to try next of a variant: the ends first, then what divides the bracket; none: its capacity is known."""
    if not tried:
        return [0, n]
    high = min((rung for rung, one in tried.items() if not one.held), default=None)
    if not high:  # `high` held, or `low` did not
        return []
    low = max(rung for rung in tried if rung < high)
    parts = min(asked.at_once, high - low - 1) + 1
    return [low + (high - low) * part // parts for part in range(1, parts)]


def shortfalls(trial: Trial, constraints: Mapping[str, Limits]) -> list[str]:
    """Why a point does not serve its load: what it misses, a queue that grows, requests that it does not finish."""
    if not trial.figures:
        return [f"failed: {trial.result.reason}"]
    figures = trial.figures
    said = list(missed(figures, constraints).values())
    if figures["in_system.is_steady"] is False:
        halfway, last = figures["in_system.halfway"], figures["in_system.at_last_arrival"]
        said.append(f"not steady: {halfway} to {last} in the system")
    if figures["n_left_out"]:
        said.append(f"{figures['n_left_out']} of {figures['n_requests']} requests not finished")
    return said
