"""The client's journal: what was sent, every token's time, how each request ended, and how well the client kept up.

Token times are written twice a second for the requests under way, so that a client that is killed has told all but its
last moments. The client watches itself: a request that leaves late, or an event loop that answers late and therefore
stamps tokens late, is the client's fault and not the server's.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from collectors.client.request import ClientRecord
from collectors.journal import FLUSH_EVERY_S, Journal, read_journal
from traces.decoding import decode_json
from traces.errors import CollectorError

SCHEMA = "servetwin.client/1"
LAG_EVERY_S = 0.02
"""How often the event loop's answer is timed."""

MEAN_SHARE, TAIL_SHARE = 0.05, 0.5
LEAST_MEAN_S, LEAST_TAIL_S = 0.002, 0.010
"""A client is the bottleneck when it was later than a twentieth of a median on average, or than half of it in one case
of a hundred. Tokens stamped late are held against the TTFT that they falsify; requests sent late, which keep their
true arrival and only change the load's shape, against the E2EL. Below 2 and 10 ms it never is.
"""


class ClientLog:
    """Writes the journal of one replay."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises CollectorError when it cannot be written."""
        self._journal = Journal(path, SCHEMA)
        self._under_way: dict[str, tuple[ClientRecord, int]] = {}
        self.n_sent = 0
        self.n_ended = 0
        self.n_failed = 0
        self.output_tokens = 0

    def begin(self, origin_s: float) -> None:
        """Say when second 0 of the trace is, on this host's monotonic clock."""
        self._journal.append({"kind": "origin", "origin_s": origin_s})

    def sent(self, record: ClientRecord) -> None:
        """A request has left."""
        self.n_sent += 1
        self._under_way[record.request_id] = (record, 0)
        times = {"due_s": record.due_s, "sent_s": record.sent_s}
        self._journal.append({"kind": "sent", "request_id": record.request_id, **times})

    def ended(self, record: ClientRecord) -> None:
        """A request is over, well or not."""
        self.n_ended += 1
        self.n_failed += record.error is not None
        self.output_tokens += record.output_tokens or len(record.token_times_s)
        self._under_way.pop(record.request_id, None)
        self._journal.append({"kind": "end", **_fields(record)})

    async def watch(self) -> None:
        """Until cancelled: time the event loop, and write down twice a second what has come."""
        lags_s: list[float] = []
        written_s = time.monotonic()
        try:
            while True:
                before_s = time.monotonic()
                await asyncio.sleep(LAG_EVERY_S)
                now_s = time.monotonic()
                lags_s.append(round(now_s - before_s - LAG_EVERY_S, 6))
                if now_s - written_s >= FLUSH_EVERY_S:
                    self._write(lags_s)
                    lags_s, written_s = [], now_s
        finally:
            self._write(lags_s)

    def close(self) -> None:
        """Write out the rest. Raises CollectorError when that cannot be done."""
        self._journal.close()

    def __enter__(self) -> ClientLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _write(self, lags_s: list[float]) -> None:
        self._journal.append({"kind": "lag", "lags_s": lags_s})
        for request_id, (record, n_written) in self._under_way.items():
            if new := record.token_times_s[n_written:]:
                self._journal.append({"kind": "tokens", "request_id": request_id, "token_times_s": new})
                self._under_way[request_id] = (record, n_written + len(new))


def _fields(record: ClientRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in ClientRecord.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class ClientHistory:
    """A client's journal, read back.

    Attributes:
        origin_s: second 0 of the trace on the host's monotonic clock.
        records: by request id, of all requests that were sent.
        lags_s: how late the event loop answered, each time it was asked.
        wall_minus_monotonic_s: between the host's two clocks when the journal was opened.
    """

    origin_s: float
    records: dict[str, ClientRecord]
    lags_s: tuple[float, ...]
    wall_minus_monotonic_s: float

    def bottleneck(self, *, only_witness: bool) -> str | None:
        """Why the client, and not the server, may have set the times; None when it kept up.

        When tokens arrived only matters where the client is the only witness of it, and the engine did not stamp them.
        """
        answered = [record for record in self.records.values() if record.sent_s is not None and record.token_times_s]
        if not answered:
            return None
        ttft_s = float(np.median([r.token_times_s[0] - (r.sent_s or 0.0) for r in answered]))
        e2el_s = float(np.median([r.token_times_s[-1] - (r.sent_s or 0.0) for r in answered]))
        sent_late_s = [record.late_s for record in self.records.values()]
        for what, values_s, name, median_s in (
            ("sent requests", sent_late_s, "E2EL", e2el_s),
            ("stamped tokens", self.lags_s if only_witness and self.lags_s else (0.0,), "TTFT", ttft_s),
        ):
            mean_s, tail_s = float(np.mean(values_s)), float(np.quantile(values_s, 0.99))
            if mean_s > max(LEAST_MEAN_S, MEAN_SHARE * median_s) or tail_s > max(LEAST_TAIL_S, TAIL_SHARE * median_s):
                found = f"{mean_s * 1e3:.1f} ms late on average, {tail_s * 1e3:.1f} ms in one case of a hundred"
                return (
                    f"the client was the bottleneck: it {what} {found}, at a median {name} of {median_s * 1e3:.1f} ms"
                )
        return None


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    request_id: str = ""
    origin_s: float = 0.0
    wall_ns: int = 0
    monotonic_ns: int = 0
    due_s: float = 0.0
    sent_s: float | None = None
    token_times_s: list[float] = []
    end_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    status: int | None = None
    reason: str | None = None
    error: str | None = None
    lags_s: list[float] = []


@dataclass(slots=True)
class _Reader:
    origin_s: float | None = None
    wall_minus_monotonic_s: float = 0.0
    records: dict[str, ClientRecord] = field(default_factory=dict)
    lags_s: list[float] = field(default_factory=list)

    def take(self, line: _Line) -> None:
        match line.kind:
            case "header":
                self.wall_minus_monotonic_s = (line.wall_ns - line.monotonic_ns) / 1e9
            case "origin":
                self.origin_s = line.origin_s
            case "sent":
                self.records[line.request_id] = ClientRecord(
                    line.request_id, line.due_s, line.sent_s, error="the recording was cut off before it ended"
                )
            case "tokens":
                self.records[line.request_id].token_times_s += line.token_times_s
            case "end":
                self.records[line.request_id] = ClientRecord(
                    **{name: getattr(line, name) for name in ClientRecord.__dataclass_fields__}
                )
            case "lag":
                self.lags_s += line.lags_s


def read_client_log(path: Path) -> ClientHistory:
    """Read a client's journal, whole or cut off. Raises InputError or CollectorError."""
    reader = _Reader()
    for number, line in read_journal(path):
        reader.take(decode_json(line, _Line, file=path, line=number))
    if reader.origin_s is None:
        raise CollectorError(f"{path}: the recording was cut off before the first request was sent")
    return ClientHistory(reader.origin_s, reader.records, tuple(reader.lags_s), reader.wall_minus_monotonic_s)
