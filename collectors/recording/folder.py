"""A recording in progress: a folder of journals beside the capture it will become.

    OUT.recording/about.json       what is recorded
                  trace.jsonl.gz   what a client of ours sends
                  client.jsonl     what it saw
                  metrics.jsonl    what the server counts
                  spans.jsonl      its front end's spans, a request each
                  kv_events.jsonl  the blocks that its prefix cache stored and removed

It goes once the capture is written. What a killed collector leaves can be finished by hand, and a new recording of the
same name starts beside it.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path

import msgspec

from collectors.client.log import read_client_log
from collectors.engine.stats_log import read_stats
from collectors.engine.step_file import read_recordings, sizes
from collectors.engine.transfer_file import read_transfers
from collectors.recording.join import Subject, Witnesses, join
from collectors.recording.served import told_by_spans, told_by_stats
from collectors.server.kv_events import KVEvents, read_kv_events
from collectors.server.scrape_file import read_scrapes
from collectors.server.spans import Spans, clock_check, read_spans
from traces.capture import Capture, Series
from traces.decoding import decode_json, read_bytes
from traces.errors import CollectorError, InputError
from traces.trace import Trace, read_trace, write_trace

SCHEMA = "servetwin.recording/1"

UNKNOWN_MODEL = "unknown"
"""What a capture says where neither the user nor the server named the model."""

CLOCKS_AGREE_WITHIN_S = 0.001
"""Stages are of the engine's monotonic clock, E2EL is of the front end's wall clock, which is slewed meanwhile."""


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recording is of.

    Attributes:
        origin_s: second 0 of an attached recording on the host's monotonic clock; a client's journal has its own.
        steps: the file that the server's step recorder writes; None: it has none, or none that can be reached.
        skipped_bytes: how much of each of its files was written before, by file.
        stats: the file that the front end's stat logger writes; None: likewise.
        transfers: the file that a decode engine's transfer recorder writes; None: likewise.
        reasons: why the run must not be scored.
        notes: what was assumed.
    """

    schema_version: str = SCHEMA
    model: str
    device: str | None
    recorded_at: str
    origin_s: float | None = None
    steps: str | None = None
    skipped_bytes: dict[str, int] = {}
    stats: str | None = None
    transfers: str | None = None
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def written_before(about: About) -> dict[str, int]:
    """Bytes that the server's step recorder has written before the recording, by file.

    Raises CollectorError when it has no file.
    """
    if about.steps is None:
        return {}
    written = sizes(Path(about.steps))
    if not written:
        where = "is the server running with the recorder and SERVETWIN_STEPS?"
        raise CollectorError(f"{about.steps}: no such file; {where}")
    return written


def new_recording(out: Path, about: About, trace: Trace | None = None) -> Path:
    """Make the folder for a recording that will become `out`. Raises InputError when it cannot be made."""
    beside = (out.with_name(f"{out.name}.recording-{i}") for i in itertools.count(2))
    folder = out.with_name(f"{out.name}.recording")
    while folder.exists():
        folder = next(beside)
    try:
        folder.mkdir(parents=True)
        write_about(folder, about)
        if trace is not None:
            write_trace(trace, folder / "trace.jsonl.gz")
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", file=folder) from None
    return folder


def write_about(folder: Path, about: About) -> None:
    """Write, or replace, what the recording says of itself."""
    (folder / "about.json").write_bytes(msgspec.json.format(msgspec.json.encode(about), indent=1) + b"\n")


def read_about(folder: Path) -> About:
    """What a recording says of itself. Raises InputError when the folder is none."""
    if not (folder / "about.json").is_file():
        raise InputError("is not a recording", file=folder, accepted="a folder with an about.json, as collect leaves")
    return decode_json(read_bytes(folder / "about.json"), About, file=folder / "about.json")


def finish_recording(folder: Path) -> Capture:
    """The capture that a recording makes, whole or cut off. Raises InputError or CollectorError."""
    about = read_about(folder)

    def there(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    trace = read_trace(path) if (path := there("trace.jsonl.gz")) else None
    client = read_client_log(path) if (path := there("client.jsonl")) else None
    scrapes = read_scrapes(path) if (path := there("metrics.jsonl")) else None
    spans = read_spans(path) if (path := there("spans.jsonl")) else None
    events = read_kv_events(path) if (path := there("kv_events.jsonl")) else None
    stats = read_stats(Path(about.stats)) if about.stats is not None else None
    origin_s = about.origin_s if client is None else client.origin_s
    if origin_s is None:
        raise CollectorError(f"{folder}: the recording was cut off before anything was recorded")
    reported = {**(told_by_spans(spans) if spans else {}), **(told_by_stats(stats) if stats else {})}
    if client is not None:
        reported = {name: one for name, one in reported.items() if name in client.records}
    recordings = read_recordings(Path(about.steps), about.skipped_bytes) if about.steps is not None else ()
    sent = None
    if about.transfers is not None:
        sent = read_transfers(Path(about.transfers), about.skipped_bytes.get(about.transfers, 0))
    witnesses = Witnesses(
        trace=trace,
        origin_s=origin_s,
        until_s=None if client is not None or scrapes is None or not len(scrapes.time_s) else float(scrapes.time_s[-1]),
        client=client,
        recordings=recordings,
        reported=reported,
        scrapes=scrapes,
        transfers=sent,
        series=_cached_blocks(events, origin_s) if events else {},
        reasons=(
            *about.reasons,
            *(trouble for recording in recordings for trouble in recording.trouble),
            *(() if sent is None else sent.trouble),
            *(_clock_reasons(spans) if spans else ()),
        ),
        notes=(
            *about.notes,
            *(note for told in (spans, events, stats) if told is not None for note in told.notes),
            *(_clock_notes(spans) if spans else ()),
        ),
    )
    model = about.model or (scrapes.model if scrapes is not None else None) or UNKNOWN_MODEL
    return join(witnesses, Subject(model, about.device, about.recorded_at))


def _cached_blocks(events: KVEvents, origin_s: float) -> dict[str, Series]:
    """Blocks in the prefix cache after each message about it."""
    if not len(events.time_s):
        return {}
    return {"prefix_cache_blocks": Series(events.time_s - origin_s, events.cached_blocks.astype(float))}


def _clock_notes(spans: Spans) -> Iterator[str]:
    """How much of the requests' E2EL is in none of their stages."""
    rest_ms = [1e3 * rest_s for span in spans.requests.values() if (rest_s := clock_check(span)) is not None]
    if rest_ms:
        found = f"{statistics.median(rest_ms):.1f} ms (median), {min(rest_ms):.1f} to {max(rest_ms):.1f} ms"
        yield f"clock check of {len(rest_ms)} spans: E2EL exceeds queue + prefill + decode by {found}"


def _clock_reasons(spans: Spans) -> Iterator[str]:
    """A request cannot be shorter than its stages, but for the rounding of clocks."""
    rests_s = [rest_s for span in spans.requests.values() if (rest_s := clock_check(span)) is not None]
    if short := sum(rest_s < -CLOCKS_AGREE_WITHIN_S for rest_s in rests_s):
        yield f"clock check: {short} of {len(rests_s)} spans are shorter than their queue + prefill + decode"
