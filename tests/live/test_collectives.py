"""Ranks of several devices that share experts: which collectives a real engine calls, among whom, and of how much."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from profiles.model import read_model
from profiles.profile import COLLECTIVES
from simulator.network.topology import Place
from simulator.scheduling.rules import REFERENCE
from simulator.steps.partition import Partition, expert_groups, use_sequence_parallel_moe

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "conformance" / "collectives.py"
PROMPTS = (13, 9)
"""Tokens of the prompt of each data-parallel rank: neither is a multiple of its two devices."""

CONFIG = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 8,
        "moe_intermediate_size": 128,
        "intermediate_size": 256,
        "norm_topk_prob": True,
    },
    "mixtral": {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "intermediate_size": 128},
}


def engine_python() -> Path:
    python = ROOT / ".venv-engine" / "bin" / "python"
    if not python.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    return python


def noted(folder: Path, model_type: str) -> list[list[dict[str, Any]]]:
    """What each of the four devices of two ranks said, in order of the devices."""
    python = engine_python()
    for name in ("model", "plugins/noting-1.0.dist-info", "said"):
        (folder / name).mkdir(parents=True)
    config = {**CONFIG, "model_type": model_type, **FAMILIES[model_type]}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    shutil.copy(SCRIPT, folder / "plugins" / "noting_collectives.py")
    about = folder / "plugins" / "noting-1.0.dist-info"
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: noting\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[vllm.general_plugins]\nnoting = noting_collectives:register\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ran = [start(python, folder, rank, port) for rank in range(len(PROMPTS))]
    try:
        for one in ran:
            one.wait(timeout=900)
    finally:
        for one in ran:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)
    logs = "\n".join((folder / f"log{rank}").read_text()[-3000:] for rank in range(len(PROMPTS)))
    assert [one.returncode for one in ran] == [0, 0], logs
    files = (folder / "said").glob("*.jsonl")
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    return sorted(lines, key=lambda one: one[0]["ranks"])


def start(python: Path, folder: Path, rank: int, port: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder / "plugins"),
        "COLLECTIVES": str(folder / "said"),
        "VLLM_DP_RANK": str(rank),
        "VLLM_DP_RANK_LOCAL": str(rank),
        "VLLM_DP_SIZE": str(len(PROMPTS)),
        "VLLM_DP_MASTER_IP": "127.0.0.1",
        "VLLM_DP_MASTER_PORT": str(port),
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / f"log{rank}").open("wb") as log:
        return subprocess.Popen(
            [str(python), str(SCRIPT), str(folder / "model"), str(PROMPTS[rank])],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_experts_are_talked_about_as_they_are_priced(tmp_path: Path, model_type: str) -> None:
    """Behind attention, to the experts, from them, and behind them; in every layer of every step."""
    said = noted(tmp_path, model_type)
    model = read_model(tmp_path / "model" / "config.json")
    split = use_sequence_parallel_moe(model, REFERENCE, tensor=2, data=2, expert_parallel=True)
    assert split == (model_type == "qwen3_moe")
    partition = Partition(2, 1, 2, True, use_sequence_parallel_moe=split)
    of_ranks = [[Place(0, 0), Place(0, 1)], [Place(0, 2), Place(0, 3)]]
    groups = [[place.device for place in group] for group in expert_groups(of_ranks, split=split)]
    layers = [[i for i, line in enumerate(one) if line["operation"] == "all_gatherv"] for one in said]
    assert len(said) == 4
    # Nothing but these four in a layer: the second layer's gather is the fourth call behind the first's.
    assert {second - first for one in layers for first, second in zip(one[::2], one[1::2], strict=True)} == {4}
    seen = set()
    for at in zip(*layers, strict=True):
        rows = [one[i - 1]["rows"] for one, i in zip(said, at, strict=True)]
        assert rows[0] == rows[1]
        assert rows[2] == rows[3]
        tokens = (rows[0], rows[2])
        seen.update(tokens)
        for one, i in zip(said, at, strict=True):
            behind_attention, to_experts, from_experts, behind = one[i - 1 : i + 3]
            shares = behind_attention["ranks"]
            assert shares in ([0, 1], [2, 3])
            assert behind_attention["operation"] == "all_reduce"
            assert to_experts["ranks"] in groups
            assert to_experts["row_bytes"] == [2 * 256, 4 * 2, 4 * 2]  # hidden state, and weights and numbers of two
            assert sum(to_experts["sizes"]) == sum(partition.entering(n) for n in tokens)
            assert from_experts["operation"] == "reduce_scatterv"
            assert (from_experts["ranks"], from_experts["sizes"]) == (to_experts["ranks"], to_experts["sizes"])
            own = tokens[shares[0] // 2]
            assert behind["ranks"] == shares
            assert behind["operation"] == ("all_gather" if split else "all_reduce")
            assert behind["rows"] == (partition.entering(own) // 2 if split else own)
    assert seen >= {*PROMPTS, 1}


MEASURE = """
import json
from collectors.operators.collectives import Devices, measure_collectives
if __name__ == "__main__":
    rows = measure_collectives(Devices("cpu", 2), "vllm")
    print("rows", json.dumps([[row.op, row.ranks, row.bytes, row.error] for row in rows]))
"""


def test_collectives_of_vllms_own_group_are_measured_at_every_size(tmp_path: Path) -> None:
    (tmp_path / "measure.py").write_text(MEASURE)
    ran = subprocess.run(
        [engine_python(), tmp_path / "measure.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "VLLM_NO_USAGE_STATS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    (said,) = (line for line in ran.stdout.splitlines() if line.startswith("rows "))
    rows = json.loads(said.removeprefix("rows "))
    assert {tuple(row[:2]) for row in rows} == {(op, 2) for op in COLLECTIVES}
    assert all(error is None for *_, error in rows)
    assert {row[2] for row in rows if row[0] == "all_reduce"} == {1024 * 4**i for i in range(8)}
    assert "falling back to torch.distributed" not in ran.stdout + ran.stderr
