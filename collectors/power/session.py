"""One session of recording into a file: alone, and only behind a recording that it can go on with."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from collectors.power.records import SCHEMA, PowerHeader, SensorFacts
from traces.decoding import decode_json
from traces.errors import CollectorError, InputError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Drawn anew at each start of the host; monotonic clocks of two starts have nothing to do with each other."""

_HEADER = b'{"kind":"header"'


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the file against a second recorder. Raises CollectorError when there is one, or it cannot be written."""
    try:
        stream = out.open("ab")
    except OSError as error:
        raise CollectorError(f"{out}: cannot be written ({error.strerror})") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CollectorError(f"{out}: is being recorded into by another process") from None
        yield


def check_goes_on(out: Path, rate_hz: float, sensors: Sequence[SensorFacts]) -> bool:
    """Whether the file holds a recording to go on with.

    Raises InputError when it holds something else, or a recording at another rate, of another start of the host, or
    with a component of the same name from another sensor.
    """
    here = {component.name: (facts.name, component.kind) for facts in sensors for component in facts.components}
    headers = _headers(out)
    for number, header in headers:
        fields: dict[str, tuple[object, object]] = {
            "schema": (header.schema, SCHEMA),
            "rate_hz": (header.rate_hz, rate_hz),
            "boot_id": (header.boot_id, boot_id()),
        }
        for facts in header.sensors:
            for component in facts.components:
                there = (facts.name, component.kind)
                fields[f"sensors, {component.name}"] = (there, here.get(component.name, there))
        for field, (found, accepted) in fields.items():
            if found != accepted:
                raise InputError(file=out, line=number, field=field, found=found, accepted=f"{accepted!r}; a new file")
    return bool(headers)


def boot_id() -> str | None:
    """What tells this start of the host from others; None where the system does not say."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else None


def _headers(out: Path) -> list[tuple[int, PowerHeader]]:
    """Line and content of every header; none of a file that is not there, empty, or cut off in its first line."""
    if not out.is_file():
        return []
    found = []
    try:
        with out.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if number == 1 and not line.startswith(_HEADER):
                    accepted = "a new file, or a recording of power to go on with"
                    raise InputError("is no recording of power", file=out, accepted=accepted)
                if line.startswith(_HEADER) and line.endswith(b"\n"):
                    found.append((number, decode_json(line, PowerHeader, file=out, line=number)))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=out) from None
    return found
