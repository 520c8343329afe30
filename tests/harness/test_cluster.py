"""Cluster descriptions, our own and LLMServingSim's: read as they are, and what is not modelled is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.deploy.asked import read_cluster
from harness.descriptions.cluster import ClusterSpec, place
from harness.descriptions.scenario import read_scenario
from simulator.network.topology import FabricFile, InterNodeFile, Place
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
    read = cluster(tmp_path, max_num_seqs=64, reserve_full_isl=False)
    (spec,) = read.instances
    assert (spec.model, spec.device, spec.memory_bytes) == ("meta-llama/Llama-3.1-8B", "RTXPRO6000", 96 * 2**30)
    assert spec.said_options == {
        "max_num_seqs": 64,
        "scheduler_reserve_full_isl": False,
        "gpu_memory_utilization": 0.85,
    }
    assert read.fabric == FabricFile("full_mesh", 16 * 2**30, 20e-6)
    assert read.inter_node is None


def test_instances_of_one_group_are_the_ranks_of_one_engine(tmp_path: Path) -> None:
    ranks = [{**INSTANCE, "tp_size": 2, "num_npus": 2, "dp_group": "A", "ep_size": 4}] * 2
    nodes = [{"num_instances": 1, "instances": [rank]} for rank in ranks]
    read = cluster(tmp_path, top={"num_nodes": 2, "nodes": nodes, "link_bw": [128, 16], "link_latency": [500, 20000]})
    (spec,) = read.instances
    assert spec.parallelism == {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 2,
        "enable_expert_parallel": True,
    }
    assert spec.nodes == (0, 1)
    assert read.fabric == FabricFile("full_mesh", 128 * 2**30, pytest.approx(500e-9))  # type: ignore[arg-type]
    assert read.inter_node == InterNodeFile("full_mesh", 16 * 2**30, 20e-6)


def test_version_1_states_devices_and_groups_of_them(tmp_path: Path) -> None:
    old = {key: value for key, value in INSTANCE.items() if key not in ("num_npus", "tp_size")}
    read = cluster(tmp_path, node={"instances": [{**old, "npu_num": 4, "npu_group": 2}]})
    spec = read.instances[0]
    assert (spec.tensor_parallel_size, spec.pipeline_parallel_size) == (2, 2)


def test_a_decode_instance_without_a_token_limit_computes_a_token_a_request(tmp_path: Path) -> None:
    """The reference's single_node_heterogeneous.json."""
    decode = {"pd_type": "decode", "max_num_seqs": 256, "max_num_batched_tokens": 0, "enable_chunked_prefill": False}
    (spec,) = cluster(tmp_path, **decode).instances
    assert spec.role == "decode"
    assert spec.said_options["max_num_batched_tokens"] == 256
    assert spec.said_options["enable_chunked_prefill"]


def test_what_is_not_modelled_is_refused_by_name(tmp_path: Path) -> None:
    field = r"nodes\[0\].instances\[0\].enable_local_offloading"
    message = f"cluster.json:\\d+: field '{field}': asks for what this version does not model"
    with pytest.raises(InputError, match=message):
        cluster(tmp_path, enable_local_offloading=True)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (r"'num_nodes': .*accepted: 1, as many", {"top": {"num_nodes": 2}}),
        (r"'nodes\[0\].num_instances': .*accepted: 1, as many", {"node": {"num_instances": 2}}),
        (r"num_npus': found 3: accepted: tp_size 1 times pp_size 1", {"num_npus": 3}),
        (r"ep_size': found 2: accepted: 1, or tp_size times .*: 1", {"ep_size": 2}),
        (r"npu_num': found 2: accepted: npu_num and npu_group, or", {"npu_num": 2}),
        (r"max_num_seqs': found 0: accepted: 1 or more", {"max_num_seqs": 0}),
        (r"max_num_batched_tokens': found 0: accepted: 1 or more", {"max_num_batched_tokens": 0}),
        (r"link_bw': .*accepted: one value, or with several nodes", {"top": {"link_bw": [1, 2]}}),
        (r"'nodes': .*accepted: a node with an instance", {"top": {"nodes": [], "num_nodes": 1}}),
        (r"tp_sizee': is unknown.*'tp_size'", {"tp_sizee": 2}),
    ],
)
def test_what_contradicts_itself_is_an_error(tmp_path: Path, message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=message):
        cluster(tmp_path, **changes)


def test_a_group_of_unlike_instances_is_an_error(tmp_path: Path) -> None:
    ranks = [{**INSTANCE, "dp_group": "A"}, {**INSTANCE, "dp_group": "A", "max_num_seqs": 7}]
    with pytest.raises(InputError, match=r"instances\[1\].dp_group': has instances that differ in said_options"):
        cluster(tmp_path, node={"num_instances": 2, "instances": ranks})


# -- our own -----------------------------------------------------------------------------------------------------------


def own(tmp_path: Path, text: str) -> ClusterSpec:
    (tmp_path / "scenario.yaml").write_text("trace: t.jsonl\ncluster: cluster.yaml\n")
    (tmp_path / "cluster.yaml").write_text(text)
    return read_cluster(read_scenario(tmp_path / "scenario.yaml"))


def test_engines_stand_side_by_side_node_by_node(tmp_path: Path) -> None:
    read = own(
        tmp_path,
        """
        instances:
          - {model: m, device: d, count: 2, tensor_parallel_size: 2}
          - {model: m, device: d, data_parallel_size: 2, node: 1}
        fabric: {kind: switch, bandwidth_bytes_per_s: 1e9, latency_s: 0}
        inter_node: {kind: switch, bandwidth_bytes_per_s: 1e9, latency_s: 0}
        """,
    )
    placed = place(read, [2, 2])
    assert placed.places == (
        ((Place(0, 0), Place(0, 1)), (Place(0, 2), Place(0, 3))),
        ((Place(1, 0),), (Place(1, 1),)),
    )
    assert placed.topology is not None
    assert placed.topology.places == (*(Place(0, i) for i in range(4)), Place(1, 0), Place(1, 1))


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (["prefill", "both"], r"instances\[0\].role.*accepted: roles prefill and decode, or both for every engine"),
        (["prefill"], "'instances': has engines of role prefill and none of role decode"),
        (["decode"], "'instances': has engines of role decode and none of role prefill"),
        (["eat"], r"role': found 'eat': accepted: both, decode, prefill"),
    ],
)
def test_roles_that_make_no_whole_are_refused(tmp_path: Path, roles: list[str], message: str) -> None:
    lines = [f"  - {{model: m, device: d, role: {role}}}" for role in roles]
    with pytest.raises(InputError, match=message):
        own(tmp_path, "\n".join(["instances:", *lines]) + "\n")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["kv_transfer: {when: layer_by_layer}"], "'kv_transfer': has no effect where no engine has role"),
        (["kv_transfer: {when: never}"], r"kv_transfer.when': found 'never': accepted: at_end, layer_by_layer"),
        (["fabric: {kind: donut}"], r"fabric.kind': found 'donut': accepted: bus, full_mesh, ring, switch"),
    ],
)
def test_settings_that_are_unknown_or_have_no_effect_are_refused(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        own(tmp_path, "\n".join(["instances: [{model: m, device: d}]", *lines]) + "\n")


# -- the reference's examples ------------------------------------------------------------------------------------------

REFUSED = {
    "single_node_moe_dp_tp_instance": "nodes[0].instances[0].ep_size",
}
"""Examples that are not modelled, or that vLLM could not run, and the field that says so."""


@pytest.mark.ground_truth
def test_every_example_is_read_or_refused_by_name(ground_truth: Path, tmp_path: Path) -> None:
    examples = sorted((ground_truth / "vllm-0.19" / "cluster-examples").glob("*.json"))
    assert len(examples) == 27
    refused = {}
    for example in examples:
        (tmp_path / "scenario.yaml").write_text(f"trace: t.jsonl\ncluster: {example}\n")
        try:
            read_cluster(read_scenario(tmp_path / "scenario.yaml"))
        except InputError as error:
            refused[example.stem] = error.field
    assert refused == REFUSED


@pytest.mark.ground_truth
@pytest.mark.parametrize("name", ["MD", "PDD", "SD", "SD+PC", "SM"])
def test_the_artifacts_clusters_are_read(ground_truth: Path, tmp_path: Path, name: str) -> None:
    file = ground_truth / "ispass26" / "throughput" / "A6000" / "config" / f"{name}_config.json"
    (tmp_path / "scenario.yaml").write_text(f"trace: t.jsonl\ncluster: {file}\n")
    read = read_cluster(read_scenario(tmp_path / "scenario.yaml"))
    roles = {"PDD": ["prefill", "decode"], "MD": ["both", "both"]}
    assert [spec.role for spec in read.instances] == roles.get(name, ["both"])
