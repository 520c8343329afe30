"""The client: it keeps its clock whatever the server does, and every end is a record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from collectors.client import ClientRecord, Target, replay
from collectors.prompts import prompt_token_ids
from tests.engines import trace

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def stream(request: web.Request, *, tokens: int, done: bool) -> web.StreamResponse:
    """An OpenAI-compatible stream of so many tokens."""
    body = await request.json()
    answer = web.StreamResponse()
    await answer.prepare(request)
    for _ in range(tokens):
        await answer.write(b"data: " + json.dumps({"choices": [{"text": "x"}]}).encode() + b"\n\n")
    if done:
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": tokens}
        await answer.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        await answer.write(b"data: [DONE]\n\n")
    return answer


async def fine(request: web.Request) -> web.StreamResponse:
    return await stream(request, tokens=(await request.json())["max_tokens"], done=True)


async def busy(_: web.Request) -> web.StreamResponse:
    return web.Response(status=429, text="slow down")


async def broken(_: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text="oops")


async def cut(request: web.Request) -> web.StreamResponse:
    return await stream(request, tokens=2, done=False)


async def stall(request: web.Request) -> web.StreamResponse:
    answer = await stream(request, tokens=1, done=False)
    await asyncio.sleep(30)
    return answer


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    """Each request's id says how it is treated: 0 fine, 1 busy, 2 broken, 3 cut, 4 stalled, 5 fine."""
    handlers: list[Handler] = [fine, busy, broken, cut, stall, fine]

    async def handle(request: web.Request) -> web.StreamResponse:
        return await handlers[int(request.headers["X-Request-Id"])](request)

    app = web.Application()
    app.router.add_post("/v1/completions", handle)
    running = TestServer(app)
    await running.start_server(shutdown_timeout=0.1)
    yield running
    await running.close()


async def test_whatever_becomes_of_a_request_is_its_record_and_the_others_go_on(server: TestServer) -> None:
    made = trace(*[(0.02 * i, 5 + i, 4) for i in range(6)])
    target = Target(str(server.make_url("")).rstrip("/"), "model", 100, timeout_s=1.0)
    records = await replay(made, target)
    ends = [(record.status, record.error, len(record.token_times_s)) for record in records]
    assert ends[0] == (200, None, 4)
    assert ends[1] == (429, "HTTP 429: slow down", 0)
    assert ends[2] == (500, "HTTP 500: oops", 0)
    assert ends[3] == (200, "the stream ended before the answer did", 2)
    assert ends[4][:2] == (200, "stalled: nothing came within the time-out")
    assert ends[5] == (200, None, 4)
    assert [record.prompt_tokens for record in records[::5]] == [5, 10]
    assert all(record.late_s >= 0 for record in records)


async def test_a_server_that_is_not_there_is_an_end_too() -> None:
    (record,) = await replay(trace((0.0, 5, 4)), Target("http://127.0.0.1:9", "model", 100))
    assert record.status is None
    assert record.error is not None
    assert "ClientConnectorError" in record.error


def test_prompts_share_exactly_what_the_hashes_share() -> None:
    made = trace((0, 40, 1), (0, 40, 1), (0, 40, 1), hashes=[(1, 2), (1, 3), (9, 2)], size=16)
    first, second, third = (prompt_token_ids(row, made, 8000) for row in made.rows)
    assert first[:16] == second[:16]
    assert first[16:32] != second[16:32]
    assert first[:16] != third[:16]
    assert len(first) == 40
    assert first == prompt_token_ids(made.rows[0], made, 8000)
    assert min(first) >= 3


def test_prompts_without_hashes_share_nothing() -> None:
    made = trace((0, 40, 1), (0, 40, 1))
    first, second = (prompt_token_ids(row, made, 8000) for row in made.rows)
    assert first[:4] != second[:4]


def test_a_request_that_was_never_sent_is_not_late() -> None:
    assert ClientRecord("a", due_s=5.0).late_s == 0
