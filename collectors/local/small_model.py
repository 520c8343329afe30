"""A small random model that any vLLM can serve with `--load-format dummy`: a config and a tokenizer, no weights.

A Llama, or one with experts: a Mixtral, or a Qwen3-MoE, which also normalises queries and keys.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

VOCAB_SIZE = 8192
MAX_POSITION_EMBEDDINGS = 8192


@dataclass(frozen=True, slots=True)
class Size:
    """Dimensions of a small model; its heads are 64 wide. Experts are 0 in a Llama."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    model_type: str = "llama"
    num_experts: int = 0
    num_experts_per_tok: int = 0


SIZES = {
    "xs": Size(256, 768, 4, 4, 2),
    "s": Size(512, 1536, 8, 8, 4),
    "mixtral-xs": Size(256, 512, 4, 4, 2, "mixtral", 8, 2),
    "qwen3-moe-xs": Size(256, 256, 4, 4, 2, "qwen3_moe", 16, 4),
}

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""vLLM's class by `model_type`."""


def write_small_model(out: Path, size: str) -> Path:
    """Write the model folder; its tokenizer has one token per word `w<id>`. Returns the folder."""
    dimensions = SIZES[size]
    config = {
        "architectures": [ARCHITECTURES[dimensions.model_type]],
        "model_type": dimensions.model_type,
        "hidden_size": dimensions.hidden_size,
        "intermediate_size": dimensions.intermediate_size,
        "num_hidden_layers": dimensions.num_hidden_layers,
        "num_attention_heads": dimensions.num_attention_heads,
        "num_key_value_heads": dimensions.num_key_value_heads,
        "head_dim": 64,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": MAX_POSITION_EMBEDDINGS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        **_experts(dimensions),
    }
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB_SIZE)}}
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": word, **special} for i, word in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": MAX_POSITION_EMBEDDINGS,
        "chat_template": "{% for m in messages %}{{ m['content'] }} {% endfor %}",
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("config.json", config),
        ("generation_config.json", {"bos_token_id": 1, "eos_token_id": 2}),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (out / name).write_text(json.dumps(content))
    return out


def _experts(dimensions: Size) -> dict[str, object]:
    """What the config of a model with experts says of them, by its family's names."""
    per_token = {"num_experts_per_tok": dimensions.num_experts_per_tok}
    match dimensions.model_type:
        case "mixtral":
            return {"num_local_experts": dimensions.num_experts, **per_token, "sliding_window": None}
        case "qwen3_moe":
            moe = {"num_experts": dimensions.num_experts, "moe_intermediate_size": dimensions.intermediate_size}
            return {**moe, **per_token, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
        case _:
            return {}
