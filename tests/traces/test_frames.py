"""Tables hold what the capture holds, under the names of the glossary."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.harness.reports.runs import compared, run
from traces.frames import pairs_frame, requests_frame, series_frame, steps_frame
from traces.metrics import requests


def test_requests_have_their_durations() -> None:
    capture = run()
    frame = requests_frame(capture)
    assert frame.index[7] == "7"
    assert frame.loc["7", "ttft_s"] == requests(capture.outcomes).ttft_s[7]
    assert np.isnan(frame.loc["4", "tpot_s"]) == (capture.outcomes[4].output_tokens == 1)
    assert frame["prompt_tokens"].sum() == sum(o.prompt_tokens for o in capture.outcomes)
    assert "token_times_s" not in frame


def test_steps_have_their_time() -> None:
    frame = steps_frame(run())
    assert frame is not None
    assert len(frame) == len(run().steps)  # type: ignore[arg-type]
    assert frame["duration_s"].min() > 0.01
    assert steps_frame(replace(run(), steps=None)) is None


def test_series_stand_beside_each_other_by_window() -> None:
    measured = compared().measured
    assert measured is not None
    frame = series_frame(measured, window_s=0.5)
    assert {"output_tokens_per_s", "n_running", "kv_usage", "power_w"} <= set(frame.columns)
    assert frame.index[0] == 0.5
    tokens = sum(outcome.output_tokens for outcome in measured.outcomes)
    assert (frame["output_tokens_per_s"] * 0.5).sum() == pytest.approx(tokens)
    assert 100 < frame["power_w"].iloc[1] < 120


def test_pairs_join_by_request() -> None:
    found = compared()
    assert found.measured is not None
    frame = pairs_frame(found.measured, replace(found.simulated, outcomes=found.simulated.outcomes[:9]))
    assert len(frame) == 9
    assert (frame["e2el_s_simulated"] < frame["e2el_s_measured"]).all()


def test_a_run_of_which_only_series_are_known_has_no_rows() -> None:
    assert len(requests_frame(replace(run(), outcomes=()))) == 0
