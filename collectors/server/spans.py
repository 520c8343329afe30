"""Takes the spans that vLLM sends for its requests (OTLP over HTTP) into a journal, and reads the journal back.

Of a span nothing is kept but what `SpanRecord` has: whatever else a server or a client put into its attributes, a
prompt among them, is not even decoded into a record.
"""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from collectors.journal import Journal, read_journal
from collectors.request_ids import id_of_front_end
from traces.decoding import decode_json
from traces.errors import CollectorError, installs

if TYPE_CHECKING:
    from aiohttp import web

SCHEMA = "servetwin.spans/1"

SPAN = "llm_request"
"""vLLM's span of a request, from its arrival at the front end to its end (0.32 v1/engine/output_processor.py)."""

ID = "gen_ai.request.id"
FINISH_REASONS = ("gen_ai.response.finish_reasons", "gen_ai.response.finish_reason")

FIELDS: Mapping[str, str] = {
    "gen_ai.usage.prompt_tokens": "prompt_tokens",
    "gen_ai.usage.input_tokens": "prompt_tokens",
    "gen_ai.usage.completion_tokens": "output_tokens",
    "gen_ai.usage.output_tokens": "output_tokens",
    "gen_ai.request.max_tokens": "max_tokens",
    "gen_ai.latency.time_in_queue": "queue_s",
    "gen_ai.latency.time_to_first_token": "ttft_s",
    "gen_ai.latency.e2e": "e2e_s",
    "gen_ai.latency.time_in_model_prefill": "prefill_s",
    "gen_ai.latency.time_in_model_decode": "decode_s",
    "gen_ai.latency.time_in_model_inference": "inference_s",
    "gen_ai.latency.time_in_scheduler": "scheduler_s",
    "gen_ai.latency.time_in_model_forward": "forward_s",
}
"""Numbers that are kept: vLLM's names, those of the semantic conventions, and those of vLLM before its V1 engine."""

KEPT = frozenset({ID, *FINISH_REASONS, *FIELDS})

_WORD = re.compile(r"[a-z_]{1,32}")
LARGEST_POST_BYTES = 64 << 20


class SpansHeader(msgspec.Struct, frozen=True, kw_only=True, tag="header", tag_field="kind"):
    """First line of the journal."""

    wall_ns: int
    monotonic_ns: int


class SpanRecord(msgspec.Struct, frozen=True, kw_only=True, tag="span", tag_field="kind", omit_defaults=True):
    """What is kept of a request's span. Times are Unix nanoseconds, durations seconds.

    `scheduler_s` and `forward_s` are the time that old engines spent on a request, which are no stages of it.
    """

    id: str
    start_ns: int
    end_ns: int
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    max_tokens: int | None = None
    queue_s: float | None = None
    ttft_s: float | None = None
    e2e_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    inference_s: float | None = None
    scheduler_s: float | None = None
    forward_s: float | None = None
    finish_reason: str | None = None


class LeftOut(msgspec.Struct, frozen=True, kw_only=True, tag="left_out", tag_field="kind", omit_defaults=True):
    """How much of a post was no span of a request, and what was wrong with one that could not be read."""

    other: int = 0
    without_id: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """A request as the server's front end saw it. Times are Unix seconds; None: not told.

    Attributes:
        request_id: the client's.
        arrival_s: when the front end received it.
        end_s: when the span ended, a moment after the request.
        prompt_tokens: as the server counted.
        output_tokens: likewise.
        max_tokens: what the client asked for at most.
        queue_s: from being queued in the engine to being scheduled first.
        prefill_s: from there to the first token.
        decode_s: from there to the last token.
        inference_s: prefill and decode.
        ttft_s: from arrival to the first token, at the front end.
        e2e_s: from arrival to the last token, at the front end.
        finish_reason: as vLLM names it.
    """

    request_id: str
    arrival_s: float
    end_s: float
    prompt_tokens: int | None
    output_tokens: int | None
    max_tokens: int | None
    queue_s: float | None
    prefill_s: float | None
    decode_s: float | None
    inference_s: float | None
    ttft_s: float | None
    e2e_s: float | None
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Spans:
    """What was read of a journal of spans.

    Attributes:
        requests: by the client's request id; in the order they ended.
        wall_minus_monotonic_s: between the host's two clocks.
        notes: what was left out.
    """

    requests: dict[str, RequestSpan]
    wall_minus_monotonic_s: float
    notes: tuple[str, ...]


@dataclass(slots=True)
class SpanSink:
    """Takes posts of spans into a journal.

    Attributes:
        journal: where they go.
        n_spans: spans of requests taken so far.
    """

    journal: Journal
    n_spans: int = 0

    async def take(self, request: web.Request) -> web.Response:
        """Take a post of OTLP/HTTP, in protobuf or JSON, packed or not."""
        from aiohttp import web

        json = request.content_type == "application/json"
        try:
            body = _unpacked(await request.read(), request.headers.get("Content-Encoding", ""))
            spans = list(spans_of_json(body) if json else spans_of_protobuf(body))
        except Exception as error:  # whatever a post holds, the next is taken
            self.journal.append(LeftOut(error=type(error).__name__))  # what the error says may quote the post
            return web.Response(status=400, text="this is no ExportTraceServiceRequest")
        records = [record_of(*span) for span in spans if span[0] == SPAN]
        kept = [record for record in records if record is not None]
        for record in kept:
            self.journal.append(record)
        left_out = LeftOut(other=len(spans) - len(records), without_id=len(records) - len(kept))
        if left_out != LeftOut():
            self.journal.append(left_out)
        self.n_spans += len(kept)
        if json:
            return web.Response(body=b"{}", content_type="application/json")
        return web.Response(body=b"", content_type="application/x-protobuf")


@asynccontextmanager
async def span_sink(journal: Journal, port: int) -> AsyncIterator[SpanSink]:
    """Listen for spans at http://127.0.0.1:PORT/v1/traces until the block ends.

    Raises:
        CollectorError: the extra `attach` is not installed, or the port is in use.
    """
    from aiohttp import web

    _request_type()
    sink = SpanSink(journal)
    app = web.Application(client_max_size=LARGEST_POST_BYTES)
    app.router.add_post("/v1/traces", sink.take)
    # What reaches the port and is no HTTP/1, as OpenTelemetry's gRPC, would be logged with a traceback each time.
    silent = logging.Logger("spans", level=logging.CRITICAL + 1)
    runner = web.AppRunner(app, access_log=None, logger=silent, shutdown_timeout=1.0, auto_decompress=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    except OSError as error:
        await runner.cleanup()
        raise CollectorError(
            f"port {port} of 127.0.0.1 cannot be listened on ({error.strerror}): end what uses it, or take another and "
            f"start the server with it in --otlp-traces-endpoint"
        ) from None
    try:
        yield sink
    finally:
        await runner.cleanup()


Attributes = dict[str, Any]
Span = tuple[str, int, int, Attributes]
"""Name, start and end in Unix nanoseconds, and of the attributes those that are kept."""


def spans_of_protobuf(body: bytes) -> Iterator[Span]:
    """The spans of an ExportTraceServiceRequest. Raises protobuf's DecodeError when it is none."""
    message = _request_type()()
    message.ParseFromString(body)
    for resource in message.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                kept = {a.key: _protobuf_value(a.value) for a in span.attributes if a.key in KEPT}
                yield span.name, span.start_time_unix_nano, span.end_time_unix_nano, kept


def spans_of_json(body: bytes) -> Iterator[Span]:
    """The same of OTLP's JSON encoding. Raises some exception when it is none."""
    for resource in msgspec.json.decode(body).get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                given = span.get("attributes", ())
                kept = {a["key"]: _json_value(a["value"]) for a in given if a["key"] in KEPT}
                yield span["name"], int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"]), kept


def record_of(_name: str, start_ns: int, end_ns: int, attributes: Attributes) -> SpanRecord | None:
    """What is kept of a request's span; None when it does not say of which request it is."""
    request_id = attributes.get(ID)
    if not isinstance(request_id, str) or not request_id:
        return None
    fields: dict[str, Any] = {}
    for name, field in FIELDS.items():
        if field not in fields and (number := _number(attributes.get(name))) is not None:
            fields[field] = int(number) if field.endswith("_tokens") else number
    reason = next((attributes[name] for name in FINISH_REASONS if name in attributes), None)
    reason = reason[0] if isinstance(reason, list) and reason else reason
    if isinstance(reason, str) and _WORD.fullmatch(reason):
        fields["finish_reason"] = reason
    return SpanRecord(id=request_id, start_ns=start_ns, end_ns=end_ns, **fields)


def read_spans(path: Path) -> Spans:
    """Read a journal of spans, whole or cut off. Raises InputError, or CollectorError when it has no header."""
    header: SpansHeader | None = None
    requests: dict[str, RequestSpan] = {}
    repeated, left_out = 0, list[LeftOut]()
    for number, line in read_journal(path):
        match decode_json(line, SpansHeader | SpanRecord | LeftOut, file=path, line=number):  # type: ignore[arg-type]
            case SpansHeader() as record:
                header = header or record
            case SpanRecord() as record if (name := id_of_front_end(record.id)) not in requests:
                requests[name] = _request_span(name, record)
            case SpanRecord():
                repeated += 1
            case LeftOut() as record:
                left_out.append(record)
    if header is None:
        raise CollectorError(f"{path}: holds no header")
    offset_s = (header.wall_ns - header.monotonic_ns) / 1e9
    return Spans(requests, offset_s, tuple(_notes(repeated, left_out)))


def clock_check(span: RequestSpan) -> float | None:
    """Seconds of a request that are in none of its stages: E2EL - (queue + prefill + decode).

    The stages are the engine's, E2EL the front end's: what is left is the way in (tokenizing, handing over), before the
    request is queued, and the way out of the last token. Below 0 the two clocks do not agree. None when one is unknown.
    """
    if span.e2e_s is None or span.queue_s is None or span.prefill_s is None or span.decode_s is None:
        return None
    return span.e2e_s - (span.queue_s + span.prefill_s + span.decode_s)


def _request_type() -> Callable[[], Any]:
    try:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    except ImportError:
        raise CollectorError(f"spans need the extra attach: {installs('attach')}") from None
    return ExportTraceServiceRequest


def _unpacked(body: bytes, encoding: str) -> bytes:
    """The body of a post. Raises ValueError when it is not packed as it says, or is too large."""
    if encoding in ("", "identity"):
        return body
    unpacking = zlib.decompressobj(wbits=47)  # gzip or zlib, whichever the data begins with
    try:
        unpacked = unpacking.decompress(body, LARGEST_POST_BYTES)
    except zlib.error:
        raise ValueError(f"is not packed as {encoding}") from None
    if not unpacking.eof:
        raise ValueError("is cut off, or too large")
    return unpacked


def _protobuf_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_protobuf_value(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)


def _json_value(value: Mapping[str, Any]) -> Any:
    """OTLP's JSON writes whole numbers as strings."""
    if "intValue" in value:
        return int(value["intValue"])
    if "arrayValue" in value:
        return [_json_value(item) for item in value["arrayValue"].get("values", ())]
    return next((value[kind] for kind in ("stringValue", "doubleValue") if kind in value), None)


def _number(value: Any) -> float | None:
    """A finite number that is not negative; a text is none, whatever stands in it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def _request_span(name: str, record: SpanRecord) -> RequestSpan:
    return RequestSpan(
        request_id=name,
        arrival_s=record.start_ns / 1e9,
        end_s=record.end_ns / 1e9,
        prompt_tokens=record.prompt_tokens,
        output_tokens=record.output_tokens,
        max_tokens=record.max_tokens,
        queue_s=record.queue_s,
        prefill_s=record.prefill_s,
        decode_s=record.decode_s,
        inference_s=record.inference_s,
        ttft_s=record.ttft_s,
        e2e_s=record.e2e_s,
        finish_reason=record.finish_reason,
    )


def _notes(repeated: int, left_out: Sequence[LeftOut]) -> Iterator[str]:
    if repeated:
        yield f"{repeated} spans had the id of another, as several answers to one prompt have; the first of each counts"
    without_id = sum(record.without_id for record in left_out)
    if without_id:
        yield f"{without_id} spans of requests have no {ID}"
    errors = [record.error for record in left_out if record.error is not None]
    if errors:
        yield f"{len(errors)} posts of spans could not be read, the first with: {errors[0]}"
