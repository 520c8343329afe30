"""KV capacity of engines on this machine's CPU: predicted to the block."""

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


@pytest.mark.parametrize(
    ("size", "options", "flags", "environment"),
    [
        # A size that is no multiple of a block's.
        ("xs", EngineOptions(block_size=32, kv_cache_memory_bytes=12_345_678), (), {}),
        # What vLLM calls its legacy setting, in whole GiB, with a wider type.
        (
            "s",
            EngineOptions(block_size=128, kv_cache_memory_bytes=2**30, dtype="float32"),
            (),
            {"VLLM_CPU_KVCACHE_SPACE": "1"},
        ),
    ],
)
def test_kv_blocks_of_a_live_engine(
    tmp_path: Path, size: str, options: EngineOptions, flags: tuple[str, ...], environment: dict[str, str]
) -> None:
    python = ROOT / ".venv-engine" / "bin" / "python"
    if not python.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    model = write_small_model(tmp_path / "model", size)
    said = ["--load-format", "dummy", "--dtype", options.dtype, "--enforce-eager", "--max-model-len", "512"]
    said += ["--block-size", str(options.block_size), "--max-num-seqs", "8", "--max-num-batched-tokens", "512"]
    if not environment:
        said += ["--kv-cache-memory-bytes", str(options.kv_cache_memory_bytes)]
    with (
        local_server(python, model, tmp_path / "log", flags=[*said, *flags], environment=environment) as url,
        urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer,
    ):
        metrics = answer.read().decode()
    found = re.search(r'cache_config_info\{[^}]*num_gpu_blocks="(\d+)"', metrics)
    assert found is not None
    predicted = memory_account(read_model(model / "config.json"), "CPU", None, options)
    assert predicted.num_gpu_blocks == int(found[1])
