"""Whether scenario and capture speak of the same engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.descriptions.agreement import Agreement, agree
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
    assert "defaults are used: async_scheduling True, block_size 16" in agreement.notes[1]


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
