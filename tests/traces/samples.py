"""A small file of every format, written by us, and what it says by a second, naive reading."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

Says = list[tuple[float, int, int]]
"""Arrival in seconds, prompt and output tokens of each request, in order of arrival."""


@dataclass(frozen=True)
class Sample:
    """A file and its naive reading, which raises or gives nonsense where the file is damaged."""

    name: str
    text: str
    naive: Callable[[str], Says]


def served(requests: Says) -> Says:
    """Those that have something to serve, in order."""
    return sorted((t, p, o) for t, p, o in requests if p and o)


def table(text: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text.lstrip("\ufeff\n\r \t")), strict=True))
    return [{str(k).strip(): v.strip() for k, v in row.items()} for row in rows if any(v.strip() for v in row.values())]


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def count(value: Any) -> int:
    number = Decimal(str(value))
    assert number == int(number)
    return int(number)


def azure(text: str) -> Says:
    rows = [(datetime.fromisoformat(r["TIMESTAMP"][:26]), r) for r in table(text)]
    kept = [
        ((when, int((r["TIMESTAMP"] + "0" * 9)[26:29])), count(r["ContextTokens"]), count(r["GeneratedTokens"]))
        for when, r in rows
    ]
    kept = [row for row in kept if row[1] and row[2]]
    first = min([kept[0][0], *(row[0] for row in kept)])
    return served([((t - first[0]).total_seconds() + (ns - first[1]) * 1e-9, p, o) for (t, ns), p, o in kept])


def columns(arrival: str, prompt: str, output: str, per_second: float = 1.0) -> Callable[[str], Says]:
    def naive(text: str) -> Says:
        return served(
            [(float(r.get(arrival, 0)) / per_second, count(r[prompt]), count(r[output])) for r in table(text)]
        )

    return naive


def mooncake(per_second: float) -> Callable[[str], Says]:
    def naive(text: str) -> Says:
        rows, session = [], {}
        for r in json_lines(text):
            time_s = r.get("timestamp")
            time_s = session[str(r["session_id"])] if time_s is None else time_s / per_second
            if r.get("session_id") is not None and r["input_length"] and r["output_length"]:
                session.setdefault(str(r["session_id"]), time_s)
            rows.append((time_s, count(r["input_length"]), count(r["output_length"])))
        return served(rows)

    return naive


def tracev2(text: str) -> Says:
    return served(
        [
            (
                float(r["arrival_time_us"]) / 1e6,
                count(r["input_tokens"]) + count(r["prefix_length"] or 0)
                if r.get("prefix_group")
                else count(r.get("server_input_tokens") or 0) or count(r["input_tokens"]),
                count(r["output_tokens"]),
            )
            for r in table(text)
        ]
    )


def otlp(text: str) -> Says:
    spans = [
        s
        for line in json_lines(text)
        for resource in line["resourceSpans"]
        for scope in resource.get("scopeSpans", [])
        for s in scope.get("spans", [])
    ]
    kept = []
    for span in spans:
        given = {a["key"]: a.get("value", {}) for a in span.get("attributes", [])}
        tokens = [
            next((count(given[f"gen_ai.usage.{n}"].get("intValue", given[f"gen_ai.usage.{n}"].get("doubleValue")))
                  for n in names if f"gen_ai.usage.{n}" in given), None)
            for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
        ]  # fmt: skip
        if None not in tokens:
            kept.append((int(span["startTimeUnixNano"]), *tokens, span))
    outer = {span.get("parentSpanId") for *_, span in kept} - {"", None}
    kept = [k for k in kept if k[3].get("spanId") not in outer]
    kept = [k for k in kept if k[1] and k[2]]
    first = min(k[0] for k in kept)
    return served([((t - first) / 1e9, p, o) for t, p, o, _ in kept])


def journal(text: str) -> Says:
    spans = [r for r in json_lines(text) if r["kind"] == "span"]
    kept = [(s["start_ns"], s.get("prompt_tokens"), s.get("output_tokens")) for s in spans]
    kept = [(t, count(p), count(o)) for t, p, o in kept if p and o]
    first = min(t for t, _, _ in kept)
    return served([((t - first) / 1e9, p, o) for t, p, o in kept])


def own(text: str) -> Says:
    return served(
        [(r["arrival_s"], count(r["prompt_tokens"]), count(r["output_tokens"])) for r in json_lines(text)[1:]]
    )


def llmservingsim(text: str) -> Says:
    calls = [(r["arrival_time_ns"] / 1e9, call) for r in json_lines(text) for call in r.get("sub_requests", [r])]
    return served([(time_s, count(call["input_toks"]), count(call["output_toks"])) for time_s, call in calls])


def span(name: str, start_ns: int, prompt: int, output: int, parent: str = "", style: str = "vllm") -> dict[str, Any]:
    words = ("prompt_tokens", "completion_tokens") if style == "vllm" else ("input_tokens", "output_tokens")
    return {
        "name": "llm_request",
        "spanId": name,
        "parentSpanId": parent,
        "startTimeUnixNano": str(start_ns),
        "attributes": [
            {"key": f"gen_ai.usage.{words[0]}", "value": {"intValue": str(prompt)}},
            {"key": f"gen_ai.usage.{words[1]}", "value": {"intValue": output}},
            {"key": "gen_ai.request.id", "value": {"stringValue": f"cmpl-{name}"}},
        ],
    }


def export(*spans: dict[str, Any]) -> str:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}) + "\n"


NS = 1_700_000_000_000_000_000

SAMPLES = [
    Sample(
        "servetwin",
        '{"schema":"servetwin.trace/1","hash_block_size":4}\n'
        '{"request_id":"a","arrival_s":0.5,"prompt_tokens":9,"output_tokens":3,"block_hashes":[5,6]}\n'
        '{"request_id":"b","arrival_s":1.5,"prompt_tokens":8,"output_tokens":3,"session_id":"s"}\n'
        '{"request_id":"c","arrival_s":2.25,"prompt_tokens":7,"output_tokens":2,"session_id":"s","delay_s":1.0}\n',
        own,
    ),
    Sample(
        "llmservingsim",
        '{"input_toks": 3, "output_toks": 2, "arrival_time_ns": 1000, "input_tok_ids": [4, 5, 6]}\n'
        '{"session_id": "s", "arrival_time_ns": 2000, "sub_requests": [{"input_toks": 5, "output_toks": 1, '
        '"tool_duration_ns": 7}, {"input_toks": 6, "output_toks": 2}]}\n'
        '{"input_toks": 40, "output_toks": 9, "arrival_time_ns": 2500000}\n',
        llmservingsim,
    ),
    Sample(
        "azure",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319601,3180,8\n"
        "2023-11-16 18:17:04.5,17,0\n"
        "2023-11-17 00:00:00.0000000,110,27\n",
        azure,
    ),
    Sample(
        "mooncake",
        '{"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
        '{"timestamp": 27, "input_length": 1536, "output_length": 9, "hash_ids": [0, 1, 3], "session_id": "s"}\n'
        '{"input_length": 600, "output_length": 4, "hash_ids": [0, 4], "session_id": "s", "delay": 250}\n'
        '{"timestamp": 3000, "input_length": 12, "output_length": 1, "hash_ids": [7]}\n',
        mooncake(1000),
    ),
    Sample(
        "bailian",
        '{"chat_id": 5, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, "output_length": 8, '
        '"type": "text", "turn": 1, "hash_ids": [11, 12]}\n'
        '{"chat_id": 6, "parent_chat_id": 5, "timestamp": 9.25, "input_length": 40, "output_length": 3, '
        '"type": "text", "turn": 2, "hash_ids": [11, 13, 14]}\n'
        '{"chat_id": 7, "parent_chat_id": -1, "timestamp": 9.5, "input_length": 16, "output_length": 3, '
        '"type": "file", "turn": 1, "hash_ids": [15]}\n',
        mooncake(1),
    ),
    Sample(
        "burstgpt",
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,s1,1.25,ChatGPT,472,18,490,Conversation log\n"
        "45.5,,2,GPT-4,1087,0,1087,API log\n"
        "118,s1,0.5,GPT-4,417,276,693,Conversation log\n",
        columns("Timestamp", "Request tokens", "Response tokens"),
    ),
    Sample(
        "vidur",
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.3145790,396,109\n5.5,879,55\n",
        columns("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    ),
    Sample(
        "splitwise",
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
        "0,2,0,0.5,1,10,4\n1,2,0,0.75,1,12,5\n2,2,0,4,1,9,1\n",
        columns("arrival_timestamp", "prompt_size", "token_size"),
    ),
    Sample(
        "tracev2",
        "request_id,client_id,session_id,prefix_group,prefix_length,input_tokens,output_tokens,server_input_tokens,"
        "arrival_time_us,status,vllm_priority\n"
        "0,c,,g,40,10,4,0,0,ok,0\n1,c,s,g,40,12,5,0,2500,ok,3\n2,c,,,0,9,1,11,4000000,timeout,0\n",
        tracev2,
    ),
    Sample(
        "otlp",
        export(span("a1", NS + 500, 30, 4), span("b1", NS + 7_000_000, 12, 3, style="genai"))
        + export(span("c1", NS, 90, 5), {"name": "GET /", "spanId": "d1", "startTimeUnixNano": str(NS)})
        + export(span("e2", NS + 9_000_000, 33, 5, parent="e1"), span("e1", NS + 8_000_000, 33, 5)),
        otlp,
    ),
    Sample(
        "spans",
        '{"kind":"header","schema":"servetwin.spans/1","wall_ns":1,"monotonic_ns":1}\n'
        f'{{"kind":"span","id":"cmpl-1","start_ns":{NS + 10**9},"end_ns":{NS},"prompt_tokens":5,"output_tokens":3}}\n'
        f'{{"kind":"span","id":"cmpl-0","start_ns":{NS},"end_ns":{NS},"prompt_tokens":7,"output_tokens":4}}\n'
        f'{{"kind":"left_out","other":2}}\n',
        journal,
    ),
]
