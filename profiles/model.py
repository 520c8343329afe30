"""What a model is, as far as it costs: dimensions from a Hugging Face config.json, parameters, KV bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traces.decoding import decode_json, read_bytes
from traces.errors import InputError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only transformer's dimensions. Experts are 0 in a dense model.

    Attributes:
        name: as a scenario spells it.
        num_layers: transformer layers.
        hidden_size: width of the residual stream.
        intermediate_size: width of the dense MLP, or of one expert.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: width of a head.
        vocab_size: rows of the embedding.
        max_position_embeddings: most tokens of a request; None when the config does not say.
        tie_word_embeddings: the output head shares the embedding's weights.
        attention_bias: the QKV projections have a bias.
        qk_norm: queries and keys are normalised per head (Qwen3).
        num_experts: experts per layer.
        num_experts_per_tok: of those, the ones a token uses.
        shared_expert_intermediate_size: width of an expert that every token uses.
    """

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    qk_norm: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 0
    shared_expert_intermediate_size: int = 0

    def parameters(self, tensor_parallel_size: int = 1) -> dict[str, int]:
        """Parameters that one of `tensor_parallel_size` devices holds, by part.

        vLLM 0.19 `model_executor/layers`: embedding, QKV, output projection, MLP, experts and head are split; KV heads
        are repeated when there are fewer than devices (`QKVParallelLinear`); norms, the router and the output
        projection's bias are whole on each.
        """
        tp = tensor_parallel_size
        kv_heads = max(self.num_kv_heads // tp, 1)
        q_width, kv_width = self.num_heads // tp * self.head_dim, kv_heads * self.head_dim
        bias = q_width + 2 * kv_width if self.attention_bias else 0
        attention = self.hidden_size * (2 * q_width + 2 * kv_width) + bias
        mlp = 3 * self.hidden_size * self.intermediate_size // tp
        shared = 3 * self.hidden_size * self.shared_expert_intermediate_size // tp
        router = self.num_experts * self.hidden_size
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        embedding = self.vocab_size * self.hidden_size // tp
        return {
            "embedding": embedding,
            "attention": self.num_layers * attention,
            "mlp": 0 if self.num_experts else self.num_layers * mlp,
            "experts": self.num_layers * (self.num_experts * mlp + shared + router),
            "norms": self.num_layers * norms + self.hidden_size,
            "lm_head": 0 if self.tie_word_embeddings else embedding,
        }

    def weight_bytes(self, dtype: str, tensor_parallel_size: int = 1) -> int:
        """Bytes of weights on one of `tensor_parallel_size` devices. Raises InputError for an unknown dtype."""
        return sum(self.parameters(tensor_parallel_size).values()) * dtype_bytes(dtype)

    def kv_bytes_per_token(self, dtype: str, tensor_parallel_size: int = 1) -> int:
        """Bytes of keys and values that one token takes on one device, over all layers."""
        kv_heads = max(self.num_kv_heads // tensor_parallel_size, 1)
        return 2 * self.num_layers * kv_heads * self.head_dim * dtype_bytes(dtype)


def dtype_bytes(dtype: str) -> int:
    """Bytes of one number. Raises InputError for an unknown dtype."""
    if dtype not in DTYPE_BYTES:
        raise InputError(field="dtype", found=dtype, accepted=", ".join(DTYPE_BYTES))
    return DTYPE_BYTES[dtype]


def read_model(path: Path, name: str | None = None) -> ModelSpec:
    """A model from its config.json. Raises InputError naming the field."""
    return model_of(decode_json(read_bytes(path), dict[str, Any], file=path), name or path.parent.name, path)


def model_of(config: dict[str, Any], name: str, file: Path | str = "config.json") -> ModelSpec:
    """A model from the mapping of a Hugging Face config. Raises InputError naming the field."""
    config = config.get("text_config", config)
    heads = _positive(config, file, "num_attention_heads")
    experts = _positive(config, file, "num_local_experts", "num_experts", default=0)
    hidden = _positive(config, file, "hidden_size")
    if not config.get("head_dim") and hidden % heads:
        raise InputError(
            file=file, field="hidden_size", found=hidden, accepted=f"a multiple of {heads} heads, or head_dim"
        )
    widths = ("moe_intermediate_size", "intermediate_size") if experts else ("intermediate_size",)
    return ModelSpec(
        name=name,
        num_layers=_positive(config, file, "num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=_positive(config, file, *widths),
        num_heads=heads,
        num_kv_heads=_positive(config, file, "num_key_value_heads", default=heads),
        head_dim=_positive(config, file, "head_dim", default=hidden // heads),
        vocab_size=_positive(config, file, "vocab_size"),
        max_position_embeddings=_positive(config, file, "max_position_embeddings", default=0) or None,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", config.get("model_type") in ("qwen2", "phimoe"))),
        qk_norm=config.get("model_type") in ("qwen3", "qwen3_moe"),
        num_experts=experts,
        num_experts_per_tok=_positive(config, file, "num_experts_per_tok") if experts else 0,
        shared_expert_intermediate_size=_positive(config, file, "shared_expert_intermediate_size", default=0),
    )


def _positive(config: dict[str, Any], file: Path | str, *names: str, default: int | None = None) -> int:
    """The first of `names` that the config has, as a whole number above 0; the default when it has none."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(file=file, field=name, found=value, accepted="a whole number above 0")
        return value
    if default is None:
        raise InputError("is missing", file=file, field=names[-1])
    return default
