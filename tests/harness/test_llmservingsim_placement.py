"""Weights that LLMServingSim's cluster files put into other memories: read as they are, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.deploy.asked import read_cluster
from harness.descriptions.cluster import ClusterSpec
from harness.descriptions.memories import OffloadFile
from harness.descriptions.scenario import read_scenario
from simulator.network.topology import NS, PortFile
from traces.errors import InputError

INSTANCE: dict[str, Any] = {
    "model_name": "meta-llama/Llama-3.1-8B",
    "hardware": "RTXPRO6000",
    "npu_mem": {"mem_size": 96, "mem_bw": 1597, "mem_latency": 0},
}
CXL = {"mem_size": 1024, "mem_bw": 60, "mem_latency": 250, "num_devices": 2}
CPU = {"mem_size": 512, "mem_bw": 256, "mem_latency": 100}


def cluster(tmp_path: Path, placement: dict[str, Any], **top: Any) -> ClusterSpec:
    node = {"num_instances": 1, "instances": [{**INSTANCE, "placement": placement}], "cpu_mem": top.pop("cpu_mem", CPU)}
    (tmp_path / "cluster.json").write_text(json.dumps({"num_nodes": 1, "nodes": [node], "cxl_mem": CXL, **top}))
    (tmp_path / "scenario.yaml").write_text("trace: t.jsonl\ncluster: cluster.json\n")
    return read_cluster(read_scenario(tmp_path / "scenario.yaml"))


def test_layers_in_cxl_memory_come_as_fast_as_it_is(tmp_path: Path) -> None:
    blocks = [{"blocks": "0-2,5", "weights": "cxl:1"}, {"blocks": "3", "weights": "npu"}]
    (spec,) = cluster(tmp_path, {"default": {"weights": "npu"}, "blocks": blocks}).instances
    assert spec.offload == OffloadFile(layers="0,1,2,5", way="prefetch", buffers=2)
    assert spec.host_link == PortFile(60e9, 250 * NS)


def test_a_default_is_of_all_that_is_not_named(tmp_path: Path) -> None:
    placement = {
        "default": {"weights": "cpu"},
        "blocks": [{"blocks": "1", "weights": "npu"}],
        "layers": {"embedding": {"weights": "npu"}},
    }
    read = cluster(tmp_path, placement)
    assert read.instances[0].offload == OffloadFile(layers="0,2-", ends=("lm_head",), way="prefetch", buffers=2)
    assert read.instances[0].host_link == PortFile(256e9, 100 * NS)
    assert "nodes[0].cpu_mem" not in read.notes[0]


def test_where_kv_is_evicted_to_and_weights_on_the_device_change_nothing(tmp_path: Path) -> None:
    read = cluster(tmp_path, {"default": {"weights": "npu", "kv_loc": "npu", "kv_evict_loc": "cpu"}})
    assert (read.instances[0].offload, read.instances[0].host_link) == (None, None)
    assert "cxl_mem" in read.notes[0]


@pytest.mark.parametrize(
    ("placement", "top", "message"),
    [
        ({"default": {"kv_loc": "cpu"}}, {}, r"placement.default.kv_loc': found 'cpu': accepted: npu"),
        ({"default": {"weights": "cxl:2"}}, {}, r"has weights at 'cxl:2': accepted: npu, cpu, or cxl:0 to cxl:1"),
        ({"default": {"weights": "cxl:0"}}, {"cxl_mem": None}, "has weights at 'cxl:0': accepted: npu, cpu"),
        ({"default": {"weights": "cpu"}}, {"cpu_mem": None}, "has weights at cpu: accepted: mem_bw and mem_latency"),
        ({"blocks": [{"blocks": "3-1", "weights": "cpu"}]}, {}, r"blocks\[0\].blocks': found '3-1': accepted: numbers"),
        ({"layers": {"qkv_proj": {"weights": "cpu"}}}, {}, r"layers.qkv_proj': is a part of a layer"),
        (
            {"default": {"weights": "cpu"}, "layers": {"lm_head": {"weights": "cxl:0"}}},
            {},
            "has weights in memories of different speeds",
        ),
    ],
)
def test_what_is_not_modelled_is_refused(
    tmp_path: Path, placement: dict[str, Any], top: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        cluster(tmp_path, placement, **top)


@pytest.mark.ground_truth
def test_the_references_cxl_example_is_read_as_it_is(ground_truth: Path, tmp_path: Path) -> None:
    file = ground_truth / "vllm-0.19" / "cluster-examples" / "single_node_cxl_instance.json"
    (tmp_path / "scenario.yaml").write_text(f"trace: t.jsonl\ncluster: {file}\n")
    (spec,) = read_cluster(read_scenario(tmp_path / "scenario.yaml")).instances
    assert spec.offload is not None
    assert spec.offload.ends == ("embedding", "lm_head")
    assert spec.offload.layers is not None
    assert spec.offload.layers.endswith("30,31,32-")
    assert spec.host_link == PortFile(60e9, 250 * NS)
