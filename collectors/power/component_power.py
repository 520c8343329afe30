"""The power of one component over time, from the tries to read it.

An energy counter is believed before a gauge: its differences are true means whatever happens between two samples. A
counter that did not move has not been renewed, as nothing that is on draws no power; the interval then ends with the
sample that finds it moved.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from collectors.power.covered import Covered
from collectors.power.reading import Component
from traces.steps import Floats, Ints

GAP_PERIODS = 3
"""A gap longer than so many periods is not covered: one or two late samples are no gap."""

LEAST_COVERAGE = 0.95
"""Below this share of a window its energy is not told."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Tries:
    """The tries to read one component. Every array is [n].

    Attributes:
        time_s: on the monotonic clock, ascending.
        session: number of the recording's session.
        watts: of the gauge; NaN where there was none.
        joules: of the counter; likewise.
        failures: how many failed, by what was wrong.
    """

    time_s: Floats
    session: Ints
    watts: Floats
    joules: Floats
    failures: Counter[str]


@dataclass(frozen=True, slots=True)
class Energy:
    """The energy of one component in a window.

    Attributes:
        energy_j: of the covered part of the window; None: it was not measured, for the reason given.
        mean_w: mean power over that part; likewise.
        coverage: share of the window that samples cover.
        reason: why there is no energy; None when there is.
    """

    energy_j: float | None
    mean_w: float | None
    coverage: float
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ComponentPower:
    """The power of one component. Arrays are [n], times are of the monotonic clock.

    Attributes:
        component: what it is.
        sensor: who measured it.
        source: what is believed; None when nothing was read.
        since_s: begin of what each value is the mean of; `time_s` itself for a gauge.
        time_s: when it was read, ascending; for a counter, the end of what the value is the mean of.
        power_w: the value.
        period_s: between values: that of the samples, or of the counter's renewals where these are fewer.
        rate_hz: tries per second that were made; None with fewer than two.
        begin_s: the first try.
        end_s: the last try.
        n_tries: how many there were.
        failures: how many of them failed, by what was wrong.
        covered: the same values as power over the intervals that they cover.
        notes: what was left out.
    """

    component: Component
    sensor: str
    source: Literal["counter", "gauge"] | None
    since_s: Floats
    time_s: Floats
    power_w: Floats
    period_s: float
    rate_hz: float | None
    begin_s: float
    end_s: float
    n_tries: int
    failures: dict[str, int]
    covered: Covered
    notes: tuple[str, ...]

    @property
    def n_failed(self) -> int:
        """How many tries failed."""
        return sum(self.failures.values())

    def energy(self, begin_s: float, end_s: float) -> Energy:
        """The energy between two moments of the monotonic clock, `end_s` the later."""
        if not begin_s < end_s:
            raise ValueError(f"no window: {begin_s} to {end_s}")
        joules, covered_s = (float(part[0]) for part in self.covered.between(np.array([begin_s, end_s])))
        coverage = covered_s / (end_s - begin_s)
        reason = None
        if coverage < LEAST_COVERAGE:
            reason = f"samples cover {coverage:.1%} of the window, and {LEAST_COVERAGE:.0%} are needed"
        elif end_s - begin_s < self.period_s:
            reason = f"the window of {end_s - begin_s:.3g} s is shorter than the {self.period_s:.3g} s between values"
        if reason is not None:
            return Energy(None, None, coverage, reason)
        return Energy(joules, joules / covered_s, coverage)


def component_power(component: Component, sensor: str, tries: Tries, rate_hz: float) -> ComponentPower:
    """Power over time from the tries to read a component, of which there is at least one.

    Args:
        component: what it is.
        sensor: who measured it.
        tries: in order of time.
        rate_hz: that was asked for; a slower sensor has its own.
    """
    same_session = np.diff(tries.session) == 0
    between_s = np.diff(tries.time_s)[same_session]
    sampling_s = max(1 / rate_hz, float(np.median(between_s)) if len(between_s) else 0.0)
    notes: list[str] = []
    source: Literal["counter", "gauge"] | None
    if _moves(tries.joules):
        source, period_s = "counter", sampling_s
        since_s, time_s, power_w, period_s, fell = _from_counter(tries, sampling_s)
        covered = Covered(since_s, time_s, power_w, power_w)
        if fell:
            notes.append(f"{component.name}: the energy counter fell, times: {fell}; not covered there")
    else:
        read = ~np.isnan(tries.watts)
        since_s = time_s = tries.time_s[read]
        power_w, period_s = tries.watts[read], sampling_s
        source = "gauge" if len(time_s) else None
        near = (np.diff(time_s) <= GAP_PERIODS * sampling_s) & (np.diff(tries.session[read]) == 0)
        covered = Covered(time_s[:-1][near], time_s[1:][near], power_w[:-1][near], power_w[1:][near])
        if not np.all(np.isnan(tries.joules)):
            notes.append(f"{component.name}: the energy counter never moved, and is not believed")
    return ComponentPower(
        component=component,
        sensor=sensor,
        source=source,
        since_s=since_s,
        time_s=time_s,
        power_w=power_w,
        period_s=period_s,
        rate_hz=len(between_s) / float(between_s.sum()) if len(between_s) else None,
        begin_s=float(tries.time_s[0]),
        end_s=float(tries.time_s[-1]),
        n_tries=len(tries.time_s),
        failures=dict(tries.failures),
        covered=covered,
        notes=tuple(notes),
    )


def _moves(joules: Floats) -> bool:
    told = joules[~np.isnan(joules)]
    return len(told) > 0 and bool(np.any(told != told[0]))


def _from_counter(tries: Tries, sampling_s: float) -> tuple[Floats, Floats, Floats, float, int]:
    """Mean power between renewals: ([n] begin, [n] end, [n] watts, seconds between renewals, how often it fell).

    A run is a stretch in which the counter only grows. In a run where some sample found it unmoved, it is renewed more
    slowly than it is read, so a sample tells when it was renewed only if there was one shortly before that found it
    unmoved: not the first of the run, and not the first after a gap. Otherwise every sample is such a moment.
    """
    told = ~np.isnan(tries.joules)
    time_s, joules, session = tries.time_s[told], tries.joules[told], tries.session[told]
    grown_j = np.diff(joules)
    fell = (grown_j < 0) & (np.diff(session) == 0)
    breaks = fell | (np.diff(session) > 0)
    run = np.concatenate([[0], np.cumsum(breaks)])
    moved = np.concatenate([[True], breaks | (grown_j > 0)])
    slow = np.bincount(run, weights=~moved) > 0
    after_s = np.concatenate([[np.inf], np.where(breaks, np.inf, np.diff(time_s))])
    kept = moved & ((after_s <= GAP_PERIODS * sampling_s) | ~slow[run])
    time_s, joules, run = time_s[kept], joules[kept], run[kept]
    same_run = np.diff(run) == 0
    since_s, until_s = time_s[:-1][same_run], time_s[1:][same_run]
    width_s = until_s - since_s
    period_s = max(sampling_s, float(np.median(width_s))) if len(width_s) else sampling_s
    power_w = np.diff(joules)[same_run] / width_s
    covered = width_s <= GAP_PERIODS * period_s
    return since_s[covered], until_s[covered], power_w[covered], period_s, int(fell.sum())
