"""A real vLLM on this machine's CPU: sent a load by our client, attached to meanwhile, and held against itself."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from collectors.client.load import Pacing
from collectors.client.prompts import prompt_token_ids
from collectors.client.request import Target
from collectors.engine import recorder_path
from collectors.engine.stat_logger_package import write_stat_logger
from collectors.engine.stats_log import read_stats
from collectors.local.server import local_server
from collectors.local.small_model import VOCAB_SIZE, write_small_model
from collectors.recording.folder import About
from collectors.recording.replay import replay
from collectors.recording.served import told_by_stats
from profiles.model import read_model
from simulator.memory import memory_account
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.step_replay import replay_steps
from tests.engines import trace
from tests.live import faults
from traces.capture import Capture, read_capture
from traces.metrics import requests
from traces.outcome import Status
from traces.trace import Trace

pytestmark = [pytest.mark.live, pytest.mark.alone]

ROOT = Path(__file__).resolve().parents[2]
BLOCK_SIZE = 32
KV_TOKENS = 2048
KV_BYTES_PER_TOKEN = 2048  # model xs: 2 * 4 layers * 2 KV heads * 64 * 2 bytes
KV_BYTES = KV_TOKENS * KV_BYTES_PER_TOKEN + 12_345  # no multiple of a block's
API_KEY = "sk-servetwin-live-test"


@dataclass(frozen=True)
class Run:
    """A load served by a live engine, as our client's capture has it and as one that was attached meanwhile.

    Attributes:
        folder: of everything that was written.
    """

    sent: Trace
    folder: Path
    sent_capture: Capture
    attached: Capture


def load() -> Trace:
    """24 requests with shared prefixes in two bursts, each of which needs more KV than the cache's 2,048 tokens.

    The requests of a burst come at once, so that the engine preempts however fast the machine is.
    """
    rng = np.random.default_rng(5)
    rows, hashes = [], []
    for i in range(24):
        shared = tuple(100 * (i % 3 + 1) + j for j in range(2))
        rows.append((0.0 if i < 12 else 2.5, 64 + int(rng.integers(8, 90)), int(rng.integers(120, 240))))
        hashes.append(shared)
    return trace(*rows, hashes=hashes, size=BLOCK_SIZE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    python = ROOT / ".venv-engine" / "bin" / "python"
    if not python.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    folder = tmp_path_factory.mktemp("live")
    otlp_port, kv_port = free_port(), free_port()
    model = write_small_model(folder / "model", "xs")
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://127.0.0.1:{kv_port}"}
    flags = ["--load-format", "dummy", "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "1024"]
    flags += ["--max-num-seqs", "16", "--max-num-batched-tokens", "256", "--block-size", str(BLOCK_SIZE)]
    flags += ["--kv-cache-memory-bytes", str(KV_BYTES), "--api-key", API_KEY]
    flags += ["--scheduler-cls", "recorder.RecordingScheduler", "--kv-events-config", json.dumps(events)]
    flags += ["--otlp-traces-endpoint", f"http://127.0.0.1:{otlp_port}/v1/traces"]
    recorded = folder / "steps.jsonl"
    write_stat_logger(folder / "stat-logger")
    environment = {
        "PYTHONPATH": f"{recorder_path().parent}:{folder / 'stat-logger'}",
        "SERVETWIN_STEPS": str(recorded),
        "SERVETWIN_STATS": str(folder / "stats.jsonl"),
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0",
    }
    sent = load()
    with local_server(python, model, folder / "server.log", flags=flags, environment=environment) as url:
        command = ["collect", "attach", "--url", url, "--out", str(folder / "attached"), "--steps", str(recorded)]
        command += ["--otlp-port", str(otlp_port), "--kv-events", f"tcp://127.0.0.1:{kv_port}", "--every", "500ms"]
        attached = subprocess.Popen(
            [sys.executable, "-c", "from harness.cli import main; main()", *command],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert attached.stderr is not None
        while "KV events: " not in attached.stderr.readline():  # the last part that begins
            assert attached.poll() is None
        about = About(model="servetwin/llama-xs", device="CPU", recorded_at="2026-01-01", steps=str(recorded))
        target = Target(url, "model", vocab_size=VOCAB_SIZE, api_key=API_KEY)
        capture = replay(sent, target, Pacing(), about, folder / "sent")
        attached.send_signal(signal.SIGINT)
        _, said = attached.communicate(timeout=300)
        assert attached.returncode == 0, said
    return Run(sent, folder, capture, read_capture(folder / "attached"))


def test_both_captures_may_be_scored(run: Run) -> None:
    """Tokens agree exactly between client, engine and metrics, every id is joined, and no clock is astray."""
    assert faults(run.sent_capture) == []
    assert faults(run.attached) == []


def test_the_two_views_agree(run: Run) -> None:
    """The client's capture and the attached one are of the same requests, told by the same engine."""
    sent = {outcome.request_id: outcome for outcome in run.sent_capture.outcomes}
    attached = {outcome.request_id: outcome for outcome in run.attached.outcomes}
    assert sent.keys() == attached.keys() == {row.request_id for row in run.sent.rows}
    hashes = {row.request_id: row.block_hashes for row in run.attached.trace.rows}
    for row in run.sent_capture.trace.rows:
        ours, theirs = sent[row.request_id], attached[row.request_id]
        assert ours.status is theirs.status is Status.FINISHED
        for name in ("prompt_tokens", "output_tokens", "cached_tokens", "num_preemptions", "instance", "reason"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert hashes[row.request_id] == row.block_hashes
    for mine, other in zip(
        requests(run.sent_capture.outcomes).e2el_s, requests(run.attached.outcomes).e2el_s, strict=True
    ):
        assert mine == pytest.approx(other)
    assert run.sent_capture.steps is not None
    assert run.attached.steps is not None
    assert len(run.sent_capture.steps) == len(run.attached.steps)


def test_every_span_passes_the_clock_check(run: Run) -> None:
    (note,) = [note for note in run.attached.meta.notes if note.startswith("clock check")]
    assert note.startswith(f"clock check of {len(run.sent)} spans: ")


def test_the_stat_logger_saw_the_same_requests(run: Run) -> None:
    """Where the scheduler class cannot be set, the front end alone tells of stages, cached tokens and preemptions."""
    stats = read_stats(run.folder / "stats.jsonl")
    assert stats.notes == ()
    told = told_by_stats(stats)
    for outcome in run.sent_capture.outcomes:
        one = told[outcome.request_id]
        assert one.complete
        for name in ("prompt_tokens", "output_tokens", "cached_tokens"):
            assert getattr(one, name) == getattr(outcome, name)
        times_s = [one.arrival_s, one.queued_s, one.scheduled_s, one.first_token_s, one.finish_s]
        assert times_s == sorted(times_s)  # type: ignore[type-var]


def test_the_metrics_and_the_prefix_cache_are_series_of_the_capture(run: Run) -> None:
    assert {"n_running", "kv_usage", "prefix_cache_blocks", "output_tokens_per_s"} <= run.attached.series.keys()
    shared = {hash_ for row in run.attached.trace.rows for hash_ in row.block_hashes or ()}
    assert run.attached.series["prefix_cache_blocks"].value.max() <= len(shared) + KV_TOKENS // BLOCK_SIZE
    assert run.attached.series["output_tokens_per_s"].value.max() > 0


def test_the_engine_names_itself(run: Run) -> None:
    assert run.attached.meta.engine == run.sent_capture.meta.engine == "vllm 0.32.0"
    assert run.attached.meta.model == "model"
    assert run.attached.meta.engine_options == run.sent_capture.meta.engine_options
    assert run.attached.meta.engine_options["max_num_batched_tokens"] == 256


def test_its_kv_blocks_are_predicted(run: Run) -> None:
    options = EngineOptions(block_size=BLOCK_SIZE, kv_cache_memory_bytes=KV_BYTES, dtype="bfloat16")
    account = memory_account(read_model(run.folder / "model" / "config.json"), "CPU", None, options)
    assert account.num_gpu_blocks == run.sent_capture.meta.num_gpu_blocks == run.attached.meta.num_gpu_blocks


def test_stages_add_up_and_the_client_sees_them_a_little_later(run: Run) -> None:
    for outcome in run.sent_capture.outcomes:
        times = [outcome.sent_s, outcome.arrival_s, outcome.queued_s, outcome.scheduled_s]
        times += [outcome.first_token_s, outcome.finish_s, outcome.client_finish_s]
        assert times == sorted(times)  # type: ignore[type-var]
    stages = requests(run.sent_capture.outcomes)
    assert stages.queue_s + stages.prefill_s + stages.decode_s == pytest.approx(stages.e2el_s)


def test_every_token_was_computed_in_some_step(run: Run) -> None:
    steps = run.sent_capture.steps
    assert steps is not None
    assert steps.batches is not None
    computed = np.bincount(steps.batches.request, weights=steps.batches.new_tokens)
    for outcome, tokens in zip(run.sent_capture.outcomes, computed, strict=True):
        if not outcome.num_preemptions:
            assert tokens + (outcome.cached_tokens or 0) == outcome.prompt_tokens + outcome.output_tokens - 1
    assert (steps.kv_blocks <= (run.sent_capture.meta.num_gpu_blocks or 0) - 1).all()


def test_the_twins_scheduler_makes_the_engines_batches(run: Run) -> None:
    """Every step of the live engine, planned again: the same requests, order, tokens and preemptions."""
    followed = replay_steps(run.sent_capture)
    assert followed.divergence is None
    assert run.sent_capture.steps is not None
    assert followed.n_steps == len(run.sent_capture.steps) > 100
    assert followed.n_preempted == run.sent_capture.steps.n_preempted.sum()


def test_the_load_was_worth_recording(run: Run) -> None:
    assert sum(outcome.num_preemptions or 0 for outcome in run.sent_capture.outcomes) > 0
    assert sum(outcome.cached_tokens or 0 for outcome in run.sent_capture.outcomes) > 0
    for outcome in run.sent_capture.outcomes:
        assert outcome.token_times_s is not None
        assert outcome.client_token_times_s is not None
        assert len(outcome.token_times_s) == outcome.output_tokens
        assert 0 < len(outcome.client_token_times_s) <= outcome.output_tokens  # a slow client gets several at once


def test_nothing_of_a_prompt_and_no_key_is_written(run: Run) -> None:
    """Neither in the captures, nor in the recorder's file."""
    files = [file for name in ("sent", "attached") for file in (run.folder / name).iterdir()]
    written = [file.read_bytes() for file in (*files, run.folder / "steps.jsonl")]
    written += [gzip.decompress(data) for data in written if data.startswith(b"\x1f\x8b")]
    for name in ("sent", "attached"):
        written.append(read_capture(run.folder / name).outcomes_frame().to_json().encode())
    for row in run.sent.rows:
        ids = prompt_token_ids(row, run.sent, VOCAB_SIZE)
        for quoted in (",".join(map(str, ids[:3])), ", ".join(map(str, ids[:3])), " ".join(f"w{i}" for i in ids[:3])):
            assert not any(quoted.encode() in data for data in written)
    assert not any(word in data for data in written for word in (API_KEY.encode(), b"Authorization", b"Bearer"))
