"""What an engine would say of shots, made up: a device that is linear in everything."""

from __future__ import annotations

from collections.abc import Sequence

from collectors.operators.composition import composition_of
from collectors.operators.samples import Answer, Parts, Samples
from collectors.operators.shots import Limits, Shot
from profiles.model import model_of

LIMITS = Limits(max_tokens=512, max_requests=32, max_kv_tokens=2048, block_size=32, kv_blocks=2112)
NUM_LAYERS = 2
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
MOE_CONFIG = {**CONFIG, "model_type": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 4}
DENSE = Parts(composition_of(model_of(CONFIG, "dense")), NUM_LAYERS)
MOE = Parts(composition_of(model_of(MOE_CONFIG, "moe")), NUM_LAYERS)


def step_s(shot: Shot) -> float:
    """A constant, so much per token, per pair of query and key, per token of decode history, per expert."""
    pairs = shot.n_chunks * shot.prefill_tokens * (shot.prefill_kv_tokens + shot.prefill_tokens / 2)
    kv_s = 4e-7 * shot.decode_kv_sum
    return 5e-3 + 3e-4 * shot.n_tokens + 1e-7 * pairs + kv_s + 1e-4 * shot.n_experts


def answer(shot: Shot, parts: Parts = DENSE, *, without: Sequence[str] = ()) -> Answer:
    """Operators take as many microseconds a run as the step has tokens, or ten times its requests."""
    composition = parts.composition
    times = {
        name: float(shot.n_tokens * NUM_LAYERS * composition.per_layer.count(name)) for name in composition.dense()
    }
    times |= dict.fromkeys(composition.once, float(shot.n_tokens))
    times |= dict.fromkeys(composition.per_request, 10.0 * shot.n_requests)
    times |= {"rotary_emb": 7.0 * NUM_LAYERS, "attention": step_s(shot) * 1e6 * NUM_LAYERS}
    if "moe" in composition.per_layer:
        times["moe"] = (100.0 * shot.n_experts + shot.n_tokens) * NUM_LAYERS
    inner = [times[name] for name in ("qkv_proj", "qk_norm", "attention", "o_proj") if name in times]
    times["self_attn"] = sum(inner) + 9.0 * NUM_LAYERS
    kept = {name: value for name, value in times.items() if name not in without}
    return Answer(step_s(shot) * 1e6, step_s(shot) * 1.1e6, kept)


def samples_of(
    shots: Sequence[Shot], parts: Parts = DENSE, repeats: int = 1, **options: Sequence[str]
) -> dict[Shot, Samples]:
    """Every shot measured so often."""
    samples = {shot: Samples() for shot in shots}
    for shot, one in samples.items():
        for _ in range(repeats):
            one.add(answer(shot, parts, **options))
    return samples
