"""A server to attach to: /metrics and what else it is asked, as the test has it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from collectors.journal import Journal
from collectors.server.scrape import SCHEMA

TEXTS = Path(__file__).with_name("metrics")


def text(name: str) -> str:
    """A recorded text of /metrics."""
    return (TEXTS / f"{name}.txt").read_text()


def vllm_text(tokens: float, *, start_s: float = 1e9, running: float = 1, queries: float = 0, hits: float = 0) -> str:
    """A short text of /metrics of one engine."""
    return f"""# TYPE process_start_time_seconds gauge
process_start_time_seconds {start_s}
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{engine="0",model_name="m"}} {tokens}
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{{engine="0",model_name="m"}} {queries}
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{{engine="0",model_name="m"}} {hits}
"""


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class MetricsServer:
    """Answers /metrics with one answer after the other, the last again and again.

    Attributes:
        url: its address.
        answers: texts; numbers are answered as that HTTP status; a callable is awaited first and gives the text.
        paths: what other paths answer with, as JSON text.
        asked: how often /metrics was asked for.
        at_once: most askings that were open together.
    """

    url: str = ""
    answers: list[str | int | Callable[[], object]] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    at_once: int = 0
    open: int = 0

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a request."""
        if request.path != "/metrics":
            found = self.paths.get(request.path)
            return (
                web.Response(status=404) if found is None else web.Response(text=found, content_type="application/json")
            )
        self.open += 1
        self.at_once = max(self.at_once, self.open)
        what = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        try:
            if callable(what):
                what = await what()  # type: ignore[misc]
        finally:
            self.open -= 1
        return web.Response(status=what) if isinstance(what, int) else web.Response(text=str(what))

    async def asked_times(self, times: int) -> None:
        """Wait until /metrics was asked for so often."""
        while self.asked < times:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(server: MetricsServer, port: int = 0) -> AsyncIterator[MetricsServer]:
    """Serve on 127.0.0.1 while the block runs."""
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


def metrics_journal(path: Path, every_s: float = 1.0) -> Journal:
    """A journal as attaching opens it."""
    return Journal(path, SCHEMA, every_s=every_s)
