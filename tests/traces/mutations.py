"""Damaged copies of a file: bytes, lines, cells and values changed at random, the same for the same seed."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from traces.errors import InputError

T = TypeVar("T")
N_COPIES = 200

CELLS = ["", "NaN", "inf", "-1", "-0.5", "1.5", "0", "abc", "1e400", "9" * 25, "1_000", "٣", "0x10", '"', "true", "2.0"]
VALUES = [None, -1, 1.5, 0, "x", "", 10**30, [], {}, True, [None], {"a": 1}, float("nan"), float("inf"), 1e300, 2.0]


def damaged(data: bytes, seed: int, *, text: bool = True) -> bytes:
    """A copy that differs from `data` in one place, or in a few."""
    rng = random.Random(seed)
    ways = [_bytes, _lines, _values if data.lstrip()[:1] in (b"{", b"[") else _cells] if text else [_bytes]
    for _ in range(20):
        changed = rng.choice(ways)(data, rng)
        if changed != data:
            return changed
    return data[:-5]


def read_copies(
    data: bytes, read: Callable[[Path], T], path: Path, *, text: bool = True
) -> Iterator[tuple[bytes, T | InputError]]:
    """What reading 200 damaged copies at `path`, one after another, gives or raises; anything else fails the test."""
    for seed in range(N_COPIES):
        copy = damaged(data, seed, text=text)
        path.write_bytes(copy)
        try:
            yield copy, read(path)
        except InputError as error:
            yield copy, error


def _bytes(data: bytes, rng: random.Random) -> bytes:
    at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    noise = bytes(rng.randrange(256) for _ in range(rng.randint(1, 3)))
    match rng.randrange(5):
        case 0:
            return data[:at] + noise + data[at + len(noise) :]
        case 1:
            return data[:at] + data[min(to, at + 4) :]
        case 2:
            return data[:at] + noise + data[at:]
        case 3:
            return data[:at]
        case _:
            return data[:to] + data[at:]


def _lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[a]
        case 1:
            lines.insert(b, lines[a])
        case 2:
            lines[a], lines[b] = lines[b], lines[a]
        case 3:
            lines[a] = lines[a][: rng.randrange(len(lines[a]) + 1)]
        case _:
            lines.insert(a, b"")
    return b"\n".join(lines) + b"\n"


def _cells(data: bytes, rng: random.Random) -> bytes:
    table = list(csv.reader(io.StringIO(data.decode())))
    row, column = rng.randrange(len(table)), rng.randrange(len(table[0]))
    match rng.randrange(8):
        case 0:
            table = [[*cells[:column], *cells[column + 1 :]] for cells in table]
        case 1:
            table[0][column] = rng.choice(table[0])
        case 2:
            table[row].append("7")
        case 3:
            del table[row][column]
        case _:
            table[row or 1][column] = rng.choice(CELLS)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue().encode()


def _values(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    value = json.loads(lines[at])
    holder, key = rng.choice(_places(value))
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict) and isinstance(key, str):
            holder[key + "_"] = holder.pop(key)
        case _:
            holder[key] = rng.choice(VALUES)
    lines[at] = json.dumps(value).encode()
    return b"\n".join(lines) + b"\n"


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with a key of it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(value, key), *_places(inner)]]
