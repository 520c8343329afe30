"""Records a server that others are using: its metrics, the spans of its requests, the events of its prefix cache.

Each is a journal in the recording's folder (metrics.jsonl, spans.jsonl, kv_events.jsonl), so that whatever ends the
recording, what came until then can be read. Nothing the server does ends it.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from collectors.client.request import base_url
from collectors.engine.step_file import FLUSHED_WITHIN_S
from collectors.interrupts import until_interrupted
from collectors.journal import Journal, say
from collectors.recording.folder import About, finish_recording, new_recording, written_before
from collectors.server import kv_events, scrape, spans
from collectors.server.kv_events import KVSubscriber, kv_subscriber, vllm_binds
from collectors.server.metric_names import Reading
from collectors.server.scrape import Scraper
from collectors.server.spans import SpanSink, span_sink
from traces.capture import Capture, check_new_folder, write_capture
from traces.errors import CollectorError, InputError, ServetwinError

if TYPE_CHECKING:
    import aiohttp

METRICS, SPANS, KV_EVENTS = "metrics.jsonl", "spans.jsonl", "kv_events.jsonl"

EXPORTED_WITHIN_S = 6.0
"""By when a span that ended has been sent: OpenTelemetry's exporter sends every 5 s (OTEL_BSP_SCHEDULE_DELAY)."""


@dataclass(slots=True)
class _Parts:
    """What is being recorded; None: not asked for."""

    scraper: Scraper
    sink: SpanSink | None = None
    subscriber: KVSubscriber | None = None


def attach(
    url: str,
    out: Path,
    about: About,
    *,
    for_s: float | None,
    every_s: float = 1.0,
    model: str | None = None,
    otlp_port: int | None = None,
    kv_endpoints: Sequence[str] = (),
    kv_connect: bool = False,
) -> Capture:
    """Record a server that others are using and write the capture `out` of what it served from arrival to end.

    Where nothing is listened to that tells requests apart (no spans, steps or stat logger), the capture has its series
    alone.

    Args:
        url: the server, without a path.
        out: the folder to write, new or empty.
        about: what the capture is of, and where the server's recorder writes.
        for_s: seconds to record; None: until an interrupt.
        every_s, model, otlp_port, kv_endpoints, kv_connect: as of `record_attached`.

    Raises:
        InputError: `out` cannot be written, or as `record_attached`.
        CollectorError: as `record_attached`; or no request was seen where some should be, and what was recorded stays.
    """
    check_new_folder(out)
    written = written_before(about)
    about = msgspec.structs.replace(about, skipped_bytes=written, origin_s=time.monotonic())
    recording = new_recording(out, about)

    async def record() -> None:
        async with until_interrupted() as stop:
            await record_attached(
                url,
                recording,
                for_s=for_s,
                stop=stop,
                every_s=every_s,
                model=model,
                otlp_port=otlp_port,
                kv_endpoints=kv_endpoints,
                kv_connect=kv_connect,
            )

    try:
        asyncio.run(record())
    except ServetwinError:
        if not (recording / METRICS).exists():  # it did not begin
            shutil.rmtree(recording)
        raise
    time.sleep(FLUSHED_WITHIN_S)
    capture = finish_recording(recording)
    if not capture.outcomes and (about.steps or about.stats or otlp_port is not None):
        raise CollectorError(
            "no request was seen from arrival to end by the recorder (--steps), a span (--spans) or the stat logger, "
            f"each of which is set up when the server starts; what was recorded is in {recording}, of which "
            f"`servetwin collect finish {recording} --out {out}` makes a capture of its series; --no-spans asks for "
            "these alone"
        )
    write_capture(capture, out)
    shutil.rmtree(recording)
    return capture


async def record_attached(
    url: str,
    folder: Path,
    *,
    for_s: float | None,
    stop: asyncio.Event,
    every_s: float = 1.0,
    model: str | None = None,
    otlp_port: int | None = None,
    kv_endpoints: Sequence[str] = (),
    kv_connect: bool = False,
    spans_within_s: float = EXPORTED_WITHIN_S,
    report: Callable[[str], None] = say,
) -> None:
    """Record a server until `for_s` seconds are over or `stop` is set, whatever becomes of the server meanwhile.

    Args:
        url: the server, without a path.
        folder: the recording's; made if it is not there.
        for_s: seconds to record; None: until `stop`.
        stop: set it to end the recording early; it is cleared then, and set again it ends the wait for the last spans.
        every_s: period of the scrapes.
        model: whose metrics to record, where the server serves several.
        otlp_port: port of 127.0.0.1 to listen for spans on; None: no spans.
        kv_endpoints: as in the servers' --kv-events-config, one for each data-parallel rank; none: no KV events.
        kv_connect: connect to them though vLLM would, as the server binds them elsewhere.
        spans_within_s: how long to wait at the end for the spans of requests that are over.
        report: takes a line for a person.

    Raises:
        InputError: the address is none, or the folder holds a recording.
        CollectorError: the server does not answer, there is nothing to record, a port is in use, or the extra `attach`
            is not installed.
    """
    import aiohttp

    base = base_url(url)
    if any((folder / name).exists() for name in (METRICS, SPANS, KV_EVENTS)):
        raise InputError("holds a recording", file=folder, accepted="another folder")
    begun = False
    try:
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            await _check_answers(session, base)
            _new_folder(folder)
            journal = Journal(folder / METRICS, scrape.SCHEMA, report, url=base, every_s=every_s)
            stack.enter_context(journal)
            parts = _Parts(Scraper(session, base, journal, model=model, report=report))
            if otlp_port is not None:
                journal = stack.enter_context(Journal(folder / SPANS, spans.SCHEMA, report))
                parts.sink = await stack.enter_async_context(span_sink(journal, otlp_port))
            if kv_endpoints:
                journal = stack.enter_context(Journal(folder / KV_EVENTS, kv_events.SCHEMA, report))
                subscriber = kv_subscriber(journal, kv_endpoints, connect=kv_connect)
                parts.subscriber = await stack.enter_async_context(subscriber)
            await parts.scraper.scrape()
            _check_worth_recording(parts, base)
            for line in _what_is_recorded(parts, base, every_s, otlp_port, kv_endpoints, kv_connect):
                report(line)
            begun = True
            await _record(parts, for_s, every_s, stop, spans_within_s, report)
    except ServetwinError:
        if not begun:
            _remove(folder)
        raise
    report(_what_was_recorded(parts))


async def _record(
    parts: _Parts,
    for_s: float | None,
    every_s: float,
    stop: asyncio.Event,
    spans_within_s: float,
    report: Callable[[str], None],
) -> None:
    """Run all parts until the end; the last scrape comes after it, and the last spans after that."""
    over = asyncio.Event()
    scraping = asyncio.create_task(parts.scraper.run(over, every_s))
    beside = [asyncio.create_task(_show_progress(parts, for_s))] if sys.stderr.isatty() else []
    if parts.subscriber is not None:
        beside.append(asyncio.create_task(parts.subscriber.run()))
    waiting = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait({waiting, scraping, *beside}, timeout=for_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            task.result()  # none of them ends by itself but with an error of ours
        over.set()
        stop.clear()
        await scraping
        if parts.sink is not None:
            if sys.stderr.isatty():
                report(f"waiting {spans_within_s:g} s for the last spans; interrupt to end without them")
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), spans_within_s)
    finally:
        for task in (waiting, scraping, *beside):
            task.cancel()
        await asyncio.gather(waiting, scraping, *beside, return_exceptions=True)
        await parts.scraper.close()


def _new_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", file=folder) from None


def _remove(folder: Path) -> None:
    """Take away what a recording that did not begin has left."""
    for name in (METRICS, SPANS, KV_EVENTS):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # the folder may hold more, or not be there
        folder.rmdir()


async def _check_answers(session: aiohttp.ClientSession, base: str) -> None:
    """Raise CollectorError when no server answers, whatever it answers."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=scrape.ANSWER_WITHIN_S)
    trouble = ""
    for path in ("/metrics", "/health"):
        try:
            async with session.get(base + path, timeout=timeout) as answer:
                if answer.status < 500:
                    return
                trouble = f"HTTP {answer.status}"
        except TimeoutError:
            trouble = f"no answer within {scrape.ANSWER_WITHIN_S:g} s"
        except (aiohttp.ClientError, OSError) as error:
            trouble = scrape.trouble_of(error)
    raise CollectorError(f"no server answers at {base} ({trouble}); start it first, or correct --url")


def _check_worth_recording(parts: _Parts, base: str) -> None:
    """Raise what was wrong with the first scrape, when the next will not be better or nothing else is recorded."""
    error = parts.scraper.error
    if isinstance(error, InputError):
        raise error
    if error is not None and parts.sink is None and parts.subscriber is None:
        raise CollectorError(
            f"{base}/metrics: {error}; nothing can be recorded (SGLang has metrics with --enable-metrics alone)"
        )


def _what_is_recorded(
    parts: _Parts, base: str, every_s: float, otlp_port: int | None, kv_endpoints: Sequence[str], kv_connect: bool
) -> list[str]:
    scraper = parts.scraper
    if scraper.latest is None:
        lines = [f"metrics: {base}/metrics cannot be scraped yet ({scraper.error}); trying every {every_s:g} s"]
    else:
        lines = [f"metrics: {_described(scraper.latest)} at {base}, every {every_s:g} s"]
    if otlp_port is not None:
        lines.append(f"spans: listening at http://127.0.0.1:{otlp_port}/v1/traces")
    for endpoint in kv_endpoints:
        how = "connecting to" if kv_connect or vllm_binds(endpoint) else "listening at"
        lines.append(f"KV events: {how} {endpoint}")
    return lines


def _described(reading: Reading) -> str:
    labels = [label for label in reading.values if label]
    engines = f", {len(labels)} engines" if len(labels) > 1 else ""
    return f"{reading.server}{f' serving {reading.model}' if reading.model else ''}{engines}"


def _what_was_recorded(parts: _Parts) -> str:
    scraper = parts.scraper
    found = [f"{scraper.n_scrapes} scrapes" + (f", {scraper.n_failed} of them failed" if scraper.n_failed else "")]
    if parts.sink is not None:
        found.append(f"{parts.sink.n_spans} spans")
    if parts.subscriber is not None:
        found.append(f"{parts.subscriber.n_blocks} blocks stored")
    line = f"recorded {', '.join(found)}"
    ended = _total(scraper.latest, "request_success") - _total(scraper.first, "request_success")
    if parts.sink is not None and not parts.sink.n_spans and ended > 0:
        line += (
            f"; {ended:.0f} requests ended and no span came: start the server with "
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf and this port in --otlp-traces-endpoint"
        )
    return line


def _total(reading: Reading | None, name: str) -> float:
    return 0.0 if reading is None else sum(values.get(name, 0.0) for values in reading.values.values())


async def _show_progress(parts: _Parts, for_s: float | None) -> None:
    """Keep a line on stderr up to date; for terminals."""
    begin_s = time.monotonic()
    with suppress(asyncio.CancelledError):
        while True:
            elapsed_s = time.monotonic() - begin_s
            print(f"\r\033[K{_progress(parts, elapsed_s, for_s)}", end="", file=sys.stderr, flush=True)
            await asyncio.sleep(1.0)
    print("\r\033[K", end="", file=sys.stderr, flush=True)


def _progress(parts: _Parts, elapsed_s: float, for_s: float | None) -> str:
    scraper = parts.scraper
    found = [f"{elapsed_s:.0f} s" if for_s is None else f"{elapsed_s:.0f} of {for_s:.0f} s"]
    if scraper.latest is None:
        found.append("no metrics")
    else:
        found.append(f"{_total(scraper.latest, 'num_requests_running'):.0f} running")
        found.append(f"{_total(scraper.latest, 'num_requests_waiting'):.0f} waiting")
    if parts.sink is not None:
        found.append(f"{parts.sink.n_spans} spans")
    if parts.subscriber is not None:
        found.append(f"{parts.subscriber.n_blocks} blocks stored")
    if scraper.n_failed:
        found.append(f"{scraper.n_failed} scrapes failed")
    return ", ".join(found)
