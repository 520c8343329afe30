"""Plain time series as captures, and the error of one against another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from traces.capture import Capture, CaptureMeta, Series, read_capture, write_capture
from traces.errors import InputError
from traces.formats import import_capture
from traces.outcome import Outcome
from traces.series_error import LogPhase, SeriesError, log_phase, series_error, series_mape
from traces.series_file import SeriesClock, read_series
from traces.trace import Trace, TraceRow

TRACE = Trace((TraceRow(request_id="0", arrival_s=0.0, prompt_tokens=4, output_tokens=2),), None, "test", "sha256:0")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        path = tmp_path / "series.txt"
        path.write_text(text)
        return path

    return make


def test_a_series_becomes_a_capture_of_no_outcomes(write: Callable[[str], Path], tmp_path: Path) -> None:
    path = write("time_s\tthroughput\n0\t0\n1\t12.5\n2\t7\n")
    write_capture(import_capture(path, trace=TRACE), tmp_path / "capture")
    capture = read_capture(tmp_path / "capture")
    assert capture.outcomes == ()
    assert capture.trace.rows == TRACE.rows
    assert capture.series["output_tokens_per_s"].time_s.tolist() == [0, 1, 2]
    assert capture.series["output_tokens_per_s"].value.tolist() == [0, 12.5, 7]
    assert "a time series alone: no request was recorded" in capture.meta.notes
    assert capture.meta.provenance["trace"] == "sha256:0"


def test_units_become_ours(write: Callable[[str], Path]) -> None:
    series, notes = read_series(write("time_s,gpu_mem_mb,prefix_hit_pct,power_w\n1,2,25,300\n"))
    assert {name: one.value.tolist() for name, one in series.items()} == {
        "gpu_memory_bytes": [2 * 2**20],
        "prefix_hit_rate": [0.25],
        "power_w": [300.0],
    }
    assert notes == []


def test_a_row_of_the_window_that_begins_at_its_time_ends_with_the_next(write: Callable[[str], Path]) -> None:
    path = write("time_s,power_w\n0,100\n1,200\n3,300\n")
    series, notes = read_series(path, SeriesClock("begin"))
    assert series["power_w"].time_s.tolist() == [1, 3, 5]
    assert series["power_w"].value.tolist() == [100, 200, 300]
    assert notes == ["series.txt: a row is of the window that begins at its time"]


def test_where_windows_begin_is_kept_with_the_capture(write: Callable[[str], Path], tmp_path: Path) -> None:
    path = write("time_s,power_w,throughput\n-0,100,1\n1,200,1\n1.8,300,1\n60,300,1\n60.2,300,1\n")
    imported = import_capture(path, trace=TRACE, clock=SeriesClock("begin"))
    write_capture(imported, tmp_path / "capture")
    series = read_capture(tmp_path / "capture").series["power_w"]
    assert series.begin_s is not None
    assert series.begin_s.tolist() == [0, 1, 1.8, 60, 60.2]
    assert series.time_s.tolist() == imported.series["power_w"].time_s.tolist()
    assert (series.time_s[:-1] <= series.begin_s[1:]).all()


@pytest.mark.parametrize("begin_s", [[0.0, 0.5], [0.0, 2.0], [0.0, np.nan]])
def test_what_are_no_windows_is_refused(tmp_path: Path, begin_s: list[float]) -> None:
    series = {
        "power_w": Series(np.array([1.0, 2.0]), np.ones(2), np.array(begin_s)),
        "kv_usage": Series(*np.ones((2, 1))),
    }
    imported = Capture(
        CaptureMeta(kind="measured", engine=None, model="m", device=None, clock="-"), TRACE, (), None, series
    )
    write_capture(imported, tmp_path / "capture")
    with pytest.raises(InputError, match=r"series.parquet: field 'begin_s': accepted: before time_s"):
        read_capture(tmp_path / "capture")


@pytest.mark.parametrize(("file", "zero"), [("Z", ""), ("", "Z"), ("", "+02:00")])
def test_a_second_0_that_states_another_time_zone_is_refused(
    write: Callable[[str], Path], file: str, zero: str
) -> None:
    path = write("timestamp,power_w\n" + "".join(f"2025-12-11T21:08:2{i}{file},9\n" for i in range(3)))
    with pytest.raises(InputError, match=r"series.txt: field '--zero': states "):
        read_series(path, SeriesClock(zero=f"2025-12-11T21:08:21{zero}"))
    stated = "2025-12-11T23:08:21+02:00" if file else "2025-12-11T21:08:21"
    series, _ = read_series(path, SeriesClock(zero=stated))
    assert series["power_w"].time_s.tolist() == [0, 1]


def test_rows_that_differ_in_their_time_zones_are_refused(write: Callable[[str], Path]) -> None:
    path = write("timestamp,power_w\n2025-12-11T21:08:27Z,9\n2025-12-11T21:08:28,9\n")
    with pytest.raises(InputError, match=r":3: field 'timestamp': .*accepted: a time zone.* as in the rows above"):
        read_series(path)


def test_a_row_before_a_gap_ends_as_soon_as_most(write: Callable[[str], Path]) -> None:
    rows = "".join(f"{second},100\n" for second in (0, 1, 2, 3, 60, 61, 62))
    series, _ = read_series(write(f"time_s,power_w\n{rows}"), SeriesClock("begin"))
    assert series["power_w"].time_s.tolist() == [1, 2, 3, 4, 61, 62, 63]


@pytest.mark.parametrize(
    ("name", "times", "zero"),
    [
        ("time_s", ("7", "8", "9"), "8"),
        ("timestamp", tuple(f"2025-12-11 21:08:{second}" for second in (27, 28, 29)), "2025-12-11 21:08:28"),
    ],
)
def test_second_0_of_the_trace_can_be_said(
    write: Callable[[str], Path], name: str, times: tuple[str, ...], zero: str
) -> None:
    rows = "".join(f"{time},{100 + i}\n" for i, time in enumerate(times))
    series, notes = read_series(write(f"{name},power_w\n{rows}"), SeriesClock(zero=zero))
    assert series["power_w"].time_s.tolist() == [0, 1]
    assert series["power_w"].value.tolist() == [101, 102]
    assert notes == [
        f"series.txt: {zero} is taken as second 0 of the trace",
        "series.txt: 1 rows before second 0 of the trace left out",
    ]


@pytest.mark.parametrize("clock", [SeriesClock(zero="9"), SeriesClock(zero="noon"), SeriesClock("begin")])
def test_a_clock_that_leaves_nothing_is_refused(write: Callable[[str], Path], clock: SeriesClock) -> None:
    with pytest.raises(InputError):
        read_series(write("time_s,power_w\n8,100\n"), clock)


def test_a_clock_is_for_series_alone(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"input_lens": []}')
    with pytest.raises(InputError, match="nothing for vllm-bench"):
        import_capture(tmp_path / "result.json", trace=TRACE, clock=SeriesClock("begin"))


def test_vllm_s_own_counters_become_a_hit_rate_from_the_first_query_on(write: Callable[[str], Path]) -> None:
    text = """\
timestamp,vllm:kv_cache_usage_perc,vllm:prefix_cache_queries_total,vllm:prefix_cache_hits_total,other
2025-12-12T14:41:52.500,0.0,0,0,1
2025-12-12T14:41:53.500,0.1,10,0,1
2025-12-12T14:41:55.500,0.2,40,10,1

"""
    series, notes = read_series(write(text))
    assert series["kv_usage"].time_s.tolist() == [0, 1, 3]
    assert series["kv_usage"].value.tolist() == [0, 0.1, 0.2]
    assert series["prefix_hit_rate"].time_s.tolist() == [1, 3]
    assert series["prefix_hit_rate"].value.tolist() == [0, 0.25]
    assert notes == ["series.txt: columns left out: other"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r":1: field 'time_s': is missing: accepted: a header with time_s or timestamp"),
        ("seconds\tthroughput\n0\t1\n", r":1: field 'time_s': is missing"),
        ("time_s\tthroughput\n", "holds no rows"),
        ("time_s\tthroughput\n0\t1\t2\n", ":2: has 3 cells: accepted: 2"),
        ("time_s\tthroughput\n0\t1\n\n1\tfast\n", ":4: field 'throughput': found 'fast': accepted: a finite number"),
        ("time_s\tthroughput\n0\tnan\n", ":2: field 'throughput': found 'nan'"),
        ("time_s\tthroughput\n0\t-1\n", ":2: field 'throughput': found '-1'"),
        ("time_s\tthroughput\n1\t1\n1\t1\n", ":3: field 'time_s': found '1': accepted: later"),
        ("timestamp,power_w\nnoon,1\n", ":2: field 'timestamp': found 'noon': accepted: an ISO 8601"),
        ("time_s,power_w,power_w\n1,1,1\n", ":1: field 'power_w': stands twice"),
        ("time_s,throughput,output_tokens_per_s\n1,1,1\n", ":1: .*holds output_tokens_per_s twice"),
        ("time_s,speed\n1,1\n", ":1: has no column that is known: found 'speed': accepted: one of output_tokens"),
    ],
)
def test_what_is_wrong_is_named(write: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_series(write(text))


def test_a_series_needs_the_workload(write: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"says what a run did and not what it served.*--trace"):
        import_capture(write("time_s,power_w\n1,1\n"))


def test_the_error_counts_the_times_of_both_at_which_something_was_measured() -> None:
    measured = Series(np.array([0.0, 1, 2, 3]), np.array([0.0, 10, 20, 40]))
    simulated = Series(np.array([0.0, 1, 2]), np.array([5.0, 11, 16]))
    error = series_error(measured, simulated)
    assert error is not None
    assert error.mape == pytest.approx((0.1 + 0.2) / 2)
    assert (error.n, error.n_left_out) == (2, 2)
    assert series_error(measured, Series(np.array([0.5]), np.array([1.0]))) is None
    assert series_error(Series(np.array([1.0]), np.array([0.0])), simulated) is None
    assert series_error(Series(np.empty(0), np.empty(0)), simulated) is None


def test_a_simulated_run_is_compared_on_the_measured_windows(
    served: Callable[..., Outcome], captured: Callable[..., Capture]
) -> None:
    run = captured([served("0", output_tokens=3, token_times_s=(0.5, 1.0, 1.5))])
    measured = Series(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 4.0, 1.0, 1.0]))
    assert series_mape(run, measured) == SeriesError(pytest.approx((0.5 + 0 + 1) / 3), 3, 1)
    assert series_mape(run, measured, "power_w") is None
    assert series_mape(run, Series(np.array([0.0, 1.0, 5.0]), np.ones(3))) is None
    run.series["power_w"] = Series(measured.time_s, np.full(4, 2.0))
    assert series_mape(run, measured, "power_w") == SeriesError(pytest.approx((0.5 + 1 + 1) / 3), 3, 1)


def test_windows_that_tremble_and_rows_that_are_missing_are_compared_as_they_are(
    served: Callable[..., Outcome], captured: Callable[..., Capture]
) -> None:
    run = captured([served("0", output_tokens=5, token_times_s=(0.5, 1.02, 1.5, 2.5, 4.5))])
    # The row after the gap is of its own second: the token at 2.5 is in no window.
    measured = Series(np.array([0.0, 1.05, 2.0, 4.0, 5.0]), np.array([0.0, 2 / 1.05, 1 / 0.95, 1.0, 1.0]))
    assert series_mape(run, measured) == SeriesError(pytest.approx(0.25), 4, 1)  # 4.0: nothing came, 1 was measured
    phase = log_phase(run, measured)
    assert phase is not None
    assert phase.early_s == 0.0


def rows_at(*time_s: float) -> Series:
    """Measured rows of 100 W."""
    return Series(np.array(time_s), np.full(len(time_s), 100.0))


def test_power_of_uneven_rows_weighs_by_the_time_that_they_stand_for(captured: Callable[..., Capture]) -> None:
    """Missing seconds: the row at 4 stands for two, the one at 60 for one, as the 55 s before it are a gap."""
    measured = rows_at(1, 2, 4, 5, 60, 61)
    run = captured([])
    run.series["power_w"] = Series(measured.time_s, np.array([100.0, 100, 150, 100, 80, 100]))
    error = series_mape(run, measured, "power_w")
    assert error == SeriesError(pytest.approx((2 * 0.5 + 1 * 0.2) / 7), 6, 0, pytest.approx(7.0))
    some = series_mape(run, measured, "power_w", counted=measured.time_s < 5)
    assert some == SeriesError(pytest.approx(2 * 0.5 / 4), 3, 3, pytest.approx(4.0))


def test_uneven_power_is_not_compared_with_power_of_other_windows(captured: Callable[..., Capture]) -> None:
    """Simulated by the second: at 4 it says what was drawn in one second, and the row is of two."""
    run = captured([])
    run.series["power_w"] = rows_at(1, 2, 3, 4, 5)
    assert series_mape(run, rows_at(1, 2, 4, 5), "power_w") is None
    assert series_mape(run, rows_at(1, 2, 3, 4), "power_w") is not None


def test_power_before_second_0_is_not_scored(captured: Callable[..., Capture]) -> None:
    run = captured([])
    for measured in (rows_at(0, 1, 2), rows_at(-1.5, 0.5, 2, 4)):
        run.series["power_w"] = Series(measured.time_s, np.where(measured.time_s > 1, 100.0, 50.0))
        error = series_mape(run, measured, "power_w")
        assert error is not None
        assert (error.n, error.n_left_out) == (2, len(measured.time_s) - 2)


def test_rows_that_tremble_by_a_millisecond_are_all_scored(captured: Callable[..., Capture]) -> None:
    """Even to 1 %, and yet they stand where no even windows end. The first begins a millisecond before second 0."""
    trembling = np.arange(1, 101) * 0.2 + np.tile([0.0, 0.001, 0.0003, -0.0005], 25)
    run = captured([])
    run.series["power_w"] = rows_at(*trembling)
    assert series_mape(run, rows_at(*trembling), "power_w") == SeriesError(0.0, 99, 1, pytest.approx(19.8, abs=0.01))


@pytest.mark.parametrize("early_s", [0.0, 0.35, 0.95])
def test_the_phase_of_a_log_is_found(
    served: Callable[..., Outcome], captured: Callable[..., Capture], early_s: float
) -> None:
    """A log whose windows end `early_s` before their times, of tokens that come faster and faster."""
    token_times_s = tuple(np.sqrt(np.arange(0.5, 200) / 8))
    run = captured([served("0", output_tokens=len(token_times_s), token_times_s=token_times_s)])
    tokens = np.histogram(np.add(token_times_s, early_s), np.arange(-1, 7))[0].astype(float)
    log = Series(np.arange(7.0), tokens)
    n = int((tokens[3:] > 0).sum())
    assert log_phase(run, log) == LogPhase(pytest.approx(early_s), 0.0, n)
    stamped = series_mape(run, log)
    assert stamped is not None
    assert (stamped.mape == 0.0) == (early_s == 0.0)


def test_a_series_that_was_recorded_has_no_other_phase(
    served: Callable[..., Outcome], captured: Callable[..., Capture]
) -> None:
    run = captured([served("0", output_tokens=1, token_times_s=(0.5,))])
    drawn = Series(np.arange(4.0), np.full(4, 2.0))
    run.series["power_w"] = drawn
    assert log_phase(run, drawn, "power_w") is None
    assert log_phase(run, Series(np.array([0.0, 1.0, 5.0]), np.ones(3))) is None


@pytest.mark.ground_truth
def test_the_reference_s_own_figures_come_out(ground_truth: Path) -> None:
    """Its per-second errors: 8.0, 10.9, 6.0 and 13.9 % of throughput, 2.2 % of power, 1.2 % of memory."""
    folder = ground_truth / "ispass26"
    throughput = folder / "throughput" / "A6000"
    pairs = {
        (throughput / "reference" / f"{case}_throughput.tsv", throughput / "peer" / f"{case}_throughput.tsv"): percent
        for case, percent in (("MD", 8.0), ("SD+PC", 10.9), ("PDD", 6.0), ("SM", 13.9))
    }
    pairs[folder / "power" / "server_power.tsv", folder / "power" / "peer_llmservingsim.tsv"] = 2.2
    pairs[folder / "memory" / "SD+PC.tsv", folder / "memory" / "peer_llmservingsim.tsv"] = 1.2
    for (measured, simulated), percent in pairs.items():
        ours, theirs = read_series(measured)[0], read_series(simulated)[0]
        name = next(iter(ours))
        error = series_error(ours[name], theirs[name])
        assert error is not None
        assert round(error.mape * 100, 1) == percent


@pytest.mark.ground_truth
def test_the_reference_counts_generated_tokens_alone(ground_truth: Path) -> None:
    from traces.readers.llmservingsim import read_workload

    folder = ground_truth / "ispass26"
    for case, workload in (("MD", "llama"), ("SD+PC", "llama"), ("PDD", "llama"), ("SM", "phi")):
        rows = read_workload(folder / "dataset" / f"sharegpt_req300_rate10_{workload}.jsonl").rows
        series, _ = read_series(folder / "throughput" / "A6000" / "reference" / f"{case}_throughput.tsv")
        assert series["output_tokens_per_s"].value.sum() == pytest.approx(sum(r.output_tokens for r in rows), rel=0.01)


@pytest.mark.ground_truth
def test_every_workload_of_the_artifact_is_read(ground_truth: Path) -> None:
    from traces.formats import read_any_trace

    files = sorted((ground_truth / "ispass26" / "dataset").glob("*.jsonl"))
    assert len(files) == 6
    for file in files:
        assert read_any_trace(file).hash_block_size == 16
