"""Idle, standby and active power of each component, from a recording and from when the server was busy.

An accelerator that has computed keeps its clocks up for a while, so that between two bursts of requests it draws far
more than when it has rested: LLMServingSim's power model has the same three levels (idle_power, standby_power,
active_power) and the time between (standby_duration). A median over each state, as a state's power has outliers on one
side (the ramps at its ends), and quartiles for its spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from collectors.power.component_power import Bools, ComponentPower
from collectors.power.power_file import PowerRecording
from traces.steps import Floats, Steps

STANDBY_S = 18.0
"""LLMServingSim's standby_duration in all its cluster configs. Its published recording of an RTX A6000 agrees: after
three busy stretches power stays at about 90 W and falls below 60 W after 17.6, 19.2 and 18.2 s, to 33 W at rest. Other
devices differ: look at a recording of theirs first."""

FEWEST_SAMPLES = 10
"""Below this number a quartile is the value of one or two samples."""


@dataclass(frozen=True, slots=True)
class Level:
    """The power of a component in one state.

    Attributes:
        median_w: over the samples.
        p25_w: first quartile.
        p75_w: third quartile.
        n: how many samples.
    """

    median_w: float
    p25_w: float
    p75_w: float
    n: int


@dataclass(frozen=True, slots=True)
class ComponentLevels:
    """The levels of one component; None: there were fewer than 10 samples of the state.

    Attributes:
        idle: more than the standby time after anything was done.
        standby: within the standby time after the server was busy.
        active: while the server was busy.
    """

    idle: Level | None
    standby: Level | None
    active: Level | None


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of a recording's components, by name, and the standby time that they hold for."""

    standby_s: float
    components: dict[str, ComponentLevels]


def busy_windows(steps: Steps, origin_monotonic_s: float, merge_s: float) -> list[tuple[float, float]]:
    """When an engine computed, on the monotonic clock, ascending and disjoint.

    Args:
        steps: of a capture, of any number of instances.
        origin_monotonic_s: second 0 of the capture on the monotonic clock.
        merge_s: steps that are no farther apart are one window; the recording's period, as no sample tells less.
    """
    end_s = steps.end_s + origin_monotonic_s
    return _merged(zip((end_s - steps.duration_s()).tolist(), end_s.tolist(), strict=True), merge_s)


def derive_levels(
    recording: PowerRecording, busy: Sequence[tuple[float, float]] | None, standby_s: float = STANDBY_S
) -> Levels | None:
    """The levels of every component; None when it is not known when the server was busy.

    A sample counts for the state that all of what it is a mean of lies in; what lies across states counts for none.
    What was before the recording is not known, so its first `standby_s` seconds are not taken for idle.

    Args:
        recording: of power.
        busy: (begin, end) of the windows in which the server computed, on the monotonic clock, in any order; none at
            all: it never did. None: not known.
        standby_s: how long the device stays in a raised state after work.
    """
    if busy is None:
        return None
    windows = _merged(busy, 0.0)
    parts = recording.components.items()
    return Levels(standby_s, {name: _levels(one, windows, standby_s) for name, one in parts})


def _levels(one: ComponentPower, busy: Sequence[tuple[float, float]], standby_s: float) -> ComponentLevels:
    begins = np.array([begin for begin, _ in busy])
    ends = np.array([one.begin_s, *(end for _, end in busy)])  # of what may have been before the recording, first
    since_s, until_s = one.since_s, one.time_s
    window = np.searchsorted(begins, since_s, side="right")  # number of windows that have begun; the last may be over
    over_s = ends[window]
    next_s = np.append(begins, np.inf)[window]
    active = (until_s <= over_s) & (window > 0)
    rests = ~active & (since_s >= over_s) & (until_s <= next_s)
    return ComponentLevels(
        idle=_level(one.power_w, rests & (since_s >= over_s + standby_s)),
        standby=_level(one.power_w, rests & (until_s <= over_s + standby_s) & (window > 0)),
        active=_level(one.power_w, active),
    )


def _level(power_w: Floats, chosen: Bools) -> Level | None:
    values = power_w[chosen]
    if len(values) < FEWEST_SAMPLES:
        return None
    p25_w, median_w, p75_w = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Level(median_w, p25_w, p75_w, len(values))


def _merged(windows: Iterable[tuple[float, float]], merge_s: float) -> list[tuple[float, float]]:
    """The windows in order, those that overlap or are at most `merge_s` apart made one."""
    merged: list[tuple[float, float]] = []
    for begin_s, end_s in sorted(windows):
        if not begin_s <= end_s:
            raise ValueError(f"no window: {begin_s} to {end_s}")
        if merged and begin_s <= merged[-1][1] + merge_s:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((begin_s, end_s))
    return merged
