"""Reads what loops of `ipmitool dcmi power reading` leave: the power of a server.

Either its own text again and again, each under a line of `date` if there is one; or lines of a time and watts, as
LLMServingSim's profiler/power/profile_server_power.sh writes them:

    2025-12-11 21:08:28,387
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from traces.errors import InputError
from traces.power_rows import DATE, ISO, NOT_READ, UNIX, WATTS, Lines, MeterRows, Read, meters_of, moment

_READING = "Instantaneous power reading:"
_STAMP = re.compile(rf"^({ISO}|{UNIX}|{DATE})$")
_LINE = re.compile(rf"^({ISO}|{UNIX}|{DATE})\s*[,;\s]\s*(?![ap]m\b)(?:{_READING})?\s*(?P<watts>.*)$", re.IGNORECASE)
_FIELD = re.compile(
    r"^(?P<name>Instantaneous power reading|(?:Minimum|Maximum) during sampling period|IPMI timestamp|Sampling period|"
    r"Average power reading over sample period|Power reading state is):\s*(?P<value>.*)$",
    re.IGNORECASE,
)
_FAILED = re.compile(r"^(DCMI request failed because|Unable to get DCMI information)", re.IGNORECASE)


@dataclass(slots=True)
class _Block:
    """One answer of ipmitool, and the lines of `date` before it.

    Attributes:
        line: of its first line.
        stamp: of `date`; None without.
        watts: as printed; None: it did not answer.
        said: its other fields, by name.
    """

    line: int
    stamp: str | None = None
    watts: str | None = None
    said: dict[str, str] = field(default_factory=dict)


def is_ipmitool(lines: Sequence[str]) -> bool:
    """Whether a file that begins with these lines is such a log."""
    told = _LINE.match(lines[0])
    rest = "?" if told is None else told["watts"]
    return any(fits.match(rest) for fits in (WATTS, NOT_READ, _LINE)) or any(_READING in line for line in lines)


def read_ipmitool(path: Path, lines: Lines) -> Read:
    """The server's meter. Raises InputError with file and line."""
    rows = MeterRows()
    if _STAMP.match(lines[0][1]) is None and _LINE.match(lines[0][1]) is not None:
        for number, line in lines:
            _add_line(rows, path, number, line)
        return meters_of({"server": rows}, path)
    blocks = list(_blocks(path, lines))
    dated = any(block.stamp is not None for block in blocks)
    between = dated and _between_dates(blocks)
    for block in blocks[:: 2 if between else 1]:
        _add_block(rows, path, block, dated=dated)
    meters, notes = meters_of({"server": rows}, path)
    if lost := sum("failed" in block.said for block in blocks if block.watts is not None):
        notes.append(f"{path.name}: {lost} readings failed at times that it does not say")
    if between:
        notes.append(f"{path.name}: dates stand before and after each reading: that before it is its time")
    if not dated:
        notes.append(f"{path.name}: times are those of the management controller's clock (IPMI timestamp)")
    return meters, notes


def _add_line(rows: MeterRows, path: Path, number: int, line: str) -> None:
    """A line of a time and watts; or of several times, as a loop ends no line whose reading failed."""
    rest = line
    while (told := _LINE.match(rest)) is not None:
        time, rest = told[1], told["watts"].strip()
        at = moment(time)
        if at is None:
            raise InputError(file=path, line=number, field="timestamp", found=time, accepted="as 2025-12-11 21:08:28")
        rows.add(at, "" if _LINE.match(rest) else rest, file=path, line=number, time=time)
    if rest is line:
        accepted = "a time and watts, as 2025-12-11 21:08:28,387"
        raise InputError("is no reading", file=path, line=number, found=line, accepted=accepted)


def _blocks(path: Path, lines: Lines) -> Iterator[_Block]:
    """The answers of ipmitool, and the times at which it did not. Raises InputError for any other text."""
    block = None
    for number, line in lines:
        # Some versions end a time stamp without a new line.
        for text in re.split(r"(?<=\S)\s+(?=Sampling period:)", line):
            told, stamp = _FIELD.match(text), _STAMP.match(text)
            if stamp or (told and told["name"].lower() == _READING[:-1].lower() and (not block or block.watts)):
                if block is not None:
                    yield block
                block = _Block(number, text if stamp else None)
            if block is not None and told:
                name = told["name"].lower()
                if name == _READING[:-1].lower():
                    block.watts = told["value"]
                else:
                    block.said[name] = told["value"]
            elif block is not None and _FAILED.match(text):
                block.said["failed"] = text
            elif not stamp:
                accepted = "a line of date, and what ipmitool dcmi power reading prints"
                raise InputError("is no reading", file=path, line=number, found=text, accepted=accepted)
    if block is not None:
        yield block


def _between_dates(blocks: Sequence[_Block]) -> bool:
    """Whether a date stands after each reading too: of every two dates the second has nothing under it."""
    after = blocks[1::2]
    return bool(after) and all(block.stamp and block.watts is None and not block.said for block in after)


def _add_block(rows: MeterRows, path: Path, block: _Block, *, dated: bool) -> None:
    time = block.stamp if dated else block.said.get("ipmi timestamp")
    at = None if time is None else moment(time)
    if at is None or time is None:
        accepted = "a line of date before each reading"
        raise InputError("has no time", file=path, line=block.line, found=time, accepted=accepted)
    state = block.said.get("power reading state is", "activated")
    if block.watts is None or state.lower() != "activated":  # of one that is not activated it prints 0 Watts
        why = block.said.get("failed", "nothing") if block.watts is None else f"the power reading state is {state}"
        rows.add(at, f"[{why}]", file=path, line=block.line, time=time)
    else:
        rows.add(at, block.watts, file=path, line=block.line, time=time)
