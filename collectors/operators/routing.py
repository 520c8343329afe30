"""Chosen scores in place of what a model's router makes of random weights, so that experts are reached at will.

With random weights and alike tokens every token would go to the same experts. Needs torch and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

HIGH, STEP = 8.0, 0.125
"""Score of a chosen expert, less a step for each that is chosen before it; both exact in bfloat16. Others have 0."""


@contextmanager
def routed(gates: Sequence[Any], top_k: int, n_experts: int) -> Iterator[None]:
    """Within it, the gates' scores [tokens, experts] send tokens where they are told to.

    Args:
        gates: modules whose output, or its first part, are the scores.
        top_k: experts of a token.
        n_experts: token t's i-th expert is `(t * top_k + i) % n_experts`, so that exactly so many are reached when
            there are tokens enough (LLMServingSim's profiler routes so); 0: experts uniformly at random.
    """
    made: dict[Any, Any] = {}

    def instead(_module: Any, _inputs: Any, output: Any) -> Any:
        scores = output[0] if isinstance(output, tuple) else output
        key = (tuple(scores.shape), scores.dtype, scores.device)
        if key not in made:
            made[key] = _scores(scores, top_k, n_experts)
        return (made[key], *output[1:]) if isinstance(output, tuple) else made[key]

    handles = [gate.register_forward_hook(instead) for gate in gates]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scores(like: Any, top_k: int, n_experts: int) -> Any:
    """Scores of the given tensor's shape [tokens, experts], type and device."""
    import torch

    tokens, experts = like.shape
    if not n_experts:
        generator = torch.Generator().manual_seed(tokens)
        return torch.rand(tokens, experts, generator=generator).to(like)
    scores = torch.zeros(tokens, experts)
    order = torch.arange(top_k)
    chosen = (torch.arange(tokens)[:, None] * top_k + order) % n_experts
    return scores.scatter_(1, chosen, (HIGH - STEP * order).expand(tokens, top_k)).to(like)


def gates_of(modules: Sequence[tuple[str, Any]]) -> list[Any]:
    """The gates of blocks with experts, by the name that vLLM's models give them, of (path, module)."""
    return [gate for _, block in expert_blocks(modules) if (gate := getattr(block, "gate", None)) is not None]


def expert_blocks(modules: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Blocks of a gate and experts, as (path, module): vLLM's `block_sparse_moe` of Mixtral, `mlp` of Qwen3."""
    is_block: Callable[[Any], bool] = lambda module: hasattr(module, "experts") and hasattr(module, "gate")  # noqa: E731
    return [(path, module) for path, module in modules if is_block(module)]
