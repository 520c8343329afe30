"""What a real engine's devices say to each other: a plugin that takes note of it, and one data-parallel rank to run.

    VLLM_DP_RANK=0 VLLM_DP_SIZE=2 ... COLLECTIVES=FOLDER python collectives.py MODEL N_TOKENS

The plugin (`register`, loaded by vLLM in each worker) writes a line for each collective of the tensor-, data- and
expert-parallel groups: the group's ranks, the operation, rows of its input, and rows of each rank where they differ.

vLLM's CPU build lacks two of these operations, and its kernel of experts knows of no experts elsewhere. The first are
done here by others, the second by nothing: what is said does not depend on the numbers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPERATIONS = ("all_reduce", "all_gather", "all_gatherv", "reduce_scatter", "reduce_scatterv")


def register() -> None:
    """Wrap the collectives of this process."""
    import vllm.model_executor.layers.fused_moe.experts.cpu_moe as cpu_experts
    from vllm.distributed.parallel_state import GroupCoordinator

    if getattr(GroupCoordinator, "takes_note", False):
        return
    GroupCoordinator.takes_note = True
    GroupCoordinator.all_gatherv, GroupCoordinator.reduce_scatterv = gatherv, scatterv
    for name in OPERATIONS:
        setattr(GroupCoordinator, name, noted(name, getattr(GroupCoordinator, name)))
    cpu_experts.cpu_fused_moe = lambda out, *_, **__: out.zero_()


def noted(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
    """The operation, and a line of what is asked of it."""
    file = Path(os.environ["COLLECTIVES"]) / f"{os.getpid()}.jsonl"

    def call(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        kind = self.unique_name.partition(":")[0]
        if kind in ("tp", "dp", "ep"):
            tensors = x if isinstance(x, list) else [x]
            line = {
                "ranks": list(self.ranks),
                "operation": name,
                "rows": tensors[0].shape[0],
                "row_bytes": [tensor[0].numel() * tensor.element_size() for tensor in tensors],
                "sizes": kwargs.get("sizes"),
            }
            with file.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
        return operation(self, x, *args, **kwargs)

    return call


def gatherv(self: Any, x: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
    """An all-gather of parts that may differ in their rows, as gathers of equal ones."""
    import torch

    if isinstance(x, list):
        return [gatherv(self, one, dim, sizes) for one in x]
    assert sizes is not None
    padded = torch.zeros((max(sizes), *x.shape[1:]), dtype=x.dtype)
    padded[: x.shape[0]] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded, group=self.device_group)
    return torch.cat([part[:rows] for part, rows in zip(parts, sizes, strict=True)])


def scatterv(self: Any, x: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
    """A reduce-scatter to parts that may differ in their rows, as an all-reduce."""
    import torch

    assert sizes is not None
    whole = x.contiguous().clone()
    torch.distributed.all_reduce(whole, group=self.device_group)
    begin = sum(sizes[: self.rank_in_group])
    return whole[begin : begin + sizes[self.rank_in_group]].clone()


def main() -> None:
    """Answer one prompt of so many tokens on the rank that the environment names."""
    from vllm import LLM, SamplingParams

    model, n_tokens = sys.argv[1], int(sys.argv[2])
    llm = LLM(
        model=model,
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        tensor_parallel_size=2,
        enable_expert_parallel=True,
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=256,
        kv_cache_memory_bytes=2**26,
        dtype="bfloat16",
    )
    prompt = {"prompt_token_ids": list(range(3, 3 + n_tokens))}
    llm.generate([prompt], SamplingParams(max_tokens=3, ignore_eos=True, detokenize=False))


if __name__ == "__main__":
    main()
