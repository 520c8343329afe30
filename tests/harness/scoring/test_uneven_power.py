"""Power logs whose rows are uneven in time: what validation says of them, and how a log of GPUs is scored."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.running.simulate import simulate_scenario
from harness.scoring.tables import verdict
from harness.scoring.validate import validate
from traces.capture import Series, write_capture
from traces.formats import import_capture, read_any_trace
from traces.series import Grid

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
    def score(text: str, *overrides: str) -> dict[str, Any]:
        (tmp_path / "log").write_text(text)
        write_capture(import_capture(tmp_path / "log", trace=read_any_trace(TRACE)), tmp_path / "capture")
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


def test_even_power_is_scored_as_before(watts: dict[str, Series], scored: Callable[..., dict[str, Any]]) -> None:
    by_second = watts["power_w"]
    grid = Grid(0.0, 1.0, 40)
    text = "".join(f"{end_s},{watt!r}\n" for end_s, watt in zip(grid.ends_s(), by_second.value.tolist(), strict=False))
    result = scored("time_s,power_w\n" + text)
    assert result["series"]["power_w"] == {"mape": pytest.approx(0, abs=1e-9), "n": 40}
    assert not any("evenly" in note for note in result["notes"])
