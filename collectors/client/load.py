"""When each request of a trace is sent: by the trace's clock, after its session's last answer, or as seats get free.

Open loop is the rule: a request leaves at its time, whatever the server does. A row with `delay_s` leaves so long
after the row before it in its session has ended, as an agent's next call does. With a `concurrency` the loop is
closed: so many seats, each of which sends its next request when its last is answered, and arrivals mean nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from collectors.client.log import ClientLog
from collectors.client.request import ClientRecord, Target, send
from traces.errors import InputError
from traces.trace import Trace, TraceRow

if TYPE_CHECKING:
    import aiohttp

LEAD_S = 0.5
"""From the start to second 0 of the trace."""

AHEAD = 256
"""Most requests whose bodies are encoded before they are due."""
PREPARED_S = 0.005
"""How long before a request is due nothing more is encoded."""


@dataclass(frozen=True, slots=True)
class Pacing:
    """How the trace's clock is kept.

    Attributes:
        time_scale: arrivals are multiplied by it; 0.5 is twice the load. Delays within sessions are not.
        concurrency: seats of a closed loop; None: open loop.
        warm_up: requests sent one after another before second 0: the trace's first, with other prompts.
    """

    time_scale: float = 1.0
    concurrency: int | None = None
    warm_up: int = 0


async def send_trace(
    trace: Trace,
    target: Target,
    pacing: Pacing,
    log: ClientLog,
    stop: asyncio.Event,
    ready: Callable[[], Awaitable[None]] | None = None,
) -> list[ClientRecord]:
    """Send the trace and wait for every request's end, or until `stop`. Returns one record per row, in its order.

    Once `stop` is set nothing more is sent, and what is under way is given up; either is that request's record.
    `ready` is awaited between the warm-up and second 0. Raises InputError for rows that wait for several others.
    """
    import aiohttp

    if (joined := next((row for row in trace.rows if row.after is not None), None)) is not None:
        accepted = "rows without it: this client sends chains, and no request that waits for several others"
        raise InputError(file=trace.source, field="after", found=f"request {joined.request_id!r}", accepted=accepted)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=target.timeout_s, sock_read=target.timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        await _warm_up(trace, target, pacing.warm_up, session, stop)
        if ready is not None:
            await ready()
        origin_s = time.monotonic() + LEAD_S
        log.begin(origin_s)
        sender = _Sender(trace, target, session, log, origin_s, pacing.time_scale)
        running = asyncio.ensure_future(
            sender.open_loop() if pacing.concurrency is None else sender.closed_loop(pacing.concurrency)
        )
        stopped = asyncio.ensure_future(stop.wait())
        watching = asyncio.ensure_future(log.watch())
        await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in (running, stopped, watching):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    return [sender.record_of(row) for row in trace.rows]


class _Sender:
    """Sends the rows of one trace through one session of HTTP connections."""

    def __init__(
        self,
        trace: Trace,
        target: Target,
        session: aiohttp.ClientSession,
        log: ClientLog,
        origin_s: float,
        time_scale: float,
    ) -> None:
        self._trace = trace
        self._target = target
        self._session = session
        self._log = log
        self._origin_s = origin_s
        self._time_scale = time_scale
        self._records: dict[str, ClientRecord] = {}

    async def open_loop(self) -> None:
        """Start each chain at its first row's time, with bodies encoded ahead, so that sending is quick."""
        tasks: set[asyncio.Task[None]] = set()
        left = iter(chains(self._trace.rows))
        ready: deque[tuple[list[TraceRow], float, bytes]] = deque()
        try:
            while self._prepare(left, ready):
                chain, due_s, body = ready.popleft()
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                task = asyncio.create_task(self._send_chain(chain, due_s, body))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
        finally:
            await _given_up(tasks)

    def _prepare(self, left: Iterator[list[TraceRow]], ready: deque[tuple[list[TraceRow], float, bytes]]) -> bool:
        """Encode chains' first bodies while there is time before the next is due. Returns whether there is one."""
        while not ready or (len(ready) < AHEAD and time.monotonic() < ready[0][1] - PREPARED_S):
            chain = next(left, None)
            if chain is None:
                break
            ready.append((chain, self._due_s(chain[0]), self._target.body(chain[0], self._trace)))
        return bool(ready)

    async def closed_loop(self, concurrency: int) -> None:
        """So many seats, each of which takes the next chain when its last has ended."""
        left = iter(chains(self._trace.rows))
        await asyncio.sleep(max(0.0, self._origin_s - time.monotonic()))

        async def seat() -> None:
            for chain in left:
                body = self._target.body(chain[0], self._trace)
                await self._send_chain(chain, time.monotonic(), body)

        seats = {asyncio.create_task(seat()) for _ in range(concurrency)}
        try:
            await asyncio.gather(*seats)
        finally:
            await _given_up(seats)

    def record_of(self, row: TraceRow) -> ClientRecord:
        """The row's record; one that says so for a row that was never sent."""
        return self._records.get(row.request_id) or ClientRecord(row.request_id, self._due_s(row), error="not sent")

    def _due_s(self, row: TraceRow) -> float:
        return self._origin_s + row.arrival_s * self._time_scale

    async def _send_chain(self, chain: Sequence[TraceRow], due_s: float, body: bytes) -> None:
        await self._send(chain[0], due_s, body)
        for row in chain[1:]:
            due_s = max(self._due_s(row), time.monotonic() + (row.delay_s or 0.0))
            body = self._target.body(row, self._trace)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await self._send(row, due_s, body)

    async def _send(self, row: TraceRow, due_s: float, body: bytes) -> None:
        record = self._records[row.request_id] = ClientRecord(row.request_id, due_s)
        try:
            await send(self._session, self._target, body, record, self._log.sent)
        except asyncio.CancelledError:
            record.error = "stopped before the answer ended"
            raise
        finally:
            self._log.ended(record)


def chains(rows: Sequence[TraceRow]) -> list[list[TraceRow]]:
    """Rows that wait for one another, in order of their first: a row with `delay_s` follows its session's last."""
    found: list[list[TraceRow]] = []
    of_session: dict[str, list[TraceRow]] = {}
    for row in rows:
        if row.delay_s is not None and row.session_id in of_session:
            of_session[row.session_id].append(row)
            continue
        found.append([row])
        if row.session_id is not None:
            of_session[row.session_id] = found[-1]
    return found


async def _warm_up(
    trace: Trace, target: Target, count: int, session: aiohttp.ClientSession, stop: asyncio.Event
) -> None:
    for i, row in enumerate(trace.rows[:count]):
        if stop.is_set():
            return
        own = TraceRow(
            request_id=f"warm-up-{i}", arrival_s=0, prompt_tokens=row.prompt_tokens, output_tokens=row.output_tokens
        )
        await send(session, target, target.body(own, trace), ClientRecord(own.request_id, time.monotonic()))


async def _given_up(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel what is still under way and wait until it has said so."""
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
