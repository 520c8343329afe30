"""An open-loop client: it sends each request of a trace at its own time, whatever the server does, and times tokens.

For OpenAI-compatible servers, `/v1/completions` with token ids as the prompt. The length of the answer is pinned
(`ignore_eos`, `max_tokens`), so that a simulation can serve the same. Whatever becomes of a request is its record;
the others go on.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from collectors.prompts import prompt_token_ids
from traces.trace import Trace, TraceRow

if TYPE_CHECKING:
    import aiohttp


@dataclass(slots=True)
class ClientRecord:
    """What the client saw of one request. Times are seconds of this host's monotonic clock.

    Attributes:
        request_id: as in the trace.
        due_s: when it was to be sent.
        sent_s: when it was sent; None when it never was.
        token_times_s: when each piece of the answer came; a server that streams token by token sends one a piece.
        prompt_tokens: as the server counted; None when it did not say.
        output_tokens: likewise.
        status: HTTP status; None without an answer.
        error: what went wrong; None when nothing did.
    """

    request_id: str
    due_s: float
    sent_s: float | None = None
    token_times_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    status: int | None = None
    error: str | None = None

    @property
    def late_s(self) -> float:
        """How long after its time it was sent."""
        return 0.0 if self.sent_s is None else self.sent_s - self.due_s


@dataclass(frozen=True, slots=True)
class Target:
    """A server and how to ask it.

    Attributes:
        url: its address, without a path.
        model: the model's name there.
        vocab_size: token ids are drawn below it.
        timeout_s: a request that brings nothing for so long has stalled.
        seed: of the prompts.
    """

    url: str
    model: str
    vocab_size: int
    timeout_s: float = 300.0
    seed: int = 0


async def replay(trace: Trace, target: Target, *, start_s: float | None = None) -> list[ClientRecord]:
    """Send the trace and wait for every request's end. Returns one record per row, in the trace's order.

    `start_s` is second 0 of the trace on the monotonic clock; None: half a second from now.
    """
    import aiohttp

    bodies = [_body(row, trace, target) for row in trace.rows]
    begin_s = time.monotonic() + 0.5 if start_s is None else start_s
    records = [ClientRecord(row.request_id, begin_s + row.arrival_s) for row in trace.rows]
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=target.timeout_s, sock_read=target.timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        tasks = []
        for record, body in zip(records, bodies, strict=True):
            await asyncio.sleep(max(0.0, record.due_s - time.monotonic()))
            tasks.append(asyncio.create_task(_send(session, target.url, body, record)))
        await asyncio.gather(*tasks)
    return records


def _body(row: TraceRow, trace: Trace, target: Target) -> bytes:
    """The request, encoded before the run so that sending costs nothing."""
    return msgspec.json.encode(
        {
            "model": target.model,
            "prompt": prompt_token_ids(row, trace, target.vocab_size, target.seed),
            "max_tokens": row.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


async def _send(session: aiohttp.ClientSession, url: str, body: bytes, record: ClientRecord) -> None:
    headers = {"Content-Type": "application/json", "X-Request-Id": record.request_id}
    record.sent_s = time.monotonic()
    try:
        async with session.post(f"{url}/v1/completions", data=body, headers=headers) as answer:
            record.status = answer.status
            if answer.status != 200:
                record.error = f"HTTP {answer.status}: {(await answer.text())[:200]}"
                return
            finished = False
            async for line in answer.content:
                finished = _take(line, record) or finished
            if not finished:
                record.error = "the stream ended before the answer did"
    except TimeoutError:
        record.error = "stalled: nothing came within the time-out"
    except Exception as error:  # one request's trouble, of whatever kind, must not end the others
        record.error = f"{type(error).__name__}: {error}"


def _take(line: bytes, record: ClientRecord) -> bool:
    """Take in one line of the stream. Returns whether it was the last."""
    if not line.startswith(b"data: "):
        return False
    if line.startswith(b"data: [DONE]"):
        return True
    now_s = time.monotonic()
    event = msgspec.json.decode(line[6:], type=dict[str, Any])
    if event.get("error"):
        record.error = f"error in the stream: {event['error']}"[:200]
    if event.get("choices"):
        record.token_times_s.append(now_s)
    if usage := event.get("usage"):
        record.prompt_tokens = usage.get("prompt_tokens")
        record.output_tokens = usage.get("completion_tokens")
    return False
