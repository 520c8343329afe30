"""One rank's share of a tensor-parallel model, as the config of a smaller model that one device can compute alone.

Every projection, the embedding and the head have the shapes that vLLM's rank has; what is missing are the collectives,
which are measured by themselves.
"""

from __future__ import annotations

from typing import Any

from profiles.model import VOCAB_PADDING, ModelSpec, model_of
from traces.errors import InputError

SPLIT = ("num_attention_heads", "intermediate_size", "moe_intermediate_size")
"""Fields of a Hugging Face config that a degree divides (vLLM 0.32 `model_executor/layers/linear.py`)."""


def sharded(config: dict[str, Any], model: ModelSpec, tp: int) -> dict[str, Any]:
    """What to change in the config for one of `tp` ranks; nothing for one alone.

    Key and value heads are repeated where there are fewer than ranks; the embedding's rows are padded first. Raises
    InputError for a degree that the model cannot be split by.
    """
    if tp == 1:
        return {}
    model.parameters(tp)  # refuses what does not divide
    if "text_config" in config:
        raise InputError(field="--tensor-parallel", found=tp, accepted="1 for a model of several modalities")
    rows = -(-model.vocab_size // VOCAB_PADDING) * VOCAB_PADDING
    changes = {name: config[name] // tp for name in SPLIT if config.get(name)}
    return {
        **changes,
        "num_key_value_heads": max(1, model.num_kv_heads // tp),
        "head_dim": model.head_dim,
        "vocab_size": rows // tp,
    }


def share_of(config: dict[str, Any], model: ModelSpec, tp: int) -> ModelSpec:
    """The model that one of `tp` ranks computes."""
    return model_of({**config, **sharded(config, model, tp)}, model.name)
