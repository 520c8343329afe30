"""Prefill and decode apart on this machine's CPU: two real engines, with KV that NIXL moves from one to the other."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from calibrate.fit import fit
from calibrate.split import parse_split
from collectors.client.load import Pacing
from collectors.client.request import Target
from collectors.local.pair import has_nixl, local_pair
from collectors.local.small_model import VOCAB_SIZE, write_small_model
from collectors.recording.folder import About
from collectors.recording.replay import replay
from harness.calibrate import subject_of
from harness.descriptions.scenario import read_scenario
from tests.engines import trace
from tests.live import faults
from traces.capture import Capture, write_capture
from traces.outcome import Status

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
BLOCK_SIZE = 32
KV_BYTES_PER_TOKEN = 8192  # model s: 2 * 8 layers * 4 KV heads * 64 * 2 bytes
N = 24
FIRST_ANSWER = 150
"""Tokens, and so many steps there are however long one takes: a calibration asks for 100."""


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    python = ROOT / ".venv-engine" / "bin" / "python"
    nixl = Path(path) if (path := os.environ.get("SERVETWIN_NIXL")) else None
    if not python.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    if not has_nixl(python, nixl):
        pytest.skip("no NIXL; pip install --no-deps nixl nixl-cu12 into the engine's environment")
    folder = tmp_path_factory.mktemp("apart")
    model = write_small_model(folder / "model", "s")
    flags = ["--load-format", "dummy", "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "1024"]
    flags += ["--max-num-seqs", "16", "--max-num-batched-tokens", "256", "--block-size", str(BLOCK_SIZE)]
    flags += ["--kv-cache-memory-bytes", str(8192 * KV_BYTES_PER_TOKEN), "--no-enable-prefix-caching"]
    sent = trace(*((0.25 * i, 40 + 37 * i % 700, 4 + i % 9 if i else FIRST_ANSWER) for i in range(N)))
    with local_pair(python, model, folder, flags=flags, nixl=nixl) as pair:
        about = About(
            model="servetwin/llama-s",
            device="AMD-EPYC-2vCPU",
            recorded_at="2026-01-01",
            steps=str(pair.steps),
            transfers=str(pair.transfers),
        )
        target = Target(pair.url, "model", vocab_size=VOCAB_SIZE)
        return replay(sent, target, Pacing(warm_up=3), about, folder / "sent")


def test_both_engines_and_the_client_agree(capture: Capture) -> None:
    assert faults(capture) == []
    assert {outcome.status for outcome in capture.outcomes} == {Status.FINISHED}


def test_each_request_has_one_transfer_of_its_blocks(capture: Capture) -> None:
    sent = capture.transfers
    assert sent is not None
    assert sorted(sent.request.tolist()) == list(range(N))
    assert set(zip(sent.source.tolist(), sent.target.tolist(), strict=True)) == {(0, 1)}
    prompts = np.array([capture.outcomes[i].prompt_tokens for i in sent.request.tolist()])
    blocks = -(-prompts // BLOCK_SIZE)
    np.testing.assert_array_equal(sent.n_bytes, blocks * BLOCK_SIZE * KV_BYTES_PER_TOKEN)


def test_a_transfer_lies_between_prompt_and_answer(capture: Capture) -> None:
    sent, steps = capture.transfers, capture.steps
    assert sent is not None
    assert steps is not None
    assert steps.batches is not None
    assert set(steps.instance.tolist()) == {0, 1}
    for request, start_s, end_s in zip(sent.request.tolist(), sent.start_s, sent.end_s, strict=True):
        outcome = capture.outcomes[request]
        assert outcome.scheduled_s is not None
        assert outcome.first_token_s is not None
        assert outcome.scheduled_s < start_s <= end_s < outcome.first_token_s


def test_a_calibration_of_it_tells_what_transfers_take(capture: Capture, tmp_path: Path) -> None:
    meta = msgspec.structs.replace(capture.meta, reasons=())
    write_capture(replace(capture, meta=meta), tmp_path / "apart")
    (tmp_path / "apart.yaml").write_text(
        "trace: apart/trace.jsonl.gz\n"
        "cluster:\n"
        "  fabric: {kind: full_mesh, bandwidth_bytes_per_s: 4.0e+9, latency_s: 0}\n"
        "  instances:\n"
        "    - {model: servetwin/llama-s, device: AMD-EPYC-2vCPU, role: prefill}\n"
        "    - {model: servetwin/llama-s, device: AMD-EPYC-2vCPU, role: decode}\n"
    )
    subject = subject_of(read_scenario(tmp_path / "apart.yaml"), tmp_path / "apart")
    fitted = fit([subject], parse_split("all"))
    assert fitted.kind == "steps"
    assert fitted.residuals["KV transfers"].n == N
    assert fitted.parameters["kv_transfer"].identified or fitted.parameters["kv_transfer_s"].identified
