"""How many KV blocks fit: what vLLM computes when it starts, from the device, the model and the options."""

from __future__ import annotations

from profiles.model import ModelSpec, dtype_bytes
from simulator.options import EngineOptions
from simulator.partition import ALONE, Partition, stage_layers
from traces.errors import CapacityError


def predicted_num_gpu_blocks(
    model: ModelSpec, device: str, memory_bytes: float, options: EngineOptions, partition: Partition = ALONE
) -> int:
    """KV blocks of one engine, the null block included; an upper bound.

    vLLM 0.19 `v1/worker/gpu_worker.py::determine_available_memory` takes memory * utilization, and off it the weights,
    the peak of activations, CUDA graphs and the context; here only the weights are known. Every stage of a pipeline
    gets as many blocks as fit on the fullest (`v1/core/kv_cache_utils.py::get_kv_cache_configs`).
    Raises CapacityError when the weights alone do not fit.
    """
    budget = memory_bytes * options.gpu_memory_utilization
    kv_dtype = options.dtype if options.kv_cache_dtype == "auto" else options.kv_cache_dtype
    kv_bytes = model.kv_bytes_per_token(kv_dtype, partition.tensor_parallel_size) / model.num_layers
    fewest, largest = None, 0.0
    for stage, layers in enumerate(stage_layers(model.num_layers, partition.pipeline_parallel_size)):
        weights = weight_bytes(model, options.dtype, partition, stage)
        blocks = int((budget - weights) // (kv_bytes * layers * options.block_size))
        fewest, largest = blocks if fewest is None else min(fewest, blocks), max(largest, weights)
    if fewest is None or fewest < 2:
        sizes = f"tensor_parallel_size {partition.tensor_parallel_size}"
        if partition.pipeline_parallel_size > 1:
            sizes += f", pipeline_parallel_size {partition.pipeline_parallel_size}"
        raise CapacityError(
            f"{model.name} does not fit on {device} at {sizes}: {largest / 2**30:.2f} GiB of weights, "
            f"{budget / 2**30:.2f} GiB to use"
        )
    return fewest


def weight_bytes(model: ModelSpec, dtype: str, partition: Partition = ALONE, stage: int = 0) -> float:
    """Bytes of weights on one device of a pipeline stage.

    The first stage has the embedding, the last the final norm and the head; with expert parallelism a device holds
    whole experts, one in as many as there are devices in all ranks. Raises InputError for a degree that the model
    cannot be split by.
    """
    layers = stage_layers(model.num_layers, partition.pipeline_parallel_size)
    parts = model.parameters(partition.tensor_parallel_size)
    if partition.enable_expert_parallel:
        devices = partition.tensor_parallel_size * partition.data_parallel_size
        router = model.num_layers * model.num_experts * model.hidden_size
        parts["experts"] = router - (router - model.parameters()["experts"]) // devices
    in_layers = parts["attention"] + parts["mlp"] + parts["experts"] + parts["norms"]
    count = in_layers * layers[stage] / model.num_layers
    count += parts["embedding"] if stage == 0 else 0
    count += parts["lm_head"] if stage == len(layers) - 1 else 0
    if model.tie_word_embeddings and stage == len(layers) - 1 and stage > 0:
        count += parts["embedding"]
    return count * dtype_bytes(dtype)
