"""A step-time model's parameters from step records: each step priced again, and the difference regressed.

Noise is taken as growing with the square root of a step's time. Least squares then makes the corrected steps add up to
the time that the measured ones took, as a ratio estimator does (Cochran, Sampling Techniques, 3rd edition, 6.3), and a
request's latency is a sum of steps. It is taken as dependent within stretches of time, since machines drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from calibrate.parameters import Basis, within
from calibrate.pricing import Priced, floors
from calibrate.regression import FAR, Equations, Estimate, Linearised, identify, stretches
from traces.steps import Floats

STRETCHES = 20
"""Stretches of time into which each capture is cut, within which noise may be dependent."""

ADDS_UP = "it adds up with host_step_s where scheduling is synchronous, and no record tells the two apart"


def held_in(*, asynchronous: bool) -> dict[str, str]:
    """Parameters that no record of such an engine tells apart, and why."""
    return {} if asynchronous else {"device_step_s": ADDS_UP}


def fit_steps(captures: Sequence[Priced], basis: Basis, *, asynchronous: bool) -> Estimate:
    """Fit the parameters to the chosen steps of captures of one engine.

    Args:
        captures: their steps, priced by the model that is to be corrected.
        basis: the parameters.
        asynchronous: whether the engine plans a step ahead.
    """
    equations = step_equations(captures, basis, asynchronous=asynchronous)
    return identify(equations, within(basis.parameters, floors(captures)), held_in(asynchronous=asynchronous))


def step_equations(captures: Sequence[Priced], basis: Basis, *, asynchronous: bool) -> Linearised:
    """An equation for each step: its measured time is the model's, with the parameters' terms."""
    cluster = np.concatenate([stretches(len(part), STRETCHES, i) for i, part in enumerate(captures)])
    cycle_s = np.concatenate([part.cycle_s for part in captures])
    neutral = basis.neutral

    def equations(values: Floats) -> Equations:
        rows = [part.rows(values - neutral, asynchronous=asynchronous) for part in captures]
        base_s, design = (np.concatenate([row[i] for row in rows]) for i in (0, 1))
        expected_s = base_s + design @ (values - neutral)
        scale = np.sqrt(np.clip(expected_s, cycle_s / FAR, cycle_s * FAR))
        return Equations(cycle_s - base_s + design @ neutral, design, scale, np.zeros_like(cluster), cluster)

    return equations


def relative_residuals(part: Priced, basis: Basis, values: Mapping[str, float], *, asynchronous: bool) -> Floats:
    """(measured - corrected) / corrected of every step, [n]."""
    return np.asarray(part.cycle_s / part.corrected_s(basis.changes(values), asynchronous=asynchronous) - 1)
