"""Models from their configs: the published sizes, and what a wrong config says."""

from __future__ import annotations

import pytest

from profiles.catalog import BUNDLED, find_model
from profiles.model import kv_dtype, model_of, part_bytes
from traces.errors import InputError

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Sums over the published checkpoints' tensors.
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 30_532_122_624),
        ("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704),
        ("microsoft/Phi-mini-MoE-instruct", 7_647_632_704),
    ],
)
def test_parameters_are_those_of_the_published_checkpoint(name: str, parameters: int) -> None:
    assert find_model(name, [BUNDLED]).num_parameters() == parameters


@pytest.mark.parametrize(
    ("parameters", "config"),
    [
        # Counted over the modules that transformers 5.19 builds from the same config.
        (90_432, {}),
        (90_816, {"attention_bias": True}),
        (82_240, {"tie_word_embeddings": True}),
        (90_432, {"model_type": "mistral"}),
        (90_432, {"model_type": "phi3"}),
        (90_688, {"model_type": "qwen2"}),
        (115_136, {"model_type": "qwen3", "head_dim": 32}),
        (238_400, {"model_type": "mixtral", **EXPERTS}),
        (239_232, {"model_type": "phimoe", **EXPERTS}),
        (
            91_008,
            {"model_type": "qwen3_moe", "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
        ),
    ],
)
def test_every_family_counts_as_its_own_code_builds_it(parameters: int, config: dict[str, object]) -> None:
    assert model_of({**TINY, "num_key_value_heads": 2, **config}, "t").num_parameters() == parameters


def test_weights_of_llama_8b_are_those_that_vllm_loads() -> None:
    llama = find_model("meta-llama/Llama-3.1-8B", [BUNDLED])
    assert llama.weight_bytes("bfloat16") == 16_060_522_496
    assert llama.dtype == "bfloat16"


def test_kv_bytes_of_a_token() -> None:
    llama = find_model("meta-llama/Llama-3.1-8B", [BUNDLED])
    assert llama.kv_bytes_per_token("bfloat16") == 131072
    assert llama.kv_bytes_per_token("fp8", tensor_parallel_size=2) == 32768
    assert llama.kv_bytes_per_token("bfloat16", 16) == llama.kv_bytes_per_token("bfloat16", 8)


def test_split_weights_add_up_but_for_what_every_device_holds() -> None:
    llama = find_model("meta-llama/Llama-3.1-8B", [BUNDLED])
    whole, half = llama.parameters(), llama.parameters(2)
    assert half["attention"] * 2 == whole["attention"]
    assert half["norms"] == whole["norms"]


def test_what_every_device_holds_whole() -> None:
    mixtral = find_model("mistralai/Mixtral-8x7B-v0.1", [BUNDLED])
    router = mixtral.num_layers * mixtral.num_experts * mixtral.hidden_size
    assert mixtral.parameters(4)["experts"] == (mixtral.parameters()["experts"] - router) // 4 + router
    phi = model_of({**TINY, "model_type": "phimoe", **EXPERTS}, "t")
    bias = phi.num_layers * phi.hidden_size
    assert phi.parameters(2)["attention"] == (phi.parameters()["attention"] - bias) // 2 + bias


def test_few_kv_heads_are_held_more_than_once() -> None:
    """4 KV heads on 8 devices: each holds one, so that all together hold 8."""
    model = model_of({**TINY, "num_attention_heads": 8, "num_key_value_heads": 4}, "t")
    assert model.parameters(8)["attention"] == 2 * 64 * 2 * (1 + 1) * model.head_dim


def test_the_vocabulary_is_padded_on_the_device_and_not_in_the_count() -> None:
    odd, padded = model_of({**TINY, "vocab_size": 100}, "t"), model_of(TINY, "t")
    assert odd.parameters() == padded.parameters()
    assert padded.num_parameters() - odd.num_parameters() == 2 * 28 * 64


@pytest.mark.parametrize("tp", [0, 3, 8])
def test_a_degree_that_does_not_divide_the_model_is_refused(tp: int) -> None:
    model = model_of(TINY, "t")
    with pytest.raises(InputError, match=f"field 'tensor_parallel_size': found {tp}"):
        model.parameters(tp)
    with pytest.raises(InputError, match="field 'tensor_parallel_size': found 3"):
        model.kv_bytes_per_token("bfloat16", 3)


def test_the_language_model_of_several_modalities_is_told() -> None:
    config = {"model_type": "any", "torch_dtype": "bfloat16", "tie_word_embeddings": True, "text_config": TINY}
    model = model_of(config, "t")
    assert (model.num_layers, model.dtype, model.tie_word_embeddings) == (2, "bfloat16", True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("model_type", "gpt2"), ("mlp_bias", True), ("mlp_only_layers", [0]), ("decoder_sparse_step", 2)],
)
def test_what_is_not_described_is_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"field '{field}': found"):
        model_of({**TINY, field: value}, "t")


@pytest.mark.parametrize("dtype", ["int3", "auto"])
def test_an_unknown_type_is_refused(dtype: str) -> None:
    with pytest.raises(InputError, match=f"field 'dtype': found '{dtype}'"):
        model_of(TINY, "t").weight_bytes(dtype)


def test_tied_embeddings_have_no_head() -> None:
    assert model_of({**TINY, "tie_word_embeddings": True}, "t").parameters()["lm_head"] == 0


@pytest.mark.parametrize("field", list(TINY))
def test_a_missing_dimension_is_named(field: str) -> None:
    config = {key: value for key, value in TINY.items() if key != field}
    with pytest.raises(InputError, match=f"field '{field}': is missing"):
        model_of(config, "t")


@pytest.mark.parametrize("value", [0, -1, 2.5, "two", True])
def test_a_wrong_dimension_is_named(value: object) -> None:
    with pytest.raises(InputError, match="field 'vocab_size': found"):
        model_of({**TINY, "vocab_size": value}, "t")


def test_quantized_types_are_of_layers_weights_alone() -> None:
    assert [part_bytes("mlp", dtype) for dtype in ("bfloat16", "fp8", "nvfp4")] == [2.0, 1.0, 0.5625]
    assert [part_bytes("lm_head", dtype) for dtype in ("float32", "fp8", "nvfp4")] == [4.0, 2.0, 2.0]
    assert [kv_dtype(dtype, "auto") for dtype in ("float16", "fp8", "nvfp4")] == ["float16", "bfloat16", "bfloat16"]
    assert kv_dtype("nvfp4", "fp8") == "fp8"
    with pytest.raises(InputError, match="field 'dtype': found 'int3'"):
        part_bytes("mlp", "int3")
