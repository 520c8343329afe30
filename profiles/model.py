"""What a model is, as far as it costs: dimensions from a Hugging Face config.json, parameters, KV bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traces.decoding import decode_json, read_bytes
from traces.errors import InputError, nearest

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}

QUANTIZED_BYTES = {"fp8": 1.0, "nvfp4": 9 / 16}
"""Of a weight of a quantized type; nvfp4 has 4 bits and, for 16 of them, a scale of 8 bits (vLLM 0.32
`model_executor/layers/quantization/modelopt.py::ModelOptNvFp4LinearMethod`). Scales of fp8 are few and not counted."""

QUANTIZED_PARTS = ("attention", "mlp", "experts")
"""Of these types are the weights of layers; embedding, head and norms keep the type that the model computes in, as does
the router, which is counted with the experts all the same: it is some 0.04 % of them."""

VOCAB_PADDING = 64
"""vLLM rounds the embedding's rows up to a multiple (`vocab_parallel_embedding.py`, DEFAULT_VOCAB_PADDING_SIZE)."""


@dataclass(frozen=True, slots=True)
class _Family:
    """What a config.json does not say, and the code of a model family does.

    None of a bias means: as the config's `attention_bias` says.
    """

    qkv_bias: bool | None = None
    output_bias: bool | None = False
    qk_norm: bool = False
    is_moe: bool = False
    norm_bias: bool = False
    head_bias: bool = False


FAMILIES = {
    "llama": _Family(output_bias=None),
    "mistral": _Family(output_bias=None),
    "phi3": _Family(output_bias=None),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(qk_norm=True),
    "mixtral": _Family(qkv_bias=False, is_moe=True),
    "qwen3_moe": _Family(qk_norm=True, is_moe=True),
    "phimoe": _Family(qkv_bias=True, output_bias=True, is_moe=True, norm_bias=True, head_bias=True),
}
"""Model families by `model_type`, as vLLM 0.32 builds them (`model_executor/models/{llama,qwen2,...}.py`)."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only transformer's dimensions. Experts are 0 in a dense model.

    Layers with a sliding window are not told from others: their KV is counted as if it were never dropped.

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
        dtype: type of the published weights; None when the config does not say.
        tie_word_embeddings: the output head shares the embedding's weights.
        qkv_bias: the QKV projection has a bias.
        output_bias: the attention's output projection has a bias.
        qk_norm: queries and keys are normalised per head (Qwen3).
        norm_bias: norms have a bias (LayerNorm, not RMSNorm).
        head_bias: the output head has a bias.
        num_experts: experts per layer.
        num_experts_per_tok: of those, the ones a token uses.
        model_type: its family's name; None when it was not read from a config.
        rotary_rows: positions in the table of rotary embeddings; None when unknown.
        rotary_dim: width of that table.
        has_sliding_window: some layers attend to the last tokens alone.
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
    dtype: str | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    norm_bias: bool = False
    head_bias: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 0
    model_type: str | None = None
    rotary_rows: int | None = None
    rotary_dim: int = 0
    has_sliding_window: bool = False

    def num_parameters(self) -> int:
        """Parameters of the model, as published: on no device twice, and no padding."""
        padding = _padded(self.vocab_size) - self.vocab_size
        rows = 1 if self.tie_word_embeddings else 2
        head_bias = padding if self.head_bias else 0
        return sum(self.parameters().values()) - rows * padding * self.hidden_size - head_bias

    def parameters(self, tensor_parallel_size: int = 1) -> dict[str, int]:
        """Parameters that one of `tensor_parallel_size` devices holds, by part.

        vLLM 0.32 `model_executor/layers/{linear,vocab_parallel_embedding}.py`: embedding and head (rows padded to a
        multiple of 64), QKV, output projection, MLP and experts are split; KV heads are repeated when there are fewer
        than devices (`QKVParallelLinear`); norms, the router and the bias of the output projection are whole on each.
        Raises InputError for a degree that the model cannot be split by.
        """
        tp = tensor_parallel_size
        q_width = self._share("num_attention_heads", self.num_heads, tp) * self.head_dim
        kv_width = self._kv_heads(tp) * self.head_dim
        attention = 2 * self.hidden_size * (q_width + kv_width)
        attention += (q_width + 2 * kv_width) * self.qkv_bias + self.hidden_size * self.output_bias
        mlp = 3 * self.hidden_size * self._share("intermediate_size", self.intermediate_size, tp)
        norm = self.hidden_size * (2 if self.norm_bias else 1)
        norms = 2 * norm + (2 * self.head_dim if self.qk_norm else 0)
        rows = self._share("vocab_size", _padded(self.vocab_size), tp)
        return {
            "embedding": rows * self.hidden_size,
            "attention": self.num_layers * attention,
            "mlp": 0 if self.num_experts else self.num_layers * mlp,
            "experts": self.expert_parameters(tp),
            "norms": self.num_layers * norms + norm,
            "lm_head": (0 if self.tie_word_embeddings else rows * self.hidden_size) + rows * self.head_bias,
        }

    def expert_parameters(self, devices: int = 1) -> int:
        """Parameters of experts and router that one of `devices` holds, each expert split among them; 0: no experts.

        Raises InputError for a number that experts cannot be split by.
        """
        if not self.num_experts:
            return 0
        expert = 3 * self.hidden_size * self._share("intermediate_size", self.intermediate_size, devices)
        return self.num_layers * self.num_experts * (expert + self.hidden_size)

    def weight_bytes(self, dtype: str, tensor_parallel_size: int = 1) -> int:
        """Bytes of weights on one of `tensor_parallel_size` devices. Raises InputError."""
        parts = self.parameters(tensor_parallel_size)
        return int(sum(count * part_bytes(name, dtype) for name, count in parts.items()))

    def rotary_bytes(self, dtype: str) -> int:
        """Bytes of the table of rotary embeddings, one for all layers and whole on each device; 0 when unknown.

        vLLM 0.32 `model_executor/layers/rotary_embedding/base.py`: a buffer `cos_sin_cache` of the model's type.
        """
        return (self.rotary_rows or 0) * self.rotary_dim * dtype_bytes(dtype)

    def kv_bytes_per_token(self, dtype: str, tensor_parallel_size: int = 1) -> int:
        """Bytes of keys and values that one token takes on one device, over all layers. Raises InputError."""
        return 2 * self.num_layers * self._kv_heads(tensor_parallel_size) * self.head_dim * dtype_bytes(dtype)

    def _kv_heads(self, tp: int) -> int:
        if 1 <= self.num_kv_heads <= tp and tp % self.num_kv_heads == 0:
            return 1
        return self._share("num_key_value_heads", self.num_kv_heads, tp)

    def _share(self, field: str, whole: int, tp: int) -> int:
        if tp < 1 or whole % tp:
            accepted = f"a divisor of {self.name}'s {field}, {whole}"
            raise InputError(field="tensor_parallel_size", found=tp, accepted=accepted)
        return whole // tp


def dtype_bytes(dtype: str) -> int:
    """Bytes of one number. Raises InputError for an unknown dtype."""
    if dtype not in DTYPE_BYTES:
        raise InputError(field="dtype", found=dtype, accepted=", ".join(DTYPE_BYTES))
    return DTYPE_BYTES[dtype]


def compute_dtype(dtype: str) -> str:
    """Type of activations and of weights that are not quantized, of a model whose layers' weights are of `dtype`."""
    return "bfloat16" if dtype in QUANTIZED_BYTES else dtype


def kv_dtype(dtype: str, kv_cache_dtype: str) -> str:
    """Type of keys and values; `auto` is the type that the model computes in.

    vLLM 0.32 `utils/torch_utils.py::kv_cache_dtype_str_to_dtype`.
    """
    return compute_dtype(dtype) if kv_cache_dtype == "auto" else kv_cache_dtype


def part_bytes(part: str, dtype: str) -> float:
    """Bytes of a weight of a part of the model (`ModelSpec.parameters`). Raises InputError for an unknown dtype."""
    if dtype in QUANTIZED_BYTES and part in QUANTIZED_PARTS:
        return QUANTIZED_BYTES[dtype]
    return float(dtype_bytes(compute_dtype(dtype)))


def read_model(path: Path, name: str | None = None) -> ModelSpec:
    """A model from its config.json. Raises InputError naming the field."""
    return model_of(decode_json(read_bytes(path), dict[str, Any], file=path), name or path.parent.name, path)


def model_of(config: Mapping[str, Any], name: str, file: Path | str = "config.json") -> ModelSpec:
    """A model from the mapping of a Hugging Face config. Raises InputError naming the field.

    Of a model of several modalities (`text_config`) only the language model is told.
    """
    if isinstance(inner := config.get("text_config"), dict):
        config = {
            **{key: config[key] for key in ("tie_word_embeddings", "dtype", "torch_dtype") if key in config},
            **inner,
        }
    family = _family(config, file)
    heads = _positive(config, file, "num_attention_heads")
    hidden = _positive(config, file, "hidden_size")
    if not config.get("head_dim") and hidden % heads:
        raise InputError(
            file=file, field="hidden_size", found=hidden, accepted=f"a multiple of {heads} heads, or head_dim"
        )
    widths = ("moe_intermediate_size", "intermediate_size") if family.is_moe else ("intermediate_size",)
    bias = _flag(config, file, "attention_bias")
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
        dtype=_text(config, file, "dtype") or _text(config, file, "torch_dtype"),
        tie_word_embeddings=_flag(config, file, "tie_word_embeddings"),
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=bias if family.output_bias is None else family.output_bias,
        qk_norm=family.qk_norm,
        norm_bias=family.norm_bias,
        head_bias=family.head_bias,
        num_experts=_positive(config, file, "num_local_experts", "num_experts") if family.is_moe else 0,
        num_experts_per_tok=_positive(config, file, "num_experts_per_tok") if family.is_moe else 0,
        model_type=config["model_type"],
        rotary_rows=_rotary_rows(config, file),
        rotary_dim=int(
            _positive(config, file, "head_dim", default=hidden // heads)
            * _factor(config, file, "partial_rotary_factor", 1.0)
        ),
        has_sliding_window=bool(_positive(config, file, "sliding_window", default=0))
        and (config.get("use_sliding_window") is None or _flag(config, file, "use_sliding_window")),
    )


def _rotary_rows(config: Mapping[str, Any], file: Path | str) -> int | None:
    """Positions in the table of rotary embeddings; None for a kind that is not known here.

    vLLM 0.32 `model_executor/layers/rotary_embedding/`: the model's positions, as many times as a linear or dynamic
    scaling says; those before scaling times YaRN's factor; both tables of LongRoPE.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    positions = config.get("max_position_embeddings")
    if not isinstance(rope, Mapping) or not isinstance(positions, int):
        return None
    factor = _factor(rope, file, "factor", 1.0)
    name = "original_max_position_embeddings"
    original = _factor(rope, file, name, _factor(config, file, name, positions))
    match rope.get("rope_type", rope.get("type", "default")):
        case "default" | "llama3":
            return positions
        case "linear" | "dynamic":
            return int(positions * factor)
        case "yarn":
            return int(original * factor)
        case "longrope" | "su":
            return int(original + positions)
    return None


def _family(config: Mapping[str, Any], file: Path | str) -> _Family:
    """The config's model family. Raises InputError for an unknown one, and for layers that none of them has."""
    model_type = config.get("model_type")
    if model_type is None:
        raise InputError("is missing", file=file, field="model_type", accepted=", ".join(FAMILIES))
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(file=file, field="model_type", found=model_type, accepted=nearest(str(model_type), FAMILIES))
    # Each changes the layers from what FAMILIES says: biases in the MLP, dense layers among those with experts.
    for field, usual in (("mlp_bias", False), ("mlp_only_layers", []), ("decoder_sparse_step", 1)):
        if (found := config.get(field)) not in (None, usual):
            raise InputError(file=file, field=field, found=found, accepted=f"{usual!r}: others are not described yet")
    return FAMILIES[model_type]


def _text(config: Mapping[str, Any], file: Path | str, name: str) -> str | None:
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(file=file, field=name, found=value, accepted="a text")
    return value


def _flag(config: Mapping[str, Any], file: Path | str, name: str) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(file=file, field=name, found=value, accepted="true or false")
    return bool(value)


def _factor(config: Mapping[str, Any], file: Path | str, name: str, default: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise InputError(file=file, field=name, found=value, accepted="a number above 0")
    return value


def _padded(vocab_size: int) -> int:
    return -(-vocab_size // VOCAB_PADDING) * VOCAB_PADDING


def _positive(config: Mapping[str, Any], file: Path | str, *names: str, default: int | None = None) -> int:
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
