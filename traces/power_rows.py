"""The readings in a log of power: what stands in place of watts, and the forms in which tools write times."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.steps import Floats

Lines = Sequence[tuple[int, str]]
"""Numbers and texts of lines that are not blank."""

NOT_READ = re.compile(r"^(|\[.*\]|n/?a|nan|err!?|unknown error)$", re.IGNORECASE)
"""What stands in place of watts that could not be read: nvidia-smi writes [N/A], [Not Supported], [Unknown Error]."""
WATTS = re.compile(r"^(\d{1,9}(?:\.\d+)?|\.\d+)\s*(?:W|Watts)?$", re.ASCII)

ISO = r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?"
UNIX = r"\d{10}(?:\.\d+)?"
DATE = r"[A-Z][a-z]{2} [A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d(?: [AP]M)?(?: [A-Z]+)? \d{4}"
_DATES = ("%a %b %d %H:%M:%S %Y", "%a %b %d %I:%M:%S %p %Y")
_ZONE = re.compile(r" (?![AP]M\b)([A-Z]{2,5})\b")
_NUMERIC = ("%m/%d/%y %H:%M:%S", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %I:%M:%S %p", "%m/%d/%y %I:%M:%S %p")


@dataclass(frozen=True, slots=True)
class Moment:
    """A date and time.

    Attributes:
        time_s: since 1970, of UTC where the zone is not known.
        zone: UTC where the text tells the moment itself (an offset, Z, UTC, GMT, seconds since 1970); any other word in
            place of a zone as it is, as it does not tell the offset; None where it states no zone.
    """

    time_s: float
    zone: str | None


@dataclass(frozen=True, slots=True)
class Meter:
    """What was read of one GPU, or of the server.

    Attributes:
        name: `gpu` and its index, or how else the log tells it apart; `server`.
        device: what it calls itself; None where the log does not say.
        time_s: [n] ascending, of the log's own clock, since 1970.
        power_w: [n]; NaN where the reading failed.
        failures: how many failed, by what stands in place of watts.
        zone: the time zone that its times state (`Moment`).
    """

    name: str
    device: str | None
    time_s: Floats
    power_w: Floats
    failures: Counter[str]
    zone: str | None = None


Read = tuple[tuple[Meter, ...], list[str]]
"""Meters, and notes."""


@dataclass(slots=True)
class MeterRows:
    """The rows of one meter while they are read."""

    device: str | None = None
    time_s: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    zone: str | None = None

    def add(self, at: Moment, text: str, *, file: Path, line: int, time: str) -> None:
        """A reading, or why there is none. Raises InputError for what is neither, and for times that do not ascend."""
        if not self.time_s:
            self.zone = at.zone
        if at.zone != self.zone:
            accepted = f"{zone_words(self.zone)}, as in the rows above"
            raise InputError(file=file, line=line, field="timestamp", found=time, accepted=accepted)
        if self.time_s and at.time_s < self.time_s[-1]:
            raise InputError(file=file, line=line, field="timestamp", found=time, accepted="not before the row above")
        watts = WATTS.match(text)
        if watts is None and not NOT_READ.match(text):
            raise InputError(file=file, line=line, field="power", found=text, accepted="watts, or [N/A]")
        self.time_s.append(at.time_s)
        self.watts.append(math.nan if watts is None else float(watts[1]))
        if watts is None:
            self.failures[text or "nothing"] += 1

    def meter(self, name: str) -> tuple[Meter, int]:
        """The same as arrays, and how many rows share their time with one before: their mean stands there."""
        time_s, at = np.unique(self.time_s, return_inverse=True)
        watts = np.array(self.watts)
        read = ~np.isnan(watts)
        count = np.bincount(at[read], minlength=len(time_s))
        total = np.bincount(at[read], weights=watts[read], minlength=len(time_s))
        power_w = np.divide(total, count, out=np.full(len(time_s), np.nan), where=count > 0)
        return Meter(name, self.device, time_s, power_w, self.failures, self.zone), len(self.time_s) - len(time_s)


def meters_of(rows: dict[str, MeterRows], path: Path) -> Read:
    """The meters whose rows these are, with a note of rows that share their time."""
    made = [one.meter(name) for name, one in rows.items()]
    shared = sum(count for _, count in made)
    notes = [f"{path.name}: {shared} rows have the time of the row above: the mean of those stands there"]
    return tuple(meter for meter, _ in made), notes if shared else []


def moment(text: str) -> Moment | None:
    """A date and time in one of the forms of these tools; None for any other text.

    ISO 8601, with - or / between the parts of the date; seconds since 1970; what `date` prints; and what ipmitool does.
    """
    text = " ".join(text.split())
    if re.fullmatch(UNIX, text):
        return Moment(float(text), "UTC")
    with suppress(ValueError):
        return iso_moment(text.replace("/", "-"))
    word = _ZONE.search(text)
    zone = None if word is None else "UTC" if word[1] in ("UTC", "GMT") else word[1]
    for form in (*_DATES, *_NUMERIC):
        with suppress(ValueError):
            return Moment(datetime.strptime(_ZONE.sub("", text), form).replace(tzinfo=UTC).timestamp(), zone)
    return None


def iso_moment(text: str) -> Moment:
    """A date and time in ISO 8601. Raises ValueError for any other text."""
    at = datetime.fromisoformat(text)
    return Moment(at.replace(tzinfo=at.tzinfo or UTC).timestamp(), "UTC" if at.tzinfo else None)


def zone_words(zone: str | None) -> str:
    """What times of this zone (`Moment`) state, in words."""
    known = {None: "no time zone", "UTC": "a time zone, as +00:00, or seconds since 1970"}
    return known.get(zone, f"the time zone {zone}")


def refuse_other_zone(zero: str, stated: str | None, zone: str | None, file: Path) -> None:
    """Raise InputError where second 0 states another zone than the times of a file: it would move them by hours.

    Args:
        zero: second 0, as it was written.
        stated: its zone (`Moment`).
        zone: that of the file's times.
        file: the file.
    """
    if stated != zone:
        message = f"states {zone_words(stated)}, and the file's times state {zone_words(zone)}"
        raise InputError(message, file=file, field="--zero", found=zero, accepted="written as the file writes times")
