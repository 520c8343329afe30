"""Attaching to a server: all parts at once, to the end, whatever the server and the machine do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from collectors.recording.attach import KV_EVENTS, METRICS, SPANS, record_attached, until_interrupted
from collectors.server.kv_events import read_kv_events
from collectors.server.scrape_file import read_scrapes
from collectors.server.spans import read_spans
from tests.collectors.recording.test_join import HEADER
from tests.collectors.server.attached import MetricsServer, free_port, serving, vllm_text
from tests.collectors.server.test_kv_events import frames, removed, stored
from tests.collectors.server.test_spans import WHOLE, protobuf
from tests.command_line import COMMAND, ok
from traces.capture import read_capture
from traces.errors import CollectorError, InputError

pytest.importorskip("opentelemetry.proto", reason="the extra attach is not installed")
pytest.importorskip("zmq", reason="the extra attach is not installed")


async def attached(url: str, folder: Path, **options: Any) -> list[str]:
    """Record as told, without waiting for late spans. Returns what was said."""
    reports: list[str] = []
    chosen = {"for_s": 0.05, "stop": asyncio.Event(), "every_s": 0.02, "spans_within_s": 0.0, "report": reports.append}
    await record_attached(url, folder, **{**chosen, **options})
    return reports


async def post_span(port: int, **attributes: Any) -> None:
    body = protobuf(("llm_request", {**WHOLE, **attributes}))
    url, headers = f"http://127.0.0.1:{port}/v1/traces", {"Content-Type": "application/x-protobuf"}
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
        assert answer.status == 200


async def test_all_three_are_recorded_together(tmp_path: Path) -> None:
    import zmq
    import zmq.asyncio

    port, endpoint, stop = free_port(), f"tcp://127.0.0.1:{free_port()}", asyncio.Event()
    server = MetricsServer(answers=[vllm_text(100), vllm_text(100), vllm_text(150)])
    context = zmq.asyncio.Context()
    publisher = context.socket(zmq.XPUB)
    publisher.setsockopt(zmq.LINGER, 0)
    publisher.connect(endpoint)
    async with serving(server):
        options = {"for_s": None, "stop": stop, "otlp_port": port, "kv_endpoints": [endpoint]}
        recording = asyncio.create_task(attached(server.url, tmp_path / "r", **options))
        await publisher.recv()
        await publisher.send_multipart(frames(0, stored(1, 2), removed(1)))
        await server.asked_times(3)
        await post_span(port)
        while "BlockStored" not in (tmp_path / "r" / KV_EVENTS).read_text():
            await asyncio.sleep(0.01)
        stop.set()
        said = await recording
    publisher.close()
    context.term()
    assert said[:3] == [
        f"metrics: vllm serving m at {server.url}, every 0.02 s",
        f"spans: listening at http://127.0.0.1:{port}/v1/traces",
        f"KV events: listening at {endpoint}",
    ]
    assert said[-1].endswith("1 spans, 2 blocks stored")
    scrapes = read_scrapes(tmp_path / "r" / METRICS)
    spans = read_spans(tmp_path / "r" / SPANS)
    events = read_kv_events(tmp_path / "r" / KV_EVENTS)
    assert scrapes.delta("generation_tokens") == 50
    assert list(spans.requests) == ["r-1"]
    assert events.cached_blocks.tolist() == [1]
    assert spans.wall_minus_monotonic_s == pytest.approx(time.time() - time.monotonic(), abs=60)


async def test_there_is_a_scrape_before_and_one_after(tmp_path: Path) -> None:
    server = MetricsServer(answers=[vllm_text(1), vllm_text(1), vllm_text(8)])
    async with serving(server):
        await attached(server.url, tmp_path / "r", every_s=60.0)
    assert server.asked == 3  # the first is to see whether there is a server
    assert read_scrapes(tmp_path / "r" / METRICS).delta("generation_tokens") == 7


async def test_a_server_that_goes_does_not_end_the_recording(tmp_path: Path) -> None:
    stop = asyncio.Event()
    server = MetricsServer(answers=[vllm_text(100)])
    async with serving(server):
        options = {"for_s": None, "stop": stop}
        recording = asyncio.create_task(attached(server.url, tmp_path / "r", **options))
        await server.asked_times(4)
    while "Connection refused" not in (tmp_path / "r" / METRICS).read_text():
        await asyncio.sleep(0.01)
    server.answers, asked = [vllm_text(20, start_s=2e9)], server.asked
    assert not recording.done()
    async with serving(server, int(server.url.rsplit(":", 1)[1])):
        await server.asked_times(asked + 2)
        stop.set()
        said = await recording
    assert ["cannot be scraped" in line for line in said[1:-1]] == [True, False]
    assert "scrapes, " in said[-1]
    assert read_scrapes(tmp_path / "r" / METRICS).delta("generation_tokens") == 20


async def attached_by_command(url: str, out: Path, *options: str) -> tuple[int | None, str]:
    """Exit code of `servetwin collect attach` and what it said on stderr."""
    words = ["collect", "attach", "--url", url, "--out", str(out), "--for", "0.3s", "--every", "0.1s", *options]
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_metrics_alone_are_a_capture_where_nothing_else_was_asked_for(tmp_path: Path) -> None:
    async with serving(MetricsServer(answers=[vllm_text(100), vllm_text(150)])) as server:
        assert (await attached_by_command(server.url, tmp_path / "m", "--no-spans"))[0] == 0
    capture = read_capture(tmp_path / "m")
    assert capture.outcomes == ()
    assert "n_running" in capture.series
    assert not (tmp_path / "m.recording").exists()


async def test_without_the_requests_that_were_asked_for_the_error_says_what_to_do(tmp_path: Path) -> None:
    recording, out = tmp_path / "m.recording", tmp_path / "m"
    (tmp_path / "steps.jsonl").write_text(json.dumps({**HEADER, "pid": 1}) + "\n")
    async with serving(MetricsServer(answers=[vllm_text(100), vllm_text(150)])) as server:
        code, said = await attached_by_command(server.url, out, "--steps", str(tmp_path / "steps.jsonl"), "--no-spans")
    assert code == 3
    assert "--no-spans asks for these alone" in said
    assert f"`servetwin collect finish {recording} --out {out}`" in said
    assert not out.exists()
    assert ok("collect", "finish", recording, "--out", out)
    assert "n_running" in read_capture(out).series


async def test_no_server_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match=r"no server answers at http://127\.0\.0\.1:9 .*start it first"):
        await attached("http://127.0.0.1:9", tmp_path / "r")
    async with serving(MetricsServer(answers=[503])) as server:
        server.paths["/health"] = "{}"
        with pytest.raises(CollectorError, match="/metrics: HTTP 503; nothing can be recorded"):
            await attached(server.url, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://me:hush@127.0.0.1", "http://a/?k=1"])
async def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="accepted: the server's address, as http://"):
        await attached(url, tmp_path / "r")


async def test_a_recording_is_not_written_into_another(tmp_path: Path) -> None:
    async with serving(MetricsServer(answers=[vllm_text(1)])) as server:
        await attached(server.url, tmp_path / "r")
        with pytest.raises(InputError, match="holds a recording"):
            await attached(server.url, tmp_path / "r")
    assert (tmp_path / "r" / METRICS).exists()


async def test_what_keeps_a_part_from_beginning_leaves_nothing_but_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "about.json").write_text("{}")
    async with serving(MetricsServer(answers=[vllm_text(1)])) as server:
        port = int(server.url.rsplit(":", 1)[1])
        with pytest.raises(CollectorError, match=f"port {port} of .* cannot be listened on"):
            await attached(server.url, tmp_path / "r", otlp_port=port)
        with pytest.raises(CollectorError, match="KV events cannot be received at tcp"):
            await attached(server.url, tmp_path / "r", kv_endpoints=[f"tcp://127.0.0.1:{port}"])
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["about.json"]


async def test_of_several_models_one_must_be_named(tmp_path: Path) -> None:
    both = vllm_text(1) + vllm_text(2).replace('"m"', '"n"')
    async with serving(MetricsServer(answers=[both])) as server:
        with pytest.raises(InputError, match="field 'model': is missing, as /metrics is of several: accepted: m, n"):
            await attached(server.url, tmp_path / "r", otlp_port=free_port())
        await attached(server.url, tmp_path / "r", model="n")
    assert read_scrapes(tmp_path / "r" / METRICS).model == "n"


async def test_spans_are_recorded_without_metrics(tmp_path: Path) -> None:
    port = free_port()
    async with serving(MetricsServer(answers=[404])) as server:
        said = await attached(server.url, tmp_path / "r", otlp_port=port)
    assert "/metrics cannot be scraped yet (HTTP 404); trying every 0.02 s" in said[0]
    assert read_scrapes(tmp_path / "r" / METRICS).server is None


async def test_spans_that_do_not_come_are_noticed(tmp_path: Path) -> None:
    ended = '# TYPE vllm:request_success_total counter\nvllm:request_success_total{engine="0",finished_reason="stop"} '
    server = MetricsServer(answers=[ended + "1\n", ended + "1\n", ended + "4\n"])
    async with serving(server):
        said = await attached(server.url, tmp_path / "r", otlp_port=free_port(), every_s=60.0)
    assert "3 requests ended and no span came" in said[-1]
    assert "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf" in said[-1]


async def test_an_interrupt_ends_the_recording_well(tmp_path: Path) -> None:
    server = MetricsServer(answers=[vllm_text(1)])
    async with serving(server), until_interrupted() as stop:
        recording = asyncio.create_task(attached(server.url, tmp_path / "r", for_s=None, stop=stop))
        await server.asked_times(3)
        os.kill(os.getpid(), signal.SIGTERM)
        said = await recording
    assert said[-1].startswith("recorded ")


async def test_a_second_interrupt_ends_the_wait_for_spans(tmp_path: Path) -> None:
    server = MetricsServer(answers=[vllm_text(1)])
    async with serving(server), until_interrupted() as stop:
        options = {"for_s": None, "stop": stop, "otlp_port": free_port(), "spans_within_s": 3600.0, "every_s": 60.0}
        recording = asyncio.create_task(attached(server.url, tmp_path / "r", **options))
        await server.asked_times(2)
        os.kill(os.getpid(), signal.SIGINT)
        await server.asked_times(3)  # the last scrape
        os.kill(os.getpid(), signal.SIGINT)
        said = await recording
    assert said[-1] == "recorded 2 scrapes, 0 spans"


SCRIPT = """
import asyncio, sys
from pathlib import Path
from collectors.recording.attach import record_attached
url, folder, port, endpoint = sys.argv[1:]
asyncio.run(record_attached(url, Path(folder), for_s=None, stop=asyncio.Event(), every_s=0.02, otlp_port=int(port),
                            kv_endpoints=[endpoint]))
"""


async def test_what_was_recorded_outlives_a_kill(tmp_path: Path) -> None:
    import zmq
    import zmq.asyncio

    folder, port, endpoint = tmp_path / "r", free_port(), f"tcp://127.0.0.1:{free_port()}"
    server = MetricsServer(answers=[vllm_text(100), vllm_text(100), vllm_text(150)])
    context = zmq.asyncio.Context()
    publisher = context.socket(zmq.XPUB)
    publisher.setsockopt(zmq.LINGER, 0)
    publisher.connect(endpoint)
    async with serving(server):
        arguments = [sys.executable, "-c", SCRIPT, server.url, str(folder), str(port), endpoint]
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        try:
            await publisher.recv()
            await publisher.send_multipart(frames(0, stored(1, 2)))
            await server.asked_times(4)
            await post_span(port)
            await post_span(port, **{"gen_ai.request.id": "cmpl-r-2-0"})
            wanted = {METRICS: 'tokens":150', SPANS: "r-2", KV_EVENTS: "BlockStored"}
            while not all(word in (folder / name).read_text() for name, word in wanted.items()):
                await asyncio.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    publisher.close()
    context.term()
    assert read_scrapes(folder / METRICS).delta("generation_tokens") == 50
    assert list(read_spans(folder / SPANS).requests) == ["r-1", "r-2"]
    assert read_kv_events(folder / KV_EVENTS).cached_blocks.tolist() == [2]
    assert json.loads((folder / SPANS).read_text().splitlines()[0])["schema"] == "servetwin.spans/1"
