"""A profile in Vidur's format, written by us: a tiny model on two degrees, its times simple functions of sizes."""

from __future__ import annotations

import csv
from pathlib import Path

STATS = ("min", "max", "mean", "median", "std")
MLP = ("emb", "input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "post_attention_layernorm",
       "mlp_up_proj", "mlp_act", "mlp_down_proj", "add")  # fmt: skip
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 4096,
}  # fmt: skip


def stats_of(name: str, ms: float | None) -> dict[str, str]:
    """Five columns of one operator; empty where it was not measured."""
    values = dict.fromkeys(STATS, "") if ms is None else dict.fromkeys(STATS, f"{ms:.6f}") | {"std": f"{ms / 10:.6f}"}
    return {f"time_stats.{name}.{stat}": values[stat] for stat in STATS}


def mlp_rows(tps: tuple[int, ...]) -> list[dict[str, str]]:
    """Each operator i takes (i + 1 + tokens) us on one device, half of it on two; 64 tokens were measured twice."""
    rows = []
    for tp in tps:
        for tokens in (1, 64, 64, 256):
            row: dict[str, str] = {}
            for i, name in enumerate(MLP):
                row |= stats_of(name, (i + 1 + tokens) / tp / 1e3)
            sizes = {"n_head": 4, "n_kv_head": 4, "n_embd": 64, "n_expanded_embd": 128, "vocab_size": 100}
            row |= {key: str(value) for key, value in sizes.items()}
            row |= {"use_gated_mlp": "True", "num_tokens": str(tokens), "num_tensor_parallel_workers": str(tp)}
            rows.append(row)
    return rows


def attention_rows(tps: tuple[int, ...]) -> list[dict[str, str]]:
    """Chunks take tokens + history us, decodes 5 us and 0.01 us for each key; saving the KV 1 us, or nothing."""
    rows = []
    for tp in tps:
        points = [(1, chunk, history) for chunk in (16, 64) for history in (0, 64)]
        points += [(n, 0, history) for n in (1, 8) for history in (16, 64)]
        for n, chunk, history in points:
            prefill = (chunk + history) / tp / 1e3 if chunk else None
            decode = None if chunk else (5 + 0.01 * n * history) / tp / 1e3
            row = stats_of("attn_input_reshape", 0.0) | stats_of("attn_output_reshape", 0.001)
            row |= stats_of("attn_kv_cache_save", 0.0 if n == 8 and history == 16 else 0.001)
            row |= stats_of("attn_prefill", prefill) | stats_of("attn_decode", decode)
            sizes = {"n_embd": 64, "n_q_head": 4, "n_kv_head": 4, "block_size": 16, "num_tensor_parallel_workers": tp}
            sizes |= {"max_model_len": 4096, "batch_size": n, "prefill_chunk_size": chunk, "kv_cache_size": history}
            row |= {key: str(value) for key, value in sizes.items()}
            row |= {"is_prefill": str(chunk > 0), "attention_backend": "AttentionBackend.FLASHINFER"}
            rows.append(row)
    return rows


def write_vidur(root: Path, place: str = "a100/test/tiny", tps: tuple[int, ...] = (1, 2)) -> Path:
    """The two files in <device>/<org>/<model>. Returns that folder."""
    folder = root / place
    folder.mkdir(parents=True)
    for name, rows in (("mlp.csv", mlp_rows(tps)), ("attention.csv", attention_rows(tps))):
        with (folder / name).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return folder
