"""Options of an engine, by vLLM's names. Unknown keys are errors: an option that would have no effect is a bug."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from simulator.scheduling.speculation import SpeculativeConfig

MOST = 2**24
"""Tokens, requests and layers: more than any engine takes, and few enough for tables by their number."""
Positive = Annotated[int, msgspec.Meta(ge=1, le=MOST)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]

CHOSEN_BY_DEVICE = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "gpu_memory_utilization",
    "async_scheduling",
    "cudagraph_capture_sizes",
)
"""Options whose defaults vLLM chooses by device, parallelism and version: `harness/deploy/defaults.py` does."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a vLLM engine is started with, as far as it changes a prediction.

    Defaults are vLLM 0.32's (`vllm/config/{scheduler,cache,model}.py`) where vLLM has one that depends on nothing
    else. Those of `CHOSEN_BY_DEVICE` are what `vllm serve` takes on a GPU of less than 70 GiB; what a scenario leaves
    unsaid is chosen by its own device before it gets here.

    Attributes:
        max_num_seqs: most requests in the running queue.
        max_num_active_seqs: a lower bound of the running queue, for engines that are built for more; None: none.
        max_num_batched_tokens: token budget of a step.
        max_model_len: most tokens of a request, prompt and answer; None: the model's own limit.
        block_size: tokens per KV block.
        num_gpu_blocks: KV blocks, the null block included, as the engine reports them; None: predicted from the
            device's memory.
        gpu_memory_utilization: share of the device's memory the engine may use; read when num_gpu_blocks is None.
        kv_cache_memory_bytes: bytes of KV on each device, instead of what gpu_memory_utilization leaves; read when
            num_gpu_blocks is None.
        enable_prefix_caching: share full KV blocks between requests of equal prefix.
        enable_chunked_prefill: let a prompt be computed over several steps.
        long_prefill_token_threshold: most tokens of one prompt per step; 0: no limit.
        long_prefill_token_threshold_adaptive: never less than an equal share of the token budget.
        scheduling_policy: who is served first: who came first, or who has the lowest `priority` of its trace row.
        scheduler_reserve_full_isl: admit a request only when its whole prompt fits in the free blocks.
        watermark: share of the blocks that admitting a request leaves free while others run.
        async_scheduling: plan the next step while one runs (vLLM's default on GPUs since 0.14).
        enforce_eager: no torch.compile, no CUDA graphs, so no padding to captured sizes.
        cudagraph_capture_sizes: batch sizes (tokens) with a CUDA graph; None: vLLM's default list.
        dtype: type of weights and activations; of fp8 and nvfp4 are the weights of layers alone, the rest is bfloat16.
        kv_cache_dtype: type of the KV cache; auto: as activations.
        cpu_offload_gb: GiB of weights of each device that stay in its host's memory, read in place.
        offload_group_size: layers of a group; its last stay in the host's memory and are fetched ahead; 0: none.
        offload_num_in_group: how many of each group.
        offload_prefetch_step: how many of them are fetched ahead.
        speculative_config: how tokens are drafted (`simulator.scheduling.speculation`); None: they are not.
    """

    max_num_seqs: Positive = 256
    max_num_active_seqs: Positive | None = None
    max_num_batched_tokens: Positive = 2048
    max_model_len: Positive | None = None
    block_size: Positive = 16
    num_gpu_blocks: Annotated[int, msgspec.Meta(ge=2)] | None = None
    gpu_memory_utilization: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.92
    kv_cache_memory_bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: Count = 0
    long_prefill_token_threshold_adaptive: bool = False
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    scheduler_reserve_full_isl: bool = True
    watermark: Share = 0.0
    async_scheduling: bool = True
    enforce_eager: bool = False
    cudagraph_capture_sizes: tuple[Positive, ...] | None = None
    dtype: Literal["bfloat16", "float16", "float32", "fp8", "nvfp4"] = "bfloat16"
    kv_cache_dtype: Literal["auto", "bfloat16", "float16", "float32", "fp8"] = "auto"
    cpu_offload_gb: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    offload_group_size: Count = 0
    offload_num_in_group: Positive = 1
    offload_prefetch_step: Positive = 1
    speculative_config: SpeculativeConfig | None = None

    def capture_sizes(self) -> tuple[int, ...]:
        """Batch sizes with a CUDA graph, ascending; none when eager, and vLLM's default list where none is stated."""
        if self.enforce_eager:
            return ()
        if self.cudagraph_capture_sizes is not None:
            return tuple(sorted(self.cudagraph_capture_sizes))
        return default_capture_sizes(self)


def default_capture_sizes(
    options: EngineOptions, *, most: int = 512, with_budget: bool = True, with_seats: bool = True
) -> tuple[int, ...]:
    """vLLM's list of batch sizes (tokens) with a CUDA graph, ascending, where none is stated.

    vLLM 0.32 `vllm/config/vllm.py::_set_cudagraph_sizes`: 1, 2, 4, then every 8 below 256, then every 16, up to
    2 * max_num_seqs, `most` and the token budget; the budget itself and max_num_seqs where they are no more than that.
    Where tokens are drafted, 1 + k tokens of each request count in place of one, and those of so many requests are
    sizes too.

    Args:
        options: of the engine.
        most: the largest size, in tokens.
        with_budget: whether the token budget is a size.
        with_seats: whether as many tokens as requests can run are a size.
    """
    each = 1 if options.speculative_config is None else 1 + options.speculative_config.num_speculative_tokens
    seats, budget = options.max_num_seqs, options.max_num_batched_tokens
    largest = min(2 * seats * each, most, budget)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)]
    if each > 1:
        sizes += [count * each for count in (*sizes, seats) if count <= seats]
    elif with_seats:
        sizes.append(seats)
    if with_budget:
        sizes.append(budget)
    return tuple(sorted({size for size in sizes if size <= largest}))
