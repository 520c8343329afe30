"""Models from their configs: the published sizes, and what a wrong config says."""

from __future__ import annotations

import pytest

from profiles.catalog import BUNDLED, find_model
from profiles.model import model_of
from traces.errors import InputError

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Sums over the published checkpoints' tensors.
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 30_532_122_624),
    ],
)
def test_parameters_are_those_of_the_published_checkpoint(name: str, parameters: int) -> None:
    assert sum(find_model(name, [BUNDLED]).parameters().values()) == parameters


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
