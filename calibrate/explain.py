"""Which parameter must have moved for measured times to part from a calibrated twin's: as few as explain them.

Of all sets of one parameter the one whose change takes most off the robust cost; of two, if that is worth another; and
so on (best subset, judged as by Schwarz, Annals of Statistics 6, 1978). A fault has one cause more often than many, and
a regression on all parameters at once would spread it over those that look alike. What explains a fault as well is said
beside the cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from calibrate.parameters import Parameter
from calibrate.regression import TOLD_FROM_ZERO, Equations, Linearised, fit_kept, robust_cost
from traces.steps import Floats

MOST_CAUSES = 3

WORTH = 3.0
"""A further cause must take so many times log(n) off the cost of n equations. Schwarz's half is for independent noise;
that of steps and requests is not."""

CLASSES = ("dense", "attention", "per_request", "moe", "communication")
"""Scales that together are all operators; padding is a part of dense."""

OPERATORS = Parameter("operators", "1", 1.0, 0.1, "all operators alike", 0.0)


@dataclass(frozen=True, slots=True)
class Cause:
    """A parameter that moved.

    Attributes:
        parameter: its name.
        was: its value in the twin.
        change: measured less the twin's; None where only its sign is known, which is below 0.
        standard_error: of the change; None where it was read and not fitted.
        seconds: what the change makes, over all that was measured.
        share: of the measured time.
        alike: parameters whose change in its place would explain the records as well.
    """

    parameter: str
    was: float
    change: float | None
    standard_error: float | None
    seconds: float
    share: float
    alike: tuple[str, ...] = ()


def explain(
    equations: Linearised,
    parameters: Sequence[Parameter],
    values: Mapping[str, float],
    held: Mapping[str, str],
    measured_s: float,
    *,
    noise_of_all: bool = False,
) -> list[Cause]:
    """The fewest changes that explain the equations, the largest first.

    Beside the parameters themselves, all classes of operators may have changed alike: `operators`.

    Args:
        equations: over all `parameters`, in their order.
        parameters: all there are.
        values: of the twin, by name.
        held: parameters that cannot be told apart from others, and why.
        measured_s: all time that was measured.
        noise_of_all: what counts as noise is what all parameters together leave, and not what is there before any
            changes: for equations of which nothing but these parameters is a cause.
    """
    if any(parameter.name in CLASSES for parameter in parameters):
        equations = _with_operators(equations, parameters, values)
        parameters, values = [*parameters, OPERATORS], {**values, OPERATORS.name: 1.0}
    around = [replace(parameter, prior=values[parameter.name]) for parameter in parameters]
    now = np.array([parameter.prior for parameter in around])
    sd = np.array([parameter.prior_sd for parameter in around])
    lines = equations(now)
    candidates = [i for i, p in enumerate(around) if p.name not in held and np.any(lines.design[:, i])]
    reference = lines, now
    if noise_of_all:
        values_of_all, _, lines_of_all = fit_kept(equations, now, sd, candidates)
        reference = lines_of_all, values_of_all
    best = _Explanation((), now, np.zeros((0, 0)), robust_cost(lines, now, *reference))
    worth = WORTH * float(np.log(max(len(lines.target), 2)))
    rivals: list[_Explanation] = []
    for size in range(1, MOST_CAUSES + 1):
        sets = [_explanation(equations, around, sd, kept, reference) for kept in combinations(candidates, size)]
        told = [each for each in sets if _all_told(each, now, around)]
        if not told:
            break
        cheapest = min(told, key=lambda each: each.cost)
        if best.cost - cheapest.cost < worth:
            break
        best, rivals = cheapest, [each for each in told if each.cost - cheapest.cost < worth]
    errors = np.sqrt(np.diag(best.covariance))
    causes = [
        replace(
            _cause(around[i], now[i], best.values[i], error, lines, i, measured_s),
            alike=tuple(around[j].name for j in _in_place_of(i, best.kept, rivals)),
        )
        for i, error in zip(best.kept, errors, strict=True)
    ]
    return sorted(causes, key=lambda cause: -abs(cause.seconds))


def moved(values: Mapping[str, float], causes: Sequence[Cause]) -> dict[str, float]:
    """The parameters' values with the changes that explain the records."""
    found = dict(values)
    for cause in causes:
        if cause.change is None:
            continue
        if cause.parameter == OPERATORS.name:
            found |= {name: found[name] * (1 + cause.change) for name in CLASSES}
        elif cause.parameter in found:
            found[cause.parameter] += cause.change
    return found


def _with_operators(equations: Linearised, parameters: Sequence[Parameter], values: Mapping[str, float]) -> Linearised:
    """The equations with one more column: all classes scaled alike, beside each one's own scale."""
    own = np.array([values[p.name] if p.name in CLASSES else 0.0 for p in parameters])

    def extended(now: Floats) -> Equations:
        found = equations(now[:-1] + own * (now[-1] - 1.0))
        column = found.design @ own
        return replace(found, target=found.target + column, design=np.column_stack([found.design, column]))

    return extended


@dataclass(frozen=True, slots=True)
class _Explanation:
    """A set of parameters, what they would have to be, and how far that goes."""

    kept: tuple[int, ...]
    values: Floats
    covariance: Floats
    cost: float


def _explanation(
    equations: Linearised,
    around: Sequence[Parameter],
    sd: Floats,
    kept: tuple[int, ...],
    reference: tuple[Equations, Floats],
) -> _Explanation:
    """With these parameters free; the cost is in units of the noise of the reference, equations at values."""
    now = np.array([parameter.prior for parameter in around])
    values, covariance, last = fit_kept(equations, now, sd, list(kept))
    return _Explanation(kept, values, covariance, robust_cost(last, values, *reference))


def _in_place_of(i: int, kept: tuple[int, ...], rivals: list[_Explanation]) -> list[int]:
    """Which parameters stand in the place of one in sets that are otherwise the same and explain as well."""
    rest = set(kept) - {i}
    return [j for rival in rivals if rest < set(rival.kept) for j in rival.kept if j not in kept]


def _all_told(explanation: _Explanation, now: Floats, around: Sequence[Parameter]) -> bool:
    """Whether every change is told from 0 and to a value that can be."""
    kept = list(explanation.kept)
    change, error = (explanation.values - now)[kept], np.sqrt(np.diag(explanation.covariance))
    possible = all(explanation.values[i] >= around[i].least for i in kept)
    return possible and bool((np.abs(change) > TOLD_FROM_ZERO * error).all())


def _cause(
    parameter: Parameter, was: float, found: float, error: float, lines: Equations, i: int, measured_s: float
) -> Cause:
    change = float(found - was)
    seconds = float(lines.design[:, i].sum()) * change
    share = seconds / measured_s
    return Cause(parameter.name, float(was), change, float(error), seconds, share)
