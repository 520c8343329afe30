"""Faults that are known of LLMServingSim: what it spins on, hangs on or takes without a word, we serve or refuse.

Each test names the fault as its users or its code show it. Faults of parts that are not modelled yet have no test here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.deploy.deployment import deploy
from harness.descriptions.scenario import read_scenario
from harness.running.simulate import simulate_scenario
from simulator.cluster import Cluster
from simulator.simulate import simulate
from tests.engines import engine, trace
from traces.capture import Capture
from traces.errors import InputError
from traces.outcome import Status

INSTANCE: dict[str, Any] = {
    "model_name": "servetwin/llama-s",
    "hardware": "AMD-EPYC-2vCPU",
    "npu_mem": {"mem_size": 1, "mem_bw": 20, "mem_latency": 0, "mem_util": 0.5},
    "pd_type": None,
}
ROW = {"input_toks": 40, "output_toks": 5, "arrival_time_ns": 0}
ENGINE = "{max_num_seqs: 8, max_num_batched_tokens: 256, max_model_len: 2048, block_size: 32, enforce_eager: true}"


def served(
    tmp_path: Path,
    *rows: dict[str, Any],
    instances: list[dict[str, Any]] | None = None,
    options: str = ENGINE,
    overrides: tuple[str, ...] = (),
) -> Capture:
    """Serve LLMServingSim's own rows on its own cluster description."""
    made = instances or [INSTANCE]
    node = {"num_instances": len(made), "instances": made}
    cluster = {"num_nodes": 1, "link_bw": 16, "link_latency": 1000, "nodes": [node]}
    (tmp_path / "cluster.json").write_text(json.dumps(cluster))
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(f"trace: trace.jsonl\ncluster: cluster.json\nengine: {options}\n")
    simulation, _ = simulate_scenario(scenario, overrides)
    return simulation.capture


def test_a_request_larger_than_the_kv_cache_is_rejected_and_does_not_spin(tmp_path: Path) -> None:
    capture = served(tmp_path, {**ROW, "input_toks": 1500}, ROW, overrides=("engine.num_gpu_blocks=20",))
    assert [outcome.status for outcome in capture.outcomes] == [Status.REJECTED, Status.FINISHED]
    assert "the engine has 19" in (capture.outcomes[0].reason or "")


def test_a_prompt_longer_than_the_model_takes_is_rejected(tmp_path: Path) -> None:
    capture = served(tmp_path, {**ROW, "input_toks": 140_000}, ROW)
    assert capture.outcomes[0].status is Status.REJECTED
    assert "max_model_len is 2048" in (capture.outcomes[0].reason or "")


def test_a_whole_prompt_beyond_the_budget_is_refused_before_anything_waits_for_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"max_num_batched_tokens': found 256: accepted: at least max_model_len 2048"):
        served(tmp_path, {**ROW, "input_toks": 1000}, overrides=("engine.enable_chunked_prefill=false",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_toks": 0}, r"trace.jsonl:2: field 'input_toks'"),
        ({"input_toks": -5}, r"trace.jsonl:2: field 'input_toks'"),
        ({"output_toks": 0}, r"trace.jsonl:2: field 'output_toks'"),
        ({"arrival_time_ns": -1}, r"trace.jsonl:2: field 'arrival_time_ns'"),
        ({"input_tok_ids": [1, 2, 3]}, r"trace.jsonl:2: field 'input_tok_ids'"),
        ({"output_toks": None}, r"trace.jsonl:2: field 'output_toks'"),
    ],
)
def test_a_row_that_makes_no_sense_is_an_error_with_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        served(tmp_path, ROW, {**ROW, **row})


def test_an_empty_trace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trace\.jsonl"):
        served(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.max_num_batched_tokens=-1", "engine.max_num_batched_tokens"),
        ("engine.block_size=0", "engine.block_size"),
        ("engine.dtype=int8", "engine.dtype"),
    ],
)
def test_an_option_out_of_range_is_an_error_that_names_it(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        served(tmp_path, ROW, overrides=(override,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tp_sizee": 2}, "tp_sizee': is unknown"),
        ({"hardware": "RTX9999"}, "no profile of RTX9999"),
        ({"model_name": "nobody/nothing"}, "no profile of AMD-EPYC-2vCPU / nobody/nothing"),
        ({"num_npus": 3, "tp_size": 2}, "num_npus': found 3: accepted: tp_size 2"),
        ({"tp_size": "two"}, "tp_size': "),
        ({"npu_mem": {**INSTANCE["npu_mem"], "mem_size": -96}}, "mem_size': found -96"),
        ({"npu_mem": {**INSTANCE["npu_mem"], "mem_size": 0.01}}, "does not fit on AMD-EPYC-2vCPU"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_before_it_starts(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        served(tmp_path, ROW, instances=[{**INSTANCE, **change}])


def test_a_cut_off_cluster_file_is_an_error_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"num_nodes": 1,\n "nodes": [')
    (tmp_path / "scenario.yaml").write_text(f"trace: t\ncluster: cluster.json\nengine: {ENGINE}\n")
    with pytest.raises(InputError, match=r"cluster.json:\d+"):
        deploy(read_scenario(tmp_path / "scenario.yaml"))


def test_absolute_paths_work(tmp_path: Path) -> None:
    served(tmp_path, ROW)
    other = tmp_path / "elsewhere"
    other.mkdir()
    text = f"trace: {tmp_path / 'trace.jsonl'}\ncluster: {tmp_path / 'cluster.json'}\nengine: {ENGINE}\n"
    (other / "scenario.yaml").write_text(text)
    simulation, _ = simulate_scenario(other / "scenario.yaml")
    assert simulation.capture.outcomes[0].status is Status.FINISHED


def test_copies_of_a_dense_model_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Its data-parallel groups step together whatever the model; vLLM's dense ranks know nothing of each other."""
    ranks = [{**INSTANCE, "dp_group": "A"}] * 2
    long, short = {**ROW, "input_toks": 1000, "output_toks": 100}, ROW
    both = served(tmp_path, long, short, instances=ranks).outcomes
    alone = served(tmp_path, short).outcomes
    assert both[1].token_times_s == alone[0].token_times_s


def test_groups_and_single_instances_can_be_mixed(tmp_path: Path) -> None:
    """It takes the topology of the first group for all."""
    instances = [{**INSTANCE, "dp_group": group} for group in ("A", "A", "B", "B", None)]
    capture = served(tmp_path, *[ROW] * 10, instances=instances)
    assert sorted(outcome.instance or 0 for outcome in capture.outcomes) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_data_parallel_pipelines_end(tmp_path: Path) -> None:
    """Its data-parallel pipelines hang."""
    ranks = [{**INSTANCE, "dp_group": "A", "pp_size": 2, "num_npus": 2}] * 2
    capture = served(tmp_path, *[{**ROW, "output_toks": 20}] * 6, instances=ranks)
    assert {outcome.status for outcome in capture.outcomes} == {Status.FINISHED}


def test_pipelines_of_unlike_depth_stand_side_by_side(tmp_path: Path) -> None:
    """Its dimensions are wrong when instances differ in devices."""
    instances = [{**INSTANCE, "pp_size": 2, "num_npus": 2}, {**INSTANCE, "pp_size": 3, "num_npus": 3}, INSTANCE]
    capture = served(tmp_path, *[ROW] * 9, instances=instances)
    assert {outcome.status for outcome in capture.outcomes} == {Status.FINISHED}


def test_a_full_decode_instance_holds_requests_back_and_keeps_its_limits(tmp_path: Path) -> None:
    """Its decode instance has no queue and no max_num_seqs, and fails when its blocks are used up."""
    instances = [
        {**INSTANCE, "pd_type": "prefill"},
        {**INSTANCE, "pd_type": "decode", "max_num_seqs": 2, "max_num_batched_tokens": 0},
    ]
    rows = [{**ROW, "input_toks": 300, "output_toks": 60}] * 8
    capture = served(tmp_path, *rows, instances=instances, overrides=("engine.num_gpu_blocks=40",))
    assert {outcome.status for outcome in capture.outcomes} == {Status.FINISHED}
    assert capture.steps is not None
    assert capture.steps.n_running[capture.steps.instance == 1].max() <= 2


def test_an_instance_without_requests_leaves_the_clock_alone() -> None:
    """Its clock moves only while it is asked; ours jumps to the next arrival."""
    run = simulate(trace((0.0, 10, 2), (1000.0, 10, 2)), Cluster((engine(), engine())))
    assert run.n_steps == 4
    assert run.capture.outcomes[1].scheduled_s == 1000.0


def test_time_per_output_token_of_a_single_token_is_not_measured_and_not_zero(tmp_path: Path) -> None:
    """It counts 0 for requests of one token, which pulls the mean down."""
    from traces.metrics import summary

    capture = served(tmp_path, {**ROW, "output_toks": 1})
    assert summary(capture)["metrics"]["tpot_s"]["mean"] is None
