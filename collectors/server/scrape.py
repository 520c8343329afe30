"""Scrapes a server's /metrics into a journal at a fixed period, whatever the server does.

One scrape at a time: those that a slow one kept from their turn are counted and not made up for. Values are kept as the
server gives them; `collectors.server.scrape_file` reads them back.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from collectors.journal import Journal, say
from collectors.server.engine_info import EngineInfo, ask_engine
from collectors.server.metric_names import Reading, read_metrics
from traces.errors import CollectorError, InputError, ServetwinError

if TYPE_CHECKING:
    import aiohttp

SCHEMA = "servetwin.metrics/1"

ANSWER_WITHIN_S = 10.0
"""A scrape that takes longer has failed."""


class MetricsHeader(msgspec.Struct, frozen=True, kw_only=True, tag="header", tag_field="kind"):
    """First line of the journal."""

    wall_ns: int
    monotonic_ns: int
    every_s: float


class Scrape(msgspec.Struct, frozen=True, kw_only=True, tag="scrape", tag_field="kind", omit_defaults=True):
    """One try to scrape. Times are of the host's monotonic clock.

    Attributes:
        begin_ns: when it was asked for.
        end_ns: when the answer was there, or the try was over.
        status: HTTP status; None without an answer.
        error: what went wrong; None when nothing did.
        skipped: turns that passed before it because the scrape before took so long.
        process_start_s: when the server's process started (Unix seconds), where it says so.
        values: by engine, then by name.
    """

    begin_ns: int
    end_ns: int
    status: int | None = None
    error: str | None = None
    skipped: int = 0
    process_start_s: float | None = None
    values: dict[str, dict[str, float]] = {}

    @property
    def time_s(self) -> float:
        """The middle of asking and answer; the values are of some moment between them."""
        return (self.begin_ns + self.end_ns) / 2e9


class Described(msgspec.Struct, frozen=True, kw_only=True, tag="described", tag_field="kind"):
    """How the server's metrics describe it and its engines; written when that changes."""

    server: str
    model: str | None
    info: dict[str, dict[str, str]]
    unknown: tuple[str, ...]


class Told(msgspec.Struct, frozen=True, kw_only=True, tag="engine", tag_field="kind"):
    """What the server told of itself when it was first seen, or seen again."""

    told: EngineInfo


class Scraper:
    """Scrapes one server into a journal, whatever the server does.

    Attributes:
        first: what the first scrape that succeeded brought; None before.
        latest: what the latest brought; None when it failed.
        error: what was wrong with the latest; None when nothing was.
        n_scrapes: scrapes so far.
        n_failed: how many of them failed.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        journal: Journal,
        *,
        model: str | None = None,
        report: Callable[[str], None] = say,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        self.first: Reading | None = None
        self.latest: Reading | None = None
        self.error: ServetwinError | None = None
        self.n_scrapes = 0
        self.n_failed = 0
        self._session = session
        self._url = url
        self._journal = journal
        self._model = model
        self._report = report
        self._answer_within_s = answer_within_s
        self._described: Described | None = None
        self._asking: asyncio.Task[None] | None = None

    async def scrape(self, skipped: int = 0) -> None:
        """Scrape once, whatever comes of it."""
        begin_ns = time.monotonic_ns()
        status, text, reading = None, "", None
        error: ServetwinError | None = None
        try:
            status, text = await self._get()
        except TimeoutError:
            error = CollectorError(f"no answer within {self._answer_within_s:g} s")
        except Exception as trouble:  # whatever the network does, the next scrape may succeed
            error = CollectorError(trouble_of(trouble))
        end_ns = time.monotonic_ns()
        try:
            reading = read_metrics(text, self._model) if status == 200 else None
        except (CollectorError, InputError) as trouble:
            error = trouble
        if status not in (None, 200):
            error = CollectorError(f"HTTP {status}")
        self._journal.append(
            Scrape(
                begin_ns=begin_ns,
                end_ns=end_ns,
                status=status,
                error=None if error is None else str(error),
                skipped=skipped,
                process_start_s=None if reading is None else reading.process_start_s,
                values={} if reading is None else reading.values,
            )
        )
        self.n_scrapes += 1
        self._take(reading, error)

    async def run(self, stop: asyncio.Event, every_s: float) -> None:
        """Scrape every `every_s` seconds, first in so many seconds, until `stop`; and once more after it."""
        due_s, skipped = time.monotonic() + every_s, 0
        while not await _set_before(stop, due_s):
            await self.scrape(skipped)
            due_s += every_s
            late_s = time.monotonic() - due_s
            skipped = 0 if late_s < 0 else math.floor(late_s / every_s) + 1
            due_s += skipped * every_s
        await self.scrape(skipped)
        await self.told()

    async def told(self) -> None:
        """Wait until the server has told what it tells of itself, if it is being asked."""
        if self._asking is not None:
            await self._asking

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _get(self) -> tuple[int, str]:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=self._answer_within_s)
        async with self._session.get(f"{self._url}/metrics", timeout=timeout) as answer:
            return answer.status, await answer.text(errors="replace")

    def _take(self, reading: Reading | None, error: ServetwinError | None) -> None:
        self.n_failed += error is not None
        if self.first is not None and (error is None) != (self.error is None):
            what = "can be scraped again" if error is None else f"cannot be scraped ({error}); trying on"
            self._report(f"{self._url}/metrics {what}")
        if reading is not None:
            self._describe(reading)
            before = self.latest
            if before is None or before.process_start_s != reading.process_start_s:
                self._ask(reading.server)
            self.first = self.first or reading
        self.latest, self.error = reading, error

    def _describe(self, reading: Reading) -> None:
        described = Described(
            server=reading.server, model=reading.model, info=reading.info, unknown=tuple(sorted(reading.unknown))
        )
        if described != self._described:
            self._journal.append(described)
            self._described = described

    def _ask(self, server: str) -> None:
        """Let the server tell of itself while scraping goes on."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._write_told(server))

    async def _write_told(self, server: str) -> None:
        self._journal.append(Told(told=await ask_engine(self._session, self._url, server)))


async def _set_before(event: asyncio.Event, due_s: float) -> bool:
    """Wait for the event, until a moment of the monotonic clock at most. Returns whether it came."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), max(0.0, due_s - time.monotonic()))
    return event.is_set()


def trouble_of(error: Exception) -> str:
    """What an error of the network says, for a person: the system's word for it where there is one."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else f"{type(error).__name__}: {error}"
