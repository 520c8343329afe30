"""Two captures of the same requests, subtracted: paired, by distribution, by stage and over time, with intervals."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrate.attribution import Attribution
from calibrate.intervals import Intervals
from harness.descriptions.scenario import Scenario
from traces.capture import Capture
from traces.metrics import LATENCIES, STAGES, itl_by_request, requests, throughput
from traces.outcome import Outcome, Status
from traces.series import derive
from traces.series_error import log_phase, series_mape
from traces.statistics import STATISTICS, pooled_error_ci, relative_error_ci, statistic
from traces.steps import Floats, Mask
from traces.windows import (
    DEVICES_POWER,
    GAP_INTERVALS,
    SERVER_POWER,
    Grid,
    grid_over,
    is_before_second_0,
    power_windows,
    scored_windows,
)

PAIRED = ("ttft_s", "tpot_s", "e2el_s")
POWER = (SERVER_POWER, DEVICES_POWER)
SERIES = ("output_tokens_per_s", *POWER, "kv_usage", "prefix_hit_rate", "gpu_memory_bytes")
FEWEST_REQUESTS = 20
"""Below this many scored requests a comparison is not valid: no percentile but the median has an interval."""


@dataclass(frozen=True, slots=True)
class Validation:
    """A comparison, and the two runs it compares.

    Attributes:
        result: what validation.json holds.
        measured: the capture.
        simulated: the twin's capture, of the same requests at the same arrivals.
        scenario: what was simulated.
        intervals: of the twin's latencies; None without a calibration.
        attribution: where the error comes from; None unless asked for.
        scored: ids of the requests that were scored, in the capture's order.
    """

    result: dict[str, Any]
    measured: Capture
    simulated: Capture
    scenario: Scenario
    intervals: Intervals | None = None
    attribution: Attribution | None = None
    scored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Repeat:
    """What the second recording of a load adds: one recording alone can flatter a twin.

    Attributes:
        again: the twin scored against the second recording, in the shape of validation.json.
        floor: the second recording scored against the first: what no twin of one of them can do better at the other.
    """

    again: dict[str, Any]
    floor: dict[str, Any]


def compare(
    measured: Capture,
    simulated: Capture,
    *,
    seed: int = 0,
    reasons: Sequence[str] = (),
    unscored: Collection[str] = (),
    predicted: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """The figures of validation.json for two captures of the same requests.

    Args:
        measured: the real run.
        simulated: the twin's, or a second real run: then the errors are the noise floor.
        seed: of the bootstrap.
        reasons: why the comparison is not valid, known before.
        unscored: ids of requests that are not to be scored, because a calibration was fitted to them.
        predicted: what is paired with a measured request in place of the simulated capture's latency, by metric and
            request id.
    """
    rng = np.random.default_rng(seed)
    pairs, left_out = _pairs(measured, simulated, frozenset(unscored))
    before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    columns = requests(before), requests(after)
    metrics: dict[str, Any] = {}
    for name in (*LATENCIES, *STAGES):
        if name == "itl_s":
            metrics[name] = _pooled(itl_by_request(before), itl_by_request(after), rng)
        else:
            metrics[name] = _distribution(getattr(columns[0], name), getattr(columns[1], name), rng)
    rates = throughput(before), throughput(after)
    for name in ("output_tokens_per_s", "duration_s"):
        values = [None if rate is None else getattr(rate, name) for rate in rates]
        metrics[name] = _figure(values[0], values[1], None)
    series = _series_errors(measured, simulated, before if unscored else None)
    if measured.outcomes or not measured.series:
        own = _reasons(pairs, left_out)
    else:
        scored = [name for name, error in series.items() if error is not None]
        own = _outside(measured, simulated, scored) if scored else [_unscored_series(measured)]
    why = [*reasons, *measured.meta.reasons, *own]
    return {
        "valid": not why,
        "reasons": why,
        "n_requests": len(measured.outcomes),
        "n_scored": len(pairs),
        "metrics": {name: metrics[name] for name in (*LATENCIES, "output_tokens_per_s", "duration_s")},
        "paired": {name: _paired(getattr(columns[0], name), twin) for name, twin in _twins(after, predicted).items()},
        "stages": {name: metrics[name] for name in STAGES},
        "series": series,
    }


def measured_power(measured: Capture) -> dict[str, Grid]:
    """The windows of each series of measured power that simulated power is scored against: of all, of the devices."""
    grids = {name: power_windows(measured.series[name]) for name in POWER if name in measured.series}
    return {name: grid for name, grid in grids.items() if grid is not None}


def power_notes(measured: Capture) -> list[str]:
    """What of measured power is not scored, and how it is where its rows are uneven in time."""
    return [f"{name}: {note}" for name, grid in measured_power(measured).items() for note in _power_notes(grid)]


def _power_notes(grid: Grid) -> Iterator[str]:
    if grid.uneven_s is not None:
        yield (
            f"its {grid.n} rows are not evenly spaced: each is compared with the mean simulated power of the time that "
            "it stands for, and weighs by that time"
        )
    if len(gaps_s := grid.gaps_s()):
        count = f"{len(gaps_s)} gap{'s' * (len(gaps_s) > 1)}"
        yield (
            f"not measured, and not scored: {gaps_s.sum():.3g} s in {count} between rows more than {GAP_INTERVALS} of "
            "the log's usual intervals apart"
        )
    if n_before := int(np.count_nonzero(is_before_second_0(grid))):
        yield f"not simulated, and not scored: {n_before} rows that stand for time before second 0"


def _outside(measured: Capture, simulated: Capture, scored: Sequence[str]) -> list[str]:
    """Which scored series are of no time in which a request was served, as when their second 0 is another's."""
    reasons = []
    for name in scored if simulated.outcomes else ():
        grid = scored_windows(measured.series[name], name)
        if grid is None or (_served(simulated.outcomes, grid) & ~is_before_second_0(grid)).any():
            continue
        begin_s, end_s = float(grid.begins_s()[0]), float(grid.ends_s()[-1])
        reasons.append(
            f"{name}: no row of its {grid.n}, from {begin_s:.6g} to {end_s:.6g} s, is of time in which a request was "
            "served: see what second 0 of the trace is in the log (--zero)"
        )
    return reasons


def _unscored_series(measured: Capture) -> str:
    """Why a capture of series alone has no figure."""
    names = ", ".join(sorted(measured.series))
    return f"no window of {names} can be scored: not simulated, not at the same times, or rows far from evenly spaced"


def _pairs(
    measured: Capture, simulated: Capture, unscored: frozenset[str]
) -> tuple[list[tuple[Outcome, Outcome]], dict[str, int]]:
    """Outcomes that finished on both sides, by request id; and how many did not, by what became of them."""
    twins = {outcome.request_id: outcome for outcome in simulated.outcomes}
    pairs = []
    left_out: dict[str, int] = {}
    for outcome in measured.outcomes:
        if outcome.request_id in unscored:
            continue
        twin = twins.get(outcome.request_id)
        if twin is not None and outcome.status is twin.status is Status.FINISHED:
            pairs.append((outcome, twin))
            continue
        simulated_as = "not simulated" if twin is None else f"{twin.status.value} when simulated"
        what = f"{outcome.status.value} when measured, {simulated_as}"
        left_out[what] = left_out.get(what, 0) + 1
    return pairs, left_out


def scored_ids(measured: Capture, simulated: Capture, unscored: Collection[str]) -> list[str]:
    """Ids of the requests that `compare` scores, in the measured capture's order."""
    return [pair[0].request_id for pair in _pairs(measured, simulated, frozenset(unscored))[0]]


def _reasons(pairs: Sequence[tuple[Outcome, Outcome]], left_out: dict[str, int]) -> list[str]:
    reasons = [f"{count} requests {what}" for what, count in sorted(left_out.items())]
    lengths = [[(o.prompt_tokens, o.output_tokens) for o in pair] for pair in pairs]
    if other := sum(before != after for before, after in lengths):
        reasons.append(f"{other} requests differ in tokens between the two sides")
    if len(pairs) < FEWEST_REQUESTS:
        reasons.append(f"{len(pairs)} requests scored, fewer than {FEWEST_REQUESTS}")
    return reasons


def _figure(measured: float | None, simulated: float | None, ci95: tuple[float, float] | None) -> dict[str, Any] | None:
    if measured is None or simulated is None:
        return None
    error = (simulated - measured) / measured if measured else None
    return {"measured": measured, "simulated": simulated, "error": error, "ci95": None if ci95 is None else list(ci95)}


def _distribution(measured: Floats, simulated: Floats, rng: np.random.Generator) -> dict[str, Any] | None:
    """Figures of one metric over the requests in which both sides have it; None when there is none."""
    both = ~np.isnan(measured) & ~np.isnan(simulated)
    before, after = measured[both], simulated[both]
    if not len(before):
        return None
    ci95 = relative_error_ci(before, after, STATISTICS, rng)
    return {name: _figure(statistic(before, name), statistic(after, name), ci95[name]) for name in STATISTICS}


def _pooled(
    measured: list[Floats] | None, simulated: list[Floats] | None, rng: np.random.Generator
) -> dict[str, Any] | None:
    if measured is None or simulated is None:
        return None
    before, after = np.concatenate(measured), np.concatenate(simulated)
    ci95 = pooled_error_ci(measured, simulated, STATISTICS, rng)
    return {name: _figure(statistic(before, name), statistic(after, name), ci95[name]) for name in STATISTICS}


def _twins(outcomes: Sequence[Outcome], predicted: Mapping[str, Mapping[str, float]] | None) -> dict[str, Floats]:
    """What is paired with the measured requests, by metric, [n]; NaN where there is no value."""
    if predicted is None:
        columns = requests(outcomes)
        return {name: getattr(columns, name) for name in PAIRED}
    ids = [outcome.request_id for outcome in outcomes]
    return {name: np.array([predicted[name].get(request_id, np.nan) for request_id in ids]) for name in PAIRED}


def _paired(measured: Floats, simulated: Floats) -> dict[str, Any] | None:
    """Error per request: mean and median of |simulated - measured| / measured, mean of |simulated - measured|."""
    both = ~np.isnan(measured) & ~np.isnan(simulated) & (measured > 0)
    if not both.any():
        return None
    off = np.abs(simulated[both] - measured[both])
    relative = off / measured[both]
    return {
        "mape": float(relative.mean()),
        "median_ape": float(np.median(relative)),
        "mae": float(off.mean()),
        "n": int(both.sum()),
    }


def _series_errors(measured: Capture, simulated: Capture, scored: Sequence[Outcome] | None) -> dict[str, Any]:
    """Mean |error| per window over the windows in which the measured value is above 0; None where not measured.

    With `scored`, only windows in which one of these requests was served. Of power whose rows are uneven, also the time
    by which they weigh. A capture of series alone says nothing of how their clock stands to the requests': then also
    the error in their phase (`traces.series_error.log_phase`).
    """
    errors: dict[str, Any] = dict.fromkeys(SERIES)
    derived = derive(measured, grid_over(measured))
    for name in SERIES:
        series = measured.series.get(name) or derived.get(name)
        grid = None if series is None else scored_windows(series, name)
        if series is None or grid is None:
            continue
        error = series_mape(simulated, series, name, counted=None if scored is None else _served(scored, grid))
        if error is None:
            continue
        errors[name] = {"mape": error.mape, "n": error.n}
        if error.weighted_s is not None:
            errors[name]["weighted_s"] = error.weighted_s
        phase = None if measured.outcomes else log_phase(simulated, series, name)
        if phase is not None:
            errors[name]["in_phase"] = {"mape": phase.mape, "n": phase.n, "early_s": phase.early_s}
    return errors


def _served(outcomes: Sequence[Outcome], grid: Grid) -> Mask:
    """Whether one of the requests was in the engine during each window, [n]."""
    begins_s, ends_s = grid.begins_s(), grid.ends_s()
    inside = np.zeros(grid.n, dtype=bool)
    for outcome in outcomes:
        if outcome.finish_s is not None:
            inside |= (ends_s > outcome.arrival_s) & (begins_s < outcome.finish_s)
    return inside


def noise_floor(measured: Capture, repeats: Sequence[Capture], unscored: Collection[str] = ()) -> dict[str, Any]:
    """The error that a perfect twin would still show: each further recording of the same requests against this one.

    Returns the paired errors of each metric and the errors of the statistics without their sign, averaged over the
    recordings, None where none measured it; and `common`, by how much the recordings differ as a whole: the median
    ratio of their requests' values, less 1, as its root mean square over the recordings.
    """
    each = [compare(measured, repeat, unscored=unscored) for repeat in repeats]
    paired = {name: _mean([floor["paired"][name] for floor in each], ("mape", "median_ape", "mae")) for name in PAIRED}
    metrics: dict[str, Any] = {}
    for name in LATENCIES:
        found = [floor["metrics"][name] for floor in each if floor["metrics"][name] is not None]
        metrics[name] = {key: _mean_error([figures[key] for figures in found]) for key in STATISTICS}
    common = {
        name: _common([_pairs(measured, repeat, frozenset(unscored))[0] for repeat in repeats], name) for name in PAIRED
    }
    return {"n_recordings": len(repeats), "paired": paired, "metrics": metrics, "common": common}


def _common(recordings: Sequence[list[tuple[Outcome, Outcome]]], name: str) -> float | None:
    """By how much recordings differ as a whole, relative; None where not measured."""
    off = []
    for pairs in recordings:
        ours, theirs = (getattr(requests([pair[side] for pair in pairs]), name) for side in (0, 1))
        known = np.isfinite(ours) & np.isfinite(theirs) & (ours > 0)
        if known.any():
            off.append(float(np.median(theirs[known] / ours[known])) - 1)
    return float(np.sqrt(np.mean(np.square(off)))) if off else None


def over_floor(paired: dict[str, Any], floor: dict[str, Any]) -> dict[str, float | None]:
    """Paired error of each metric over its noise floor: 1 is as good as the engine repeats itself."""
    ratios: dict[str, float | None] = {}
    for name in PAIRED:
        ours, theirs = paired[name], floor["paired"][name]
        ratios[name] = ours["mape"] / theirs["mape"] if ours and theirs and theirs["mape"] > 0 else None
    return ratios


def _mean_error(figures: Sequence[dict[str, Any] | None]) -> float | None:
    errors = [abs(figure["error"]) for figure in figures if figure is not None and figure["error"] is not None]
    return float(np.mean(errors)) if errors else None


def _mean(figures: Sequence[dict[str, Any] | None], names: Sequence[str]) -> dict[str, float] | None:
    known = [figure for figure in figures if figure is not None]
    return {name: float(np.mean([figure[name] for figure in known])) for name in names} if known else None
