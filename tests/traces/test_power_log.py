"""Logs of nvidia-smi and ipmitool: what is read of them, how it is placed, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.traces.mutations import N_COPIES, read_copies
from traces.errors import InputError
from traces.formats import import_capture
from traces.power_log import Meter, power_log_series, read_power_log
from traces.power_rows import moment
from traces.series_file import SeriesClock
from traces.trace import Trace, TraceRow

TRACE = Trace((TraceRow(request_id="0", arrival_s=0.0, prompt_tokens=4, output_tokens=2),), None, "test", "sha256:0")
NOON_S = 1_762_171_200.0  # 2025-11-03 12:00:00 UTC


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        path = tmp_path / "log"
        path.write_text(text)
        return path

    return make


def meter(path: Path) -> Meter:
    """The only meter of a log."""
    (found,) = read_power_log(path).meters
    return found


# -- nvidia-smi ------------------------------------------------------------------------------------------------------

STAMPS = ("2025/11/03 12:00:00.100", "2025/11/03 12:00:01.101", "2025/11/03 12:00:02.099")
WATTS = ("298.84", "300.00", "33.38")
HEADERS = {
    "units": ("timestamp, index, utilization.gpu [%], power.draw [W]\n", "{}, 0, 96 %, {} W\n"),
    "nounits": ("timestamp, index, utilization.gpu [%], power.draw [W]\n", "{}, 0, 96, {}\n"),
    "noheader": ("", "{}, 0, 96 %, {} W\n"),
    "noheader,nounits": ("", "{}, 0, 96, {}\n"),
    "the query as header": ("timestamp,index,utilization.gpu,power.draw\n", "{}, 0, 96, {}\n"),
    "other columns, power first": ("", "{}, {}, 96, 71, 1980\n"),
    "by uuid": ("", "{}, GPU-6a2c0e5d-1b2c, {}, 71\n"),
    "power alone": ("timestamp, power.draw [W]\n", "{}, {} W\n"),
}


@pytest.mark.parametrize("how", HEADERS)
def test_every_format_of_the_query_is_read(write: Callable[[str], Path], how: str) -> None:
    header, row = HEADERS[how]
    path = write(header + "".join(row.format(time, watts) for time, watts in zip(STAMPS, WATTS, strict=True)))
    log = read_power_log(path)
    (one,) = log.meters
    assert log.tool == "nvidia-smi"
    assert one.name == ("GPU-6a2c0e5d-1b2c" if how == "by uuid" else "gpu0")
    assert one.power_w.tolist() == [float(watts) for watts in WATTS]
    assert one.time_s - NOON_S == pytest.approx([0.1, 1.101, 2.099], abs=1e-6)


def test_a_log_without_header_says_what_its_columns_were_taken_for(write: Callable[[str], Path]) -> None:
    log = read_power_log(write("".join(f"{time}, 0, 96, 298.84\n" for time in STAMPS)))
    assert log.notes == (
        "log: no header: column 4 is taken as power.draw, column 2 which GPU (index)",
        "log: columns left out: column 3",
    )


def gpus(watts: Callable[[int, int], str], n: int = 2, samples: int = 4) -> str:
    """Rows of several GPUs, one after another, 2 ms apart."""
    rows = [
        f"2025/11/03 12:00:{second:02d}.{10 + 2 * gpu:03d}, {gpu}, NVIDIA H200, {watts(second, gpu)}\n"
        for second in range(samples)
        for gpu in range(n)
    ]
    return "timestamp, index, name, power.draw [W]\n" + "".join(rows)


def test_several_gpus_are_told_apart_and_added_up(write: Callable[[str], Path]) -> None:
    path = write(gpus(lambda second, gpu: f"{100 * (gpu + 1) + second}.00 W", n=3))
    log = read_power_log(path)
    assert [(one.name, one.device) for one in log.meters] == [(f"gpu{i}", "NVIDIA H200") for i in range(3)]
    series, _ = power_log_series(path, log)
    assert sorted(series) == ["power_w.devices", "power_w.gpu0", "power_w.gpu1", "power_w.gpu2"]
    assert series["power_w.devices"].value.tolist() == [600.0, 603.0, 606.0, 609.0]
    assert series["power_w.gpu1"].value.tolist() == [200.0, 201.0, 202.0, 203.0]
    assert series["power_w.devices"].time_s == pytest.approx([0, 1, 2, 3], abs=1e-6)


@pytest.mark.parametrize("cell", ["[N/A]", "[Not Supported]", "[Unknown Error]", "N/A"])
def test_what_could_not_be_read_is_counted_and_in_no_sum(write: Callable[[str], Path], cell: str) -> None:
    path = write(gpus(lambda second, gpu: cell if (second, gpu) == (2, 1) else "100.00 W"))
    log = read_power_log(path)
    assert np.isnan(log.meters[1].power_w).tolist() == [False, False, True, False]
    assert log.meters[1].failures == {cell: 1}
    series, notes = power_log_series(path, log)
    assert series["power_w.devices"].time_s == pytest.approx([0, 1, 3], abs=1e-6)
    assert f"log: gpu1: 1 of 4 readings failed (mostly: {cell})" in notes
    assert "log: 1 of 4 samples left out, as not all GPUs were read" in notes


def test_a_gpu_whose_row_is_missing_makes_no_smaller_sum(write: Callable[[str], Path]) -> None:
    lines = gpus(lambda second, gpu: "100.00 W").splitlines(keepends=True)
    del lines[5]  # GPU 0 of second 2: its row of second 3 must not stand for it
    series, _ = power_log_series(path := write("".join(lines)), read_power_log(path))
    assert series["power_w.devices"].value.tolist() == [200.0] * 3


def untold(times_s: Sequence[float], header: str = "timestamp, power.draw [W]\n", row: str = "{}, 9.00 W\n") -> str:
    """Rows of these times after noon, none of which says of which GPU it is."""
    noon = datetime(2025, 11, 3, 12, tzinfo=UTC)
    stamps = [f"{noon + timedelta(seconds=time_s):%Y/%m/%d %H:%M:%S.%f}"[:-3] for time_s in times_s]
    return header + "".join(row.format(stamp) for stamp in stamps)


def at_once(n: int, apart_s: float, every_s: float, samples: int = 30, seed: int | None = None) -> list[float]:
    """Times of the rows of n GPUs; with a seed, one row in twenty is missing and all tremble."""
    times_s = [every_s * i + apart_s * gpu for i in range(samples) for gpu in range(n)]
    if seed is None:
        return times_s
    rng = np.random.default_rng(seed)
    trembling = np.sort(np.array(times_s) + rng.uniform(0, 0.3 * apart_s, len(times_s)))
    return trembling[rng.random(len(times_s)) > 0.05].tolist()


@pytest.mark.parametrize(
    "times_s",
    [
        at_once(2, 0.002, 1.0),
        at_once(10, 0.002, 1.0),
        at_once(16, 0.002, 1.0),
        at_once(16, 0.0, 1.0),
        at_once(32, 0.001, 1.0),
        at_once(8, 0.003, 0.1),
        at_once(2, 0.01, 0.2),
        at_once(8, 0.003, 0.1, samples=3),
        at_once(8, 0.003, 0.1, samples=60, seed=1),
        at_once(2, 0.01, 0.2, samples=60, seed=2),
        at_once(30, 0.002, 1.0, samples=60, seed=3),
        [second // 2 for second in range(40)],  # of one GPU read twice a second too: it cannot be told
        [np.floor(0.4 * i) for i in range(40)],
    ],
)
@pytest.mark.parametrize("how", ["header", "noheader", "a column that is no index"])
def test_several_gpus_that_nothing_tells_apart_are_not_read_as_one(
    write: Callable[[str], Path], times_s: list[float], how: str
) -> None:
    text = {
        "header": untold(times_s),
        "noheader": untold(times_s, ""),
        "a column that is no index": untold(times_s, "", "{}, 0, 9.00 W\n"),
    }[how]
    with pytest.raises(InputError, match=r"its rows come in groups of .*accepted: index among the columns"):
        read_power_log(write(text))


def one_gpu(seed: int) -> dict[str, list[float]]:
    """Times of the rows of one GPU, as uneven as they come."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(300.0)
    kept = rng.random(300) > 0.1
    return {
        "15 % jitter": np.sort(seconds + rng.uniform(-0.15, 0.15, 300)).tolist(),
        "10 % missing": seconds[kept].tolist(),
        "10 % gaps of a minute": np.cumsum(np.where(kept, 1.0, 60.0)).tolist(),
        "from 5 Hz to 1 Hz": [*(0.2 * seconds), *(60 + seconds)],
        "one gap": [*range(10), *range(100, 110)],
        "now and then twice in a second": np.floor(seconds / 1.2).tolist(),
    }


@pytest.mark.parametrize("seed", range(5))
def test_one_gpu_stays_one_however_uneven_its_rows_are(write: Callable[[str], Path], seed: int) -> None:
    for times_s in one_gpu(seed).values():
        log = read_power_log(write(untold(np.maximum(times_s, 0).tolist())))
        assert [one.name for one in log.meters] == ["gpu0"]


def test_gpus_of_several_names_are_not_read_as_one(write: Callable[[str], Path]) -> None:
    rows = "".join(f"{time}, {name}, 9.00 W\n" for time, name in zip(STAMPS, ("A100", "H100", "A100"), strict=True))
    with pytest.raises(InputError, match=r":1: field 'name': is of several GPUs.*found 'A100, H100': accepted: index"):
        read_power_log(write(f"timestamp, name, power.draw [W]\n{rows}"))


@pytest.mark.parametrize("turn", [("71",), ("45", "46"), ("3", "2"), ("0", "1")])
def test_a_temperature_is_no_index(write: Callable[[str], Path], turn: tuple[str, ...]) -> None:
    """The last could be indices by its figures, but not by its times: as long after one as after the other."""
    rows = "".join(f"2025/11/03 12:00:{i:02d}.000, {turn[i % len(turn)]}, 9.00\n" for i in range(12))
    with pytest.raises(InputError, match=":1: has no header, and does not tell which GPU a row is of"):
        read_power_log(write(rows))


def test_indices_without_a_header_ascend_in_each_reading(write: Callable[[str], Path]) -> None:
    text = gpus(lambda second, gpu: "9.00 W", n=8)
    log = read_power_log(write(text[text.index("\n") + 1 :]))
    assert [one.name for one in log.meters] == [f"gpu{i}" for i in range(8)]


def test_a_gpu_that_never_answers_is_named(write: Callable[[str], Path]) -> None:
    path = write(gpus(lambda second, gpu: "[N/A]" if gpu == 2 else "9.00 W", n=4))
    with pytest.raises(InputError, match="tells no power: found 'no reading of gpu2': accepted: a moment at which"):
        power_log_series(path, read_power_log(path))


def test_a_row_that_was_cut_off_is_left_out(write: Callable[[str], Path]) -> None:
    text = "timestamp, index, power.draw [W]\n" + "".join(f"{time}, 0, 298.84 W\n" for time in STAMPS)
    log = read_power_log(write(text[: text.rindex("8.84 W")]))
    assert log.meters[0].power_w.tolist() == [298.84, 298.84]
    assert log.notes == ("log: its last line has no end, as if cut off: left out",)


def test_a_loop_of_queries_writes_its_header_each_time(write: Callable[[str], Path]) -> None:
    header = "timestamp, index, power.draw [W]\n"
    one = meter(write("".join(f"{header}{time}, 0, 298.84 W\n" for time in STAMPS)))
    assert len(one.time_s) == 3


HEADER = "timestamp, index, power.draw [W]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER, "holds no rows"),
        (HEADER + f"{STAMPS[0]}, 0\n", r":2: has 2 cells: accepted: 3, as in line 1"),
        (HEADER + f"{STAMPS[0]}, 0, fast\n", r":2: field 'power': found 'fast': accepted: watts"),
        (HEADER + f"{STAMPS[0]}, 0, -1.00 W\n", r":2: field 'power': found '-1.00 W'"),
        (HEADER + f"{STAMPS[0]}, all, 1.00 W\n", r":2: field 'index': found 'all': accepted: a whole number"),
        (HEADER + "noon, 0, 1.00 W\n", r":2: field 'timestamp': found 'noon': accepted: as 2025/11/03"),
        (HEADER + f"{STAMPS[1]}, 0, 1.00 W\n{STAMPS[0]}, 0, 1.00 W\n", r":3: field 'timestamp': .*not before the row"),
        (HEADER + "Failed to initialize NVML: Driver/library version mismatch\n", ":2: has 1 cells"),
        ("timestamp, index, index, power.draw\n" + f"{STAMPS[0]}, 0, 0, 1.00\n", ":1: field 'index': stands twice"),
        (f"{STAMPS[0]}, 0, 96, 71\n", ":1: has no header, and does not tell power: found '0 columns.*first line"),
        (f"{STAMPS[0]}, 0, 300.00, 250.00\n", ":1: has no header, and does not tell power: found '2 columns"),
        (
            f"{STAMPS[0]}, 96, 71, 9.00\n{STAMPS[1]}, 97, 71, 9.00\n{STAMPS[2]}, 96, 71, 9.00\n"
            "2025/11/03 12:00:03.100, 96, 71, 9.00\n",
            ":1: has no header, and does not tell which GPU",
        ),
        (
            "timestamp, power.draw [W]\n"
            + "".join(f"2025/11/03 12:00:0{i}.{ms}, 9.00 W\n" for i in range(4) for ms in (100, 102)),
            ":1: its rows come in groups of 2, as of several GPUs.*accepted: index",
        ),
        (HEADER + f"{STAMPS[0]}, 0, [N/A]\n", "tells no power: accepted: a reading in watts"),
    ],
)
def test_what_is_wrong_with_a_log_of_gpus_is_named(write: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_capture(write(text), trace=TRACE)


# -- ipmitool --------------------------------------------------------------------------------------------------------


def answer(watts: int, stamp: str = "Tue Nov  3 12:00:00 2025", state: str = "activated") -> str:
    """What `ipmitool dcmi power reading` prints."""
    return f"""
    Instantaneous power reading:                   {watts:>3} Watts
    Minimum during sampling period:                 66 Watts
    Maximum during sampling period:                906 Watts
    Average power reading over sample period:      148 Watts
    IPMI timestamp:                           {stamp}
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   {state}

"""


@pytest.mark.parametrize(
    "stamp",
    [
        "2025-11-03 12:00:0{}",
        "2025-11-03T12:00:0{}+00:00",
        "176217120{}",
        "Mon Nov  3 12:00:0{} UTC 2025",
        "Mon Nov  3 12:00:0{} PM UTC 2025",
    ],
)
def test_its_answers_are_read_by_the_dates_before_them(write: Callable[[str], Path], stamp: str) -> None:
    one = meter(write("".join(f"{stamp.format(i)}\n{answer(400 + i)}" for i in range(3))))
    assert (one.name, one.power_w.tolist()) == ("server", [400.0, 401.0, 402.0])
    assert (one.time_s - NOON_S).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "stamp", ["Mon Nov  3 12:00:0{} 2025", "11/03/25 12:00:0{} UTC", "11/03/2025 12:00:0{} PM EST"]
)
def test_without_dates_the_controller_s_clock_is_taken(write: Callable[[str], Path], stamp: str) -> None:
    log = read_power_log(write("".join(answer(400 + i, stamp.format(i)) for i in range(3))))
    assert (log.meters[0].time_s - NOON_S).tolist() == [0, 1, 2]
    assert log.notes == ("log: times are those of the management controller's clock (IPMI timestamp)",)


def test_a_stamp_that_ends_no_line(write: Callable[[str], Path]) -> None:
    """Some versions print the sampling period behind it."""
    text = answer(400, "11/03/2025 12:00:00 PM EST").replace("EST\n", "EST")
    assert meter(write(text)).time_s.tolist() == [NOON_S]


def test_lines_of_time_and_watts_are_read(write: Callable[[str], Path]) -> None:
    """As LLMServingSim's script writes them; where a reading fails, the next one's time stands on its line."""
    text = "2025-11-03 12:00:00,387\n2025-11-03 12:00:01,2025-11-03 12:00:02,400\n2025-11-03 12:00:03,\n"
    one = meter(write(text))
    assert (one.time_s - NOON_S).tolist() == [0, 1, 2, 3]
    assert np.nan_to_num(one.power_w, nan=-1).tolist() == [387.0, -1.0, 400.0, -1.0]
    assert one.failures == {"nothing": 2}


def test_a_reading_that_failed_for_hours_is_one_long_line(write: Callable[[str], Path]) -> None:
    stamps = [f"2025-11-03 12:{i // 60:02d}:{i % 60:02d}," for i in range(2000)]
    assert len(meter(write("".join(stamps) + "\n")).time_s) == 2000


def test_rows_of_the_same_second_are_one_by_their_mean(write: Callable[[str], Path]) -> None:
    log = read_power_log(write("".join(f"2025-11-03 12:00:0{i // 4},{100 + i}\n" for i in range(8))))
    assert log.meters[0].power_w.tolist() == [101.5, 105.5]
    assert log.notes == ("log: 6 rows have the time of the row above: the mean of those stands there",)


def between_dates(answers: list[str]) -> str:
    """Answers with a line of date before and after each, two seconds apart."""
    return "".join(
        f"2025-11-03 12:00:{2 * i:02d}\n{one}2025-11-03 12:00:{2 * i + 1:02d}\n" for i, one in enumerate(answers)
    )


def test_a_date_after_a_reading_is_no_reading_that_failed(write: Callable[[str], Path]) -> None:
    log = read_power_log(write(between_dates([answer(400 + i) for i in range(4)])))
    assert log.meters[0].power_w.tolist() == [400, 401, 402, 403]
    assert (log.meters[0].time_s - NOON_S).tolist() == [0, 2, 4, 6]
    assert log.meters[0].failures == {}
    assert log.notes == ("log: dates stand before and after each reading: that before it is its time",)


def test_one_that_failed_between_two_dates_is_counted(write: Callable[[str], Path]) -> None:
    answers = [answer(400), "", answer(402), "DCMI request failed because: Node busy (c0)\n", answer(404)]
    one = meter(write(between_dates(answers)))
    assert np.nan_to_num(one.power_w, nan=-1).tolist() == [400, -1, 402, -1, 404]
    assert one.failures == {"[nothing]": 1, "[DCMI request failed because: Node busy (c0)]": 1}


def test_a_date_under_which_nothing_stands_is_a_reading_that_failed(write: Callable[[str], Path]) -> None:
    answers = [answer(400), answer(401), "", answer(403)]
    one = meter(write("".join(f"2025-11-03 12:00:0{i}\n{text}" for i, text in enumerate(answers))))
    assert one.failures == {"[nothing]": 1}


def test_a_controller_that_does_not_measure_prints_no_power(write: Callable[[str], Path]) -> None:
    failed = "2025-11-03 12:00:01\nDCMI request failed because: Node busy (c0)\n"
    text = f"2025-11-03 12:00:00\n{answer(0, state='deactivated')}{failed}2025-11-03 12:00:02\n{answer(7)}"
    one = meter(write(text))
    assert np.isnan(one.power_w).tolist() == [True, True, False]
    assert one.failures == {
        "[the power reading state is deactivated]": 1,
        "[DCMI request failed because: Node busy (c0)]": 1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("    Instantaneous power reading:     220 Watts\n", ":1: has no time: accepted: a line of date before each"),
        (answer(9, "Unspecified"), ":2: has no time: found 'Unspecified'"),
        (f"{answer(9)}2025-11-03 12:00:00\n{answer(9)}", ":2: has no time"),
        (f"{answer(9)}bash: ipmitool: command not found\n", ":10: is no reading: found 'bash"),
        ("2025-11-03 12:00:00,387\nnoon,9\n", ":2: is no reading: found 'noon,9'"),
        ("2025-11-03 12:00:00,387\n2025-11-03 12:00:01,fast\n", ":2: field 'power': found 'fast'"),
        ("2025-11-03 12:00:00,387\n2025-13-03 12:00:01,9\n", ":2: field 'timestamp': found '2025-13-03"),
        ("2025-11-03 12:00:01,387\n2025-11-03 12:00:00,9\n", ":2: field 'timestamp': .*not before the row above"),
        ("2025-11-03 12:00:01,\n", "tells no power: accepted: a reading in watts"),
        ("2025-11-03 12:00:01 INFO a log of something else\n", ":1: field 'time_s': is missing"),
    ],
)
def test_what_is_wrong_with_a_log_of_a_server_is_named(write: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_capture(write(text), trace=TRACE)


# -- as captures -----------------------------------------------------------------------------------------------------


def test_a_log_is_told_by_what_it_holds_and_needs_the_workload(write: Callable[[str], Path]) -> None:
    path = write("2025-11-03 12:00:00,387\n2025-11-03 12:00:01,400\n")
    assert list(import_capture(path, trace=TRACE).series) == ["power_w"]
    with pytest.raises(InputError, match="not what it served"):
        import_capture(path)


@pytest.mark.parametrize("zero", ["2025/11/03 12:00:01", "2025-11-03T12:00:01"])
def test_its_times_are_placed_on_the_traces_clock(write: Callable[[str], Path], zero: str) -> None:
    rows = "".join(f"2025/11/03 12:00:0{i}.000, 0, {100 + i}.00\n" for i in range(4))
    capture = import_capture(write(rows), trace=TRACE, clock=SeriesClock("begin", zero))
    assert capture.series["power_w.devices"].time_s.tolist() == [1, 2, 3]
    assert capture.series["power_w.devices"].value.tolist() == [101, 102, 103]
    assert f"log: {zero} is taken as second 0 of the trace" in capture.meta.notes


def test_without_a_zero_its_first_row_is_second_0_and_says_so(write: Callable[[str], Path]) -> None:
    capture = import_capture(write("1762171200,387\n1762171201,400\n"), trace=TRACE)
    assert capture.series["power_w"].time_s.tolist() == [0, 1]
    assert any("its first row is taken as second 0 of the trace" in note for note in capture.meta.notes)
    with pytest.raises(InputError, match=r"--zero': found 'noon'"):
        import_capture(write("1762171200,387\n"), trace=TRACE, clock=SeriesClock(zero="noon"))


DATED = {
    "naive": "2025-11-03 12:00:0{}",
    "offset": "2025-11-03T13:00:0{}+01:00",
    "seconds": "176217120{}",
    "UTC": "Mon Nov  3 12:00:0{} UTC 2025",
    "CET": "Mon Nov  3 13:00:0{} CET 2025",
}
ALIKE = {"naive": ("naive",), "CET": ("CET",)}


@pytest.mark.parametrize("file", DATED)
@pytest.mark.parametrize("zero", DATED)
def test_second_0_states_a_time_zone_as_the_log_does_or_is_refused(
    write: Callable[[str], Path], file: str, zero: str
) -> None:
    path = write("".join(f"{DATED[file].format(i)},{100 + i}\n" for i in range(4)))
    clock = SeriesClock(zero=DATED[zero].format(1))
    if zero in ALIKE.get(file, ("offset", "seconds", "UTC")):
        series = import_capture(path, trace=TRACE, clock=clock).series["power_w"]
        assert series.time_s.tolist() == [0, 1, 2]
        assert series.value.tolist() == [101, 102, 103]
        return
    with pytest.raises(InputError, match=r"--zero': states .*, and the file's times state .*: found '"):
        import_capture(path, trace=TRACE, clock=clock)


@pytest.mark.parametrize(("first", "second"), [("naive", "offset"), ("offset", "naive"), ("CET", "UTC")])
def test_rows_that_differ_in_their_time_zones_are_refused(
    write: Callable[[str], Path], first: str, second: str
) -> None:
    path = write(f"{DATED[first].format(0)},100\n{DATED[second].format(1)},100\n")
    with pytest.raises(InputError, match=r":2: field 'timestamp': .* as in the rows above"):
        read_power_log(path)


@pytest.mark.parametrize(
    "text",
    [
        gpus(lambda second, gpu: "[N/A]" if (second, gpu) == (2, 1) else "100.00 W"),
        "".join(f"{time}, 0, 96, 298.84\n" for time in STAMPS),
        "".join(f"2025-11-03 12:00:0{i}\n{answer(400 + i)}" for i in range(3)),
        "".join(f"2025-11-03 12:00:0{i},{400 + i}\n" for i in range(3)),
    ],
)
def test_damaged_copies_are_read_or_refused(tmp_path: Path, text: str) -> None:
    """Whatever is left of a log, its figures are finite, and its times ascend."""
    read = []
    a_table = "Instantaneous" not in text
    path = tmp_path / "log"
    for _, found in read_copies(text.encode(), lambda path: import_capture(path, trace=TRACE), path, text=a_table):
        if not isinstance(found, InputError):
            read.append(found)
            for series in found.series.values():
                assert np.isfinite(series.value).all()
                assert (np.diff(series.time_s) > 0).all()
    assert 0 < len(read) < N_COPIES


def test_other_texts_are_no_moments() -> None:
    assert moment("298.84 W") is None
    assert moment("") is None


@pytest.mark.ground_truth
def test_the_published_log_of_a_gpu_is_read(ground_truth: Path) -> None:
    one = meter(ground_truth / "ispass26" / "power" / "gpu_power.csv")
    assert (one.name, len(one.time_s), float(one.power_w.max())) == ("gpu0", 914, pytest.approx(299.6, abs=0.1))
