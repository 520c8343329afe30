"""The profiler itself, inside the engine's environment: in plain torch, killed and resumed, and with vLLM's experts."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from collectors.local.small_model import write_small_model
from collectors.operators.shots import Limits, plan_shots
from profiles.profile import Profile
from profiles.profile_folder import read_profile
from tests.conftest import ROOT

pytestmark = pytest.mark.live

PYTHON = ROOT / ".venv-engine" / "bin" / "python"
SMALL = ["--max-tokens", "16", "--max-requests", "4", "--max-kv", "32", "--kv-cache-tokens", "2048"]
BUDGET = ["--budget-s", "40"]
"""Some seconds are used; on a machine that does ten other things as many as there are, or a thinner grid."""


def start(model: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    if not PYTHON.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    command = [
        PYTHON,
        "-m",
        "collectors.operators",
        "--model",
        model,
        "--model-name",
        "t/m",
        "--out",
        out,
        *SMALL,
        *words,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment["OMP_NUM_THREADS"] = "1"  # threads that wait for each other stand still beside other processes
    return subprocess.Popen(
        list(map(str, command)), env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def measured(model: Path, out: Path, *words: str) -> Profile:
    process = start(model, out, *words)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    return read_profile(out)


def test_plain_torch_measures_without_vllm_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    model, out = write_small_model(tmp_path / "model", "xs"), tmp_path / "profile"
    words = ["--engine", "torch", *BUDGET, "--collectives", "cpu:2"]
    killed = start(model, out, *words)
    shots = out.with_name("profile.recording") / "shots.jsonl"
    until = time.monotonic() + 600
    while time.monotonic() < until and not (shots.exists() and shots.read_text().count('"kind":"shot"') > 20):
        assert killed.poll() is None, "ended before it could be killed"
        time.sleep(0.1)
    killed.kill()
    killed.communicate()
    before = shots.read_text().count('"kind":"shot"')
    assert before > 20
    assert not out.exists()

    profile = measured(model, out, *words)
    assert not shots.exists()
    assert profile.meta.engine is not None
    assert profile.meta.engine.startswith("torch 2")
    assert "kernels are plain torch's, not an engine's" in profile.meta.notes
    tables = profile.tables[1]
    assert tables.steps is not None
    assert tables.steps.repeats.min() >= 3
    assert tables.steps.spread is not None
    assert np.isfinite(tables.steps.spread).all()
    assert "aten::mm" in profile.meta.measured["kernels, tp 1"]["prefill"]["qkv_proj"]
    assert profile.collectives is not None
    assert profile.collectives.keys() == {"all_reduce", "all_gather", "reduce_scatter", "all_to_all"}


def test_vllms_experts_are_reached_as_asked(tmp_path: Path) -> None:
    model = write_small_model(tmp_path / "model", "qwen3-moe-xs")
    profile = measured(model, tmp_path / "profile", *BUDGET)
    tables = profile.tables[1]
    assert tables.moe is not None
    reached = Counter(zip(tables.moe.n_tokens.tolist(), tables.moe.n_experts.tolist(), strict=True))
    found = profile.meta.measured
    limits = Limits(16, 4, 32, found["block_size"], 2048 // found["block_size"], top_k=4, num_experts=16)
    shots = plan_shots(limits, found["tp 1"]["every"])  # a very busy machine's budget thins the grid
    asked = Counter((shot.n_tokens, shot.n_experts) for shot in shots if shot.n_experts)
    assert len(asked) >= 5
    assert reached == asked
    assert "qk_norm" in tables.dense
    assert profile.meta.measured["attention_backend"] == "CPU_ATTN"
    assert profile.meta.measured["kernels, tp 1"]["decode"]["moe"]


def test_whole_steps_need_no_hooks(tmp_path: Path) -> None:
    model = write_small_model(tmp_path / "model", "xs")
    profile = measured(model, tmp_path / "profile", *BUDGET, "--operators", "none")
    assert profile.tables[1].steps is not None
    assert profile.tables[1].dense == {}
    assert profile.meta.composition.per_layer == ()
