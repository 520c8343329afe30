"""Other traces out of given ones: a part of the time, another rate, some of the requests, several together, no names.

Each function gives a new trace whose notes say what was done.
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
from traces.trace import Trace, TraceRow


def between(trace: Trace, start_s: float, end_s: float) -> Trace:
    """The requests that arrive from `start_s` on and before `end_s`, which becomes second 0. Raises InputError.

    A request that waits for one that is cut off does so no more.
    """
    if not 0 <= start_s < end_s:
        raise InputError(field="--start", found=f"{start_s} to {end_s}", accepted="seconds, from 0 on, before --end")
    rows = [row for row in trace.rows if start_s <= row.arrival_s < end_s]
    rows = [msgspec.structs.replace(row, arrival_s=row.arrival_s - start_s) for row in rows]
    return _made(trace, rows, f"requests from second {start_s:g} to {end_s:g}, {len(rows)} of {len(trace)}")


def faster(trace: Trace, factor: float) -> Trace:
    """The same requests at `factor` times the rate; delays within sessions stay. Raises InputError."""
    if not 0 < factor < np.inf:
        raise InputError(field="--speed", found=factor, accepted="a factor above 0")
    rows = [msgspec.structs.replace(row, arrival_s=row.arrival_s / factor) for row in trace.rows]
    return _made(trace, rows, f"arrivals at {factor:g} times the rate")


def share(trace: Trace, part: float, seed: int) -> Trace:
    """Some of the requests, drawn at random, whole sessions together. Raises InputError."""
    if not 0 < part <= 1:
        raise InputError(field="--share", found=part, accepted="above 0, at most 1")
    kept = np.random.default_rng(seed).random(len(trace)) < part
    first: dict[str, bool] = {}
    rows = []
    for row, drawn in zip(trace.rows, kept.tolist(), strict=True):
        if drawn if row.session_id is None else first.setdefault(row.session_id, drawn):
            rows.append(row)
    return _made(trace, rows, f"a share of {part:g} drawn with seed {seed}, {len(rows)} of {len(trace)} requests")


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


def _made(trace: Trace, rows: list[TraceRow], note: str) -> Trace:
    """The trace with other rows. A delay behind a request that is no longer there is taken off and counted."""
    if not rows:
        raise InputError(f"no request is left: {note}", file=trace.source)
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
    notes = [*trace.notes, note]
    if loose:
        notes.append(f"{loose} requests waited for one that was cut off: they wait for it no more")
    return replace(trace, rows=tuple(rows), notes=tuple(notes))
