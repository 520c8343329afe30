"""A capture as pandas tables, for notebooks: its requests with their durations, its steps, its series."""

from __future__ import annotations

from typing import TYPE_CHECKING

from traces.capture import Capture
from traces.metrics import requests
from traces.series import derive
from traces.windows import grid_over

if TYPE_CHECKING:
    import pandas as pd

DURATIONS = ("ttft_s", "tpot_s", "e2el_s", "queue_s", "prefill_s", "decode_s")


def requests_frame(capture: Capture) -> pd.DataFrame:
    """A row per request by its id: its outcome, and its durations as `traces.metrics` defines them.

    NaN where a duration has no value. Times of single tokens are left out; `Capture.outcomes_frame` has them.
    """
    columns = requests(capture.outcomes)
    frame = capture.outcomes_frame().drop(columns=["token_times_s", "client_token_times_s"], errors="ignore")
    for name in DURATIONS:
        frame[name] = getattr(columns, name)
    return frame.set_index("request_id") if len(frame) else frame


def steps_frame(capture: Capture) -> pd.DataFrame | None:
    """A row per step, with the time it took; None when steps were not recorded."""
    frame = capture.steps_frame()
    if frame is not None and capture.steps is not None:
        frame["duration_s"] = capture.steps.duration_s()
    return frame


def series_frame(capture: Capture, window_s: float = 1.0) -> pd.DataFrame:
    """A row per window by its end, a column per quantity: what is derived of requests and steps, and what was recorded.

    A recorded quantity is the mean of its samples in the window, NaN where there is none.
    """
    import pandas as pd

    grid = grid_over(capture, window_s)
    found = {**derive(capture, grid), **{name: grid.means(series) for name, series in capture.series.items()}}
    columns = {name: pd.Series(series.value, index=series.time_s) for name, series in found.items()}
    return pd.DataFrame(columns, index=pd.Index(grid.ends_s(), name="time_s"))


def pairs_frame(measured: Capture, simulated: Capture) -> pd.DataFrame:
    """A row per request that both runs know, by its id: each duration as `ttft_s_measured` and `ttft_s_simulated`."""
    ours, theirs = (requests_frame(run)[list(DURATIONS)] for run in (measured, simulated))
    return ours.add_suffix("_measured").join(theirs.add_suffix("_simulated"), how="inner")
