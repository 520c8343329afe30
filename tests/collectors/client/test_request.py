"""One request and its answer: what is asked, what is kept, and that every end is a record."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from collectors.client.load import Pacing, send_trace
from collectors.client.log import ClientLog
from collectors.client.prompts import prompt_text, prompt_token_ids
from collectors.client.request import ClientRecord, Target
from tests.collectors.fake_server import FakeServer, serving
from tests.engines import trace
from traces.trace import Trace, TraceRow


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with serving() as fake:
        yield fake


def named(*request_ids: str) -> Trace:
    rows = [
        TraceRow(request_id=name, arrival_s=0.01 * i, prompt_tokens=10 + i, output_tokens=3)
        for i, name in enumerate(request_ids)
    ]
    return Trace(tuple(rows), None, "test", "sha256:0")


async def ask(target: Target, folder: Path, *request_ids: str) -> dict[str, ClientRecord]:
    log = ClientLog(folder / "client.jsonl")
    records = await send_trace(named(*request_ids), target, Pacing(), log, asyncio.Event())
    log.close()
    assert [record.request_id for record in records] == list(request_ids)
    return {record.request_id: record for record in records}


async def test_an_answer_is_timed_token_by_token(server: FakeServer, tmp_path: Path) -> None:
    record = (await ask(Target(server.url, "model"), tmp_path, "ok"))["ok"]
    assert (record.status, record.error) == (200, None)
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (10, 3, 2)
    assert record.sent_s is not None
    assert record.end_s is not None
    times = [record.due_s, record.sent_s, *record.token_times_s, record.end_s]
    assert len(times) == 6
    assert times == sorted(times)


async def test_the_request_pins_prompt_length_and_answer(server: FakeServer, tmp_path: Path) -> None:
    await ask(Target(server.url, "model", vocab_size=100, extra={"top_k": 7}), tmp_path, "ok-a", "ok-b")
    made = named("ok-a", "ok-b")
    body = server.asked["ok-b"]
    assert body["prompt"] == prompt_token_ids(made.rows[1], made, vocab_size=100)
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"], body["top_k"]) == (3, True, 0, 7)
    assert body["stream_options"] == {"include_usage": True}


async def test_a_chat_is_asked_in_words_and_its_role_is_no_token(server: FakeServer, tmp_path: Path) -> None:
    record = (await ask(Target(server.url, "model", api="chat"), tmp_path, "ok"))["ok"]
    made = named("ok")
    assert server.asked["ok"]["messages"] == [{"role": "user", "content": prompt_text(made.rows[0], made)}]
    assert (record.error, record.prompt_tokens, len(record.token_times_s)) == (None, 10, 3)


async def test_a_last_piece_that_only_says_why_is_no_token(server: FakeServer, tmp_path: Path) -> None:
    record = (await ask(Target(server.url, "model"), tmp_path, "last"))["last"]
    assert (len(record.token_times_s), record.output_tokens, record.reason) == (3, 3, "length")


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
    server: FakeServer, tmp_path: Path, request_id: str, status: int, error: str, tokens: int
) -> None:
    records = await ask(Target(server.url, "model", timeout_s=1.0), tmp_path, "ok-before", request_id, "ok-after")
    failed = records[request_id]
    assert failed.status == status
    assert failed.error is not None
    assert error in failed.error
    assert len(failed.token_times_s) == tokens
    assert failed.output_tokens is None
    for name in ("ok-before", "ok-after"):
        assert records[name].error is None
        assert records[name].output_tokens == 3


async def test_a_server_that_is_not_there_is_a_record_too(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    records = await ask(Target(url, "model"), tmp_path, "a", "b")
    assert [record.status for record in records.values()] == [None, None]
    assert all(record.error and not record.token_times_s for record in records.values())


async def test_no_prompt_and_no_key_are_kept_whatever_the_server_says(server: FakeServer, tmp_path: Path) -> None:
    target = Target(server.url, "model", api_key="sk-secret-12345")
    records = await ask(target, tmp_path, "quoting", "telling", "ok")
    assert records["quoting"].error == "HTTP 400: (a message that quotes the prompt)"
    assert records["telling"].error == "HTTP 401: bad key Bearer ***"
    written = (tmp_path / "client.jsonl").read_text()
    made = named("quoting", "telling", "ok")
    for row in made.rows:
        ids = target.prompt(row, made)
        assert json.dumps(ids[:3])[1:-1] not in written
    assert "sk-secret" not in written
    assert "Bearer" not in repr(target)
    assert server.headers["ok"]["Authorization"] == "Bearer sk-secret-12345"


def test_prompts_share_exactly_what_the_hashes_share() -> None:
    made = trace((0, 40, 1), (0, 40, 1), (0, 40, 1), hashes=[(1, 2), (1, 3), (9, 2)], size=16)
    for prompts in (
        [prompt_token_ids(row, made, 8000) for row in made.rows],
        [prompt_text(row, made).split() for row in made.rows],
    ):
        first, second, third = prompts
        assert first[:16] == second[:16]
        assert first[16:32] != second[16:32]
        assert first[:16] != third[:16]
        assert [len(prompt) for prompt in prompts] == [40, 40, 40]
    ids = prompt_token_ids(made.rows[0], made, 8000)
    assert ids == prompt_token_ids(made.rows[0], made, 8000)
    assert ids != prompt_token_ids(made.rows[0], made, 8000, seed=1)
    assert min(ids) >= 3


def test_prompts_without_hashes_share_nothing() -> None:
    made = trace((0, 40, 1), (0, 40, 1))
    first, second = (prompt_token_ids(row, made, 8000) for row in made.rows)
    assert first[:4] != second[:4]


def test_tokens_of_a_prompt_are_spread_over_the_vocabulary() -> None:
    made = trace((0, 8000, 1))
    ids = prompt_token_ids(made.rows[0], made, 1000)
    assert max(ids) < 1000
    counts = [ids.count(i) for i in range(3, 1000)]
    assert min(counts) > 0
    assert max(counts) < 30  # 8 on average


def test_priority_is_sent_where_there_is_one() -> None:
    made = named("a")
    target = Target("http://x", "model")
    assert b"priority" not in target.body(made.rows[0], made)
    urgent = TraceRow(request_id="b", arrival_s=0, prompt_tokens=3, output_tokens=1, priority=-2)
    assert b'"priority":-2' in replace(target, words=True).body(urgent, made)


def test_a_request_that_was_never_sent_is_not_late() -> None:
    assert ClientRecord("a", due_s=5.0).late_s == 0
