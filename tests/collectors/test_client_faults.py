"""The open-loop client against a server that refuses, breaks, cuts off and stalls."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from collectors.client import ClientRecord, Target, replay
from collectors.prompts import prompt_token_ids
from tests.collectors.fake_server import FakeServer
from traces.trace import Trace, TraceRow


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    app = web.Application()
    app.router.add_post("/v1/completions", fake.complete)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    fake.url = f"http://{host}:{port}"
    yield fake
    fake.closing.set()
    await runner.cleanup()


def _trace(*request_ids: str) -> Trace:
    rows = [
        TraceRow(request_id=request_id, arrival_s=0.01 * i, prompt_tokens=10 + i, output_tokens=3)
        for i, request_id in enumerate(request_ids)
    ]
    return Trace(tuple(rows), None, "test", "sha256:0")


async def _replay(server: FakeServer, *request_ids: str, timeout_s: float = 5.0) -> dict[str, ClientRecord]:
    records = await replay(_trace(*request_ids), Target(server.url, "model", 100, timeout_s=timeout_s))
    assert [record.request_id for record in records] == list(request_ids)
    return {record.request_id: record for record in records}


async def test_an_answer_is_timed_token_by_token(server: FakeServer) -> None:
    record = (await _replay(server, "ok"))["ok"]
    assert (record.status, record.error) == (200, None)
    assert (record.prompt_tokens, record.output_tokens) == (10, 3)
    assert record.sent_s is not None
    assert record.due_s <= record.sent_s <= record.token_times_s[0]
    assert len(record.token_times_s) == 3
    assert record.token_times_s == sorted(record.token_times_s)


async def test_the_request_pins_prompt_length_and_answer(server: FakeServer) -> None:
    await _replay(server, "ok-a", "ok-b")
    trace = _trace("ok-a", "ok-b")
    body = server.asked["ok-b"]
    assert body["prompt"] == prompt_token_ids(trace.rows[1], trace, vocab_size=100)
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (3, True, 0)
    assert body["stream_options"] == {"include_usage": True}


async def test_it_sends_by_the_clock_and_waits_for_no_answer(server: FakeServer) -> None:
    """The server answers nobody until all four are there: a client that waits for an answer would never end."""
    server.together = 4
    records = await _replay(server, "ok-a", "ok-b", "ok-c", "ok-d")
    assert all(record.error is None for record in records.values())


@pytest.mark.parametrize(
    ("request_id", "status", "error", "tokens"),
    [
        ("busy", 429, "HTTP 429: too many requests", 0),
        ("broken", 500, "HTTP 500: out of order", 0),
        ("cut", 200, "", 2),
        ("stall", 200, "stalled", 2),
        ("huge", 200, "", 2),
        ("garbled", 200, "", 2),
    ],
)
async def test_a_failure_is_that_requests_record_and_the_others_go_on(
    server: FakeServer, request_id: str, status: int, error: str, tokens: int
) -> None:
    records = await _replay(server, "ok-before", request_id, "ok-after", timeout_s=1.0)
    failed = records[request_id]
    assert failed.status == status
    assert failed.error is not None
    assert error in failed.error
    assert len(failed.token_times_s) == tokens
    assert failed.output_tokens is None
    for name in ("ok-before", "ok-after"):
        assert records[name].error is None
        assert records[name].output_tokens == 3


async def test_a_server_that_is_not_there_is_a_record_too() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    records = await replay(_trace("a", "b"), Target(url, "model", 100))
    assert [record.status for record in records] == [None, None]
    assert all(record.error and not record.token_times_s for record in records)
