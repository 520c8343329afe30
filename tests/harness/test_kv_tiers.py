"""KV tiers from descriptions: what they are like, LLMServingSim's second tier, and what the page shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.deploy.asked import read_cluster
from harness.descriptions.cluster import ClusterSpec
from harness.descriptions.scenario import read_scenario
from harness.running.simulate import simulate_scenario
from tests.pages import shown_and_printed
from traces.errors import InputError

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
CPU = {"mem_size": 8, "mem_bw": 64, "mem_latency": 100}
CXL = {"mem_size": 32, "mem_bw": 16, "mem_latency": 250, "num_devices": 2}
GIB = 2**30


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("kv_tiers.md", tmp_path)
    assert printed == shown


def test_a_tier_is_like_another_where_it_does_not_say_otherwise() -> None:
    said = "{name: a, capacity_bytes: 1.0e+9, bandwidth_bytes_per_s: 1.0e+9, like: LMCache store"
    override = f"cluster.kv_tiers=[{said}}}, {said}, chunk_tokens: 64, shared: false}}]"
    plain, own = read_cluster(read_scenario(EXAMPLES / "kv_tiers.yaml", [override])).kv_tiers
    assert (plain.chunk_tokens, plain.shared, plain.eviction) == (256, True, "lru")
    assert (own.chunk_tokens, own.shared) == (64, False)


def test_what_is_like_nothing_known_is_refused() -> None:
    override = "cluster.kv_tiers=[{name: a, capacity_bytes: 1, bandwidth_bytes_per_s: 1, like: Redis}]"
    with pytest.raises(InputError, match=r"kv_tiers\[0\].like': found 'Redis': accepted: LLMServingSim, LMCache host"):
        read_cluster(read_scenario(EXAMPLES / "kv_tiers.yaml", [override]))


def reference(tmp_path: Path, prefix: str, *, nodes: int = 1, cpu_mem: dict[str, Any] | None = None) -> ClusterSpec:
    """LLMServingSim's cluster of nodes of two instances, and what its command line would say."""
    text = json.loads((EXAMPLES / "llmservingsim.json").read_text())
    instance = text["nodes"][0]["instances"][0]
    node = {"num_instances": 2, "instances": [instance] * 2, "cpu_mem": CPU if cpu_mem is None else cpu_mem}
    whole = {"num_nodes": nodes, "nodes": [node] * nodes, "cxl_mem": CXL}
    (tmp_path / "cluster.json").write_text(json.dumps(whole))
    trace = (EXAMPLES / "../../harness/bundled/captures/prefix-1/trace.jsonl.gz").resolve()
    (tmp_path / "scenario.yaml").write_text(
        f"trace: {trace}\ncluster: cluster.json\nprefix: {prefix}\n"
        "engine: {max_num_seqs: 32, max_num_batched_tokens: 512, max_model_len: 2048, block_size: 32, "
        "num_gpu_blocks: 100, enforce_eager: true}\n"
    )
    return read_cluster(read_scenario(tmp_path / "scenario.yaml"))


def test_llmservingsims_second_tier(tmp_path: Path) -> None:
    (cpu,) = reference(tmp_path, "{storage: cpu}").kv_tiers
    assert (cpu.name, cpu.capacity_bytes, cpu.bandwidth_bytes_per_s) == ("cpu", 4 * GIB, 64e9)
    assert (cpu.chunk_tokens, cpu.shared) == (256, False)
    assert cpu.latency_s == pytest.approx(100e-9)
    (cxl,) = reference(tmp_path, "{storage: cxl, sharing: true}", nodes=2).kv_tiers
    assert (cxl.capacity_bytes, cxl.bandwidth_bytes_per_s, cxl.shared) == (64 * GIB, 16e9, True)
    (shared,) = reference(tmp_path, "{storage: cpu, sharing: true}", nodes=2).kv_tiers
    assert (shared.capacity_bytes, shared.shared) == (8 * GIB, "node")
    reference(tmp_path, "{storage: cpu, sharing: true}")
    simulation, _ = simulate_scenario(tmp_path / "scenario.yaml")
    assert simulation.capture.series["kv_tier_cpu_hit_tokens"].value[-1] > 0


@pytest.mark.parametrize(
    ("prefix", "changes", "message"),
    [
        ("{storage: disk}", {}, r"prefix.storage': found 'disk': accepted: cpu, cxl"),
        (
            "{storage: cpu}",
            {"cpu_mem": {"mem_size": 1}},
            r"nodes\[0\].cpu_mem': .*accepted: mem_size, mem_bw and",
        ),
    ],
)
def test_a_second_tier_that_nothing_describes_is_refused(
    tmp_path: Path, prefix: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        reference(tmp_path, prefix, **changes)


def test_our_own_description_has_its_own_tiers() -> None:
    with pytest.raises(InputError, match=r"'prefix': has no effect: accepted: kv_tiers"):
        read_cluster(read_scenario(EXAMPLES / "kv_tiers.yaml", ["prefix={storage: cpu}"]))
