"""Send a trace to a live server and bring home one capture, with what the server itself recorded."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from collectors.client.load import Pacing, send_trace
from collectors.client.log import ClientLog
from collectors.client.request import Target
from collectors.engine.step_file import FLUSHED_WITHIN_S
from collectors.interrupts import until_interrupted
from collectors.journal import Journal
from collectors.recording.folder import About, finish_recording, new_recording, written_before
from collectors.server import scrape
from collectors.server.scrape import Scraper
from traces.capture import Capture, check_new_folder, write_capture
from traces.errors import CollectorError, InputError
from traces.outcome import Status
from traces.trace import Trace

REACH_TIMEOUT_S = 10.0
PROGRESS_EVERY_S = 1.0

Show = Callable[[ClientLog], None]
"""Is shown the client's log while it grows. It runs between the client's requests and must be quick."""


def unseen(_: ClientLog) -> None:
    """Nobody looks."""


def replay(trace: Trace, target: Target, pacing: Pacing, about: About, out: Path, *, show: Show = unseen) -> Capture:
    """Send the trace, join what all sides recorded, and write the capture `out`.

    An interrupt ends the sending; what was recorded becomes a capture all the same, with its reasons not to be scored.

    Args:
        trace: what to send.
        target: the server; its model's name may be empty when it serves but one.
        pacing: when each request is sent.
        about: what the capture is of, and where the server's recorder writes.
        out: the folder to write, new or empty.
        show: for a display of progress; asked once a second, and at the end.

    Raises:
        InputError: `out` cannot be written, or the server serves several models and none is named.
        CollectorError: the server does not answer, serves no request, or its record cannot be read; what was recorded
            then stays.
    """
    check_new_folder(out)  # before the load is sent
    target = replace(target, model=asyncio.run(model_served(target)))
    written = written_before(about)
    if about.transfers is not None:
        file = Path(about.transfers)
        written |= {about.transfers: file.stat().st_size if file.is_file() else 0}
    about = msgspec.structs.replace(about, model=about.model or target.model, skipped_bytes=written)
    recording = new_recording(out, about, trace)
    asyncio.run(record_replay(trace, target, pacing, recording, show))
    capture = finish_recording(recording)
    if not any(outcome.status is Status.FINISHED for outcome in capture.outcomes):
        why = "; ".join(capture.meta.reasons)
        raise CollectorError(f"{target.url}: no request was served ({why}); what was recorded is in {recording}")
    write_capture(capture, out)
    shutil.rmtree(recording)
    return capture


async def record_replay(trace: Trace, target: Target, pacing: Pacing, recording: Path, show: Show = unseen) -> None:
    """Send the trace and keep the client's journal in the recording, until all have ended or an interrupt.

    The server's metrics are read right before second 0 and at the end, and not between: that would delay the client.
    """
    import aiohttp

    with (
        ClientLog(recording / "client.jsonl") as log,
        Journal(recording / "metrics.jsonl", scrape.SCHEMA, every_s=0.0) as journal,
    ):
        showing = asyncio.ensure_future(_keep_showing(log, show))
        async with aiohttp.ClientSession(headers=target.headers()) as session:
            scraper = Scraper(session, target.url, journal, report=lambda _: None)
            try:
                async with until_interrupted() as stop:
                    await send_trace(trace, target, pacing, log, stop, scraper.scrape)
                await asyncio.sleep(FLUSHED_WITHIN_S)
                await scraper.scrape()
                await scraper.told()
            finally:
                showing.cancel()
                show(log)
                await scraper.close()


async def model_served(target: Target) -> str:
    """The name of the target's model: as given, or the only one that the server lists.

    Raises CollectorError when the server does not answer, InputError when it lists several and none is named.
    """
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=REACH_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{target.url}/v1/models", headers=target.headers()) as answer,
        ):
            if answer.status in (401, 403):
                raise CollectorError(f"{target.url}: HTTP {answer.status}; which API key does the server want?")
            models = [entry["id"] for entry in (await answer.json())["data"]] if answer.status == 200 else []
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise CollectorError(f"{target.url}: does not answer ({error or type(error).__name__})") from None
    except (ValueError, KeyError, TypeError):
        models = []
    if target.model:
        return target.model
    if len(models) == 1:
        return str(models[0])
    raise InputError(
        field="--model", found="none named", accepted=", ".join(models) or "the model's name at the server"
    )


async def _keep_showing(log: ClientLog, show: Show) -> None:
    """Show the log, until cancelled."""
    while True:
        show(log)
        await asyncio.sleep(PROGRESS_EVERY_S)
