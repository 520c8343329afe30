"""The proxy asks the prefill server for one token, tells the decode server where the KV lies, and passes its answer."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from aiohttp import ClientSession, web

from collectors.local.apart_proxy import serve

WHERE = {"do_remote_prefill": True, "remote_engine_id": "p", "remote_block_ids": [[1, 2]]}
ASKED = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 7, "stream": True, "stream_options": {"include_usage": True}}
PIECES = [b'data: {"choices": [{"text": "a"}]}\n\n', b"data: [DONE]\n\n"]


class Server:
    """A server that remembers what it was sent."""

    def __init__(self, *, prefills: bool, status: int = 200) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self._prefills = prefills
        self._status = status

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(request.headers)
        if self._status != 200:
            return web.json_response({"error": "no"}, status=self._status)
        if self._prefills:
            return web.json_response({"choices": [{"text": "x"}], "kv_transfer_params": WHERE})
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for piece in PIECES:
            await answer.write(piece)
        return answer

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def start(self) -> tuple[web.AppRunner, str]:
        application = web.Application()
        application.router.add_post("/v1/completions", self.complete)
        application.router.add_get("/v1/models", self.models)
        runner = web.AppRunner(application)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner, f"http://127.0.0.1:{port}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def asked(prefill: Server, decode: Server) -> tuple[int, bytes, list[str]]:
    """Status and body of an answer through the proxy, and the models that it lists."""

    async def run() -> tuple[int, bytes, list[str]]:
        (first, to_prefill), (second, to_decode) = await prefill.start(), await decode.start()
        port = free_port()
        proxy = await serve(to_prefill, to_decode, port)
        try:
            async with ClientSession() as session:
                headers = {"X-Request-Id": "r-1", "Authorization": "Bearer k"}
                url = f"http://127.0.0.1:{port}/v1"
                async with session.post(f"{url}/completions", json=ASKED, headers=headers) as answer:
                    status, body = answer.status, await answer.read()
                async with session.get(f"{url}/models") as answer:
                    models = [one["id"] for one in json.loads(await answer.read())["data"]]
            return status, body, models
        finally:
            for runner in (proxy, first, second):
                await runner.cleanup()

    return asyncio.run(run())


def test_each_server_gets_its_part() -> None:
    prefill, decode = Server(prefills=True), Server(prefills=False)
    status, body, models = asked(prefill, decode)
    assert (status, body, models) == (200, b"".join(PIECES), ["m"])
    (first,), (second,) = prefill.bodies, decode.bodies
    assert first["max_tokens"] == 1
    assert not first.keys() & {"stream", "stream_options"}
    assert first["kv_transfer_params"]["do_remote_decode"] is True
    assert second == {**ASKED, "kv_transfer_params": WHERE}
    for server in (prefill, decode):
        assert server.headers[0]["X-Request-Id"] == "r-1"
        assert server.headers[0]["Authorization"] == "Bearer k"


def test_an_error_of_the_prefill_server_is_passed_on() -> None:
    decode = Server(prefills=False)
    status, body, _ = asked(Server(prefills=True, status=503), decode)
    assert (status, json.loads(body)) == (503, {"error": "no"})
    assert decode.bodies == []


def test_an_error_of_the_decode_server_is_passed_on() -> None:
    status, body, _ = asked(Server(prefills=True), Server(prefills=False, status=400))
    assert (status, json.loads(body)) == (400, {"error": "no"})
