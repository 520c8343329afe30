"""A small OpenAI-compatible server that misbehaves on request: the request's id says how."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

HUGE_LINE_BYTES = 1 << 20


@dataclass(slots=True)
class FakeServer:
    """What the server was asked, and how many requests must be there before any is answered."""

    url: str = ""
    together: int = 1
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    all_there: asyncio.Event = field(default_factory=asyncio.Event)
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer as the first word of the request's id says."""
        request_id = request.headers["X-Request-Id"]
        self.asked[request_id] = body = await request.json()
        if len(self.asked) >= self.together:
            self.all_there.set()
        await self.all_there.wait()
        manner = request_id.split("-")[0]
        if manner == "busy":
            return web.Response(status=429, text="too many requests")
        if manner == "broken":
            return web.Response(status=500, text="out of order")
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for _ in range(body["max_tokens"] if manner == "ok" else 2):
            await answer.write(_event({"choices": [{"text": "w"}]}))
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
            case "ok":
                usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
                await answer.write(_event({"choices": [], "usage": usage}))
                await answer.write(b"data: [DONE]\n\n")
        return answer


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
