"""Power, energy and coverage of recordings with known answers; power as series; the three levels."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.power.component_power import Energy
from collectors.power.covered import Covered
from collectors.power.levels import FEWEST_SAMPLES, Level, busy_windows, derive_levels
from collectors.power.power_file import PowerRecording, power_facts, read_power
from collectors.power.series import power_series
from tests.collectors.power.power_files import ORIGIN_S, counter, gauge, header, recorded, sample, times
from traces.errors import CollectorError, InputError
from traces.steps import steps_from_columns


def energy(recording: PowerRecording, begin_s: float, end_s: float, component: str = "gpu0") -> Energy:
    return recording.components[component].energy(ORIGIN_S + begin_s, ORIGIN_S + end_s)


# Constant power and a ramp have closed forms, whichever way they are measured.


@pytest.mark.parametrize("window", [(0.0, 10.0), (1.03, 7.77), (5.0, 5.25)])
def test_constant_power_is_power_times_time(tmp_path: Path, window: tuple[float, float]) -> None:
    for made in (
        gauge(tmp_path / "g", times(0, 10), lambda t: 250.0),
        counter(tmp_path / "c", times(0, 10), lambda t: 1e6 + 250.0 * t),
    ):
        found = energy(made, *window)
        assert found.energy_j == pytest.approx(250.0 * (window[1] - window[0]), rel=1e-6)
        assert found.mean_w == pytest.approx(250.0, rel=1e-6)
        assert found.coverage == pytest.approx(1.0)


@pytest.mark.parametrize("window", [(0.0, 10.0), (1.03, 7.77), (5.02, 5.19)])
def test_a_ramp_is_integrated_exactly_from_a_gauge(tmp_path: Path, window: tuple[float, float]) -> None:
    ramp = gauge(tmp_path / "g", times(0, 10), lambda t: 100.0 + 40.0 * t)
    begin, end = window
    exact = 100.0 * (end - begin) + 20.0 * (end**2 - begin**2)
    assert energy(ramp, begin, end).energy_j == pytest.approx(exact, rel=1e-6)


def test_a_ramp_is_exact_from_a_counter_between_its_samples(tmp_path: Path) -> None:
    ramp = counter(tmp_path / "c", times(0, 10), lambda t: 100.0 * t + 20.0 * t**2)
    assert energy(ramp, 2.0, 7.0).energy_j == pytest.approx(100.0 * 5 + 20.0 * (49 - 4), rel=1e-6)
    power = ramp.components["gpu0"]
    assert (power.source, len(power.time_s)) == ("counter", 100)
    assert power.power_w == pytest.approx(100.0 + 40.0 * (power.time_s - ORIGIN_S - 0.05), rel=1e-6)
    assert power.since_s[1:] == pytest.approx(power.time_s[:-1])


def test_the_counter_is_believed_before_the_gauge(tmp_path: Path) -> None:
    both = recorded(tmp_path / "b", header("gpu0"), *(sample(t, watts=99.0, joules=250.0 * t) for t in times(0, 5)))
    assert energy(both, 0, 5).mean_w == pytest.approx(250.0)


@given(
    st.lists(
        st.tuples(st.floats(0.01, 5), st.floats(0, 3), st.floats(0, 500), st.floats(0, 500)), min_size=1, max_size=12
    ),
    st.lists(st.floats(-5, 60), min_size=1, max_size=10),
)
def test_energy_and_coverage_of_parts_add_up(parts: list[tuple[float, ...]], cuts: list[float]) -> None:
    width, gap, begin_w, end_w = (np.array(column) for column in zip(*parts, strict=True))
    begin = np.cumsum(width + gap) - width
    covered = Covered(begin, begin + width, begin_w, end_w)
    edges = np.array([-10.0, *sorted(cuts), 200.0])
    joules, covered_s = covered.between(edges)
    assert joules.sum() == pytest.approx((width * (begin_w + end_w) / 2).sum(), abs=1e-6)
    assert covered_s.sum() == pytest.approx(width.sum(), abs=1e-9)
    assert (covered_s >= -1e-9).all()
    assert (covered_s <= np.diff(edges) + 1e-9).all()
    assert (joules >= -1e-6).all()


# What is not covered is not told.


@pytest.mark.parametrize("made", [gauge, counter])
def test_a_gap_is_not_covered(tmp_path: Path, made: Callable[..., PowerRecording]) -> None:
    watts = (lambda t: 100.0) if made is gauge else (lambda t: 100.0 * t)
    gapped = made(tmp_path / "g", [*times(0, 4), *times(5, 10)], watts)
    found = energy(gapped, 0, 10)
    assert (found.energy_j, found.mean_w) == (None, None)
    assert found.coverage == pytest.approx(0.9)
    assert found.reason == "samples cover 90.0% of the window, and 95% are needed"
    assert energy(gapped, 5, 10).energy_j == pytest.approx(500.0)
    assert gapped.notes == ("gpu0: not covered between samples: 1 s, in 1 gap",)


def test_a_gap_of_three_periods_is_covered_and_one_of_four_is_not(tmp_path: Path) -> None:
    assert energy(gauge(tmp_path / "3", [*times(0, 5), *times(5.3, 9)], lambda t: 1.0), 0, 9).coverage == pytest.approx(
        1
    )
    four = energy(gauge(tmp_path / "4", [*times(0, 5), *times(5.4, 9)], lambda t: 1.0), 0, 9)
    assert four.coverage == pytest.approx(1 - 0.4 / 9)
    assert four.energy_j == pytest.approx(9 - 0.4)


def test_a_window_beyond_the_recording_is_not_covered_there(tmp_path: Path) -> None:
    made = gauge(tmp_path / "g", times(0, 10), lambda t: 50.0)
    assert energy(made, -5, 5).coverage == pytest.approx(0.5)
    assert energy(made, 20, 30) == Energy(None, None, 0.0, "samples cover 0.0% of the window, and 95% are needed")
    nearly = energy(made, 0.2, 10.2)
    assert nearly.coverage == pytest.approx(0.98)
    assert nearly.energy_j == pytest.approx(50.0 * 9.8)
    assert nearly.mean_w == pytest.approx(50.0)
    with pytest.raises(ValueError, match="no window"):
        energy(made, 5, 5)


def test_failed_readings_are_gaps_and_are_counted(tmp_path: Path) -> None:
    lines = [sample(t, error="exit code 1") if 3 < t < 4 else sample(t, watts=10.0) for t in times(0, 6)]
    made = recorded(tmp_path / "f", header("gpu0"), *lines)
    power = made.components["gpu0"]
    assert (power.n_tries, power.n_failed) == (61, 9)
    assert power.rate_hz == pytest.approx(10.0)
    assert energy(made, 0, 6).coverage == pytest.approx(5 / 6)
    assert made.notes[0] == "gpu0: 9 of 61 readings failed (mostly: exit code 1)"


def test_failures_do_not_pass_for_a_slow_sensor(tmp_path: Path) -> None:
    """Nine of ten readings fail: the one per second that is left does not cover the second."""
    lines = [sample(t, **({"watts": 5.0} if i % 10 == 0 else {"error": "no"})) for i, t in enumerate(times(0, 20))]
    assert energy(recorded(tmp_path / "f", header("gpu0"), *lines), 0, 20).coverage == 0


def test_a_sensor_slower_than_the_rate_has_its_own_period(tmp_path: Path) -> None:
    slow = gauge(tmp_path / "s", times(0, 20, 0.6), lambda t: 400.0)
    power = slow.components["gpu0"]
    assert power.rate_hz == pytest.approx(1 / 0.6)
    assert power.period_s == pytest.approx(0.6)
    assert energy(slow, 0, 19.8).coverage == pytest.approx(1.0)
    assert "shorter than the 0.6 s between values" in str(energy(slow, 3.0, 3.5).reason)


# A counter that is renewed less often than it is read.


def test_a_counter_renewed_every_second_gives_means_over_seconds(tmp_path: Path) -> None:
    """Read ten times a second, renewed at the seconds: no zeros, no peaks, and the first of the file is not trusted."""
    made = counter(tmp_path / "c", times(0.5, 20.5), lambda t: 300.0 * int(t + 1e-9))
    power = made.components["gpu0"]
    assert power.power_w == pytest.approx(np.full(19, 300.0))
    assert power.time_s == pytest.approx(ORIGIN_S + np.arange(2.0, 21.0))
    assert power.period_s == pytest.approx(1.0)
    assert energy(made, 1, 20).energy_j == pytest.approx(300.0 * 19)
    assert energy(made, 0.5, 20.5).coverage == pytest.approx(19 / 20)
    assert "shorter than the 1 s between values" in str(energy(made, 3.0, 3.5).reason)


def test_a_renewal_inside_a_gap_is_no_moment_to_count_from(tmp_path: Path) -> None:
    """After the gap the counter is found moved, 0.9 s after its renewal; 0.1 s later it moves by a second's energy."""
    made = counter(tmp_path / "c", [*times(0.5, 4.5), *times(12.9, 20.5)], lambda t: 300.0 * int(t + 1e-9))
    power = made.components["gpu0"]
    assert power.power_w == pytest.approx(np.full(len(power.power_w), 300.0))
    assert power.covered.end_s.max() == pytest.approx(ORIGIN_S + 20)
    assert energy(made, 13, 20).energy_j == pytest.approx(2100.0)


def test_a_counter_that_fell_is_not_covered_there_and_noted(tmp_path: Path) -> None:
    made = counter(tmp_path / "c", times(0, 10), lambda t: 1e6 + 200.0 * t if t < 5 else 200.0 * t)
    assert energy(made, 0, 10).coverage == pytest.approx(0.99)
    assert energy(made, 0, 10).mean_w == pytest.approx(200.0)
    assert made.notes[0] == "gpu0: the energy counter fell, times: 1; not covered there"


def test_a_counter_that_never_moved_is_not_zero_watts(tmp_path: Path) -> None:
    made = counter(tmp_path / "c", times(0, 5), lambda t: 0.0)
    assert made.components["gpu0"].source is None
    assert energy(made, 0, 5).energy_j is None
    assert made.notes == ("gpu0: the energy counter never moved, and is not believed",)
    assert power_series(made, ORIGIN_S) == {}


# The file.


def test_sessions_are_apart_and_on_one_clock(tmp_path: Path) -> None:
    """The counter starts again, as RAPL's without its wraps does; the time between is a gap."""
    path = tmp_path / "s"
    first = [sample(t, joules=1e5 + 80.0 * t) for t in times(0, 5)]
    second = [sample(t, joules=80.0 * t) for t in times(5.2, 60)]
    made = recorded(path, header("gpu0"), *first, header("gpu0", at_s=5.15), *second)
    assert energy(made, 0, 60).mean_w == pytest.approx(80.0)
    assert energy(made, 0, 60).coverage == pytest.approx(1 - 0.2 / 60)
    assert made.notes == ("gpu0: not covered between samples: 0.2 s, in 1 gap",)
    assert [pair.monotonic_s for pair in made.clocks] == pytest.approx([ORIGIN_S, ORIGIN_S + 5.15])
    assert made.monotonic_s(ORIGIN_S + 507.0) == pytest.approx(ORIGIN_S + 7.0)


def test_what_was_between_sessions_is_not_known_however_short(tmp_path: Path) -> None:
    first, second = ([sample(t, watts=80.0) for t in times(*window)] for window in ((0, 5), (5.1, 10)))
    made = recorded(tmp_path / "s", header("gpu0"), *first, header("gpu0", at_s=5.05), *second)
    assert energy(made, 0, 10).coverage == pytest.approx(0.99)


def test_a_wall_clock_that_was_set_is_paired_anew(tmp_path: Path) -> None:
    ahead = header("gpu0", at_s=100.0, wall_ns=round((ORIGIN_S + 100 + 8000) * 1e9))
    made = recorded(tmp_path / "s", header("gpu0"), sample(1, watts=1.0), ahead, sample(101, watts=1.0))
    assert made.monotonic_s(ORIGIN_S + 500 + 3) == pytest.approx(ORIGIN_S + 3)
    assert made.monotonic_s(ORIGIN_S + 8000 + 103) == pytest.approx(ORIGIN_S + 103)


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_text("\n".join([header("gpu0"), *(sample(t, watts=1.0) for t in times(0, 1))]))
    assert read_power(path).components["gpu0"].n_tries == 10


@pytest.mark.parametrize(
    ("line", "field", "accepted"),
    [
        (sample(2, watts=-1.0), "watts", "float >= 0.0"),
        (sample(2, watts="9"), "watts", "float"),
        (sample(2, component="gpu7", watts=1.0), "component", "a component of a header above"),
        (sample(1, watts=1.0), "time_ns", "more than the one before"),
        (header("gpu0", at_s=2, rate_hz=1.0), "rate_hz", "10.0, as in the first header"),
        (header("gpu0", at_s=2, boot_id="another"), "boot_id", "'a start', as in the first header"),
        (header("gpu0", at_s=2, schema="servetwin.power/2"), "schema", "servetwin.power/1"),
        (header("gpu0", at_s=2, kind="cpu"), "sensors", "gpu0 of fake, as before"),
        (sample(2, what=1), "what", "watts"),
        ('{"kind": "sample", "time_ns": ', None, None),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: str, field: str | None, accepted: str | None) -> None:
    with pytest.raises(InputError) as caught:
        recorded(tmp_path / "w", header("gpu0"), sample(1, watts=1.0), line)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(tmp_path / "w"), 3, field)
    assert (accepted or "is not JSON") in str(caught.value)


def test_a_file_without_a_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match="no header"):
        recorded(tmp_path / "e")
    with pytest.raises(InputError, match="a header first"):
        recorded(tmp_path / "h", sample(0, watts=1.0))


def test_facts_are_of_all_that_was_recorded(tmp_path: Path) -> None:
    lines = [sample(t, watts=100.0 + 10 * t) for t in times(0, 10)]
    facts = power_facts(recorded(tmp_path / "f", header("gpu0", "gpu1"), *lines))
    assert facts["notes"] == ["gpu1: no sample was taken"]
    assert facts["components"]["gpu0"] == {
        "kind": "gpu",
        "device": None,
        "sensor": "fake",
        "source": "gauge",
        "mean_w": pytest.approx(150.0),
        "max_w": 200.0,
        "energy_j": pytest.approx(1500.0),
        "reason": None,
        "duration_s": pytest.approx(10.0),
        "coverage": pytest.approx(1.0),
        "rate_hz": pytest.approx(10.0),
        "period_s": pytest.approx(0.1),
        "tries": 101,
        "failed": 0,
    }


def test_one_sample_is_no_energy(tmp_path: Path) -> None:
    facts = power_facts(recorded(tmp_path / "f", header("gpu0"), sample(0, watts=5.0)))["components"]["gpu0"]
    assert (facts["max_w"], facts["mean_w"], facts["energy_j"], facts["rate_hz"]) == (5.0, None, None, None)


# Series of a capture.


def test_series_are_means_over_equal_windows_on_the_captures_clock(tmp_path: Path) -> None:
    lines = [sample(t, f"gpu{i}", joules=(100.0 + 50 * i) * t) for t in times(2, 6) for i in range(2)]
    made = recorded(tmp_path / "s", header("gpu0", "gpu1"), *lines)
    series = power_series(made, ORIGIN_S + 1.0)
    assert series.keys() == {"power_w.devices", "power_w.gpu0", "power_w.gpu1"}
    assert series["power_w.devices"].time_s == pytest.approx(np.arange(1.1, 5.05, 0.1))
    assert series["power_w.devices"].value == pytest.approx(np.full(40, 250.0))
    assert series["power_w.gpu1"].value == pytest.approx(np.full(40, 150.0))
    coarse = power_series(made, ORIGIN_S, window_s=1.0)["power_w.devices"]
    assert coarse.time_s == pytest.approx([3.0, 4.0, 5.0, 6.0])


def test_a_window_of_the_total_needs_every_device(tmp_path: Path) -> None:
    lines = [sample(t, "gpu0", watts=100.0) for t in times(0, 6)]
    lines += [sample(t, "gpu1", watts=70.0) for t in [*times(0, 2), *times(4, 6)]]
    series = power_series(recorded(tmp_path / "s", header("gpu0", "gpu1"), *lines), ORIGIN_S, window_s=1.0)
    assert series["power_w.gpu0"].time_s == pytest.approx([1, 2, 3, 4, 5, 6])
    assert series["power_w.devices"].time_s == pytest.approx([1, 2, 5, 6])
    assert series["power_w.devices"].value == pytest.approx(np.full(4, 170.0))


def test_a_window_that_is_half_covered_is_left_out(tmp_path: Path) -> None:
    made = gauge(tmp_path / "g", [*times(0, 2.5), *times(4, 6)], lambda t: 100.0)
    assert power_series(made, ORIGIN_S, window_s=1.0)["power_w.devices"].time_s == pytest.approx([1, 2, 5, 6])


def host(path: Path, *kinds: str) -> PowerRecording:
    """A component of each kind, of as many watts as its place says."""
    parts = [{"name": f"{kind}0", "kind": kind} for kind in kinds]
    first = header(sensors=[{"name": "fake", "components": parts}])
    return recorded(
        path, first, *(sample(t, f"{kind}0", watts=1.0 + i) for t in times(0, 2) for i, kind in enumerate(kinds))
    )


@pytest.mark.parametrize(
    ("kinds", "totals"),
    [
        (("cpu", "gpu", "server"), {"power_w.devices": 2.0, "power_w": 3.0}),
        (("cpu", "tpu"), {"power_w.devices": 2.0}),
        (("cpu", "dram"), {"power_w.devices": 1.0}),
        (("command",), {"power_w": 1.0}),
        (("dram",), {}),
    ],
)
def test_totals_are_of_the_devices_and_of_the_server(
    tmp_path: Path, kinds: tuple[str, ...], totals: dict[str, float]
) -> None:
    series = power_series(host(tmp_path / "h", *kinds), ORIGIN_S)
    assert series.keys() == {f"power_w.{kind}0" for kind in kinds} | totals.keys()
    for name, watts in totals.items():
        assert series[name].value == pytest.approx(np.full(20, watts))


# Levels.


def three_states(t: float) -> float:
    """Busy from 40 to 60 s and from 65 to 70 s; then a raised state for 18 s."""
    if 40 <= t < 60 or 65 <= t < 70:
        return 300.0
    return 90.0 if 60 <= t < 65 or 70 <= t < 88 else 33.0


BUSY = [(ORIGIN_S + 65, ORIGIN_S + 70), (ORIGIN_S + 40, ORIGIN_S + 60)]


@pytest.mark.parametrize("made", [gauge, counter])
def test_levels_are_medians_of_the_three_states(tmp_path: Path, made: Callable[..., PowerRecording]) -> None:
    if made is gauge:
        recording = gauge(tmp_path / "g", times(0.05, 120.05), three_states)
    else:
        at_s = times(0, 120)
        joules = dict(zip(at_s, np.cumsum([0.1 * three_states(t - 0.05) for t in at_s]), strict=True))
        recording = counter(tmp_path / "c", at_s, lambda t: float(joules[t]))
    found = derive_levels(recording, BUSY)
    assert found is not None
    levels = found.components["gpu0"]
    for level, watts, n in ((levels.active, 300.0, 250), (levels.standby, 90.0, 230), (levels.idle, 33.0, 220 + 320)):
        assert level is not None
        assert (level.median_w, level.p25_w, level.p75_w) == pytest.approx((watts, watts, watts))
        assert level.n == pytest.approx(n, abs=3)


def test_the_standby_time_is_an_option(tmp_path: Path) -> None:
    found = derive_levels(gauge(tmp_path / "g", times(0.05, 120.05), three_states), BUSY, standby_s=40.0)
    assert found is not None
    assert found.standby_s == 40.0
    standby = found.components["gpu0"].standby
    assert standby is not None
    assert (standby.p25_w, standby.median_w, standby.p75_w, standby.n) == (33.0, 90.0, 90.0, 450)


def test_a_sample_across_two_states_counts_for_none(tmp_path: Path) -> None:
    """A counter renewed every 2 s, out of step with the busy window: the mean over its edge is of neither state."""
    recording = counter(
        tmp_path / "c", times(1, 121, 2.0), lambda t: 10.0 * t + 990.0 * max(0, min(t, 60) - 40), rate_hz=0.5
    )
    found = derive_levels(recording, [(ORIGIN_S + 40, ORIGIN_S + 60)])
    assert found is not None
    levels = found.components["gpu0"]
    assert levels.active is None
    assert levels.standby is None
    assert levels.idle == Level(pytest.approx(10.0), pytest.approx(10.0), pytest.approx(10.0), 10 + 21)


def test_there_are_no_levels_where_nobody_knows_when_the_server_was_busy(tmp_path: Path) -> None:
    assert derive_levels(gauge(tmp_path / "g", times(0, 60), lambda t: 1.0), None) is None


def test_a_state_with_too_few_samples_has_no_level(tmp_path: Path) -> None:
    recording = gauge(tmp_path / "g", times(0.05, 60.05), lambda t: 50.0)
    for n, there in ((FEWEST_SAMPLES - 1, False), (FEWEST_SAMPLES, True)):
        found = derive_levels(recording, [(ORIGIN_S + 10, ORIGIN_S + 10 + n / 10)])
        assert found is not None
        assert (found.components["gpu0"].active is not None) == there
    never = derive_levels(recording, [])
    assert never is not None
    levels = never.components["gpu0"]
    assert (levels.active, levels.standby) == (None, None)
    assert levels.idle is not None
    assert levels.idle.n == pytest.approx(420, abs=1)  # not the first 18 s, before which there may have been work


def test_busy_windows_are_of_steps_that_touch_on_any_instance() -> None:
    ends = [1.0, 1.4, 2.0, 2.2, 9.0]
    columns = {"scheduled_s": [0.5, 1.05, 0.2, 2.15, 8.0], "end_s": ends, "instance": [0, 0, 1, 0, 1]}
    counts = ("n_requests", "n_prefill_tokens", "n_decode_tokens", "n_preempted", "n_running", "n_waiting", "kv_blocks")
    steps = steps_from_columns({**columns, **dict.fromkeys(counts, [0] * 5)})
    windows = busy_windows(steps, ORIGIN_S, merge_s=0.16)
    assert np.array(windows) - ORIGIN_S == pytest.approx(np.array([[0.2, 2.2], [8.0, 9.0]]))
    assert len(busy_windows(steps, ORIGIN_S, merge_s=0.1)) == 3
    with pytest.raises(ValueError, match="no window"):
        derive_levels(PowerRecording(1.0, (), {}, ()), [(2.0, 1.0)])


# Logs of nvidia-smi and ipmitool.


def test_a_log_of_gpus_is_a_recording(tmp_path: Path) -> None:
    rows = ["timestamp, index, power.draw [W]"]
    for second in range(20):
        if second != 7:
            cells = ("100.00 W", "[N/A]" if second == 3 else "300.00 W")
            rows += [f"2025/11/03 12:00:{second:02d}.{gpu}00, {gpu}, {cell}" for gpu, cell in enumerate(cells)]
    (tmp_path / "log").write_text("\n".join(rows) + "\n")
    recording = read_power(tmp_path / "log")
    facts = power_facts(recording)
    assert recording.rate_hz == pytest.approx(1.0)
    assert {name: one["sensor"] for name, one in facts["components"].items()} == {
        "gpu0": "nvidia-smi",
        "gpu1": "nvidia-smi",
    }
    assert facts["components"]["gpu0"]["energy_j"] == pytest.approx(1900.0)
    assert facts["components"]["gpu1"]["failed"] == 1
    assert facts["notes"] == ["gpu1: 1 of 19 readings failed (mostly: [N/A])"]
    begin_s = recording.components["gpu0"].begin_s
    assert recording.monotonic_s(begin_s) == begin_s
    assert power_series(recording, begin_s)["power_w.devices"].value == pytest.approx(400.0)


def test_a_log_of_a_server_that_was_never_read_has_no_power(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("2025-11-03 12:00:00,\n2025-11-03 12:00:01,\n")
    facts = power_facts(read_power(tmp_path / "log"))["components"]["server"]
    assert (facts["mean_w"], facts["max_w"], facts["failed"]) == (None, None, 2)


@pytest.mark.ground_truth
def test_levels_of_a_measured_gpu_are_the_published_ones(tmp_path: Path, ground_truth: Path) -> None:
    """An RTX A6000 through three bursts of requests; LLMServingSim's config of it has 33, 89 and 300 W."""
    at_s, watts, busy_s = [], [], []
    with (ground_truth / "ispass26" / "power" / "gpu_power.csv").open() as stream:
        for when, _, utilisation, power in csv.reader(stream, skipinitialspace=True):
            at_s.append(datetime.datetime.strptime(when, "%Y/%m/%d %H:%M:%S.%f").timestamp())
            watts.append(float(power))
            if int(utilisation) > 0:
                busy_s.append(ORIGIN_S + at_s[-1] - at_s[0])
    lines = [sample(t - at_s[0], watts=w) for t, w in zip(at_s, watts, strict=True)]
    recording = recorded(tmp_path / "a6000", header("gpu0", rate_hz=5.0), *lines)
    edges = [i for i in range(1, len(busy_s)) if busy_s[i] - busy_s[i - 1] > 1.0]
    begins, ends = [busy_s[i] for i in [0, *edges]], [busy_s[i - 1] for i in [*edges, 0]]
    found = derive_levels(recording, list(zip(begins, ends, strict=True)))
    assert found is not None
    levels = found.components["gpu0"]
    medians = [level.median_w for level in (levels.idle, levels.standby, levels.active) if level is not None]
    assert medians == pytest.approx([33.0, 89.0, 300.0], rel=0.03)
