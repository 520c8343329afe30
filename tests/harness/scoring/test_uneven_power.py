"""Power logs whose rows are uneven in time: what validation says of them, and how a log of GPUs is scored."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.running.simulate import simulate_scenario
from harness.scoring.compare import measured_power
from harness.scoring.tables import verdict
from harness.scoring.validate import validate
from traces.capture import Series, read_capture, write_capture
from traces.formats import import_capture, read_any_trace
from traces.series_file import AS_WRITTEN, SeriesClock
from traces.windows import Grid

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "power.yaml"
TRACE = ROOT / "harness" / "bundled" / "captures" / "light-1" / "trace.jsonl.gz"
WIDER = ["cluster.power.base_w=42"]
"""Twice the base of the example: 21 W too much."""


@pytest.fixture(scope="module")
def watts() -> dict[str, Series]:
    """Power of the example by the second, of all and of its devices."""
    simulation, _ = simulate_scenario(EXAMPLE)
    return {name: simulation.capture.series[name] for name in ("power_w", "power_w.devices")}


def mean_w(by_second: Series, begin_s: int, end_s: int) -> float:
    return float(by_second.value[begin_s:end_s].mean())


@pytest.fixture
def scored(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def score(text: str, *overrides: str, clock: SeriesClock = AS_WRITTEN) -> dict[str, Any]:
        (tmp_path / "log").write_text(text)
        write_capture(import_capture(tmp_path / "log", trace=read_any_trace(TRACE), clock=clock), tmp_path / "capture")
        return validate(EXAMPLE, tmp_path / "capture", overrides).result

    return score


def test_missing_seconds_are_scored_over_the_time_that_rows_stand_for(
    watts: dict[str, Series], scored: Callable[..., dict[str, Any]]
) -> None:
    """Second 5 is missing, and so are 11 to 30: the row at 6 is of two seconds, the one at 31 of its own."""
    begins_s = {6: 4}
    ends_s = [second for second in range(1, 48) if second != 5 and not 11 <= second <= 30]
    rows = [(end_s, mean_w(watts["power_w"], begins_s.get(end_s, end_s - 1), end_s)) for end_s in ends_s]
    text = "time_s,power_w\n" + "".join(f"{end_s},{watt!r}\n" for end_s, watt in rows)
    result = scored(text)
    assert result["series"]["power_w"] == {"mape": pytest.approx(0, abs=1e-9), "n": 26, "weighted_s": pytest.approx(27)}
    assert verdict(result) == (
        "VALID over series alone, mean |error| by the window: "
        "power_w 0.0% over 26 windows, weighted by the 27.0 s that they stand for."
    )
    first, second = result["notes"][:2]
    assert first.startswith(
        "power_w: its 26 rows are not evenly spaced: each is compared with the mean simulated power"
    )
    assert second.startswith("power_w: not measured, and not scored: 20 s in 1 gap between rows more than 3 of")


def test_the_error_weighs_by_time(
    watts: dict[str, Series], scored: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    ends_s = [1, 2, 4, 5, 8, 9, 10]
    begins_s = [0, *ends_s[:-1]]
    measured = np.array([mean_w(watts["power_w"], *span) for span in zip(begins_s, ends_s, strict=True)])
    text = "".join(f"{end_s},{watt!r}\n" for end_s, watt in zip(ends_s, measured.tolist(), strict=True))
    result = scored("time_s,power_w\n" + text, *WIDER)
    expected = np.average(21 / measured, weights=np.diff(ends_s, prepend=0))
    assert result["series"]["power_w"]["mape"] == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(np.mean(21 / measured), rel=1e-3)


def test_five_rows_a_second_and_one_are_both_scored(scored: Callable[..., dict[str, Any]]) -> None:
    times_s = [*(np.arange(1, 51) / 5), *range(11, 31)]
    result = scored("time_s,power_w\n" + "".join(f"{time_s},50\n" for time_s in times_s))
    assert result["series"]["power_w"]["weighted_s"] == pytest.approx(30)
    assert not any("not measured" in note for note in result["notes"])


def test_a_log_of_gpus_is_scored_against_the_devices_alone(
    watts: dict[str, Series], scored: Callable[..., dict[str, Any]]
) -> None:
    """Two GPUs that share what the devices draw; memory and base are in no row of theirs."""
    start = datetime(2025, 11, 3, 12, tzinfo=UTC)
    devices = watts["power_w.devices"]
    rows = ["timestamp, index, power.draw [W]", *(f"{start:%Y/%m/%d %H:%M:%S}.000, {i}, 9.00 W" for i in (0, 1))]
    for end_s in (*range(1, 20), *range(21, 40)):  # second 20 is missing
        watt = mean_w(devices, 19 if end_s == 21 else end_s - 1, end_s)
        time = f"{start + timedelta(seconds=end_s):%Y/%m/%d %H:%M:%S}.000"
        rows += [f"{time}, {i}, {share * watt} W" for i, share in enumerate((0.25, 0.75))]
    result = scored("\n".join(rows) + "\n")
    assert result["series"]["power_w"] is None
    error = result["series"]["power_w.devices"]
    assert error == {"mape": pytest.approx(0, abs=1e-6), "n": 38, "weighted_s": pytest.approx(39)}
    assert (
        "power_w.devices: not simulated, and not scored: 1 rows that stand for time before second 0" in result["notes"]
    )
    assert result["valid"]


@pytest.mark.parametrize("zero", ["2025-11-03 11:00:00", "2025-11-03 11:59:00.5", None])
def test_a_log_of_no_time_in_which_requests_were_served_is_not_valid(
    scored: Callable[..., dict[str, Any]], zero: str | None
) -> None:
    """An hour late by its second 0, or begun when all was over, second 0 being its first row's window's begin."""
    start = datetime(2025, 11, 3, 12, tzinfo=UTC)
    rows = "".join(f"{start + timedelta(seconds=i):%Y-%m-%d %H:%M:%S},50\n" for i in range(60))
    result = scored(rows, clock=SeriesClock(zero=zero))
    assert result["valid"] is (zero is None)
    if zero is not None:
        (reason,) = result["reasons"]
        begin_s = 3599 if zero.endswith("11:00:00") else 58.5
        assert reason.startswith(f"power_w: no row of its 60, from {begin_s:g} to {begin_s + 60:g} s, is of time in")


UNEVEN_S = [0, 1, 2, 4, 5, 6.2, 7, 8, 9, 30, 30.4, 31, 32, 33]
"""Begins of windows: seconds 2 and 3 are one row, and after a gap from 10 to 30 stands a short row."""


def test_rows_of_windows_that_begin_at_their_times_are_scored_over_these(
    watts: dict[str, Series], scored: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    ends_s = [*UNEVEN_S[1:9], 10, *UNEVEN_S[10:], 34]
    energy_j = np.concatenate([[0], np.cumsum(watts["power_w"].value)])
    seconds = np.arange(len(energy_j))
    spans = np.array([UNEVEN_S, ends_s])
    constant = [i for i, span in enumerate(spans.T) if span[0] == int(span[0]) and span[1] == int(span[1])]
    mean_w = np.diff(np.interp(spans, seconds, energy_j), axis=0)[0] / np.diff(spans, axis=0)[0]
    text = "time_s,power_w\n" + "".join(f"{at},{w!r}\n" for at, w in zip(UNEVEN_S, mean_w.tolist(), strict=True))
    result = scored(text, clock=SeriesClock("begin"))
    grid = measured_power(read_capture(tmp_path / "capture"))["power_w"]
    assert grid.begins_s() == pytest.approx(UNEVEN_S)
    assert grid.ends_s() == pytest.approx(ends_s)
    error = result["series"]["power_w"]
    assert (error["n"], error["weighted_s"]) == (14, pytest.approx(14))
    assert len(constant) == 10  # those between whole seconds, of which the mean is known, are met
    assert error["mape"] < 0.01
    assert any("not measured, and not scored: 20 s in 1 gap" in note for note in result["notes"])
    assert not any("before second 0" in note for note in result["notes"])


def test_even_power_is_scored_as_before(watts: dict[str, Series], scored: Callable[..., dict[str, Any]]) -> None:
    by_second = watts["power_w"]
    grid = Grid(0.0, 1.0, 40)
    text = "".join(f"{end_s},{watt!r}\n" for end_s, watt in zip(grid.ends_s(), by_second.value.tolist(), strict=False))
    result = scored("time_s,power_w\n" + text)
    assert result["series"]["power_w"] == {"mape": pytest.approx(0, abs=1e-9), "n": 40}
    assert not any("evenly" in note for note in result["notes"])
