"""How many KV blocks fit: what vLLM computes when it starts, from the device, the model and the options."""

from __future__ import annotations

from profiles.model import ModelSpec
from simulator.options import EngineOptions
from traces.errors import CapacityError


def predicted_num_gpu_blocks(
    model: ModelSpec, device: str, memory_bytes: float, options: EngineOptions, *, tensor_parallel_size: int
) -> int:
    """KV blocks of one engine, the null block included; an upper bound.

    vLLM 0.19 `v1/worker/gpu_worker.py::determine_available_memory` takes memory * utilization, and off it the weights,
    the peak of activations, CUDA graphs and the context; here only the weights are known.
    Raises CapacityError when they alone do not fit.
    """
    budget = memory_bytes * options.gpu_memory_utilization
    weights = model.weight_bytes(options.dtype, tensor_parallel_size)
    kv_dtype = options.dtype if options.kv_cache_dtype == "auto" else options.kv_cache_dtype
    block = model.kv_bytes_per_token(kv_dtype, tensor_parallel_size) * options.block_size
    blocks = int((budget - weights) // block)
    if blocks < 2:
        raise CapacityError(
            f"{model.name} does not fit on {device} at tensor_parallel_size {tensor_parallel_size}: "
            f"{weights / 2**30:.2f} GiB of weights, {budget / 2**30:.2f} GiB to use"
        )
    return blocks
