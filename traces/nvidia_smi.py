"""Reads nvidia-smi's CSV: `--query-gpu=timestamp,...,power.draw --format=csv`, repeated with -l or -lms.

With or without header and units, several GPUs interleaved:

    timestamp, index, utilization.gpu [%], power.draw [W]
    2025/11/03 14:05:33.123, 0, 96 %, 298.84 W
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.power_rows import NOT_READ, Lines, MeterRows, Moment, Read, meters_of, moment

_SLASHED = re.compile(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(\.\d+)?\s*(,|$)")
_DRAWN = ("power.draw", "power.draw.instant", "power.draw.average")
_WHO = ("index", "uuid", "gpu_uuid", "pci.bus_id", "gpu_bus_id", "serial", "gpu_serial")
_DEVICE = ("name", "gpu_name")
_GPU = re.compile(r"^(GPU-[0-9a-f-]+|[0-9a-f]{8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]|\d+)$", re.IGNORECASE)
_INDEX = re.compile(r"^\d+$", re.ASCII)
_BARE_WATTS = re.compile(r"^\d+\.\d\d$", re.ASCII)
AT_ONCE = 0.25
"""Rows nearer to each other than this share of the usual interval between groups of them are one group."""
MOST_GPUS = 64
"""Groups of more rows than this are not looked for."""
MOST_INDEX = 15
"""The last index that is believed where no header calls it one; temperatures and utilizations are mostly above it."""
WHICH = "index among the columns that are queried"
QUERY = "the query's columns as a first line, as timestamp,index,power.draw"


def is_nvidia_smi(line: str) -> bool:
    """Whether a file with this first line is such a log."""
    return _is_header(_cells(line)) or _SLASHED.match(line) is not None


def read_nvidia_smi(path: Path, lines: Lines) -> Read:
    """A meter for each GPU. Raises InputError with file and line."""
    rows: dict[str, MeterRows] = {}
    table = [(number, _cells(line)) for number, line in lines]
    header = table[0][1] if _is_header(table[0][1]) else None
    if header is not None:
        table = [(number, cells) for number, cells in table if cells != header]  # a loop of queries writes it each time
    if not table:
        return (), []
    line, names = lines[0][0], _query(header) if header is not None else _told_query(path, table)
    notes = _query_notes(path, names, told=header is None)
    for number, cells in table:
        if len(cells) != len(names):
            accepted = f"{len(names)}, as in line {line}"
            raise InputError(f"has {len(cells)} cells", file=path, line=number, accepted=accepted)
        row = dict(zip(names, cells, strict=True))
        gpu = next((row[name] for name in _WHO if name in row), "0")
        if "index" in row and not _INDEX.match(gpu):
            raise InputError(file=path, line=number, field="index", found=gpu, accepted="a whole number")
        name = f"gpu{gpu}" if _INDEX.match(gpu) else gpu
        device = next((row[name] for name in _DEVICE if name in row), None)
        at = moment(row["timestamp"])
        if at is None:
            accepted = "as 2025/11/03 14:05:33.123"
            raise InputError(file=path, line=number, field="timestamp", found=row["timestamp"], accepted=accepted)
        drawn = next(row[name] for name in _DRAWN if name in row)
        rows.setdefault(name, MeterRows(device)).add(at, drawn, file=path, line=number, time=row["timestamp"])
    if not any(name in names for name in _WHO):
        _refuse_devices(path, line, table, names)
    if not any(name in names for name in _WHO) or (header is None and len(rows) == 1):
        _refuse_groups(path, line, next(iter(rows.values())).time_s)
    meters, more = meters_of(rows, path)
    return meters, [*notes, *more]


def _refuse_devices(path: Path, line: int, table: Sequence[tuple[int, list[str]]], names: Sequence[str]) -> None:
    """Raise InputError where rows of no told GPU are of several by their names."""
    for at in (names.index(name) for name in _DEVICE if name in names):
        if len(devices := dict.fromkeys(cells[at] for _, cells in table)) > 1:
            message, found = "is of several GPUs, and no column says which", ", ".join(devices)
            raise InputError(message, file=path, line=line, field=names[at], found=found, accepted=WHICH)


def _refuse_groups(path: Path, line: int, time_s: Sequence[float]) -> None:
    """Raise InputError where rows of no told GPU come in groups, as those of several do.

    Rows of one GPU that a clock of whole seconds stamps alike come in groups too, and cannot be told from these.
    """
    if n := _group_size(time_s):
        message = f"its rows come in groups of {n}, as of several GPUs, and no column says which"
        raise InputError(message, file=path, line=line, accepted=WHICH)


def _group_size(time_s: Sequence[float]) -> int | None:
    """How many rows were read at once, again and again; None where that cannot be seen.

    Groups of n have one long interval in n, whose median is the quantile 1 - 1 / (2 n) of all; an interval is long from
    `AT_ONCE` of that on. At least three groups must have n rows, and half of all that or a fifth fewer, as a row is
    missing here and there: one GPU whose rows are late or missing now and then has groups of any size.
    """
    between_s = np.diff(time_s)
    for n in range(2, min(MOST_GPUS, len(time_s) // 3) + 1):
        usual_s = np.quantile(between_s, 1 - 1 / (2 * n))
        long = np.flatnonzero(between_s > AT_ONCE * usual_s)
        sizes = np.diff(np.concatenate([[-1], long, [len(between_s)]]))
        if np.count_nonzero(sizes == n) >= 3 and np.mean((sizes >= 0.8 * n) & (sizes <= n)) >= 0.5:
            return n
    return None


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split(",")]


def _is_header(cells: Sequence[str]) -> bool:
    names = _query(cells)
    return "timestamp" in names and any(name in names for name in _DRAWN)


def _query(header: Sequence[str]) -> list[str]:
    """Names of the columns, as they were asked for: without units."""
    return [re.sub(r"\s*\[.*\]$", "", name).lower() for name in header]


def _told_query(path: Path, table: Sequence[tuple[int, list[str]]]) -> list[str]:
    """The columns of a log without a header, as its cells tell them. Raises InputError where they do not.

    The first is the time. Power is the only column in watts, or where units were left out, the only one of numbers with
    two decimals: nvidia-smi prints power so, and temperatures, clocks, memory and utilizations as whole numbers. The
    second is which GPU a row is of, if it is not power, and the same few stand in it in turn (`_is_turn`).
    """
    number, first = table[0]
    cells = [one for _, one in table if len(one) == len(first)]
    columns = list(zip(*cells, strict=True))
    names = ["timestamp", *(f"column {i}" for i in range(2, len(first) + 1))]
    with_unit = [i for i, column in enumerate(columns[1:], 1) if _all(column, lambda cell: cell.endswith(" W"))]
    power = with_unit or [i for i, column in enumerate(columns[1:], 1) if _all(column, _BARE_WATTS.match)]
    if len(power) != 1:
        found = f"{len(power)} columns in watts"
        raise InputError("has no header, and does not tell power", file=path, line=number, found=found, accepted=QUERY)
    names[power[0]] = "power.draw"
    if power[0] != 1 and len(first) > 2:
        turn = list(dict.fromkeys(columns[1]))
        if not _is_turn(turn, columns[1], [moment(time) for time in columns[0]]):
            message = "has no header, and does not tell which GPU a row is of"
            raise InputError(message, file=path, line=number, found=", ".join(turn), accepted=QUERY)
        names[1] = "index" if _INDEX.match(turn[0]) else "uuid"
    return names


def _is_turn(turn: Sequence[str], column: Sequence[str], times: Sequence[Moment | None]) -> bool:
    """Whether a column is which GPU each row is of, by those that stand in it, in the order in which they do.

    Indices ascend up to `MOST_INDEX`, and a tool reads one after another at once and then waits: what changes with each
    reading of one GPU, as its temperature does, has equal intervals.
    """
    n = len(turn)
    if not all(_GPU.match(gpu) for gpu in turn) or any(gpu != turn[i % n] for i, gpu in enumerate(column)):
        return False
    if not all(_INDEX.match(gpu) for gpu in turn):
        return True
    indices = [int(gpu) for gpu in turn]
    if indices != sorted(set(indices)) or indices[-1] > MOST_INDEX:
        return False
    between_s = np.diff([math.nan if at is None else at.time_s for at in times])
    inside = np.arange(len(between_s)) % n < n - 1
    if inside.all() or not inside.any():
        return True
    return not np.median(between_s[inside]) >= np.median(between_s[~inside]) / 2  # not so of NaN, refused by its row


def _all(column: Sequence[str], fits: Callable[[str], object]) -> bool:
    """Whether every cell that was read fits, of which there is one."""
    read = [cell for cell in column if not NOT_READ.match(cell)]
    return bool(read) and all(fits(cell) for cell in read)


def _query_notes(path: Path, names: Sequence[str], *, told: bool) -> list[str]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError("stands twice", file=path, line=1, field=twice)
    used = {"timestamp", next(name for name in _DRAWN if name in names), *_DEVICE}
    who = next((name for name in _WHO if name in names), None)
    notes = []
    if told:
        which = f", column 2 which GPU ({who})" if who else ""
        notes.append(f"{path.name}: no header: column {names.index('power.draw') + 1} is taken as power.draw{which}")
    if who is None:
        notes.append(f"{path.name}: no column says which GPU a row is of: taken as one")
    if left_out := [name for name in names if name not in used and name != who]:
        notes.append(f"{path.name}: columns left out: {', '.join(left_out)}")
    return notes
