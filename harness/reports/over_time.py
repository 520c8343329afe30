"""Charts of quantities over time: throughput, queues, KV use, power and whatever else a capture recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from harness.reports.chart import Chart, Line
from harness.reports.latencies import Run
from traces.capture import Capture, Series
from traces.series import derive
from traces.windows import Grid, grid_over

WIDTHS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0)
"""Widths of windows that a reader can think in."""
MOST_WINDOWS = 300

TITLES = {
    "output_tokens_per_s": "output tokens per second",
    "prompt_tokens_per_s": "prompt tokens per second",
    "n_running": "running requests",
    "n_waiting": "waiting requests",
    "kv_usage": "KV blocks in use (share)",
    "prefix_hit_rate": "prefix hit rate so far (share)",
    "gpu_memory_bytes": "device memory with content (bytes)",
    "power_w": "power (W)",
    "power_w.devices": "power of devices (W)",
}
"""Axes; the charts stand in this order, and what else was recorded after them."""


def over_time(runs: list[Run]) -> list[Chart]:
    """A chart of every quantity that one of the runs has, each from its own second 0 on, over the same windows."""
    grid = windows(max(_end_s(run.capture) for run in runs))
    found = [{**derive(run.capture, grid), **_averaged(run.capture.series, grid)} for run in runs]
    names = list(dict.fromkeys([*TITLES, *(name for series in found for name in sorted(series))]))
    charts = []
    for name in names:
        marks = tuple(
            Line(run.name, run.role, series[name].time_s, series[name].value)
            for run, series in zip(runs, found, strict=True)
            if name in series
        )
        if marks:
            title = TITLES.get(name, name)
            recorded = [run.name for run in runs if name in run.capture.series]
            charts.append(
                Chart(
                    "series-" + re.sub(r"[^\w.-]", "_", name),
                    _caption(title, name, grid, recorded),
                    "time (s)",
                    title,
                    marks,
                )
            )
    return charts


def _end_s(capture: Capture) -> float:
    """When everything recorded of a run is over."""
    recorded = [float(series.time_s[-1]) for series in capture.series.values() if len(series.time_s)]
    return max(float(grid_over(capture).ends_s()[-1]), *recorded, 0.0)


def windows(until_s: float) -> Grid:
    """Windows from second 0, at most `MOST_WINDOWS` of them."""
    fitting = [width_s for width_s in WIDTHS_S if until_s / width_s <= MOST_WINDOWS]
    width_s = fitting[0] if fitting else until_s / MOST_WINDOWS
    return Grid(0.0, width_s, max(1, int(np.ceil(until_s / width_s))))


def _averaged(recorded: Mapping[str, Series], grid: Grid) -> dict[str, Series]:
    """Recorded series as they are where they are short, else the mean of each window that has samples."""
    return {
        name: series if len(series.time_s) <= MOST_WINDOWS else grid.means(series) for name, series in recorded.items()
    }


def _caption(title: str, name: str, grid: Grid, recorded: list[str]) -> str:
    how = "counted over" if name.endswith("_per_s") else "read at the end of"
    caption = f"{title[0].upper()}{title[1:]}, {how} windows of {grid.window_s:g} s."
    return caption + (f" {' and '.join(recorded)}: as recorded, or its mean by window." if recorded else "")
