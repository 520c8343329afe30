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
from pathlib import Path
from typing import Literal

import numpy as np

from traces.capture import Capture, CaptureMeta, Series
from traces.decoding import read_bytes, sha256
from traces.errors import InputError
from traces.power_rows import iso_moment, refuse_other_zone, zone_words
from traces.steps import Floats, Mask
from traces.trace import Trace
from traces.windows import held_s

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
            next row's (or sooner, where that is far away: `traces.windows.held_s`).
        zero: time in the file, as it writes times, that is second 0 of the trace; None: 0 of `time_s`, or the first
            `timestamp`.
    """

    times: Times = "end"
    zero: str | None = None


AS_WRITTEN = SeriesClock()


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a file on the trace's clock.

    Attributes:
        own: [n] those from second 0 of the trace on.
        end_s: [n] ends of the windows that they are of.
        begin_s: [n] begins of the same; None where the file's times are ends, and nothing says where windows begin.
    """

    own: Mask
    end_s: Floats
    begin_s: Floats | None = None

    def series(self, values: Floats, known: Mask | None = None) -> Series:
        """The rows' values, [n], as a series: of those that are of the trace and, where it matters, known."""
        own = self.own if known is None else self.own & known
        return Series(self.end_s[own], values[own], None if self.begin_s is None else self.begin_s[own])


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
    columns, zone = _columns(path)
    time_name = next(name for name in TIMES if name in columns)
    time_s = columns.pop(time_name)
    zero_s = float(time_s[0]) if time_name == "timestamp" else 0.0
    if clock.zero is not None:
        zero_s = _number(clock.zero, time_name, None, None)
        refuse_other_zone(clock.zero, _zone(clock.zero, time_name), zone, path)
    rows, notes = on_the_traces_clock(time_s, zero_s, clock, path)
    series: dict[str, Series] = {}
    for column, values in columns.items():
        if column in COLUMNS:
            name, factor = COLUMNS[column]
            if name in series:
                raise InputError(f"holds {name} twice", file=path, line=1, field=column)
            series[name] = rows.series(values * factor)
    if HITS in columns and QUERIES in columns and "prefix_hit_rate" not in series:
        asked = columns[QUERIES] > 0
        share = np.divide(columns[HITS], columns[QUERIES], out=np.zeros(len(asked)), where=asked)
        series["prefix_hit_rate"] = rows.series(share, asked)
    used = {*COLUMNS, *((HITS, QUERIES) if "prefix_hit_rate" in series else ())}
    left_out = [name for name in columns if name not in used]
    if not series:
        accepted = f"one of {', '.join(COLUMNS)}"
        raise InputError("has no column that is known", file=path, line=1, found=", ".join(columns), accepted=accepted)
    if left_out:
        notes.append(f"{path.name}: columns left out: {', '.join(left_out)}")
    return series, notes


def on_the_traces_clock(time_s: Floats, zero_s: float, clock: SeriesClock, path: Path) -> tuple[Rows, list[str]]:
    """The rows on the trace's clock, and what was done to their times.

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
    rows = Rows(time_s >= 0, time_s)
    if clock.times == "begin":
        if len(time_s) < 2:
            raise InputError("has one row, whose window has no end", file=path, accepted="two rows or more")
        widths_s = held_s(time_s)
        ends_s = np.minimum(time_s[:-1] + widths_s, time_s[1:])  # the sum may be later by a rounding
        rows = Rows(rows.own, np.append(ends_s, time_s[-1] + widths_s[-1]), time_s)
        notes.append(f"{path.name}: a row is of the window that begins at its time")
    if not rows.own.any():
        raise InputError("holds no row from second 0 on", file=path, field="--zero", found=clock.zero)
    if not rows.own.all():
        notes.append(f"{path.name}: {np.count_nonzero(~rows.own)} rows before second 0 of the trace left out")
    return rows, notes


def _columns(path: Path) -> tuple[dict[str, Floats], str | None]:
    """The file's columns by name, and the time zone that its times state.

    Time in seconds, of a date since 1970, ascending; the others finite, not negative.
    """
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
    zone = None
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
        zone, before = _zone(cells[header.index(time_name)], time_name), zone
        if len(times) > 1 and zone != before:
            found, accepted = cells[header.index(time_name)], f"{zone_words(before)}, as in the rows above"
            raise InputError(file=path, line=line, field=time_name, found=found, accepted=accepted)
    if not table[time_name]:
        raise InputError("holds no rows", file=path)
    return {name: np.array(values) for name, values in table.items()}, zone


def _table(lines: list[str]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header's cells and those of every other line that is not blank, with its number."""
    delimiter = "\t" if lines and "\t" in lines[0] else ","
    header = [cell.strip() for cell in next(csv.reader(lines[:1], delimiter=delimiter), [])]
    rows = ((number, line) for number, line in enumerate(lines[1:], start=2) if line.strip())
    return header, ((number, next(csv.reader([line], delimiter=delimiter))) for number, line in rows)


def _number(text: str, name: str, path: Path | None, line: int | None) -> float:
    """A cell as a number; a timestamp as seconds, of UTC unless it states a time zone."""
    try:
        value = iso_moment(text.strip()).time_s if name == "timestamp" else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        accepted = "an ISO 8601 date and time" if name == "timestamp" else "a finite number, not negative"
        raise InputError(file=path, line=line, field=name if path else "--zero", found=text, accepted=accepted)
    return value


def _zone(text: str, name: str) -> str | None:
    """The time zone that a time of a file states; seconds of the trace's clock have none."""
    return iso_moment(text.strip()).zone if name == "timestamp" else None
