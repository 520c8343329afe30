"""Plain time series as a capture: what was recorded of a run when nothing was recorded of its requests.

A table with a header, its cells separated by tabs or commas. One column is time: `time_s`, seconds of the trace's own
clock, or `timestamp`, ISO 8601, of which the first row is second 0. A rate's time is the end of its window. What a file
means otherwise can be said (`SeriesClock`). The other columns are told by name:

    output_tokens_per_s, prompt_tokens_per_s, power_w, kv_usage, prefix_hit_rate, n_running, n_waiting, gpu_memory_bytes
    throughput                     output tokens per second         (artifact of LLMServingSim's ISPASS 2026 paper)
    gpu_mem_mb, prefix_hit_pct     MiB, and percent of the run so far                                        (same)
    vllm:kv_cache_usage_perc       as vLLM names it in /metrics: a share, 1 is full
    vllm:prefix_cache_hits_total, vllm:prefix_cache_queries_total    tokens so far; together, the hit rate so far
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from traces.capture import Capture, CaptureMeta, Series
from traces.decoding import read_bytes, sha256
from traces.errors import InputError
from traces.series import held_s
from traces.steps import Floats
from traces.trace import Trace

OWN = (
    "output_tokens_per_s",
    "prompt_tokens_per_s",
    "power_w",
    "kv_usage",
    "prefix_hit_rate",
    "n_running",
    "n_waiting",
    "gpu_memory_bytes",
)
COLUMNS: dict[str, tuple[str, float]] = {
    **{name: (name, 1.0) for name in OWN},
    "throughput": ("output_tokens_per_s", 1.0),
    "gpu_mem_mb": ("gpu_memory_bytes", 2.0**20),
    "prefix_hit_pct": ("prefix_hit_rate", 0.01),
    "vllm:kv_cache_usage_perc": ("kv_usage", 1.0),
}
"""Series and factor by column."""

Times = Literal["begin", "end"]


@dataclass(frozen=True, slots=True)
class SeriesClock:
    """How a file's times are to be read, where nothing in it says so.

    Attributes:
        times: whether a row is of the window that ends at its time, or of the one that begins there and ends with the
            next row's (or sooner, where that is far away: `traces.series.held_s`).
        zero: time in the file, as it writes times, that is second 0 of the trace; None: 0 of `time_s`, or the first
            `timestamp`.
    """

    times: Times = "end"
    zero: str | None = None


AS_WRITTEN = SeriesClock()

HITS, QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
TIMES = ("time_s", "timestamp")


def read_series_capture(path: Path, trace: Trace | None, clock: SeriesClock = AS_WRITTEN) -> Capture:
    """A capture that holds the file's series and no outcome. Raises InputError with file, line and field.

    `trace` is the workload that was served; without it the series cannot be compared with anything. `clock` says how
    the file's times are to be read.
    """
    served = workload(path, trace)
    return series_capture(path, served, *read_series(path, clock))


def workload(path: Path, trace: Trace | None) -> Trace:
    """The workload that was served beside a file of series. Raises InputError without one."""
    if trace is None:
        message = "says what a run did and not what it served"
        raise InputError(message, file=path, accepted="--trace with the workload beside it")
    return trace


def series_capture(path: Path, trace: Trace, series: dict[str, Series], notes: Sequence[str]) -> Capture:
    """A capture of a file's series and no outcome."""
    meta = CaptureMeta(
        kind="measured",
        engine=None,
        model="not recorded",
        device=None,
        clock="second 0 is the trace's; a rate's time is the end of its window",
        notes=("a time series alone: no request was recorded", *notes),
        provenance={path.name: sha256(read_bytes(path)), "trace": trace.sha256},
    )
    return Capture(meta, trace, (), None, series)


def read_series(path: Path, clock: SeriesClock = AS_WRITTEN) -> tuple[dict[str, Series], list[str]]:
    """The series that a file holds, and what was made of its times and columns. Raises InputError."""
    columns = _columns(path)
    time_name = next(name for name in TIMES if name in columns)
    time_s = columns.pop(time_name)
    zero_s = float(time_s[0]) if time_name == "timestamp" else 0.0
    zero_s = zero_s if clock.zero is None else _number(clock.zero, time_name, None, None)
    time_s, notes = on_the_traces_clock(time_s, zero_s, clock, path)
    columns = {name: values[-len(time_s) :] for name, values in columns.items()}
    series: dict[str, Series] = {}
    for column, values in columns.items():
        if column in COLUMNS:
            name, factor = COLUMNS[column]
            if name in series:
                raise InputError(f"holds {name} twice", file=path, line=1, field=column)
            series[name] = Series(time_s, values * factor)
    if HITS in columns and QUERIES in columns and "prefix_hit_rate" not in series:
        asked = columns[QUERIES] > 0
        series["prefix_hit_rate"] = Series(time_s[asked], columns[HITS][asked] / columns[QUERIES][asked])
    used = {*COLUMNS, *((HITS, QUERIES) if "prefix_hit_rate" in series else ())}
    left_out = [name for name in columns if name not in used]
    if not series:
        accepted = f"one of {', '.join(COLUMNS)}"
        raise InputError("has no column that is known", file=path, line=1, found=", ".join(columns), accepted=accepted)
    if left_out:
        notes.append(f"{path.name}: columns left out: {', '.join(left_out)}")
    return series, notes


def on_the_traces_clock(time_s: Floats, zero_s: float, clock: SeriesClock, path: Path) -> tuple[Floats, list[str]]:
    """The times of the rows from the trace's second 0 on, at the ends of their windows, and what was done to them.

    Args:
        time_s: [n] of a file, ascending.
        zero_s: the one that is second 0.
        clock: what was said of the file.
        path: the file.

    Raises InputError where no row is left, or one alone whose window would begin at its time.
    """
    notes = []
    if clock.zero is not None:
        notes.append(f"{path.name}: {clock.zero} is taken as second 0 of the trace")
    time_s = time_s - zero_s
    after = time_s >= 0
    if clock.times == "begin":
        if len(time_s) < 2:
            raise InputError("has one row, whose window has no end", file=path, accepted="two rows or more")
        widths_s = held_s(time_s)
        time_s = time_s + np.append(widths_s, widths_s[-1])
        notes.append(f"{path.name}: a row is of the window that begins at its time")
    if not after.any():
        raise InputError("holds no row from second 0 on", file=path, field="--zero", found=clock.zero)
    if not after.all():
        notes.append(f"{path.name}: {np.count_nonzero(~after)} rows before second 0 of the trace left out")
    return time_s[after], notes


def _columns(path: Path) -> dict[str, Floats]:
    """The file's columns by name; time in seconds, of a date since 1970, ascending; the others finite, not negative."""
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"is not text ({error})", file=path) from None
    header, rows = _table(lines)
    time_name = next((name for name in TIMES if name in header), None)
    if time_name is None:
        raise InputError(
            "is missing", file=path, line=1, field=TIMES[0], accepted=f"a header with {' or '.join(TIMES)}"
        )
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError("stands twice", file=path, line=1, field=twice)
    table: dict[str, list[float]] = {name: [] for name in header}
    for line, cells in rows:
        if len(cells) != len(header):
            accepted = f"{len(header)}, as the header"
            raise InputError(f"has {len(cells)} cells", file=path, line=line, accepted=accepted)
        for name, text in zip(header, cells, strict=True):
            table[name].append(_number(text, name, path, line))
        times = table[time_name]
        if len(times) > 1 and times[-1] <= times[-2]:
            found, accepted = cells[header.index(time_name)], "later than the row before"
            raise InputError(file=path, line=line, field=time_name, found=found, accepted=accepted)
    if not table[time_name]:
        raise InputError("holds no rows", file=path)
    return {name: np.array(values) for name, values in table.items()}


def _table(lines: list[str]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header's cells and those of every other line that is not blank, with its number."""
    delimiter = "\t" if lines and "\t" in lines[0] else ","
    header = [cell.strip() for cell in next(csv.reader(lines[:1], delimiter=delimiter), [])]
    rows = ((number, line) for number, line in enumerate(lines[1:], start=2) if line.strip())
    return header, ((number, next(csv.reader([line], delimiter=delimiter))) for number, line in rows)


def _number(text: str, name: str, path: Path | None, line: int | None) -> float:
    """A cell as a number; a timestamp as seconds, of UTC unless it states a time zone."""
    try:
        if name == "timestamp":
            moment = datetime.fromisoformat(text.strip())
            value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        else:
            value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        accepted = "an ISO 8601 date and time" if name == "timestamp" else "a finite number, not negative"
        raise InputError(file=path, line=line, field=name if path else "--zero", found=text, accepted=accepted)
    return value
