"""Which router a cluster has that names none."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.deploy.deployment import deploy
from harness.descriptions.scenario import read_scenario


@pytest.mark.parametrize(
    ("instances", "beside", "routing"),
    [
        ("{data_parallel_size: 2}", "", "vllm_dp"),  # ranks of one engine, though a dense model's do not step together
        ("{count: 2}", "", "round_robin"),
        ("{count: 2, data_parallel_size: 2}", "", "round_robin"),
        ("{}", "", "round_robin"),
        ("{data_parallel_size: 2}", "failures: [{instance: 0, at_s: 1, for_s: 1}]", "round_robin"),
        ("{data_parallel_size: 2}", "routing: least_loaded", "least_loaded"),
    ],
)
def test_ranks_of_one_engine_are_dealt_to_by_vllm(tmp_path: Path, instances: str, beside: str, routing: str) -> None:
    instance = f"{{model: servetwin/llama-s, device: AMD-EPYC-2vCPU, {instances[1:-1]}}}"
    (tmp_path / "scenario.yaml").write_text(
        "trace: none.jsonl\nengine: {num_gpu_blocks: 100, max_model_len: 512}\n"
        f"cluster:\n  instances: [{instance}]\n  {beside}\n"
    )
    assert deploy(read_scenario(tmp_path / "scenario.yaml")).cluster.routing == routing
