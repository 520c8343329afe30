"""A tiny profile, and the same in LLMServingSim's format, written by hand."""

from __future__ import annotations

from pathlib import Path

LAYERS = ("layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")

META = """\
vllm_version: 0.19.0
gpu: Test GPU
hardware: TESTGPU
profiled_at: '2026-04-24T12:44:27+00:00'
architecture: llama
model: test/tiny
variant: bf16
measurement_iterations: 3
"""


def write_bundle(folder: Path) -> Path:
    """LLMServingSim's current format, one tensor-parallel degree, two points per operator."""
    at = folder / "tp1"
    at.mkdir(parents=True)
    (folder / "meta.yaml").write_text(META)
    names = ("embedding", *LAYERS, "final_layernorm")
    dense = [f"{name},{tokens},{us}" for name in names for tokens, us in ((1, 2), (64, 10))]
    (at / "dense.csv").write_text("\n".join(["layer,tokens,time_us", *dense]) + "\n")
    per = [f"{name},{n},{us}" for name in ("lm_head", "sampler") for n, us in ((1, 20), (8, 27))]
    (at / "per_sequence.csv").write_text("\n".join(["layer,sequences,time_us", *per]) + "\n")
    attention = [f"{t},{h},0,0,{5 + t * (h + t)}" for t in (16, 64) for h in (0, 64)]
    attention += [f"0,0,{n},{h},{5 + n * h}" for n in (1, 8) for h in (16, 64)]
    (at / "attention.csv").write_text(
        "\n".join(["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", *attention]) + "\n"
    )
    return folder
