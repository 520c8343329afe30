"""Power logs as nvidia-smi (`traces.nvidia_smi`) and ipmitool (`traces.ipmitool`) write them, and what they are of.

Times are as the file writes them: those without a time zone are taken as UTC, so that only their differences count, and
second 0 must be written as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from traces.capture import Capture, Series
from traces.decoding import read_bytes
from traces.errors import InputError
from traces.ipmitool import is_ipmitool, read_ipmitool
from traces.nvidia_smi import is_nvidia_smi, read_nvidia_smi
from traces.power_rows import Meter, Moment, moment, refuse_other_zone
from traces.series_file import AS_WRITTEN, SeriesClock, on_the_traces_clock, series_capture, workload
from traces.steps import Floats
from traces.trace import Trace
from traces.windows import DEVICES_POWER, SERVER_POWER

Tool = Literal["nvidia-smi", "ipmitool"]


@dataclass(frozen=True, slots=True)
class PowerLog:
    """A log of power.

    Attributes:
        tool: that wrote it.
        meters: in the order in which they first stand in it.
        notes: what was assumed and left out.
    """

    tool: str
    meters: tuple[Meter, ...]
    notes: tuple[str, ...]


def power_log_tool(data: bytes) -> Tool | None:
    """Which tool wrote a power log, by what its first lines hold; None for any other file."""
    text = data[:4096].decode("utf-8-sig", errors="replace")
    first = [line.strip() for line in text.splitlines() if line.strip()]
    if not first:
        return None
    if is_nvidia_smi(first[0]):
        return "nvidia-smi"
    return "ipmitool" if is_ipmitool(first) else None


def read_power_log(path: Path, tool: str | None = None) -> PowerLog:
    """Read a power log of the tool, told by what it holds unless it is named. Raises InputError with file and line."""
    data = read_bytes(path)
    tool = tool or power_log_tool(data)
    if tool is None:
        accepted = "what nvidia-smi --query-gpu=timestamp,...,power.draw or ipmitool dcmi power reading prints"
        raise InputError("is no log of power", file=path, accepted=accepted)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"is not text ({error})", file=path) from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    notes = []
    if lines and not text.endswith("\n"):
        lines.pop()
        notes.append(f"{path.name}: its last line has no end, as if cut off: left out")
    lines = [one for one in lines if one[1]]
    meters, more = (read_nvidia_smi if tool == "nvidia-smi" else read_ipmitool)(path, lines) if lines else ((), [])
    if not meters:
        raise InputError("holds no rows", file=path)
    return PowerLog(tool, meters, (*notes, *more))


def read_power_log_capture(
    path: Path, trace: Trace | None, clock: SeriesClock = AS_WRITTEN, tool: str | None = None
) -> Capture:
    """A power log as a capture that holds its series and no outcome.

    The server's power is `power_w`. That of GPUs is `power_w.devices`, their sum where every one of them was read, and
    `power_w.<gpu>`. `trace` and `clock` are those of `traces.series_file.read_series_capture`. Raises InputError.
    """
    served = workload(path, trace)
    series, notes = power_log_series(path, read_power_log(path, tool), clock)
    return series_capture(path, served, series, notes)


def power_log_series(path: Path, log: PowerLog, clock: SeriesClock = AS_WRITTEN) -> tuple[dict[str, Series], list[str]]:
    """The series of a log on the trace's clock, and what was made of its times and rows. Raises InputError."""
    notes = [*log.notes]
    for meter in log.meters:
        if failed := sum(meter.failures.values()):
            worst = meter.failures.most_common(1)[0][0]
            notes.append(
                f"{path.name}: {meter.name}: {failed} of {len(meter.time_s)} readings failed (mostly: {worst})"
            )
    time_s, watts = _together(log.meters)
    total_w = watts.sum(axis=0)
    told = ~np.isnan(total_w)
    if not told.any():
        raise _no_power(log, path)
    if len(log.meters) > 1 and not told.all():
        notes.append(
            f"{path.name}: {np.count_nonzero(~told)} of {len(told)} samples left out, as not all GPUs were read"
        )
    time_s = time_s[told]
    if clock.zero is None:
        notes.append(f"{path.name}: its first row is taken as second 0 of the trace; --zero names another time")
    zero_s = float(time_s[0]) if clock.zero is None else _zero(clock.zero, log, path).time_s
    rows, more = on_the_traces_clock(time_s, zero_s, clock, path)
    names = [f"power_w.{meter.name}" for meter in log.meters] if log.tool == "nvidia-smi" else []
    found = {DEVICES_POWER if names else SERVER_POWER: total_w, **dict(zip(names, watts, strict=bool(names)))}
    return {name: rows.series(drawn_w[told]) for name, drawn_w in found.items()}, [*notes, *more]


def _no_power(log: PowerLog, path: Path) -> InputError:
    """What a log lacks in which there is no moment at which every meter was read."""
    if len(log.meters) == 1:
        return InputError("tells no power", file=path, accepted="a reading in watts")
    silent = [meter.name for meter in log.meters if np.isnan(meter.power_w).all()]
    found = f"no reading of {', '.join(silent)}" if silent else None
    return InputError("tells no power", file=path, found=found, accepted="a moment at which every GPU was read")


def _zero(text: str, log: PowerLog, path: Path) -> Moment:
    """Second 0 of the trace, as it was written. Raises InputError unless it is written as the log's times are."""
    at = moment(text)
    if at is None:
        raise InputError(field="--zero", found=text, accepted="a date and time as the file writes them")
    for meter in log.meters:
        refuse_other_zone(text, at.zone, meter.zone, path)
    return at


def _together(meters: Sequence[Meter]) -> tuple[Floats, Floats]:
    """Meters on common samples: ([n] seconds, [n_meters, n] watts, NaN where one was not read).

    A tool reads all GPUs one after another, milliseconds apart: rows within half the usual interval of the first of
    them are one sample, and its time is that of the last.
    """
    if len(meters) == 1:
        return meters[0].time_s, meters[0].power_w[None, :]
    between_s = np.concatenate([np.diff(meter.time_s) for meter in meters])
    reach_s = float(np.median(between_s)) / 2 if len(between_s) else math.inf
    time_s = np.concatenate([meter.time_s for meter in meters])
    power_w = np.concatenate([meter.power_w for meter in meters])
    who = np.repeat(np.arange(len(meters)), [len(meter.time_s) for meter in meters])
    order = np.argsort(time_s, kind="stable")
    sample = np.empty(len(order), dtype=np.int64)
    last, begin_s, seen = -1, -math.inf, set[int]()
    for i in order.tolist():
        if time_s[i] - begin_s >= reach_s or int(who[i]) in seen or last < 0:
            last, begin_s, seen = last + 1, float(time_s[i]), set()
        seen.add(int(who[i]))
        sample[i] = last
    watts: Floats = np.full((len(meters), last + 1), np.nan)
    watts[who, sample] = power_w
    ends_s: Floats = np.full(last + 1, -np.inf)
    np.maximum.at(ends_s, sample, time_s)
    return ends_s, watts
