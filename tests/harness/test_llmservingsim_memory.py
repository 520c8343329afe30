"""Memory that LLMServingSim's cluster files state: read as that simulator reads it, and no more than there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.deploy.memory import scenario_memory
from traces.errors import CapacityError

GIB = 2**30


def facts(tmp_path: Path, hardware: str, **npu_mem: Any) -> dict[str, Any]:
    """Of a Llama on one device with such a memory."""
    instance = {
        "model_name": "meta-llama/Llama-3.1-8B",
        "hardware": hardware,
        "npu_mem": {"mem_bw": 1, "mem_latency": 0, **npu_mem},
    }
    node = {"num_instances": 1, "instances": [instance]}
    (tmp_path / "cluster.json").write_text(json.dumps({"num_nodes": 1, "nodes": [node]}))
    (tmp_path / "scenario.yaml").write_text("trace: none.jsonl\ncluster: cluster.json\n")
    (found,) = scenario_memory(tmp_path / "scenario.yaml")
    return found


@pytest.mark.parametrize("mem_util", [0.8, 0.64])
def test_a_share_of_its_own_is_for_weights_and_kv_alone(tmp_path: Path, mem_util: float) -> None:
    """`serving/core/memory_model.py`: blocks are what mem_size times mem_util leaves beside the weights.

    0.64 has no room for the activations that vLLM would take off first.
    """
    found = facts(tmp_path, "MY-GPU", mem_size=24, mem_util=mem_util)
    left = 24 * GIB * mem_util - sum(found["weight_bytes"].values())
    assert found["num_gpu_blocks"] == left // found["block_bytes"]


def test_the_usual_share_is_vllms(tmp_path: Path) -> None:
    stated = facts(tmp_path, "MY-GPU", mem_size=24, mem_util=0.9)
    assert stated == facts(tmp_path, "MY-GPU", mem_size=24)
    assert stated["requested_bytes"] == pytest.approx(24 * GIB * 0.9, abs=1)
    left = stated["requested_bytes"] - sum(stated["weight_bytes"].values())
    assert stated["num_gpu_blocks"] < left // stated["block_bytes"]


@pytest.mark.parametrize(("mem_size", "memory_gib"), [(24, 23.65), (20, 20.0)])
def test_a_device_has_no_more_than_its_runtime_reports(tmp_path: Path, mem_size: int, memory_gib: float) -> None:
    assert facts(tmp_path, "RTX4090", mem_size=mem_size)["memory_bytes"] / GIB == pytest.approx(memory_gib, abs=0.01)


def test_a_share_that_the_weights_exceed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="does not fit"):
        facts(tmp_path, "MY-GPU", mem_size=24, mem_util=0.5)
