"""LLMServingSim's cluster files: one engine on one device is read as it is, anything more is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cluster import read_cluster
from harness.scenario import read_scenario
from traces.errors import InputError

INSTANCE: dict[str, Any] = {
    "model_name": "meta-llama/Llama-3.1-8B",
    "hardware": "RTXPRO6000",
    "npu_mem": {"mem_size": 96, "mem_bw": 1597, "mem_latency": 0, "mem_util": 0.85},
    "num_npus": 1,
    "tp_size": 1,
    "pd_type": None,
}


def cluster(
    tmp_path: Path, *, top: dict[str, Any] | None = None, node: dict[str, Any] | None = None, **instance: Any
) -> Any:
    """Read a cluster of one instance with these changes."""
    nodes = [{"num_instances": 1, "instances": [{**INSTANCE, **instance}], **(node or {})}]
    content = {"num_nodes": 1, "link_bw": 16, "link_latency": 20000, "nodes": nodes, **(top or {})}
    (tmp_path / "cluster.json").write_text(json.dumps(content, indent=1))
    (tmp_path / "scenario.yaml").write_text("trace: t.jsonl\ncluster: cluster.json\n")
    return read_cluster(read_scenario(tmp_path / "scenario.yaml"))


def test_one_engine_on_one_device(tmp_path: Path) -> None:
    spec = cluster(tmp_path, max_num_seqs=64, reserve_full_isl=False)
    assert (spec.model, spec.device, spec.memory_bytes) == ("meta-llama/Llama-3.1-8B", "RTXPRO6000", 96 * 2**30)
    assert spec.said_options == {
        "max_num_seqs": 64,
        "scheduler_reserve_full_isl": False,
        "gpu_memory_utilization": 0.85,
    }
    assert "not used by a prediction of one engine on one device: link_bw, link_latency" in spec.notes[0]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("num_nodes", {"top": {"num_nodes": 2}}),
        ("cxl_mem", {"top": {"cxl_mem": {"mem_size": 1}}}),
        (r"nodes\[0\].num_instances", {"node": {"num_instances": 2}}),
        (r"nodes\[0\].power", {"node": {"power": {}}}),
        (r"nodes\[0\].cpu_mem.pim_config", {"node": {"cpu_mem": {"pim_config": "x"}}}),
        (r"nodes\[0\].instances\[0\].tp_size", {"tp_size": 2, "num_npus": 2}),
        (r"nodes\[0\].instances\[0\].pd_type", {"pd_type": "prefill"}),
        (r"nodes\[0\].instances\[0\].dp_group", {"dp_group": "A"}),
        (r"nodes\[0\].instances\[0\].ep_size", {"ep_size": 2}),
        (r"nodes\[0\].instances\[0\].placement", {"placement": {}}),
        (r"nodes\[0\].instances\[0\].enable_attn_offloading", {"enable_attn_offloading": True}),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(tmp_path: Path, field: str, changes: dict[str, Any]) -> None:
    message = f"cluster.json:\\d+: field '{field}': asks for what this version does not model"
    with pytest.raises(InputError, match=message):
        cluster(tmp_path, **changes)


def test_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"field 'nodes\[0\].instances\[0\].tp_sizee': is unknown.*'tp_size'"):
        cluster(tmp_path, tp_sizee=2)


@pytest.mark.ground_truth
def test_every_example_is_read_or_refused_by_name(ground_truth: Path, tmp_path: Path) -> None:
    examples = sorted((ground_truth / "vllm-0.19" / "cluster-examples").glob("*.json"))
    assert len(examples) == 27
    read, unnamed = [], []
    for example in examples:
        (tmp_path / "scenario.yaml").write_text(f"trace: t.jsonl\ncluster: {example}\n")
        try:
            read_cluster(read_scenario(tmp_path / "scenario.yaml"))
            read.append(example.stem)
        except InputError as error:
            unnamed += [] if error.field else [example.stem]
    assert read == ["rtx4090_single_instance", "single_node_single_instance"]
    assert not unnamed
