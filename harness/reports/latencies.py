"""Charts of latencies: how they are distributed, and each request's, simulated over measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.reports.chart import MOST_POINTS, Cells, Chart, Line, Mark, Points, distribution
from harness.terminal.words import LABELS
from traces.capture import Capture
from traces.metrics import LATENCIES, STAGES, requests, samples
from traces.outcome import Outcome, Status
from traces.steps import Floats

MOST_DOTS = 2000
"""Requests drawn as dots; more would hide each other, and are counted by cells."""
FARTHEST = 200
"""Requests still drawn as dots then: those farthest from equal."""
CELLS = 60
"""Cells of the grid along each axis."""

SCATTERED = ("e2el_s", "ttft_s", "tpot_s", "queue_s", "prefill_s", "decode_s")


@dataclass(frozen=True, slots=True)
class Run:
    """A capture beside others: what it is called, and by which role it is drawn."""

    name: str
    role: str
    capture: Capture


def distributions(runs: list[Run], names: tuple[str, ...] = (*LATENCIES, *STAGES)) -> list[Chart]:
    """The distribution of each latency that a run measured, over the requests that finished."""
    values = [samples(run.capture.outcomes) for run in runs]
    charts = []
    for name in names:
        marks = tuple(
            distribution(run.name, run.role, own[name]) for run, own in zip(runs, values, strict=True) if len(own[name])
        )
        if not marks:
            continue
        what = "gaps between tokens" if name == "itl_s" else "requests"
        most = max(len(own[name]) for own in values)
        thinned = f" Of {most:,} {what}, {MOST_POINTS:,} quantiles are drawn." if most > MOST_POINTS else ""
        caption = f"{LABELS[name][0].upper()}{LABELS[name][1:]}: share of {what} within the time.{thinned}"
        charts.append(
            Chart(f"distribution-{name}", caption, f"{LABELS[name]} (s)", f"share of {what}", marks, times=True)
        )
    return charts


def paired(measured: Capture, simulated: Capture) -> list[tuple[Outcome, Outcome]]:
    """Requests that finished on both sides."""
    twins = {outcome.request_id: outcome for outcome in simulated.outcomes}
    pairs = [(outcome, twins[outcome.request_id]) for outcome in measured.outcomes if outcome.request_id in twins]
    return [pair for pair in pairs if pair[0].status is pair[1].status is Status.FINISHED]


def scatters(measured: Capture, simulated: Capture) -> Mapping[str, Chart]:
    """Each request's latency, simulated over measured, by what the latency is called."""
    pairs = paired(measured, simulated)
    before, after = requests([pair[0] for pair in pairs]), requests([pair[1] for pair in pairs])
    ids = [pair[0].request_id for pair in pairs]
    charts = {}
    for name in SCATTERED:
        chart = _scatter(name, getattr(before, name), getattr(after, name), ids)
        if chart is not None:
            charts[LABELS[name]] = chart
    return charts


def _scatter(name: str, measured: Floats, simulated: Floats, ids: list[str]) -> Chart | None:
    """On logarithmic axes, where equal relative errors are equally far from the line."""
    known = ~np.isnan(measured) & ~np.isnan(simulated)
    drawn = known & (measured > 0) & (simulated > 0)
    if not drawn.any():
        return None
    x, y = measured[drawn], simulated[drawn]
    names = [ids[i] for i in np.flatnonzero(drawn)]
    ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
    equal = Line("equal", "reference", ends, ends)
    caption = f"Each request's {LABELS[name]}; on the dotted line the twin is right."
    if zeros := int((known & ~drawn).sum()):
        caption += f" {zeros:,} requests with 0 s on a side are left out."
    marks: tuple[Mark, ...]
    if len(x) <= MOST_DOTS:
        marks = (equal, Points("request", "simulated", x, y, tuple(names)))
    else:
        far = np.argsort(-np.abs(np.log(y / x)), kind="stable")[:FARTHEST]
        dots = Points("farthest off", "simulated", x[far], y[far], tuple(names[i] for i in far))
        marks = (_cells(x, y, ends), equal, dots)
        caption += f" Shades count {len(x):,} requests by cells; the {FARTHEST} farthest off are also dots."
    label = LABELS[name]
    return Chart(f"scatter-{name}", caption, f"measured {label} (s)", f"simulated {label} (s)", marks, "log", "log")


def _cells(x: Floats, y: Floats, ends: Floats) -> Cells:
    edges = np.geomspace(ends[0], ends[1], CELLS + 1)
    edges[[0, -1]] = ends  # geomspace may miss them by a rounding
    counts, _, _ = np.histogram2d(y, x, bins=[edges, edges])
    return Cells("requests", "measured", edges, edges, counts)
