"""Shots in plain torch, for devices on which vLLM is absent: a Llama-like decoder of torch's own kernels.

The operators are those of vLLM's model at the model's shapes: F.linear, RMSNorm, rotary embedding, attention over a KV
cache, SiLU and product, logits, greedy sampling. Attention is torch's scaled_dot_product_attention: a call for each
prefill chunk, and one for each group of decodes of equal history. Weights are random, and the same in every layer's
shape but not in its memory, so that a layer finds nothing of the one before in a cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from collectors.operators.kernels import leading
from collectors.operators.options import Options
from collectors.operators.samples import Answer
from collectors.operators.shots import Limits, Shot
from collectors.operators.timers import ProfilerTimer, Timer, timer_of
from profiles.model import VOCAB_PADDING, ModelSpec
from traces.errors import InputError

ROPE_BASE = 10_000.0
"""Of the rotary embedding; its value costs nothing."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Requests whose attention is one call: one prefill chunk, or decodes of equal history.

    Attributes:
        rows: of the step's tokens.
        first_slot: of their KV, one request's behind the other's.
        n: requests.
        new_tokens: of each.
        history: of each.
        mask: lower-right causal, for a chunk with history; None where there is none to apply.
    """

    rows: slice
    first_slot: int
    n: int
    new_tokens: int
    history: int
    mask: Any


@dataclass(frozen=True, slots=True)
class _Batch:
    """A step's input on the device: token ids and positions [tokens], KV slots [tokens], last rows [requests]."""

    token_ids: Any
    positions: Any
    slots: Any
    last_rows: Any
    groups: list[_Group]


class TorchEngine:
    """A decoder that computes shots. Raises InputError for models with operators that plain torch has no kernel for."""

    def __init__(self, options: Options, model: ModelSpec, limits: Limits) -> None:
        if model.num_experts:
            raise InputError(field="--engine", found="torch", accepted="vllm for a model with experts")
        if model.norm_bias or model.head_bias:
            raise InputError(
                field="--engine", found="torch", accepted="vllm for a model whose norms or head have a bias"
            )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = getattr(torch, options.dtype)
        self._timer = options.timer if options.operators == "modules" else "none"
        self._model = model
        with torch.inference_mode():
            self._make_weights(limits)

    @property
    def name(self) -> str:
        """Engine and version."""
        return f"torch {torch.__version__}"

    def time_shot(self, shot: Shot, warm_ups: int) -> Answer:
        """Measure a shot after so many warm-ups."""
        return self.time_batch(shot.requests(), warm_ups)

    def time_batch(self, requests: Sequence[Sequence[int]], warm_ups: int, n_experts: int = 0) -> Answer:
        """Measure any batch of (new_tokens, history). There are no experts, so that none can be asked for."""
        assert n_experts == 0
        timer = timer_of(self._timer, self._device.type) if self._timer != "none" else None
        with torch.inference_mode():
            batch = self._batch(requests)
            for _ in range(warm_ups):
                self._run(batch, None)
            instrumented_us = None
            if timer is not None:
                with timer:
                    instrumented_us = self._run(batch, timer)
            step_us = self._run(batch, None)
        return Answer(step_us, instrumented_us, timer.totals() if timer is not None else {})

    def leading_kernels(self, shot: Shot) -> dict[str, list[str]]:
        """The kernels that take the most time of each operator."""
        timer = ProfilerTimer(self._device.type)
        with torch.inference_mode():
            batch = self._batch(shot.requests())
            self._run(batch, None)
            with timer:
                self._run(batch, timer)
        return {operator: leading(kernels) for operator, kernels in sorted(timer.kernels().items())}

    def facts(self) -> dict[str, Any]:
        """What it runs on."""
        attention = "torch scaled_dot_product_attention"
        facts = {"device_type": self._device.type, "worker": "torch_engine", "attention_backend": attention}
        return {**facts, "torch_threads": torch.get_num_threads()}

    def close(self) -> None:
        """There is nothing to stop."""

    def _make_weights(self, limits: Limits) -> None:
        model = self._model
        q_width, kv_width = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        rows = -(-model.vocab_size // VOCAB_PADDING) * VOCAB_PADDING
        hidden, inner = model.hidden_size, model.intermediate_size
        self._embedding = self._random(rows, hidden)
        self._head = self._embedding if model.tie_word_embeddings else self._random(rows, hidden)
        self._norm = self._random(hidden)
        self._layers = [
            {
                "norm": self._random(hidden),
                "qkv": self._random(q_width + 2 * kv_width, hidden),
                "qkv_bias": self._random(q_width + 2 * kv_width) if model.qkv_bias else None,
                "qk_norm": self._random(model.head_dim),
                "o": self._random(hidden, q_width),
                "o_bias": self._random(hidden) if model.output_bias else None,
                "post_norm": self._random(hidden),
                "gate_up": self._random(2 * inner, hidden),
                "down": self._random(hidden, inner),
                "kv": self._random(2, limits.kv_blocks * limits.block_size, model.num_kv_heads, model.head_dim),
            }
            for _ in range(model.num_layers)
        ]
        frequencies = ROPE_BASE ** (-torch.arange(0, model.head_dim, 2, device=self._device) / model.head_dim)
        angles = torch.arange(limits.max_kv_tokens + limits.max_tokens + 1, device=self._device)[:, None] * frequencies
        self._cos, self._sin = angles.cos().to(self._dtype), angles.sin().to(self._dtype)

    def _random(self, *shape: int) -> Any:
        return torch.empty(shape, dtype=self._dtype, device=self._device).uniform_(-1e-3, 1e-3)

    def _batch(self, requests: Sequence[Sequence[int]]) -> _Batch:
        """The batch's input; raises ValueError when its KV does not fit."""
        groups: list[_Group] = []
        positions: list[int] = []
        slots: list[int] = []
        last_rows: list[int] = []
        free = 0
        for new_tokens, history in requests:
            first = len(positions)
            positions += range(history, history + new_tokens)
            slots += range(free + history, free + history + new_tokens)
            last_rows.append(len(positions) - 1)
            same = groups[-1] if groups else None
            if same is not None and new_tokens == 1 and (same.new_tokens, same.history) == (1, history):
                rows = slice(same.rows.start, len(positions))
                groups[-1] = _Group(rows, same.first_slot, same.n + 1, 1, history, None)
            else:
                mask = self._mask(new_tokens, history)
                groups.append(_Group(slice(first, len(positions)), free, 1, new_tokens, history, mask))
            free += history + new_tokens
        if free > self._layers[0]["kv"].shape[1]:
            raise ValueError(f"shot needs room for {free} tokens of KV, there is {self._layers[0]['kv'].shape[1]}")
        token_ids = [3 + (7919 * i) % 997 for i in range(len(positions))]
        columns = [torch.tensor(column, device=self._device) for column in (token_ids, positions, slots, last_rows)]
        return _Batch(columns[0], columns[1], columns[2], columns[3], groups)

    def _mask(self, new_tokens: int, history: int) -> Any:
        """Which keys a chunk's queries see, [new_tokens, history + new_tokens]; None where torch's own flag says it."""
        if new_tokens == 1 or not history:
            return None
        if self._device.type == "cuda":
            from torch.nn.attention.bias import causal_lower_right

            return causal_lower_right(new_tokens, history + new_tokens)
        seen = torch.ones(new_tokens, history + new_tokens, dtype=torch.bool, device=self._device)
        return seen.tril(diagonal=history)

    def _run(self, batch: _Batch, timer: Timer | None) -> float:
        """One step; microseconds until its tokens are on the host."""
        begun_ns = time.perf_counter_ns()
        self._step(batch, timer)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter_ns() - begun_ns) / 1e3

    def _step(self, batch: _Batch, timer: Timer | None) -> list[int]:
        """The model's forward pass and greedy sampling."""
        model = self._model
        with _timed(timer, "embedding"):
            residual = functional.embedding(batch.token_ids, self._embedding)
        added = None
        for layer in self._layers:
            with _timed(timer, "layernorm"):
                x, residual = self._add_norm(added, residual, layer["norm"])
            with _timed(timer, "qkv_proj"):
                qkv = functional.linear(x, layer["qkv"], layer["qkv_bias"])
            heads = qkv.view(len(qkv), -1, model.head_dim)
            q, k, v = heads.split([model.num_heads, model.num_kv_heads, model.num_kv_heads], dim=1)
            if model.qk_norm:
                with _timed(timer, "qk_norm"):
                    q, k = (functional.rms_norm(one, (model.head_dim,), layer["qk_norm"]) for one in (q, k))
            with _timed(timer, "rotary_emb"):
                q, k = self._rotated(q, batch.positions), self._rotated(k, batch.positions)
            with _timed(timer, "attention"):
                attended = self._attend(batch, layer["kv"], q, k, v)
            with _timed(timer, "o_proj"):
                added = functional.linear(attended, layer["o"], layer["o_bias"])
            with _timed(timer, "layernorm"):
                x, residual = self._add_norm(added, residual, layer["post_norm"])
            with _timed(timer, "gate_up_proj"):
                gate_up = functional.linear(x, layer["gate_up"])
            with _timed(timer, "act_fn"):
                gate, up = gate_up.chunk(2, dim=-1)
                x = functional.silu(gate) * up
            with _timed(timer, "down_proj"):
                added = functional.linear(x, layer["down"])
        with _timed(timer, "final_layernorm"):
            x, _ = self._add_norm(added, residual, self._norm)
        with _timed(timer, "lm_head"):
            logits = functional.linear(x[batch.last_rows], self._head)
        with _timed(timer, "sampler"):
            tokens = logits.float().argmax(dim=-1)
        return [int(token) for token in tokens.tolist()]

    def _add_norm(self, added: Any, residual: Any, weight: Any) -> tuple[Any, Any]:
        """The residual with what was added to it, and that normalised."""
        if added is not None:
            residual = residual + added
        return functional.rms_norm(residual, (self._model.hidden_size,), weight), residual

    def _rotated(self, x: Any, positions: Any) -> Any:
        """Heads [tokens, heads, head_dim] turned by their positions."""
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def _attend(self, batch: _Batch, cache: Any, q: Any, k: Any, v: Any) -> Any:
        """Keys and values into the cache [2, slots, kv_heads, head_dim], and attention over it, [tokens, width]."""
        cache[0].index_copy_(0, batch.slots, k)
        cache[1].index_copy_(0, batch.slots, v)
        out = torch.empty_like(q)
        for group in batch.groups:
            n, new, length = group.n, group.new_tokens, group.history + group.new_tokens
            held = cache[:, group.first_slot : group.first_slot + n * length]
            keys, values = held.unflatten(1, (n, length)).transpose(2, 3)
            queries = q[group.rows].unflatten(0, (n, new)).transpose(1, 2)
            attended = functional.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=group.mask,
                is_causal=new > 1 and group.mask is None,
                enable_gqa=self._model.num_heads != self._model.num_kv_heads,
            )
            out[group.rows] = attended.transpose(1, 2).flatten(0, 1)
        return out.flatten(1)


@contextmanager
def _timed(timer: Timer | None, operator: str) -> Iterator[None]:
    """Within it, the operator runs."""
    if timer is not None:
        timer.begin(operator)
    yield
    if timer is not None:
        timer.end(operator)
