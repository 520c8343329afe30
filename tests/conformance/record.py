"""Record the captures of tests/simulator/captures again: a live engine under requests that end in every possible way.

    flock /tmp/servetwin-engine.lock .venv/bin/python -m tests.conformance.record OUT_FOLDER

Takes two minutes: one engine with each scheduling policy serves 140 requests with too few KV blocks; some share a
prefix, some clients go away while their request runs or waits, some answers end by a stop token.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from collectors.engine import recorder_path
from collectors.engine.step_file import read_recordings
from collectors.local.server import local_server
from collectors.local.small_model import write_small_model
from collectors.recording.join import Subject, Witnesses, join
from simulator.scheduling.step_replay import replay_steps
from tests.conformance.engine import ENGINE
from traces.capture import Capture, write_capture
from traces.outcome import Status

N_REQUESTS, PER_S = 140, 17.5
FLAGS = ["--load-format", "dummy", "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "1024"]
FLAGS += ["--max-num-seqs", "16", "--max-num-batched-tokens", "256", "--block-size", "32"]
FLAGS += ["--kv-cache-memory-bytes", str(4 << 20), "--scheduler-cls", "recorder.RecordingScheduler"]
NOTE = (
    "{} requests; some clients went away, some answers ended by a stop token; finish_s of an aborted request is when "
    "it was aborted"
)


async def send_all(url: str, policy: str, n_requests: int) -> None:
    """Send the load; whoever loses patience closes its connection."""
    rng = random.Random(3)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        within_s = n_requests / PER_S
        await asyncio.gather(*(send(session, url, i, policy, rng, within_s) for i in range(n_requests)))


async def send(
    session: aiohttp.ClientSession, url: str, i: int, policy: str, rng: random.Random, within_s: float
) -> None:
    """Send one request at a random time within so many seconds."""
    wait_s, patience_s = rng.random() * within_s, rng.random() * 1.5 if rng.random() < 0.3 else None
    body: dict[str, Any] = {
        "model": "model",
        "prompt": [100 + i % 3] * 64 + [rng.randrange(10, 8000) for _ in range(rng.randrange(8, 160))],
        "max_tokens": rng.randrange(20, 200),
        "ignore_eos": True,
        "stream": True,
    }
    if rng.random() < 0.3:
        body["stop_token_ids"] = [rng.randrange(10, 8000) for _ in range(60)]
    if policy == "priority":
        body["priority"] = rng.randrange(4)
    await asyncio.sleep(wait_s)
    try:
        async with asyncio.timeout(patience_s):
            headers = {"X-Request-Id": f"r{i}"}
            async with session.post(f"{url}/v1/completions", json=body, headers=headers) as answer:
                async for _ in answer.content:
                    pass
    except TimeoutError:
        return


def record(policy: str, work: Path, n_requests: int = N_REQUESTS) -> Capture:
    """Serve the load with one policy and join what was recorded."""
    steps = work / f"{policy}.jsonl"
    environment = {"PYTHONPATH": str(recorder_path().parent), "SERVETWIN_STEPS": str(steps)}
    model = write_small_model(work / "model", "xs")
    flags = [*FLAGS, "--scheduling-policy", policy]
    with local_server(ENGINE, model, work / "log", flags=flags, environment=environment) as url:
        asyncio.run(send_all(url, policy, n_requests))
        time.sleep(2)  # until the last client's leaving has reached the engine
    recordings = read_recordings(steps)
    requests = recordings[0].requests
    origin_s = min(request.queued_ns for request in requests.values()) / 1e9 - 1
    witnesses = Witnesses(trace=None, origin_s=origin_s, recordings=recordings)
    today = time.strftime("%Y-%m-%d")
    capture = join(witnesses, Subject("servetwin/llama-xs", "CPU", today, notes=(NOTE.format(n_requests),)))
    outcomes = tuple(
        msgspec.structs.replace(outcome, finish_s=requests[outcome.request_id].end_ns / 1e9 - origin_s)
        if outcome.status is Status.ABORTED
        else outcome
        for outcome in capture.outcomes
    )
    options = {**capture.meta.engine_options, "scheduling_policy": policy}
    meta = msgspec.structs.replace(capture.meta, engine_options=options)
    return dataclasses.replace(capture, meta=meta, outcomes=outcomes, series={})


def main() -> None:
    """Record with both policies into the folder that the command line names, and say how many steps can be followed."""
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as work:
        for policy in ("fcfs", "priority"):
            capture = record(policy, Path(work))
            write_capture(capture, out / policy)
            followed = replay_steps(capture)
            print(f"{policy}: {followed.n_steps} of {followed.n_recorded} steps, {followed.n_preempted} preemptions")


if __name__ == "__main__":
    main()
