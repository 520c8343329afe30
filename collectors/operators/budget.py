"""What to measure within a time budget: planned before it is spent, from a few shots that are timed first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec

from collectors.operators.shots import Limits, Shot, estimate_s, plan_shots
from traces.errors import InputError

FEWEST_PASSES, MOST_PASSES = 3, 15
SPARSEST = 6
"""The grid is thinned to every so many values of an axis, at most."""
WARM_UP_PASSES = 0.5
"""What the warm-ups of the first pass take: one run beside the two of a visit."""
PROBES, PROBE_S = 5, 0.2
"""A shot that is timed for the plan is tried so often, and not again once so many seconds have passed."""


class Plan(msgspec.Struct, frozen=True):
    """The shots, how often the whole grid is measured, and what a pass is estimated to take.

    Attributes:
        every: 1 for the whole grid, n when only every n-th value of its axes fits in the budget.
    """

    shots: tuple[Shot, ...]
    passes: int
    pass_s: float
    every: int

    @property
    def estimated_s(self) -> float:
        """Seconds for all passes."""
        return (self.passes + WARM_UP_PASSES) * self.pass_s

    def text(self) -> str:
        """The plan in a line."""
        thinned = "" if self.every == 1 else f", every {self.every} values of each axis to fit the budget"
        return f"{len(self.shots)} shots{thinned}; {self.passes} passes, estimated {self.estimated_s:.0f} s"


def plan_within(
    budget_s: float, limits: Limits, measure: Callable[[Shot], float], *, steps_only: bool = False, parts: int = 1
) -> Plan:
    """The densest grid that can be measured `FEWEST_PASSES` times within the budget, and as often as is left.

    Args:
        budget_s: seconds for all passes; a few probes come on top.
        limits: how far the grid reaches.
        measure: measures a shot once and returns the seconds it took.
        steps_only: whether operators are left out.
        parts: of the budget, one of which is spent here.

    Raises:
        InputError: when even the sparsest grid takes longer.
    """
    grids = {every: plan_shots(limits, every, steps_only=steps_only) for every in range(1, SPARSEST + 1)}
    shots = list(dict.fromkeys(shot for grid in grids.values() for shot in grid))
    cost_s = dict(zip(shots, estimate_s(shots, measure), strict=True))
    for every, kept in grids.items():
        pass_s = sum(cost_s[shot] for shot in kept)
        if (passes := int(budget_s / parts / pass_s - WARM_UP_PASSES)) >= FEWEST_PASSES:
            return Plan(tuple(kept), min(passes, MOST_PASSES), pass_s, every)
    needed_s = (FEWEST_PASSES + WARM_UP_PASSES) * pass_s * parts
    raise InputError(field="--budget-s", found=budget_s, accepted=f"at least {needed_s:.1f} s here")


def quickest_s(act: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the quickest of up to `PROBES` tries, of which none begins once `PROBE_S` have passed.

    One try of some milliseconds may have waited for another process of the machine for many times as long.
    """
    begun_s = clock()
    quickest, tries = math.inf, 0
    while tries == 0 or (tries < PROBES and clock() - begun_s < PROBE_S):
        try_s = clock()
        act()
        quickest, tries = min(quickest, clock() - try_s), tries + 1
    return quickest
