"""The shapes of a model's operators add up to the model: its weights, its arithmetic, its keys and values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from profiles.catalog import BUNDLED, find_model
from profiles.llmservingsim import LAYERS
from profiles.model import ModelSpec
from profiles.operators import Attention, Experts, Gemm, Operators, Shape
from profiles.priced import GRID, priced_profile
from profiles.profile import ProfileMeta
from profiles.roofline import work
from traces.steps import Floats

MODELS = ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B", "Qwen/Qwen3-32B", "Qwen/Qwen3-30B-A3B-Instruct-2507")


def gemms(operators: Operators, tokens: int) -> list[Gemm]:
    """All matrix products of a step in which every token's logits are asked for, experts apart."""
    composition, layers = operators.composition, operators.model.num_layers
    names = [*composition.once, *(composition.per_layer * layers), *composition.per_request]
    shapes = [operators.token_wise(name, tokens) for name in names if name not in ("attention", "moe")]
    return [shape for shape in shapes if isinstance(shape, Gemm)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_the_weights_of_all_products_are_the_models_parameters(name: str, tp: int) -> None:
    model = find_model(name, [BUNDLED])
    parts = model.parameters(tp)
    weights = sum(shape.n * shape.k for shape in gemms(Operators(model, tp, "bfloat16"), 1))
    assert weights == parts["attention"] + parts["mlp"] + parts["lm_head"]


@pytest.mark.parametrize("name", MODELS)
def test_a_token_takes_two_operations_for_each_weight_that_it_uses(name: str) -> None:
    """Kaplan et al., arXiv:2001.08361, section 2.1: 2 N, and 2 n_layer n_ctx d_attn twice for attention."""
    model = find_model(name, [BUNDLED])
    operators = Operators(model, 1, "bfloat16")
    flops = sum(work(shape)[0] for shape in gemms(operators, 1))
    flops += model.num_layers * work(operators.decode(1, 4095))[0]
    used = sum(model.parameters()[part] for part in ("attention", "mlp", "lm_head"))
    heads = model.num_heads * model.head_dim
    assert flops == 2 * used + model.num_layers * 4 * 4096 * heads


def test_keys_and_values_are_read_once() -> None:
    model = find_model("Qwen/Qwen3-32B", [BUNDLED])
    shape = Operators(model, 2, "bfloat16", "fp8").decode(7, 999)
    _, n_bytes, _ = work(shape)
    queries = 2 * 7 * shape.num_heads * shape.head_dim * 2
    per_token = model.kv_bytes_per_token("fp8", 2) / model.num_layers
    assert n_bytes == queries + 7 * 1001 * per_token  # 999 of before, its own, and its own written


def test_a_prompt_in_chunks_has_the_pairs_of_the_whole() -> None:
    operators = Operators(find_model(MODELS[0], [BUNDLED]), 1, "bfloat16")
    whole = operators.prefill(1000, 0).pairs
    assert whole == 1000 * 1001 / 2
    assert operators.prefill(300, 0).pairs + operators.prefill(700, 300).pairs == whole
    assert sum(operators.decode(1, history).pairs for history in range(1000)) == whole


@pytest.mark.parametrize(("name", "family"), [(MODELS[0], "llama"), (MODELS[2], "qwen3"), (MODELS[3], "qwen3_moe")])
def test_operators_have_the_names_of_measured_profiles(name: str, family: str) -> None:
    assert Operators(find_model(name, [BUNDLED]), 1, "bfloat16").composition.per_layer == LAYERS[family]


def test_fp8_weights_leave_embedding_head_and_attention_in_bfloat16() -> None:
    operators = Operators(find_model(MODELS[0], [BUNDLED]), 1, "fp8")
    types = {name: getattr(operators.token_wise(name, 1), "dtype", None) for name in ("qkv_proj", "lm_head")}
    assert types == {"qkv_proj": "fp8", "lm_head": "bfloat16"}
    attention = operators.prefill(16, 0)
    assert (attention.dtype, attention.kv_cache_dtype) == ("bfloat16", "bfloat16")


def test_every_point_of_the_tables_is_a_shape_that_was_asked_for() -> None:
    asked: list[Shape] = []

    def price(shapes: Sequence[Shape]) -> Floats:
        asked.extend(shapes)
        return np.arange(1.0, len(shapes) + 1)

    model = find_model(MODELS[3], [BUNDLED])
    composition = Operators(model, 1, "bfloat16").composition
    meta = ProfileMeta(device="D", model=model.name, dtype="bfloat16", source="s", method="m", composition=composition)
    tables = priced_profile(meta, model, (1,), price).tables[1]
    assert tables.moe is not None
    kinds = Counter(type(shape) for shape in asked)
    assert kinds[Experts] == len(tables.moe.time_s)
    assert kinds[Attention] == len(tables.attention.time_s)
    assert list(tables.dense["qkv_proj"].x) == list(GRID.tokens)
    at = asked.index(Operators(model, 1, "bfloat16").prefill(512, 4096))
    (row,) = np.flatnonzero((tables.attention.prefill_tokens == 512) & (tables.attention.prefill_kv_tokens == 4096))
    assert tables.attention.time_s[row] == at + 1


def test_a_degree_that_does_not_divide_the_model_is_refused() -> None:
    model = ModelSpec("m", 1, 64, 128, 4, 4, 16, 128)
    with pytest.raises(ValueError, match="none of the composition"):
        Operators(model, 1, "bfloat16").token_wise("attention", 1)
