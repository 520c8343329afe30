"""Other traces out of given ones: a part of the time, another rate, some of the requests, several together, no names.

Each function gives a new trace whose notes say what was done. Errors name the parameter as `name` calls it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from traces.decoding import sha256
from traces.errors import InputError
from traces.hashes import refined, salted
from traces.row_changes import Naming, RowChange, Speed
from traces.trace import Trace, TraceRow


def changed(trace: Trace, change: RowChange) -> Trace:
    """The trace with each row changed. Raises InputError.

    A request that waits for one that is cut off does so no more.
    """
    rows = [new for row in trace.rows if (new := change.row(row)) is not None]
    return _made(trace, rows, change.ended())


def paced(trace: Trace, request_rate: float, name: Naming = str) -> Trace:
    """The same requests, so many of them offered per second: as many gaps as there are, by the time that they take.

    Raises InputError, also where the trace offers no rate: its requests wait for answers, or arrive all at once.
    """
    check_request_rate(request_rate, name)
    field = name("request_rate")
    if any(row.after is not None or row.delay_s is not None for row in trace.rows):
        accepted = f"{name('speed')}, by which those that wait for no other come sooner or later"
        raise InputError("requests that wait for answers offer no rate", field=field, accepted=accepted)
    span_s = trace.rows[-1].arrival_s - trace.rows[0].arrival_s
    if span_s <= 0:
        raise InputError("has no effect: all requests arrive at once", field=field)
    factor = request_rate * span_s / (len(trace) - 1)
    if not 0 < factor < np.inf or trace.rows[-1].arrival_s / factor == np.inf:
        raise InputError(field=field, found=request_rate, accepted="a rate at which every request still arrives")
    at_rate = changed(trace, Speed(factor, lambda _: field))
    return replace(at_rate, notes=(*at_rate.notes, f"{request_rate:g} requests per second are offered"))


def check_request_rate(request_rate: float, name: Naming = str) -> None:
    """Raise InputError for what is no rate."""
    if not 0 < request_rate < np.inf:
        raise InputError(field=name("request_rate"), found=request_rate, accepted="requests per second, above 0")


def share(trace: Trace, part: float, seed: int, name: Naming = str) -> Trace:
    """Some of the requests, drawn at random, whole sessions together. Raises InputError."""
    check_share(part, name)
    kept = np.random.default_rng(seed).random(len(trace)) < part
    first: dict[str, bool] = {}
    rows = []
    for row, drawn in zip(trace.rows, kept.tolist(), strict=True):
        if drawn if row.session_id is None else first.setdefault(row.session_id, drawn):
            rows.append(row)
    note = f"a share of {part:g} drawn with seed {seed}, {len(rows)} of {len(trace)} requests"
    if not rows:
        raise InputError(f"no request is left: {note}", field=name("share"))
    return _made(trace, rows, [note])


def check_share(part: float, name: Naming = str) -> None:
    """Raise InputError for what is no share."""
    if not 0 < part <= 1:
        raise InputError(field=name("share"), found=part, accepted="above 0, at most 1")


def mixed_traces(traces: Sequence[Trace]) -> Trace:
    """All requests of several traces, as if they were sent side by side from second 0 of each on.

    Ids and sessions get the number of their trace in front, as in "1/17"; nothing is shared between traces. Raises
    InputError for fewer than two, and where block sizes do not divide each other.
    """
    if len(traces) < 2:
        raise InputError(found=len(traces), accepted="two traces or more to mix")
    sizes = [trace.hash_block_size for trace in traces if trace.hash_block_size is not None]
    size = min(sizes, default=None)
    rows: list[TraceRow] = []
    for number, trace in enumerate(traces):
        parts = 1
        if size is not None and trace.hash_block_size is not None:
            parts, rest = divmod(trace.hash_block_size, size)
            if rest:
                accepted = f"a multiple of {size}, the smallest of the traces"
                found = trace.hash_block_size
                raise InputError(file=trace.source, field="hash_block_size", found=found, accepted=accepted)
        rows += [_named(row, f"{number}/", parts, str(number).encode()) for row in trace.rows]
    rows.sort(key=lambda row: row.arrival_s)
    digest = sha256(" ".join(trace.sha256 for trace in traces).encode())
    notes = [f"{number}: {note}" for number, trace in enumerate(traces) for note in (trace.source, *trace.notes)]
    source = "mix of " + ", ".join(trace.source for trace in traces)
    return Trace(tuple(rows), size, source, digest, tuple(notes))


def _named(row: TraceRow, name: str, parts: int, salt: bytes) -> TraceRow:
    hashes = None if row.block_hashes is None else refined(salted(row.block_hashes, salt), parts)
    session = None if row.session_id is None else name + row.session_id
    after = None if row.after is None else tuple(name + other for other in row.after)
    return msgspec.structs.replace(
        row, request_id=name + row.request_id, session_id=session, block_hashes=hashes, after=after
    )


def anonymised(trace: Trace, salt: bytes) -> Trace:
    """The same load without names: ids are numbers, sessions and hashes are keyed hashes of theirs.

    Arrivals and lengths stay, which alone may tell whose load it was to one who has seen it. Without the salt (1 to 64
    bytes) nobody can find out whether a known prompt is among them. Source and notes are left out. Raises InputError.
    """
    if not 1 <= len(salt) <= 64:
        raise InputError(field="--salt", found=f"{len(salt)} bytes", accepted="1 to 64 bytes")

    def hidden(name: str | None) -> str | None:
        return None if name is None else hashlib.blake2b(name.encode(), digest_size=8, key=salt).hexdigest()

    number_of = {row.request_id: str(number) for number, row in enumerate(trace.rows)}
    changed: list[dict[str, Any]] = [
        {
            "request_id": str(number),
            "after": None if row.after is None else tuple(number_of[other] for other in row.after),
            "session_id": hidden(row.session_id),
            "block_hashes": None if row.block_hashes is None else salted(row.block_hashes, salt),
        }
        for number, row in enumerate(trace.rows)
    ]
    rows = tuple(msgspec.structs.replace(row, **new) for row, new in zip(trace.rows, changed, strict=True))
    note = "anonymised: ids renumbered, sessions and block hashes hashed with a salt"
    return replace(trace, rows=rows, source="anonymised", sha256=sha256(salt + trace.sha256.encode()), notes=(note,))


def _made(trace: Trace, rows: list[TraceRow], said: list[str]) -> Trace:
    """The trace with other rows. A delay behind a request that is no longer there is taken off and counted."""
    left = {row.request_id for row in rows}
    sessions: set[str] = set()
    loose = 0
    for i, row in enumerate(rows):
        after = None if row.after is None else tuple(other for other in row.after if other in left) or None
        waits = after is not None or (row.after is None and row.session_id in sessions)
        if (row.delay_s is not None and not waits) or after != row.after:
            rows[i] = msgspec.structs.replace(row, delay_s=row.delay_s if waits else None, after=after)
            loose += 1
        if row.session_id is not None:
            sessions.add(row.session_id)
    notes = [*trace.notes, *said]
    if loose:
        notes.append(f"{loose} requests waited for one that was cut off: they wait for it no more")
    return replace(trace, rows=tuple(rows), notes=tuple(notes))
