"""How a model's operators make up its step, as vLLM's modules compute it."""

from __future__ import annotations

from profiles.model import ModelSpec
from profiles.profile import Composition

STEPS_ALONE = Composition(once=(), per_layer=(), per_request=())
"""Of a profile without operators."""


def composition_of(model: ModelSpec) -> Composition:
    """Operators of a Llama-like model in order (vLLM 0.32 `model_executor/models/{llama,qwen3,mixtral,qwen3_moe}.py`).

    `qk_norm` is the norm of the queries and that of the keys; `moe` the whole block of gate, choice and experts.
    """
    qk_norm = ("qk_norm",) if model.qk_norm else ()
    mlp = ("moe",) if model.num_experts else ("gate_up_proj", "act_fn", "down_proj")
    attention = ("layernorm", "qkv_proj", *qk_norm, "rotary_emb", "attention", "o_proj")
    return Composition(
        once=("embedding", "final_layernorm"),
        per_layer=(*attention, "layernorm", *mlp),
        per_request=("lm_head", "sampler"),
    )
