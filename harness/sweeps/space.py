"""The values that a study tries: lists and ranges of scenario keys, all their combinations, or some drawn at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np

Values = Annotated[list[Any], msgspec.Meta(min_length=1)]

Overrides = dict[str, Any]
"""What a point sets in the scenario, by key as `--set` takes it: engine.max_num_seqs, cluster.instances.0.count."""


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every number from `low` to `high`, both included; whole numbers where both are.

    Attributes:
        low: the least.
        high: the most, above `low`.
        log: whether a factor counts as much everywhere; `low` is above 0 then.
    """

    low: int | float
    high: int | float
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are whole."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def fault(self) -> tuple[str, str] | None:
        """The field that makes no range of it, and what is accepted; None: there is none."""
        if not self.low < self.high:
            return "high", f"more than low, {self.low}"
        if self.log and self.low <= 0:
            return "low", "above 0 with log"
        return None

    def at(self, quantile: float) -> int | float:
        """The number below which a share `quantile` of the range lies, 0 to 1 without 1."""
        low, high = (self.low, self.high + 1) if self.is_whole else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + quantile * (math.log(high) - math.log(low)))
        else:
            value = low + quantile * (high - low)
        if self.is_whole:
            return min(max(math.floor(value), int(self.low)), int(self.high))
        return min(max(value, self.low), self.high)


Ranges = dict[str, Values | Range]
"""By key."""


def combinations(grid: Mapping[str, list[Any]]) -> list[Overrides]:
    """Every combination of the lists' values; the last key changes fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def drawn(ranges: Mapping[str, list[Any] | Range], n: int, seed: int) -> list[Overrides]:
    """`n` points of the ranges, spread evenly along each: every n-th part of a range holds exactly one.

    Latin hypercube sampling (McKay, Beckman and Conover, Technometrics 21, 1979). Equal points are kept once, so that
    short lists give fewer than `n`.
    """
    rng = np.random.default_rng(seed)
    columns = [(rng.permutation(n) + rng.random(n)) / n for _ in ranges]
    points = [
        {key: _at(ranges[key], float(quantile)) for key, quantile in zip(ranges, quantiles, strict=True)}
        for quantiles in zip(*columns, strict=True)
    ]
    return distinct(points)


def distinct(points: list[Overrides]) -> list[Overrides]:
    """The points without those that are equal to an earlier one."""
    return list({msgspec.json.encode(point): point for point in points}.values())


def _at(values: list[Any] | Range, quantile: float) -> Any:
    return values.at(quantile) if isinstance(values, Range) else values[int(quantile * len(values))]
