"""A real vLLM on this machine's CPU: recorded, joined, and held against its own metrics."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from collectors import recorder_path
from collectors.client import ClientRecord, Target
from collectors.join import Subject
from collectors.prompts import prompt_token_ids
from collectors.replay import replay_and_join
from collectors.server import local_server
from collectors.small_model import VOCAB_SIZE, write_small_model
from simulator.step_replay import replay_steps
from tests.engines import trace
from traces.capture import Capture, read_capture, write_capture
from traces.metrics import requests
from traces.outcome import Status
from traces.trace import Trace

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
BLOCK_SIZE = 32
KV_TOKENS = 2048
KV_BYTES_PER_TOKEN = 2048  # model xs: 2 * 4 layers * 2 KV heads * 64 * 2 bytes


@dataclass(frozen=True)
class Run:
    """A load served by a live engine: what was sent, what the client saw, what the engine recorded and counted."""

    sent: Trace
    records: list[ClientRecord]
    recorded: Path
    capture: Capture
    counted: dict[str, float]


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


def counters(url: str) -> dict[str, float]:
    """The server's own counters, summed over labels."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith(("_total", "_sum", "_count")):
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    python = ROOT / ".venv-engine" / "bin" / "python"
    if not python.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    folder = tmp_path_factory.mktemp("live")
    model = write_small_model(folder / "model", "xs")
    flags = ["--load-format", "dummy", "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "1024"]
    flags += ["--max-num-seqs", "16", "--max-num-batched-tokens", "256", "--block-size", str(BLOCK_SIZE)]
    flags += ["--kv-cache-memory-bytes", str(KV_TOKENS * KV_BYTES_PER_TOKEN)]
    flags += ["--scheduler-cls", "recorder.RecordingScheduler"]
    recorded = folder / "steps.jsonl"
    environment = {"PYTHONPATH": str(recorder_path().parent), "SERVETWIN_STEPS": str(recorded)}
    sent = load()
    with local_server(python, model, folder / "server.log", flags=flags, environment=environment) as url:
        before = counters(url)
        subject = Subject("servetwin/llama-xs", "CPU", "2026-01-01")
        capture, records = replay_and_join(sent, Target(url, "model", VOCAB_SIZE), recorded, subject)
        after = counters(url)
    return Run(sent, records, recorded, capture, {name: after[name] - before.get(name, 0.0) for name in after})


def test_client_and_engine_agree_on_every_token(run: Run) -> None:
    assert run.capture.meta.reasons == ()
    assert all(outcome.status is Status.FINISHED for outcome in run.capture.outcomes)
    tokens = {record.request_id: record.output_tokens for record in run.records}
    for outcome in run.capture.outcomes:
        assert outcome.token_times_s is not None
        assert outcome.output_tokens == tokens[outcome.request_id] == len(outcome.token_times_s)
    assert run.counted["vllm:generation_tokens_total"] == sum(o.output_tokens for o in run.capture.outcomes)
    assert run.counted["vllm:prompt_tokens_total"] == sum(o.prompt_tokens for o in run.capture.outcomes)


def test_preemptions_and_prefix_hits_are_the_engines_own(run: Run) -> None:
    assert run.counted["vllm:num_preemptions_total"] == sum(o.num_preemptions or 0 for o in run.capture.outcomes) > 0
    assert run.counted["vllm:prefix_cache_hits_total"] == sum(o.cached_tokens or 0 for o in run.capture.outcomes) > 0
    assert run.counted["vllm:prefix_cache_queries_total"] == sum(o.prompt_tokens for o in run.capture.outcomes)


def test_stages_add_up_and_the_client_sees_them_a_little_later(run: Run) -> None:
    for outcome in run.capture.outcomes:
        times = [outcome.sent_s, outcome.arrival_s, outcome.queued_s, outcome.scheduled_s]
        times += [outcome.first_token_s, outcome.finish_s, outcome.client_finish_s]
        assert times == sorted(times)  # type: ignore[type-var]
    stages = requests(run.capture.outcomes)
    assert stages.queue_s + stages.prefill_s + stages.decode_s == pytest.approx(stages.e2el_s)


def test_the_engines_own_latencies_are_the_recorders(run: Run) -> None:
    """The front end stamps each of its times a little after the engine did; their sums must tell the same story."""
    stages = requests(run.capture.outcomes)
    for name, own_s in (("e2e_request_latency", stages.e2el_s), ("time_to_first_token", stages.ttft_s)):
        assert run.counted[f"vllm:{name}_seconds_sum"] == pytest.approx(own_s.sum(), rel=0.25)
        assert run.counted[f"vllm:{name}_seconds_count"] == len(own_s)


def test_every_token_was_computed_in_some_step(run: Run) -> None:
    steps = run.capture.steps
    assert steps is not None
    assert steps.batches is not None
    computed = np.bincount(steps.batches.request, weights=steps.batches.new_tokens)
    for outcome, tokens in zip(run.capture.outcomes, computed, strict=True):
        if not outcome.num_preemptions:
            assert tokens + (outcome.cached_tokens or 0) == outcome.prompt_tokens + outcome.output_tokens - 1
    assert (steps.kv_blocks <= (run.capture.meta.num_gpu_blocks or 0) - 1).all()


def test_the_twins_scheduler_makes_the_engines_batches(run: Run) -> None:
    """Every step of the live engine, planned again: the same requests, order, tokens and preemptions."""
    followed = replay_steps(run.capture)
    assert followed.divergence is None
    assert run.capture.steps is not None
    assert followed.n_steps == len(run.capture.steps) > 100
    assert followed.n_preempted == run.capture.steps.n_preempted.sum()


def test_nothing_of_a_prompt_is_written(run: Run, tmp_path: Path) -> None:
    write_capture(run.capture, tmp_path / "capture")
    assert read_capture(tmp_path / "capture").outcomes == run.capture.outcomes
    text = run.recorded.read_text()
    for row in run.sent.rows[:5]:
        ids = prompt_token_ids(row, run.sent, VOCAB_SIZE)
        assert ",".join(map(str, ids[:4])) not in text
        assert " ".join(f"w{i}" for i in ids[:4]) not in text
