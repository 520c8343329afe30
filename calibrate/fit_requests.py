"""The residual from request records alone, with the simulation in the loop.

A simulation says which steps a request's time was made of, and each step's price is linear in the parameters. So a
request's measured time is, to first order, the simulated one plus a known row of seconds per unit of each parameter:
a regression, whose answer changes the simulation, which is run again until the two agree (Gauss-Newton). No derivative
is taken through the simulation itself: when one arrival catches another step, times jump, and differences of
simulations are mostly such jumps. For the same reason the last answers are averaged (Robbins and Monro, Annals of
Mathematical Statistics 22, 1951): each simulation is one draw of where the arrivals fall.

Two equations for each fitted request, both relative to what is simulated: its decode time and its TTFT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibrate.fit_steps import held_in
from calibrate.parameters import Basis, Parameter, names_of, within
from calibrate.pricing import Priced, floors
from calibrate.regression import Equations, Estimate, identify, joined, stretches
from calibrate.sensitivity import Sensitivity, sensitivity
from calibrate.served import Served
from traces.metrics import requests
from traces.outcome import Outcome
from traces.steps import Floats

FREE_SIMULATIONS = 3
"""After so many, what the data tell is settled and only its values move on, by averages."""

AVERAGED_SIMULATIONS = 8
"""Most simulations after that."""

SETTLED = 5e-4
"""Averaging ends when a further simulation would change the fitted times by less than this, relative, on average."""

STRETCHES = 10
"""Runs of consecutive arrivals whose noise may be dependent: they share their steps."""

TTFT, DECODE = 0, 1

Simulator = Callable[[Mapping[str, float]], Served]
"""A simulation of a capture's requests with the parameters' values."""


@dataclass(frozen=True, slots=True)
class Run:
    """A capture to fit.

    Attributes:
        outcomes: those that may be looked at, in order of arrival; of the others, only arrivals and lengths are used.
        simulate: serves its requests.
    """

    outcomes: Sequence[Outcome]
    simulate: Simulator


def fit_requests(
    runs: Sequence[Run], basis: Basis, front_end: Sequence[Parameter], told: Mapping[str, str], *, asynchronous: bool
) -> tuple[Estimate, int]:
    """Fit all parameters to the chosen requests of captures of one engine. Returns also how many simulations it took.

    Args:
        runs: the captures.
        basis: of the step's time.
        front_end: its parameters, which are fitted beside the basis.
        told: those that are known otherwise and keep their priors, and how.
        asynchronous: whether the engine plans a step ahead.
    """
    never = {**held_in(asynchronous=asynchronous), **told}
    held: dict[str, str] = {}
    parameters = (*basis.parameters, *front_end)
    names = names_of(parameters)
    values = np.array([parameter.prior for parameter in parameters])
    for round_ in range(FREE_SIMULATIONS + AVERAGED_SIMULATIONS):
        lines, least = _linearised(runs, basis, names, values, asynchronous=asynchronous)
        estimate = identify(lambda _, lines=lines: lines, within(parameters, least), never, held)  # type: ignore[misc]
        step = estimate.values - values
        if round_ >= FREE_SIMULATIONS:
            held = estimate.held
            step /= round_ - FREE_SIMULATIONS + 1
        values = values + step
        if round_ > FREE_SIMULATIONS and np.mean(np.abs(lines.design @ step) / lines.scale) < SETTLED:
            break
    return replace(estimate, values=values), round_ + 1


def _linearised(
    runs: Sequence[Run], basis: Basis, names: Sequence[str], values: Floats, *, asynchronous: bool
) -> tuple[Equations, dict[str, float]]:
    """Two equations for each request, around the values that are simulated, and how low times can go."""
    parts: list[Equations] = []
    priced: list[Priced] = []
    for number, run in enumerate(runs):
        served = run.simulate(dict(zip(names, values.tolist(), strict=True)))
        changes = values[: len(basis.parameters)] - basis.neutral
        rows = sensitivity(served, basis, changes, asynchronous=asynchronous)
        parts.append(request_equations(run.outcomes, served, rows, values, number))
        priced += served.priced
    return joined(parts), floors(priced)


def request_equations(
    outcomes: Sequence[Outcome], served: Served, rows: Sensitivity, values: Floats, capture: int = 0
) -> Equations:
    """Two equations for each request that both sides have, relative to what is simulated.

    Args:
        outcomes: measured, in order of arrival.
        served: the simulation, with their twins.
        rows: how the simulated times change with the parameters.
        values: [k] the parameters that were simulated.
        capture: number of theirs among those that are fitted together.
    """
    own = served.twins(outcomes)
    before, after = requests(outcomes), requests([served.capture.outcomes[i] for i in own])
    cluster = stretches(len(outcomes), STRETCHES, capture)
    parts = []
    for kind, name, design in ((TTFT, "ttft_s", rows.ttft[own]), (DECODE, "decode_s", rows.decode[own])):
        measured_s, simulated_s = getattr(before, name), getattr(after, name)
        both = np.isfinite(measured_s) & (simulated_s > 0) & np.isfinite(design).all(axis=1)
        target = (measured_s - simulated_s)[both] + design[both] @ values
        group = np.full(int(both.sum()), kind)
        parts.append(Equations(target, design[both], simulated_s[both], group, cluster[both]))
    return joined(parts)
