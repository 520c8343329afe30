"""KV capacity of an engine on this machine's CPU: predicted to the block (another setting is in test_live_engine)."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest

from collectors.local.server import local_server
from collectors.local.small_model import write_small_model
from profiles.model import read_model
from simulator.memory import memory_account
from simulator.scheduling.options import EngineOptions

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]


def test_kv_blocks_of_an_engine_that_is_told_whole_gib(tmp_path: Path) -> None:
    """What vLLM calls its legacy setting, with a wider type and larger blocks than others here have."""
    options = EngineOptions(block_size=128, kv_cache_memory_bytes=2**30, dtype="float32")
    python = ROOT / ".venv-engine" / "bin" / "python"
    if not python.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    model = write_small_model(tmp_path / "model", "s")
    flags = ["--load-format", "dummy", "--dtype", options.dtype, "--enforce-eager", "--max-model-len", "512"]
    flags += ["--block-size", str(options.block_size), "--max-num-seqs", "8", "--max-num-batched-tokens", "512"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with (
        local_server(python, model, tmp_path / "log", flags=flags, environment=environment) as url,
        urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer,
    ):
        metrics = answer.read().decode()
    found = re.search(r'cache_config_info\{[^}]*num_gpu_blocks="(\d+)"', metrics)
    assert found is not None
    predicted = memory_account(read_model(model / "config.json"), "CPU", None, options)
    assert predicted.num_gpu_blocks == int(found[1])
