"""Whether scenario and capture speak of the same engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.descriptions.agreement import Agreement, agree, with_recorded_experts
from harness.descriptions.cluster import InstanceSpec
from profiles.catalog import BUNDLED
from traces.capture import CaptureMeta
from traces.decoding import Document, read_document

LLAMA, QWEN = "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-32B"


@pytest.fixture
def document(tmp_path: Path) -> Document:
    (tmp_path / "cluster.yaml").write_text("instances: []\n")
    return read_document(tmp_path / "cluster.yaml")


def agreed(document: Document, said: dict[str, Any] | None = None, **measured: Any) -> Agreement:
    """What a Llama on an H100 agrees with."""
    spec = InstanceSpec(LLAMA, "H100-SXM", {}, document, ())
    meta = {"kind": "measured", "engine": "vllm 0.32.0", "model": LLAMA, "device": "H100-SXM", "clock": "", **measured}
    return agree(said or {}, spec, CaptureMeta(**meta), [BUNDLED])


def test_what_the_scenario_leaves_unsaid_is_taken_and_noted(document: Document) -> None:
    agreement = agreed(document, engine_options={"max_num_seqs": 64}, num_gpu_blocks=500)
    assert agreement.taken == {"max_num_seqs": 64, "num_gpu_blocks": 500}
    assert not agreement.mismatches
    assert agreement.notes[0].endswith("does not state them: max_num_seqs 64, num_gpu_blocks 500")
    assert "defaults are used: cpu_offload_gb 0.0, dtype bfloat16" in agreement.notes[1]


@pytest.mark.parametrize(
    ("measured", "mismatch"),
    [
        ({"engine_options": {"max_num_seqs": 128}}, "max_num_seqs 64 simulated, 128 measured"),
        ({"engine_options": {"tensor_parallel_size": 2}}, "tensor_parallel_size 1 simulated, 2 measured"),
        ({"engine_options": {"data_parallel_size": 2}}, "data_parallel_size 1 simulated, 2 measured"),
        ({"engine_options": {"enable_expert_parallel": True}}, "enable_expert_parallel False simulated, True measured"),
        ({"model": QWEN}, f"model {LLAMA} simulated, {QWEN} measured"),
        ({"device": "NVIDIA L40S"}, "device H100-SXM simulated, NVIDIA L40S measured"),
    ],
)
def test_a_contradiction_is_a_mismatch(document: Document, measured: dict[str, Any], mismatch: str) -> None:
    assert agreed(document, {"max_num_seqs": 64}, **measured).mismatches == (f"configuration mismatch: {mismatch}",)


def test_another_name_of_the_same_device_is_no_contradiction(document: Document) -> None:
    agreement = agreed(document, device="NVIDIA H100 80GB HBM3")
    assert not agreement.mismatches
    assert "H100" not in "".join(agreement.notes)


def test_a_name_that_nobody_knows_is_a_note(document: Document) -> None:
    agreement = agreed(document, model="my-llama", device="node 7")
    assert not agreement.mismatches
    assert f"the capture calls its model 'my-llama', the scenario '{LLAMA}': taken to be the same" in agreement.notes
    assert "the capture calls its device 'node 7', the scenario 'H100-SXM': taken to be the same" in agreement.notes


def test_what_is_recorded_and_not_simulated_is_a_note(document: Document) -> None:
    notes = agreed(document, engine_options={"speculative_tokens": 3, "seed": 1, "tensor_parallel_size": 1}).notes
    assert notes[-1] == "recorded engine options that are not simulated: speculative_tokens 3"


def test_a_dtype_of_auto_tells_nothing(document: Document) -> None:
    agreement = agreed(document, {"dtype": "bfloat16"}, engine_options={"dtype": "auto"})
    assert agreement.mismatches == ()
    assert agreement.taken == {}


def test_a_simulated_capture_is_called_one(document: Document) -> None:
    assert agreed(document, kind="simulated").notes[0].startswith("the capture is itself simulated")


def test_what_decides_the_number_of_blocks_is_no_contradiction_where_that_is_known(document: Document) -> None:
    said, recorded = {"gpu_memory_utilization": 0.83}, {"gpu_memory_utilization": 0.9}
    assert agreed(document, said, engine_options=recorded).mismatches
    agreement = agreed(document, said, engine_options=recorded, num_gpu_blocks=2588)
    assert not agreement.mismatches
    assert any("gpu_memory_utilization 0.83 here, 0.9 measured: not used" in note for note in agreement.notes)
    assert agreement.taken["num_gpu_blocks"] == 2588


@pytest.mark.parametrize(
    ("said", "recorded"),
    [
        ({"dtype": "fp8"}, {"dtype": "bfloat16"}),
        ({"dtype": "bfloat16", "kv_cache_dtype": "auto"}, {"dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}),
    ],
)
def test_what_means_the_same_is_no_contradiction(
    document: Document, said: dict[str, Any], recorded: dict[str, Any]
) -> None:
    assert not agreed(document, said, engine_options=recorded).mismatches


@pytest.mark.parametrize(
    ("said", "recorded"),
    [
        ({"dtype": "fp8"}, {"dtype": "float16"}),
        ({"dtype": "bfloat16", "kv_cache_dtype": "fp8"}, {"kv_cache_dtype": "auto"}),
        ({"dtype": "float16", "kv_cache_dtype": "auto"}, {"dtype": "float16", "kv_cache_dtype": "bfloat16"}),
    ],
)
def test_another_type_is_a_contradiction(document: Document, said: dict[str, Any], recorded: dict[str, Any]) -> None:
    assert agreed(document, said, engine_options=recorded).mismatches


def test_a_version_before_asynchronous_scheduling_schedules_synchronously(document: Document) -> None:
    agreement = agreed(document, engine="vllm 0.13.0")
    assert agreement.taken == {"async_scheduling": False}
    assert any(
        "defaults of vLLM 0.13, which nothing states otherwise: async_scheduling False" in note
        for note in agreement.notes
    )
    assert not any("async_scheduling True" in note for note in agreement.notes)
    assert agreed(document, engine="vllm 0.14.0").taken == {}
    assert agreed(document, {"async_scheduling": True}, engine="vllm 0.13.0").taken == {}


def test_a_device_that_only_a_profile_names_may_be_one_that_is_described(document: Document, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder in BUNDLED.rglob("profile.json"):
        described = json.loads(folder.read_text())
        (tmp_path / "mine" / "profile.json").write_text(json.dumps({**described, "device": "MY-H100"}))
    spec = InstanceSpec(LLAMA, "MY-H100", {}, document, ())
    measured = CaptureMeta(kind="measured", engine=None, model=LLAMA, device="NVIDIA H100 80GB HBM3", clock="")
    agreement = agree({}, spec, measured, [tmp_path, BUNDLED])
    assert not agreement.mismatches
    assert any("'NVIDIA H100 80GB HBM3', the scenario 'MY-H100': taken to be the same" in n for n in agreement.notes)


@pytest.mark.parametrize(
    ("says", "recorded", "found"), [(False, True, True), (True, True, False), (False, None, False)]
)
def test_expert_parallelism_is_the_captures_where_the_description_is_silent(
    document: Document, says: bool, recorded: bool | None, found: bool
) -> None:
    spec = InstanceSpec(LLAMA, "H100-SXM", {}, document, (), says_expert_parallel=says)
    options = {"enable_expert_parallel": recorded}
    measured = CaptureMeta(kind="measured", engine=None, model=LLAMA, device=None, clock="", engine_options=options)
    assert with_recorded_experts(spec, measured).enable_expert_parallel == found
