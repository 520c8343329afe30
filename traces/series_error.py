"""How far a simulated series is from a measured one, window by window, and in which phase a log was kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.capture import Capture, Series
from traces.series import derivations
from traces.steps import Floats, Mask
from traces.windows import SAME_TIME_S, Grid, is_before_second_0, is_power, scored_windows, windows_of


@dataclass(frozen=True, slots=True)
class SeriesError:
    """How far one series is from another.

    Attributes:
        mape: mean of |simulated - measured| / measured over the windows that count.
        n: how many count: those that both have and in which the measured value is above 0.
        n_left_out: measured windows that do not, because nothing was measured there to divide by, or nothing simulated.
        weighted_s: of power whose rows are uneven, the time that those that count stand for, by which they weigh in the
            mean; None: each weighs the same.
    """

    mape: float
    n: int
    n_left_out: int
    weighted_s: float | None = None


@dataclass(frozen=True, slots=True)
class LogPhase:
    """How far the windows of a log are from where their times put them, as its first third tells.

    Attributes:
        early_s: by how much they end before their times.
        mape: the error of the others, the last two thirds, when they are read so.
        n: how many of those count.
    """

    early_s: float
    mape: float
    n: int


N_PHASES = 20
"""Phases of a log that are tried, evenly over one window."""


def log_phase(simulated: Capture, measured: Series, name: str = "output_tokens_per_s") -> LogPhase | None:
    """The phase of a log that numbers its windows, out of `N_PHASES`, and the error in it.

    vLLM logs its throughput every VLLM_LOG_STATS_INTERVAL since the server was started (`_force_log`,
    entrypoints/launchers/utils/server_utils.py of 0.32), whenever requests arrive. Numbered from the last row before
    the first token, row k ends somewhere in (k - 1, k] windows after the load began, and nothing in the rows says
    where. The phase is the one in which the first third of the windows has the least error. None where either part has
    no window that counts, and of a series that was recorded and cannot be derived: it has no phase but its own.
    """
    grid = windows_of(measured)
    if grid is None or name not in derivations():
        return None
    fitted = np.arange(grid.n) < grid.n / 3

    def error(early_s: float, counted: Mask) -> SeriesError | None:
        return series_mape(simulated, measured, name, counted=counted, early_s=early_s)

    found = [(error(early_s, fitted), early_s) for early_s in (grid.window_s * np.arange(N_PHASES) / N_PHASES).tolist()]
    errors = [(of_fitted.mape, early_s) for of_fitted, early_s in found if of_fitted is not None]
    if not errors or (scored := error(early_s := min(errors)[1], ~fitted)) is None:
        return None
    return LogPhase(early_s, scored.mape, scored.n)


def series_mape(
    simulated: Capture,
    measured: Series,
    name: str = "output_tokens_per_s",
    *,
    counted: Mask | None = None,
    early_s: float = 0.0,
) -> SeriesError | None:
    """The error of a simulated run's series against a measured one, window by window.

    The simulated series is derived on the measured one's own windows, so that a second is compared with the same
    second. After the simulated run's end, what is derived is what a run that is over has, 0 for a rate, and counts.
    Power was simulated over windows, after the run's end too, when all rests: where the measured rows are uneven, these
    must be theirs (`power_windows`), and each weighs by the time that it stands for. Power of time before second 0 is
    not simulated, and does not count. None where the run has no such series, the measured one has no windows
    (`scored_windows`), or none counts.

    Args:
        simulated: the simulated run.
        measured: the series.
        name: what it is of.
        counted: which of its windows count, [n]; all unless given.
        early_s: by how much its windows end before their times, for a series that can be derived.
    """
    grid = scored_windows(measured, name)
    if grid is None:
        return None
    if is_power(name):
        return _power_error(simulated.series.get(name), measured, grid, counted)
    derive_one = derivations().get(name)
    if derive_one is None and grid.uneven_s is not None:
        return None  # a series that was simulated by its own windows cannot be brought into others
    twin = None if derive_one is None else derive_one(simulated, grid.earlier(early_s))
    twin = simulated.series.get(name) if twin is None else Series(twin.time_s + early_s, twin.value)
    return None if twin is None else series_error(measured, twin, counted)


def _power_error(twin: Series | None, measured: Series, grid: Grid, counted: Mask | None) -> SeriesError | None:
    """The error of simulated power; None where it is not known over the windows of the measured rows."""
    if twin is None:
        return None
    counts = ~is_before_second_0(grid)
    if counted is not None:
        counts &= counted
    if grid.uneven_s is None:
        return series_error(measured, twin, counts)
    if len(twin.time_s) != grid.n or np.abs(twin.time_s - measured.time_s).max() > SAME_TIME_S:
        return None
    return series_error(measured, twin, counts, grid.widths_s())


def series_error(
    measured: Series, simulated: Series, counted: Mask | None = None, widths_s: Floats | None = None
) -> SeriesError | None:
    """The error of one series against another at the times that both have, to a millionth of a second; None if none.

    So does LLMServingSim's paper count its per-second error (docs/validity.md). `counted` says which measured windows
    count, [n]; all unless given. `widths_s`, [n] seconds, is by what they weigh; all the same unless given.
    """
    if not len(measured.time_s) or not len(simulated.time_s):
        return None
    at = np.clip(np.searchsorted(simulated.time_s, measured.time_s - SAME_TIME_S), 0, len(simulated.time_s) - 1)
    counts = (np.abs(simulated.time_s[at] - measured.time_s) <= SAME_TIME_S) & (measured.value > 0)
    if counted is not None:
        counts &= counted
    if not counts.any():
        return None
    off = np.abs(simulated.value[at][counts] - measured.value[counts]) / measured.value[counts]
    n, n_left_out = int(counts.sum()), int((~counts).sum())
    if widths_s is None:
        return SeriesError(float(off.mean()), n, n_left_out)
    weights_s = widths_s[counts]
    return SeriesError(float(np.average(off, weights=weights_s)), n, n_left_out, float(weights_s.sum()))
