"""A small OpenAI-compatible server that misbehaves on request: the request's id says how."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

HUGE_LINE_BYTES = 1 << 20


@dataclass(slots=True)
class FakeServer:
    """What the server was asked, in order, and how many requests must be there before any is answered."""

    url: str = ""
    together: int = 1
    models: tuple[str, ...] = ("model",)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    all_there: asyncio.Event = field(default_factory=asyncio.Event)
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def list_models(self, _: web.Request) -> web.Response:
        """The models it serves."""
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer as the first word of the request's id says."""
        request_id = request.headers["X-Request-Id"]
        self.headers[request_id] = dict(request.headers)
        self.asked[request_id] = body = await request.json()
        if len(self.asked) >= self.together:
            self.all_there.set()
        await self.all_there.wait()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return await self._answer(request, request_id.split("-")[0], body)
        finally:
            self.under_way -= 1
            self.answered.append(request_id)

    async def _answer(self, request: web.Request, manner: str, body: dict[str, Any]) -> web.StreamResponse:
        refusals = {
            "busy": (429, "too many requests"),
            "broken": (500, "out of order"),
            "quoting": (400, f"cannot read {body.get('prompt')}"),
            "telling": (401, f"bad key {request.headers.get('Authorization')}"),
        }
        if manner in refusals:
            status, text = refusals[manner]
            return web.Response(status=status, text=text)
        chat = "messages" in body
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        if chat:
            await answer.write(_event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}))
        for _ in range(body["max_tokens"] if manner in ("ok", "last") else 2):
            await answer.write(_event({"choices": [{"delta": {"content": "w"}} if chat else {"text": "w"}]}))
            await asyncio.sleep(0)
        match manner:
            case "cut":
                assert request.transport is not None
                request.transport.close()
            case "stall":
                await self.closing.wait()
            case "huge":
                await answer.write(b"data: " + b"x" * HUGE_LINE_BYTES + b"\n\n")
            case "garbled":
                await answer.write(b"data: [1, 2]\n\n")
            case "last":
                await answer.write(_event({"choices": [{"text": "", "finish_reason": "length"}]}))
        if manner in ("ok", "last"):
            sent = body["messages"][0]["content"].split() if chat else body["prompt"]
            counts = {"prompt_tokens": len(sent), "completion_tokens": body["max_tokens"]}
            await answer.write(
                _event({"choices": [], "usage": {**counts, "prompt_tokens_details": {"cached_tokens": 2}}})
            )
            await answer.write(b"data: [DONE]\n\n")
        return answer


@asynccontextmanager
async def serving() -> AsyncIterator[FakeServer]:
    """A server on the loopback."""
    fake = FakeServer()
    app = web.Application()
    app.router.add_get("/v1/models", fake.list_models)
    app.router.add_post("/v1/completions", fake.complete)
    app.router.add_post("/v1/chat/completions", fake.complete)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    fake.url = f"http://{host}:{port}"
    try:
        yield fake
    finally:
        fake.closing.set()
        await runner.cleanup()


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
