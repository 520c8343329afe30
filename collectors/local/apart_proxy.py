"""A proxy before a prefill and a decode server of vLLM, so that a client sees one server.

    python -m collectors.local.apart_proxy --prefill URL --decode URL --port PORT

Each completion goes to the prefill server first, for one token, and with what that says of where the KV lies to the
decode server, whose answer is passed through as it comes (vLLM 0.32
`distributed/kv_transfer/kv_connector/v1/nixl/pull_scheduler.py`: `kv_transfer_params`). Both get the client's
X-Request-Id. Nothing is kept of a request. Chat is not passed on.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from aiohttp import ClientSession, web

ASK = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""What a prefill server is told, so that it keeps the KV until it is read."""

PATH = "/v1/completions"


class Proxy:
    """Two servers behind one address."""

    def __init__(self, prefill: str, decode: str, session: ClientSession) -> None:
        """Requests go to `prefill` and then to `decode`, both addresses without a path."""
        self._prefill = prefill
        self._decode = decode
        self._session = session

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer a completion; an error of either server is passed on as it is."""
        from aiohttp import web

        asked: dict[str, Any] = msgspec.json.decode(await request.read())
        names = ("X-Request-Id", "Authorization")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        headers["Content-Type"] = "application/json"
        first = {name: value for name, value in asked.items() if name not in ("stream", "stream_options")}
        body = msgspec.json.encode({**first, "max_tokens": 1, "kv_transfer_params": ASK})
        async with self._session.post(self._prefill + PATH, data=body, headers=headers) as answer:
            told = await answer.read()
            if answer.status != 200:
                return web.Response(status=answer.status, body=told, content_type=answer.content_type)
        where = msgspec.json.decode(told, type=dict[str, Any]).get("kv_transfer_params")
        body = msgspec.json.encode({**asked, "kv_transfer_params": where})
        async with self._session.post(self._decode + PATH, data=body, headers=headers) as answer:
            passed = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await passed.prepare(request)
            async for piece in answer.content.iter_any():
                await passed.write(piece)
            await passed.write_eof()
            return passed

    async def models(self, _: web.Request) -> web.Response:
        """What the decode server serves."""
        from aiohttp import web

        async with self._session.get(f"{self._decode}/v1/models") as answer:
            return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)


async def serve(prefill: str, decode: str, port: int) -> web.AppRunner:
    """Listen on this machine's loopback. Returns what is to be cleaned up in the end."""
    from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

    session = ClientSession(timeout=ClientTimeout(total=None), connector=TCPConnector(limit=0))
    proxy = Proxy(prefill, decode, session)
    application = web.Application(client_max_size=1 << 30)
    application.router.add_post(PATH, proxy.complete)
    application.router.add_get("/v1/models", proxy.models)

    async def close(_: web.Application) -> None:
        await session.close()

    application.on_cleanup.append(close)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner


def main() -> None:
    """Serve until interrupted."""
    import asyncio

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefill", required=True, help="address of the prefill server")
    parser.add_argument("--decode", required=True, help="address of the decode server")
    parser.add_argument("--port", type=int, required=True, help="where to listen on 127.0.0.1")
    options = parser.parse_args()

    async def run() -> None:
        runner = await serve(options.prefill.rstrip("/"), options.decode.rstrip("/"), options.port)
        print(f"listening on http://127.0.0.1:{options.port}", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    asyncio.run(run())


if __name__ == "__main__":
    main()
