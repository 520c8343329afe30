"""What a change does to an engine: the measured ratio of after to before, held against the ratio that a twin predicts.

A what-if asks for a ratio: twice the load, so many times the TTFT. An error that a twin makes on both sides of a change
cancels in it, an error that it makes on one side alone does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from harness.scoring.compare import Validation
from traces.metrics import LATENCIES, STAGES, itl_by_request, requests, throughput
from traces.outcome import Outcome
from traces.statistics import STATISTICS, Interval, has_interval, middle, pooled_statistics, statistic
from traces.steps import Floats, Ints

N_RESAMPLES = 1000
CONFIDENCE = 0.95
"""Of intervals, both as in `traces.statistics`."""

WHOLE_RUN = ("output_tokens_per_s", "duration_s")
"""Metrics that are one number for a run, and have no interval."""

NOT_MEASURED = "not measured, or too few requests for it"
FROM_ZERO = "0 before or after the change: there is no ratio"

Direction = Literal["right", "wrong"]


@dataclass(frozen=True, slots=True)
class Change:
    """One figure before and after a change, of the engine and of its twin.

    Attributes:
        measured: before and after, in the figure's unit; neither is 0.
        simulated: likewise, by the twin; the first is not 0.
        measured_ci95: 95 % interval of the measured change; None from too few requests, and of one number of a run.
        ci95: likewise of the error.
    """

    measured: tuple[float, float]
    simulated: tuple[float, float]
    measured_ci95: Interval | None = None
    ci95: Interval | None = None

    @property
    def measured_change(self) -> float:
        """After over before, less 1: +1 is twice as much."""
        return self.measured[1] / self.measured[0] - 1

    @property
    def predicted_change(self) -> float:
        """The same of the twin."""
        return self.simulated[1] / self.simulated[0] - 1

    @property
    def points(self) -> float:
        """The predicted change less the measured one; 0.01 is a percentage point."""
        return self.predicted_change - self.measured_change

    @property
    def error(self) -> float:
        """The predicted ratio over the measured one, less 1.

        It is (1 + e1) / (1 + e0) - 1, where e0 and e1 are the twin's errors before and after.
        """
        return (self.simulated[1] / self.simulated[0]) / (self.measured[1] / self.measured[0]) - 1

    @property
    def direction(self) -> Direction | None:
        """Whether the twin goes the measured way; None where the measured change may be none."""
        if self.measured_ci95 is None or self.measured_ci95[0] <= 0 <= self.measured_ci95[1]:
            return None
        return "right" if self.predicted_change * self.measured_change > 0 else "wrong"


@dataclass(frozen=True, slots=True)
class Changes:
    """All figures of a change.

    Attributes:
        paired: whether both sides served the same requests, and each is drawn on both or on none.
        n_requests: scored before and after.
        figures: by metric and statistic, such as `ttft_s.mean` and `output_tokens_per_s`; in words why there is none.
    """

    paired: bool
    n_requests: tuple[int, int]
    figures: dict[str, Change | str]


def changes(before: Validation, after: Validation, *, seed: int = 0) -> Changes:
    """Every figure of a change, from the validations of its two sides.

    Intervals are of the percentile bootstrap over requests (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
    section 13.3), ITL with all values of a request (as `traces.statistics.pooled_error_ci`). Where both sides served
    the same rows of a trace, requests that were scored on both are taken, and a resample holds the same ones on both:
    what makes a request long is so before and after, and cancels. Otherwise each side's are drawn by themselves. Those
    of the engine and of its twin always stay together.

    Args:
        before: the run that the change is of.
        after: the run with the change.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    paired = _rows(before) == _rows(after)
    ids = before.scored, after.scored
    if paired:
        known = set(after.scored)
        both = tuple(one for one in before.scored if one in known)
        ids = both, both
    sides = [_outcomes(side, own) for side, own in zip((before, after), ids, strict=True)]
    figures: dict[str, Change | str] = {}
    for name in (*LATENCIES, *STAGES):
        found = _sampled(name, sides, rng, paired=paired)
        figures |= {f"{name}.{one}": change for one, change in found.items()}
    for name in WHOLE_RUN:
        measured, simulated = ([_of_run(name, side[i]) for side in sides] for i in (0, 1))
        figures[name] = _change(measured, simulated)
    return Changes(paired, (len(sides[0][0]), len(sides[1][0])), figures)


_Side = tuple[list[Outcome], list[Outcome]]
"""Scored outcomes of a run, and of its twin, by the same requests."""

_Groups = list[Floats]
"""A metric's values by request; one of ITL has many."""


def _rows(side: Validation) -> set[Any]:
    """What was served, whenever it came."""
    rows = side.simulated.trace.rows
    return {(row.request_id, row.prompt_tokens, row.output_tokens, row.block_hashes) for row in rows}


def _outcomes(side: Validation, ids: Sequence[str]) -> _Side:
    measured, simulated = (
        {outcome.request_id: outcome for outcome in run.outcomes} for run in (side.measured, side.simulated)
    )
    return [measured[one] for one in ids], [simulated[one] for one in ids]


def _of_run(name: str, outcomes: Sequence[Outcome]) -> float | None:
    run = throughput(outcomes)
    return None if run is None else float(getattr(run, name))


def _sampled(name: str, sides: Sequence[_Side], rng: np.random.Generator, *, paired: bool) -> dict[str, Change | str]:
    """The figures of one metric, by statistic."""
    groups = [[_groups(name, outcomes) for outcomes in side] for side in sides]
    taken = _known(groups, paired=paired)
    if not all(len(run) for side in taken for run in side):
        return dict.fromkeys(STATISTICS, NOT_MEASURED)
    (m0, s0), (m1, s1) = _resampled(taken, rng, paired=paired)
    figures: dict[str, Change | str] = {}
    for place, one in enumerate(STATISTICS):
        measured, simulated = ([statistic(np.concatenate(side[i]), one) for side in taken] for i in (0, 1))
        change = _change(measured, simulated)
        if isinstance(change, Change) and all(_has_interval(run, one) for side in taken for run in side):
            ci95 = _between(s1[place] * m0[place], s0[place] * m1[place])
            change = Change(change.measured, change.simulated, _between(m1[place], m0[place]), ci95)
        figures[one] = change
    return figures


def _groups(name: str, outcomes: Sequence[Outcome]) -> _Groups:
    """A metric's values by request, none where it has none."""
    if name == "itl_s":
        return itl_by_request(outcomes) or [np.empty(0)] * len(outcomes)
    values: Floats = getattr(requests(outcomes), name)
    return [values[i : i + 1][~np.isnan(values[i : i + 1])] for i in range(len(values))]


def _known(groups: Sequence[Sequence[_Groups]], *, paired: bool) -> list[list[_Groups]]:
    """The same of requests in which both the engine and the twin have a value; when paired, before and after."""
    known = [[all(len(values) for values in of) for of in zip(*side, strict=True)] for side in groups]
    if paired:
        known = [[all(of) for of in zip(*known, strict=True)]] * 2
    return [
        [[values for values, own in zip(run, ours, strict=True) if own] for run in side]
        for side, ours in zip(groups, known, strict=True)
    ]


def _resampled(
    taken: Sequence[Sequence[_Groups]], rng: np.random.Generator, *, paired: bool
) -> list[list[list[Floats]]]:
    """Every statistic in every resample, [n_resamples] each, of engine and twin, before and after."""
    weights: list[Ints] = []
    for side in taken:
        n = len(side[0])
        drawn = weights[0] if paired and weights else rng.multinomial(n, np.full(n, 1 / n), N_RESAMPLES)
        weights.append(drawn)
    return [
        [pooled_statistics(run, drawn, STATISTICS) for run in side] for side, drawn in zip(taken, weights, strict=True)
    ]


def _has_interval(groups: _Groups, name: str) -> bool:
    """Whether there are values enough, of more than one request."""
    return len(groups) > 1 and has_interval(sum(map(len, groups)), name, CONFIDENCE)


def _between(over: Floats, under: Floats) -> Interval | None:
    """Interval of over / under - 1; None where a resample has nothing to divide by."""
    if np.any(under == 0):
        return None
    return middle(over / under - 1, CONFIDENCE)


def _change(measured: Sequence[float | None], simulated: Sequence[float | None]) -> Change | str:
    """A figure from its values before and after; in words why there is none."""
    (m0, m1), (s0, s1) = measured, simulated
    if m0 is None or m1 is None or s0 is None or s1 is None:
        return NOT_MEASURED
    return Change((m0, m1), (s0, s1)) if m0 and m1 and s0 else FROM_ZERO
