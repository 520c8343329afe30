"""The span sink: what vLLM posts becomes records of requests, and nothing else of it is kept."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from collectors.journal import Journal
from collectors.server.spans import SCHEMA, Spans, SpanSink, clock_check, read_spans, span_sink
from tests.collectors.server.attached import free_port
from traces.errors import CollectorError, InputError

pytest.importorskip("opentelemetry.proto", reason="the extra attach is not installed")

SECRET = "tell me a secret"
START_NS = 1_795_246_613_000_000_000
WHOLE: dict[str, Any] = {
    "gen_ai.request.id": "cmpl-r-1-0",
    "gen_ai.usage.prompt_tokens": 100,
    "gen_ai.usage.completion_tokens": 8,
    "gen_ai.request.max_tokens": 8,
    "gen_ai.latency.time_in_queue": 0.25,
    "gen_ai.latency.time_to_first_token": 0.4,
    "gen_ai.latency.e2e": 1.5,
    "gen_ai.latency.time_in_model_prefill": 0.125,
    "gen_ai.latency.time_in_model_decode": 1.0,
    "gen_ai.latency.time_in_model_inference": 1.125,
}
"""What vLLM 0.32 puts into a span."""


def protobuf(*spans: tuple[str, Mapping[str, Any]]) -> bytes:
    """An ExportTraceServiceRequest of spans with a name and attributes."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    for name, attributes in spans:
        span = scope.spans.add(name=name, start_time_unix_nano=START_NS, end_time_unix_nano=START_NS + 2 * 10**9)
        for key, value in attributes.items():
            at = span.attributes.add(key=key).value
            for item in value if isinstance(value, list) else [value]:
                inner = at.array_value.values.add() if isinstance(value, list) else at
                kind = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}[type(item)]
                setattr(inner, kind, item)
    return message.SerializeToString()


def json_value(value: Any) -> dict[str, Any]:
    """As OTLP's JSON encoding has it: whole numbers are strings."""
    if isinstance(value, list):
        return {"arrayValue": {"values": [json_value(item) for item in value]}}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue" if isinstance(value, float) else "stringValue": value}


def as_json(*spans: tuple[str, Mapping[str, Any]]) -> bytes:
    made = [
        {
            "traceId": "5b8efff798038103d269b633813fc60c",
            "name": name,
            "startTimeUnixNano": str(START_NS),
            "endTimeUnixNano": str(START_NS + 2 * 10**9),
            "attributes": [{"key": key, "value": json_value(value)} for key, value in attributes.items()],
        }
        for name, attributes in spans
    ]
    return json.dumps({"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": made}]}]}).encode()


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[tuple[SpanSink, str]]:
    port = free_port()
    with Journal(path, SCHEMA) as journal:
        async with span_sink(journal, port) as sink:
            yield sink, f"http://127.0.0.1:{port}/v1/traces"


async def post(url: str, body: bytes, content_type: str = "application/x-protobuf", **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers={"Content-Type": content_type, **headers}) as answer,
    ):
        return answer.status


async def taken(path: Path, *posts: tuple[bytes, str]) -> Spans:
    async with listening(path) as (_, url):
        for body, content_type in posts:
            assert await post(url, body, content_type) == 200
    return read_spans(path)


PROTOBUF, JSON = "application/x-protobuf", "application/json"


async def test_a_request_by_protobuf_and_by_json_is_the_same(tmp_path: Path) -> None:
    first = await taken(tmp_path / "a", (protobuf(("llm_request", WHOLE)), PROTOBUF))
    second = await taken(tmp_path / "b", (as_json(("llm_request", WHOLE)), JSON))
    assert first.requests == second.requests
    (span,) = first.requests.values()
    assert (span.request_id, span.arrival_s, span.end_s) == ("r-1", START_NS / 1e9, START_NS / 1e9 + 2)
    assert (span.prompt_tokens, span.output_tokens, span.max_tokens) == (100, 8, 8)
    assert (span.queue_s, span.prefill_s, span.decode_s, span.inference_s) == (0.25, 0.125, 1.0, 1.125)
    assert (span.ttft_s, span.e2e_s, span.finish_reason) == (0.4, 1.5, None)
    assert clock_check(span) == 0.125
    assert first.notes == ()


async def test_packed_posts_and_the_conventions_names_are_taken(tmp_path: Path) -> None:
    attributes = {
        "gen_ai.request.id": "chatcmpl-talk",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.latency.time_in_scheduler": 0.001,
        "gen_ai.latency.time_in_model_forward": 0.5,
        "gen_ai.response.finish_reasons": ["stop"],
    }
    async with listening(tmp_path / "s") as (sink, url):
        packed = gzip.compress(protobuf(("llm_request", attributes)))
        assert await post(url, packed, **{"Content-Encoding": "gzip"}) == 200
        assert sink.n_spans == 1
    span = read_spans(tmp_path / "s").requests["talk"]
    assert (span.prompt_tokens, span.output_tokens, span.finish_reason) == (7, 2, "stop")
    assert (span.queue_s, clock_check(span)) == (None, None)
    assert '"forward_s":0.5' in (tmp_path / "s").read_text()


@pytest.mark.parametrize("encode", [protobuf, as_json])
async def test_nothing_but_the_known_attributes_is_written(tmp_path: Path, encode: Any) -> None:
    attributes = {
        **WHOLE,
        "gen_ai.prompt": SECRET,
        "gen_ai.request.headers.authorization": SECRET,
        "gen_ai.usage.completion_tokens": SECRET,  # a text in the place of a number
        "gen_ai.response.finish_reasons": [SECRET],
    }
    content_type = JSON if encode is as_json else PROTOBUF
    spans = await taken(tmp_path / "s", (encode(("llm_request", attributes), (SECRET, {"text": SECRET})), content_type))
    assert spans.requests["r-1"].output_tokens is None
    assert spans.requests["r-1"].finish_reason is None
    written = (tmp_path / "s").read_text()
    assert SECRET not in written
    assert json.loads(written.splitlines()[-1]) == {"kind": "left_out", "other": 1}


async def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    async with listening(tmp_path / "s") as (sink, url):
        assert await post(url, b"\xff\xff\xff" + SECRET.encode()) == 400
        assert await post(url, SECRET.encode(), JSON) == 400
        assert await post(url, b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": 3}]}]}]}', JSON) == 400
        assert await post(url, b"[1]", JSON) == 400
        assert await post(url, b"not packed", **{"Content-Encoding": "gzip"}) == 400
        assert await post(url, protobuf(("llm_request", WHOLE))) == 200
        assert sink.n_spans == 1
    spans = read_spans(tmp_path / "s")
    assert list(spans.requests) == ["r-1"]
    assert "posts of spans could not be read, the first with: " in spans.notes[0]
    assert SECRET not in (tmp_path / "s").read_text()


async def test_ids_that_are_missing_or_given_twice_are_counted(tmp_path: Path) -> None:
    other = {**WHOLE, "gen_ai.usage.prompt_tokens": 1}
    without = {key: value for key, value in WHOLE.items() if key != "gen_ai.request.id"}
    body = protobuf(("llm_request", WHOLE), ("llm_request", other), ("llm_request", without))
    spans = await taken(tmp_path / "s", (body, PROTOBUF))
    assert spans.requests["r-1"].prompt_tokens == 100
    assert spans.notes == (
        "1 spans had the id of another, as several answers to one prompt have; the first of each counts",
        "1 spans of requests have no gen_ai.request.id",
    )


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
sys.modules["opentelemetry"] = None
from collectors.journal import Journal
from collectors.server.spans import span_sink
async def main():
    with Journal(Path({str(tmp_path / "s")!r}), "s") as journal:
        async with span_sink(journal, 0):
            pass
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "CollectorError: spans need the extra attach: pip install '.[attach]'" in done.stderr


async def test_a_journal_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    await taken(tmp_path / "s", (protobuf(("llm_request", WHOLE)), PROTOBUF))
    with (tmp_path / "s").open("a") as stream:
        stream.write('{"kind":"span","id":"cmpl-r-2-0","sta')
    assert list(read_spans(tmp_path / "s").requests) == ["r-1"]
    (tmp_path / "empty").write_text("")
    with pytest.raises(CollectorError, match="holds no header"):
        read_spans(tmp_path / "empty")
    (tmp_path / "bad").write_text('{"kind":"span","id":3}\n')
    with pytest.raises(InputError, match="bad:1"):
        read_spans(tmp_path / "bad")
