"""A tiny profile in LLMServingSim's format, written by hand: two points per operator."""

from __future__ import annotations

from pathlib import Path

DENSE = ("embedding", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "final_layernorm")
MLP = ("gate_up_proj", "act_fn", "down_proj")

META = """\
vllm_version: 0.19.0
gpu: Test GPU
hardware: TESTGPU
profiled_at: '2026-04-24T12:44:27+00:00'
architecture: {architecture}
model: {model}
variant: {variant}
measurement_iterations: 3
"""

SKEW = """\
regime,n,nb,ratio,skew,pc,kp,kvs,kv_big,kv_mean,t_mean_us,t_max_us,t_skew_us,alpha
pure,2,1,0.5,4.0,0,0,128,512,320,46.5,50.1,47.3,0.2222
"""


def write_bundle(
    folder: Path,
    *,
    architecture: str = "llama",
    model: str = "test/tiny",
    variant: str = "bf16",
    tps: tuple[int, ...] = (1,),
) -> Path:
    """A variant folder; expert times, where the architecture has experts, at tp 1 only."""
    folder.mkdir(parents=True)
    (folder / "meta.yaml").write_text(META.format(architecture=architecture, model=model, variant=variant))
    for tp in tps:
        at = folder / f"tp{tp}"
        at.mkdir()
        names = DENSE if architecture == "mixtral" else (*DENSE, *MLP)
        dense = [f"{name},{tokens},{us}" for name in names for tokens, us in ((1, 2), (64, 10))]
        (at / "dense.csv").write_text("\n".join(["layer,tokens,time_us", *dense]) + "\n")
        per = [f"{name},{n},{us}" for name in ("lm_head", "sampler") for n, us in ((1, 20), (8, 27))]
        (at / "per_sequence.csv").write_text("\n".join(["layer,sequences,time_us", *per]) + "\n")
        attention = [f"{t},{h},0,0,{5 + t * (h + t)}" for t in (16, 64) for h in (0, 64)]
        attention += [f"0,0,{n},{h},{5 + n * h}" for n in (1, 8) for h in (16, 64)]
        attention += [f"16,0,1,{h},{300 + h}" for h in (16, 64)]
        (at / "attention.csv").write_text(
            "\n".join(["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", *attention]) + "\n"
        )
    if architecture == "mixtral":
        (folder / "tp1" / "moe.csv").write_text("tokens,activated_experts,time_us\n1,2,50\n64,8,90\n")
    return folder
