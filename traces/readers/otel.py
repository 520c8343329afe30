"""Requests out of OpenTelemetry spans: OTLP in JSON, one export a line, and servetwin's own journal of spans.

A collector's file exporter writes the first, `servetwin collect attach` the second. A span is a request when it states
its prompt's and its answer's tokens, by the names of vLLM (`gen_ai.usage.prompt_tokens`, `completion_tokens`) or of the
semantic conventions (`gen_ai.usage.input_tokens`, `output_tokens`). Its start is the arrival. Of a chain of such spans
the innermost counts, since a client's or an agent's span repeats the tokens of the requests below it. Nothing of what
was said is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from traces.decoding import decode_json
from traces.errors import InputError
from traces.readers.jsonl import Count, keys
from traces.readers.source import Numbered, Source, since_first
from traces.trace import TraceRow

PROMPT = ("gen_ai.usage.prompt_tokens", "gen_ai.usage.input_tokens")
OUTPUT = ("gen_ai.usage.completion_tokens", "gen_ai.usage.output_tokens")
SESSION = "gen_ai.conversation.id"
ID = "gen_ai.request.id"

Nanoseconds = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,19}$")] | Annotated[int, msgspec.Meta(ge=0)]


class _Attribute(msgspec.Struct):
    key: str
    value: dict[str, Any] = {}


class _Span(msgspec.Struct, rename="camel"):
    start_time_unix_nano: Nanoseconds
    span_id: str = ""
    parent_span_id: str = ""
    attributes: list[_Attribute] = []


class _Scope(msgspec.Struct):
    spans: list[_Span] = []


class _Resource(msgspec.Struct, rename="camel"):
    scope_spans: list[_Scope] = []


class _Export(msgspec.Struct, rename="camel"):
    resource_spans: list[_Resource]


class _Record(msgspec.Struct):
    """A line of servetwin's journal: a header, a request's span, or what was left out of a post."""

    kind: str
    id: str = ""
    start_ns: Annotated[int, msgspec.Meta(ge=0)] | None = None
    prompt_tokens: Count | None = None
    output_tokens: Count | None = None


@dataclass(frozen=True, slots=True)
class _Request:
    line: int
    span_id: str
    parent_id: str
    start_ns: int
    name: str
    prompt_tokens: int
    output_tokens: int
    session: str | None


def is_otlp(first_line: bytes) -> bool:
    """Whether a file that starts with this line is OTLP in JSON."""
    return "resourceSpans" in keys(first_line)


def is_journal(first_line: bytes) -> bool:
    """Whether a file that starts with this line is servetwin's journal of spans."""
    return str(keys(first_line).get("schema", "")).startswith("servetwin.spans/")


def rows(source: Source) -> Iterator[Numbered]:
    """Requests of OTLP lines; ids are those of the requests, else of the spans. Raises InputError."""
    found, others = [], 0
    for line, data in source.lines():
        export = decode_json(data, _Export, file=source.path, line=line)
        spans = [span for resource in export.resource_spans for scope in resource.scope_spans for span in scope.spans]
        requests = [_request(span, source, line) for span in spans]
        found += [request for request in requests if request is not None]
        others += sum(request is None for request in requests)
    if others:
        source.notes.append(f"{others} spans state no tokens of prompt and answer: they are no requests")
    outer = {request.parent_id for request in found if request.parent_id}
    inner = [request for request in found if not request.span_id or request.span_id not in outer]
    if len(inner) < len(found):
        source.notes.append(f"{len(found) - len(inner)} spans hold requests within them: those are counted instead")
    return _rows(inner, source)


def journal_rows(source: Source) -> Iterator[Numbered]:
    """Requests of servetwin's journal of spans; ids are the server's. Raises InputError."""
    found, unknown = [], 0
    for line, data in source.lines():
        record = decode_json(data, _Record, file=source.path, line=line)
        match record.kind:
            case "span":
                if record.start_ns is None or not record.id:
                    field = "id" if record.start_ns is not None else "start_ns"
                    raise InputError("is missing", file=source.path, line=line, field=field)
                if record.prompt_tokens is None or record.output_tokens is None:
                    unknown += 1
                    continue
                tokens = record.prompt_tokens, record.output_tokens
                found.append(_Request(line, "", "", record.start_ns, record.id, *tokens, None))
            case "header" | "left_out":
                pass
            case other:
                raise InputError(
                    file=source.path, line=line, field="kind", found=other, accepted="header, span or left_out"
                )
    if unknown:
        source.notes.append(f"{unknown} requests do not state the tokens of both prompt and answer: left out")
    return _rows(found, source)


def _rows(requests: list[_Request], source: Source) -> Iterator[Numbered]:
    source.notes.append("arrivals are the starts of spans, counted from the first; prefix identity is unknown")
    return since_first((r.line, r.start_ns, row) for r in requests if (row := _row(r, source)) is not None)


def _row(request: _Request, source: Source) -> TraceRow | None:
    if source.empty(request.line, request.prompt_tokens, request.output_tokens):
        return None
    return TraceRow(
        request_id=request.name,
        arrival_s=0.0,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        session_id=request.session,
    )


def _request(span: _Span, source: Source, line: int) -> _Request | None:
    given = {attribute.key: attribute.value for attribute in span.attributes}
    prompt = next((name for name in PROMPT if name in given), None)
    output = next((name for name in OUTPUT if name in given), None)
    if prompt is None or output is None:
        return None
    name = _text(given.get(ID)) or span.span_id
    if not name:
        raise InputError("is missing", file=source.path, line=line, field="spanId")
    tokens = _count(given[prompt], prompt, source, line), _count(given[output], output, source, line)
    start_ns = int(span.start_time_unix_nano)
    return _Request(line, span.span_id, span.parent_span_id, start_ns, name, *tokens, _text(given.get(SESSION)))


def _text(value: dict[str, Any] | None) -> str | None:
    text = None if value is None else value.get("stringValue")
    return text if isinstance(text, str) and text else None


def _count(value: dict[str, Any], field: str, source: Source, line: int) -> int:
    """A count of tokens; OTLP's JSON writes whole numbers as texts. Raises InputError."""
    found = value.get("intValue", value.get("doubleValue"))
    if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 20:
        found = int(found)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 2**63:
        raise InputError(file=source.path, line=line, field=field, found=value, accepted="a count of tokens")
    return found
