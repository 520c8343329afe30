"""A tiny profile in LLMServingSim's older format, written by hand: three lengths per layer, times of simple laws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

LENGTHS = (1, 64, 256)
LLAMA = [
    *("embedding", "input_layernorm", "q_proj", "k_proj", "v_proj", "rope", "attn", "o_proj", "post_layernorm"),
    *("gate_proj", "up_proj", "act_fn", "down_proj", "final_layernorm", "lm_head"),
]
MOE = [
    *(name for name in LLAMA if name not in ("gate_proj", "up_proj", "down_proj")),
    "gate",
    *(f"expert.w{i}" for i in (1, 2, 3)),
]

MOE_CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 128,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}

CHUNKS = ((64, 64), (64, 128), (128, 128))
"""Tokens and keys in all."""
BATCHES = ((1, 64), (1, 128), (1, 1024), (4, 64), (4, 128), (4, 1024), (16, 64), (128, 64))
"""Decodes and keys of the whole batch."""


def prefill_us(tokens: int, keys: int) -> float:
    """4 us and a hundredth of one for each 100 pairs of the chunk."""
    return 4 + tokens * (keys - tokens / 2) * 1e-4


def decode_us(n: int, keys: int) -> float:
    """2 us, one for each request and a tenth for each key, whoever has it."""
    return 2 + n + keys * 0.1


def write_degree(folder: Path, tp: int = 1, layers: Sequence[str] = LLAMA, attention: bool = True) -> Path:
    """One tp<N> folder: each layer takes 10 us and a tenth for each token; attn the time of its chunk."""
    at = folder / f"tp{tp}"
    at.mkdir(parents=True)
    rows = ["layer_name,input,kv_cache,tp_size,latency(ns)"]
    for name in layers:
        for tokens in LENGTHS:
            time_ns = prefill_us(tokens, tokens) * 1000 if name == "attn" else 10_000 + 100 * tokens
            rows.append(f"{name},{tokens},0,{tp},{time_ns:.0f}")
    write_lines(at / "layers.csv", rows)
    if attention:
        write_attention(at / "attention.csv", tp)
    return at


def write_attention(file: Path, tp: int = 1) -> None:
    """As its profiler writes it for GPUs, in milliseconds."""
    times = [f"time_stats.attn_{kind}.{name}" for kind in ("prefill", "decode") for name in ("mean", "median", "std")]
    rows = [",".join([*times, "num_tensor_parallel_workers,batch_size,prefill_chunk_size,kv_cache_size,is_prefill"])]
    for tokens, keys in CHUNKS:
        ms = prefill_us(tokens, keys) / 1000
        rows.append(f"{ms * 1.1},{ms},{ms / 100},,,,{tp},1,{tokens},{keys},True")
    for n, keys in BATCHES:
        ms = decode_us(n, keys) / 1000
        rows.append(f",,,{ms * 1.1},{ms},{ms / 100},{tp},{n},0,{keys},False")
    write_lines(file, rows)


def write_predictions(at: Path, factor: float = 3.0) -> None:
    """As its predictor writes them, in nanoseconds: `factor` times the measurement of the row."""
    (at / "predictions").mkdir()
    rows = ["kv_cache_size,prefill_chunk_size,prediction"]
    rows += [f"{keys},{tokens},{factor * prefill_us(tokens, keys) * 1000:.0f}" for tokens, keys in CHUNKS]
    write_lines(at / "predictions" / "attn_prefill_predictions.csv", rows)
    rows = ["batch_size,kv_cache_size,prediction"]
    rows += [
        f"{n},{keys},{factor * decode_us(n, keys) * 1000:.0f}"
        for n in (1, 4, 16, 128, 256)
        for keys in (0, 64, 128, 1024)
    ]
    write_lines(at / "predictions" / "attn_decode_predictions.csv", rows)


def write_tpu_attention(file: Path, *, each: bool) -> None:
    """As for TPUs, in nanoseconds; kv_cache_size is of each request or of the whole batch."""
    rows = ["prefill_chunk_size,kv_cache_size,batch_size,mean_ns,p50_ns,p90_ns,max_ns"]
    rows += [f"{tokens},{keys - tokens * each},1,1,{prefill_us(tokens, keys) * 1000},1,1" for tokens, keys in CHUNKS]
    for n in (1, 4, 16):
        for keys in (64, 256, 1024):
            rows.append(f"0,{keys},{n},1,{decode_us(n, keys * n if each else keys) * 1000},1,1")
    write_lines(file, rows)


def write_lines(file: Path, rows: Iterable[str]) -> None:
    """The rows, a line each."""
    file.write_text("\n".join(rows) + "\n")


def replace_in(file: Path, old: str, new: str) -> None:
    """Change the first `old` of a file."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
