"""Power that is constant between events, so that every energy is an exact sum and not a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from traces.steps import Floats


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

    @property
    def lengths_s(self) -> Floats:
        """How long each lasts, [n]."""
        return self.end_s - self.begin_s

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


def spread(spans: Spans, joules: Floats) -> Curve:
    """Energy of spans, [n], at an even rate in each; those that take no time draw none."""
    return spans.sum(np.divide(joules, spans.lengths_s, out=np.zeros(len(joules)), where=spans.lengths_s > 0))


def constant(power_w: float) -> Curve:
    """The same from second 0 on."""
    return Curve(np.zeros(1), np.array([power_w]))


def summed(curves: Sequence[Curve]) -> Curve:
    """All of them together; nothing for none."""
    edges_s = np.unique(np.concatenate([np.zeros(1), *(curve.edges_s for curve in curves)]))
    return Curve(edges_s, np.sum([np.zeros(len(edges_s)), *(curve.at(edges_s) for curve in curves)], axis=0))
