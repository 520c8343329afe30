"""Plans for the tests of step times."""

from __future__ import annotations

import numpy as np

from simulator.scheduling.plan import StepPlan, plan_of


def decode_plan(n_requests: int, history: int, *, repeat: int = 1) -> StepPlan:
    """A step in which so many requests decode, each with so many tokens behind it."""
    ones, behind = np.ones(n_requests, dtype=np.int64), np.full(n_requests, history, dtype=np.int64)
    return plan_of([], ones, behind, first_step=0, repeat=repeat)
