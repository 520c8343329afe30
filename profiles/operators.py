"""The operators of a decoder-only transformer, as shapes that somebody else prices: a roofline, a simulator, a table.

One device of `tp` runs them as vLLM 0.32 builds them (`model_executor/models/llama.py` and its relatives): QKV and
gate/up are one matrix product each, a norm adds the residual, heads and the MLP's width are split over the devices.
Layers are alike, so that one layer's operators are priced once and counted `num_layers` times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from profiles.model import ModelSpec, dtype_bytes
from profiles.profile import Composition


class Gemm(msgspec.Struct, frozen=True, tag_field="kind", tag="gemm"):
    """[m, k] activations times [k, n] weights of type `dtype`."""

    m: int
    n: int
    k: int
    dtype: str


class Elementwise(msgspec.Struct, frozen=True, tag_field="kind", tag="elementwise"):
    """A pass over memory: norms, rotary embedding, activation, the embedding's rows, the sampler.

    Attributes:
        op: which.
        rows: tokens, or requests for the sampler.
        read_bytes: of all rows.
        write_bytes: of all rows.
    """

    op: str
    rows: int
    read_bytes: int
    write_bytes: int


class Attention(msgspec.Struct, frozen=True, tag_field="kind", tag="attention"):
    """One layer's attention, its new keys and values written: one prefill chunk, or decodes of equal history.

    Attributes:
        prefill_tokens: of the chunk; 0 is none.
        prefill_kv_tokens: tokens of its request computed before.
        n_decode: requests that each compute one token; 0 is none.
        decode_kv_tokens: tokens of each computed before.
        num_heads: query heads on this device.
        num_kv_heads: key and value heads on this device.
        head_dim: width of a head.
        dtype: of queries and outputs.
        kv_cache_dtype: of keys and values.
    """

    prefill_tokens: int
    prefill_kv_tokens: int
    n_decode: int
    decode_kv_tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    kv_cache_dtype: str

    @property
    def new_tokens(self) -> int:
        """Tokens that the step computes."""
        return self.prefill_tokens + self.n_decode

    @property
    def pairs(self) -> float:
        """Pairs of a query and a key under a causal mask, the query's own key among them."""
        prefill = self.prefill_tokens * (self.prefill_kv_tokens + (self.prefill_tokens + 1) / 2)
        return prefill + self.n_decode * (self.decode_kv_tokens + 1)

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values are read."""
        return self.prefill_kv_tokens + self.prefill_tokens + self.n_decode * (self.decode_kv_tokens + 1)


class Experts(msgspec.Struct, frozen=True, tag_field="kind", tag="experts"):
    """One layer's experts, whole ones: `tokens`, each with `experts_per_token`, spread evenly over `n_experts`."""

    tokens: int
    n_experts: int
    experts_per_token: int
    hidden_size: int
    intermediate_size: int
    dtype: str


Shape: TypeAlias = Gemm | Elementwise | Attention | Experts


@dataclass(frozen=True, slots=True)
class Operators:
    """A model's operators on one of `tp` devices.

    Attributes:
        model: its dimensions.
        tp: tensor-parallel degree.
        dtype: type of weights; fp8 is that of matrix products in layers alone, and the rest computes in bfloat16.
        kv_cache_dtype: auto: as the rest computes.
    """

    model: ModelSpec
    tp: int
    dtype: str
    kv_cache_dtype: str = "auto"

    @property
    def compute_dtype(self) -> str:
        """Type of activations between operators, embedding and head: vLLM does not quantize these."""
        return "bfloat16" if self.dtype == "fp8" else self.dtype

    @property
    def composition(self) -> Composition:
        """How they make up a step, by the names of LLMServingSim's profiles (`profiles.llmservingsim.LAYERS`)."""
        qk_norm = ("qk_norm",) if self.model.qk_norm else ()
        mlp = ("moe",) if self.model.num_experts else ("gate_up_proj", "act_fn", "down_proj")
        layer = ("layernorm", "qkv_proj", *qk_norm, "rotary_emb", "attention", "o_proj", "layernorm", *mlp)
        return Composition(("embedding", "final_layernorm"), layer, ("lm_head", "sampler"))

    def token_wise(self, name: str, tokens: int) -> Shape:
        """One of the composition's operators that see tokens (`dense`) or requests, over so many of them."""
        model, tp = self.model, self.tp
        width = dtype_bytes(self.compute_dtype)
        hidden, heads, kv_heads = model.hidden_size, self._heads, self._kv_heads
        inter = model.intermediate_size // tp
        match name:
            case "qkv_proj":
                return Gemm(tokens, (heads + 2 * kv_heads) * model.head_dim, hidden, self.dtype)
            case "o_proj":
                return Gemm(tokens, hidden, heads * model.head_dim, self.dtype)
            case "gate_up_proj":
                return Gemm(tokens, 2 * inter, hidden, self.dtype)
            case "down_proj":
                return Gemm(tokens, hidden, inter, self.dtype)
            case "lm_head":
                return Gemm(tokens, -(-model.vocab_size // tp), hidden, self.compute_dtype)
            case "act_fn":
                return Elementwise(name, tokens, 2 * inter * width * tokens, inter * width * tokens)
            case "embedding":
                return Elementwise(name, tokens, hidden * width * tokens, hidden * width * tokens)
            case "layernorm" | "final_layernorm":  # the residual is read and written with it
                return Elementwise("layernorm", tokens, 2 * hidden * width * tokens, 2 * hidden * width * tokens)
            case "rotary_emb" | "qk_norm":
                n_bytes = (heads + kv_heads) * model.head_dim * width * tokens
                return Elementwise(name, tokens, n_bytes, n_bytes)
            case "sampler":  # to float32, and the largest (vLLM 0.32 `v1/sample/sampler.py`, greedy)
                rows = model.vocab_size * tokens
                return Elementwise(name, tokens, (width + 4) * rows, 4 * rows)
        raise ValueError(f"{name} is none of the composition's token-wise operators")

    def prefill(self, tokens: int, history: int) -> Attention:
        """One layer's attention for a chunk."""
        return self._attention(tokens, history, 0, 0)

    def decode(self, n: int, history: int) -> Attention:
        """One layer's attention for n decodes."""
        return self._attention(0, 0, n, history)

    def experts(self, tokens: int, n_experts: int) -> Experts:
        """One layer's experts, whole ones; the simulator splits them over devices."""
        model = self.model
        per_token = model.num_experts_per_tok
        return Experts(tokens, n_experts, per_token, model.hidden_size, model.intermediate_size, self.dtype)

    def _attention(self, tokens: int, history: int, n: int, decode_history: int) -> Attention:
        kv_dtype = self.compute_dtype if self.kv_cache_dtype == "auto" else self.kv_cache_dtype
        sizes = self._heads, self._kv_heads, self.model.head_dim
        return Attention(tokens, history, n, decode_history, *sizes, self.compute_dtype, kv_dtype)

    @property
    def _heads(self) -> int:
        return self.model.num_heads // self.tp

    @property
    def _kv_heads(self) -> int:
        """KV heads are repeated where there are fewer than devices (`QKVParallelLinear`)."""
        return max(1, self.model.num_kv_heads // self.tp)
