"""A recording of power as series of a capture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from collectors.power.component_power import LEAST_COVERAGE, ComponentPower
from collectors.power.power_file import PowerRecording
from collectors.power.reading import Kind
from traces.capture import Series
from traces.steps import Floats

METERED_TOTALS: tuple[tuple[str, tuple[Kind, ...]], ...] = (
    ("power_w.devices", ("gpu", "tpu", "cpu")),
    ("power_w", ("server", "command")),
)
"""Names of totals, and the kinds of which one may be: the first that was recorded. A simulation's `power_w.devices` is
of the devices alone, its `power_w` of all that is described. Where there is no accelerator, CPUs are the devices."""


def power_series(
    recording: PowerRecording, origin_monotonic_s: float, window_s: float | None = None
) -> dict[str, Series]:
    """Power on a capture's clock: `power_w.<component>` of each component, and the totals of `METERED_TOTALS`.

    A value is the mean over a window and stands at its end, as in `traces.windows`. The windows of a kind's components
    are the same, of equal width, and begin with the first that is covered. One that samples do not cover (to 95 %) is
    left out; of a total, one that is not covered for every component of the kind.

    Args:
        recording: of power.
        origin_monotonic_s: second 0 of the capture on the host's monotonic clock.
        window_s: width of the windows; None: the longest period of the kind's components.
    """
    kinds: dict[Kind, list[ComponentPower]] = {}
    for one in recording.components.values():
        if len(one.covered.begin_s):
            kinds.setdefault(one.component.kind, []).append(one)
    totals = {next((kind for kind in of if kind in kinds), None): name for name, of in METERED_TOTALS}
    found: dict[str, Series] = {}
    for kind, parts in kinds.items():
        ends_s, values = _windows(parts, window_s or max(one.period_s for one in parts))
        ends_s = ends_s - origin_monotonic_s
        rows = {f"power_w.{one.component.name}": row for one, row in zip(parts, values, strict=True)}
        rows |= {totals[kind]: values.sum(axis=0)} if kind in totals else {}
        for name, row in rows.items():
            told = ~np.isnan(row)
            if told.any():
                found[name] = Series(ends_s[told], row[told])
    return found


def _windows(parts: Sequence[ComponentPower], window_s: float) -> tuple[Floats, Floats]:
    """Ends of the windows, [n] seconds, and mean power, [n_components, n] watts, NaN where it is not covered."""
    begin_s = min(float(one.covered.begin_s[0]) for one in parts)
    end_s = max(float(one.covered.end_s[-1]) for one in parts)
    n = math.floor((end_s - begin_s) / window_s + 1e-6)
    edges_s: Floats = np.asarray(begin_s + window_s * np.arange(n + 1), dtype=np.float64)
    means: Floats = np.full((len(parts), n), np.nan)
    for row, one in zip(means, parts, strict=True):
        joules, covered_s = one.covered.between(edges_s)
        told = covered_s >= LEAST_COVERAGE * window_s
        row[told] = joules[told] / covered_s[told]
    return edges_s[1:], means
