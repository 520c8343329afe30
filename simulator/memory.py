"""How many KV blocks fit, line by line: what vLLM computes when it starts, from the device, the model and the options.

vLLM takes `gpu_memory_utilization` of the device's memory and off it the weights, the widest moment of a dummy step,
what libraries take outside of PyTorch, and in newer versions CUDA graphs; KV blocks get the rest
(v1/worker/gpu_worker.py `determine_available_memory`, v1/core/kv_cache_utils.py `get_kv_cache_configs`, 0.19 to 0.33).
What no source tells beforehand is not guessed: it is left in, and named in `unknown`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from profiles.model import ModelSpec, kv_dtype, part_bytes
from simulator.profiling_run import Peak, activation_dtype, profiling_peak
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.rules import REFERENCE
from simulator.steps.partition import ALONE, Partition, stage_layers
from simulator.steps.weight_offload import WeightOffload
from traces.errors import CapacityError

MIB = 1 << 20

GRAPHS_SINCE = (0, 20)
"""CUDA graphs are taken off (v1/worker/gpu_worker.py, VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS, 1 from 0.20 on)."""

CONTEXT_UNKNOWN = (
    "memory outside of PyTorch (kernels' code, libraries' handles, NCCL) is not known beforehand and is not taken off; "
    "published logs of single GPUs say 0.02 to 0.26 GiB"
)
GRAPHS_UNKNOWN = (
    "memory of CUDA graphs is measured by vLLM at its start; taken off is only what it counts at least, 1 MiB for each "
    "graph after the first of a kind"
)
GRAPHS_LEFT = (
    "what trying out CUDA graphs leaves behind counts in vLLM 0.19 as memory outside of PyTorch, and is not known"
)
ROTARY_UNKNOWN = "the table of rotary embeddings is not known for this kind of scaling and is not taken off"


@dataclass(frozen=True, slots=True)
class MemoryAccount:
    """Where the memory of one device goes, in bytes; of a pipeline's devices, one of the stage with the fewest blocks.

    Attributes:
        memory_bytes: what the device's runtime reports in all; None when the KV cache's size was stated.
        requested_bytes: the share that the engine may use; None likewise.
        weights: by part of the model, the table of rotary embeddings among them.
        peak: the widest moment of the dummy step.
        graph_bytes: CUDA graphs, as far as they are known; 0 where vLLM does not take them off.
        kv_bytes: what is left for KV.
        block_bytes: of one KV block over the device's layers.
        num_gpu_blocks: KV blocks of the engine, the null block included.
        block_size: tokens per block.
        max_model_len: most tokens of a request; None when nobody says.
        unknown: what is not taken off because no source tells it.
    """

    memory_bytes: float | None
    requested_bytes: int | None
    weights: dict[str, float]
    peak: Peak
    graph_bytes: int
    kv_bytes: float
    block_bytes: int
    num_gpu_blocks: int
    block_size: int
    max_model_len: int | None
    unknown: tuple[str, ...]

    @property
    def weight_bytes(self) -> float:
        """All weights on the device."""
        return sum(self.weights.values())

    @property
    def kv_tokens(self) -> int:
        """Tokens of the KV cache as vLLM prints them, the null block's included."""
        return self.num_gpu_blocks * self.block_size

    @property
    def longest_requests(self) -> float | None:
        """Requests of `max_model_len` that fit at once (vLLM's "maximum concurrency")."""
        if self.max_model_len is None:
            return None
        return self.num_gpu_blocks / -(-self.max_model_len // self.block_size)

    def notes(self) -> tuple[str, ...]:
        """In one sentence what was taken off, then what was not, then what vLLM would say against it."""
        if self.memory_bytes is None:
            first = f"{self.num_gpu_blocks} KV blocks in the stated {self.kv_bytes / 2**30:.2f} GiB"
            return (first, *self._refusal())
        assert self.requested_bytes is not None
        parts = [
            f"{self.weight_bytes / 2**30:.2f} GiB of weights",
            f"{self.peak.total_bytes / 2**30:.2f} of activations ({self.peak.of})",
            *([f"{self.graph_bytes / 2**30:.2f} of CUDA graphs"] if self.graph_bytes else []),
        ]
        first = (
            f"{self.num_gpu_blocks} KV blocks predicted: {self.requested_bytes / 2**30:.2f} GiB to use, less "
            f"{', '.join(parts)}"
        )
        return (first, *self.unknown, *self._refusal())

    def _refusal(self) -> tuple[str, ...]:
        if self.longest_requests is None or self.longest_requests >= 1:
            return ()
        return (
            f"vLLM would not start: a request of max_model_len {self.max_model_len} takes more than the "
            f"{self.num_gpu_blocks} KV blocks",
        )


def memory_account(
    model: ModelSpec,
    device: str,
    memory_bytes: float | None,
    options: EngineOptions,
    partition: Partition = ALONE,
    *,
    version: tuple[int, int] = REFERENCE,
    multiprocessors: int | None = None,
    offload: WeightOffload | None = None,
) -> MemoryAccount:
    """Where the memory goes on the device that limits the engine's KV blocks.

    Every stage of a pipeline gets as many blocks as fit on the fullest. `memory_bytes` may be None when
    `kv_cache_memory_bytes` is set, which vLLM takes as it is. Of weights in the host's memory (`offload`) the device
    holds what they are fetched into. Raises CapacityError when nothing is left for KV, and
    InputError for a degree that the model cannot be split by.
    """
    stages = [
        _stage(model, memory_bytes, options, partition, stage, version, multiprocessors, offload)
        for stage in range(partition.pipeline_parallel_size)
    ]
    fullest = min(stages, key=lambda account: account.num_gpu_blocks)
    if fullest.num_gpu_blocks < 2:
        raise CapacityError(_refusal(model, device, partition, fullest))
    return fullest


def weight_bytes(model: ModelSpec, dtype: str, partition: Partition = ALONE, stage: int = 0) -> float:
    """Bytes of weights on one device of a pipeline stage. Raises InputError as `weights_by_part`."""
    return sum(weights_by_part(model, dtype, partition, stage).values())


def weights_by_part(model: ModelSpec, dtype: str, partition: Partition = ALONE, stage: int = 0) -> dict[str, float]:
    """Bytes of weights on one device of a pipeline stage, by part.

    The first stage has the embedding, the last the final norm and the head. Experts are spread over the devices of all
    ranks: whole ones with expert parallelism, else a share of each (vLLM 0.32 `fused_moe/config.py`,
    `flatten_tp_across_dp_and_pcp`). Raises InputError for a degree that the model cannot be split by.
    """
    layers = stage_layers(model.num_layers, partition.pipeline_parallel_size)
    last = stage == len(layers) - 1
    parts = model.parameters(partition.tensor_parallel_size)
    devices = partition.tensor_parallel_size * partition.data_parallel_size
    if not partition.enable_expert_parallel:
        parts["experts"] = model.expert_parameters(devices)
    else:
        router = model.num_layers * model.num_experts * model.hidden_size
        parts["experts"] = router - (router - model.expert_parameters()) // devices
    share = layers[stage] / model.num_layers
    held = {name: parts[name] * share for name in ("attention", "mlp", "experts", "norms")}
    held["embedding"] = parts["embedding"] if stage == 0 or (model.tie_word_embeddings and last) else 0
    held["lm_head"] = parts["lm_head"] if last else 0
    return {name: count * part_bytes(name, dtype) for name, count in held.items() if count}


def device_weight_bytes(
    model: ModelSpec, options: EngineOptions, partition: Partition = ALONE, offload: WeightOffload | None = None
) -> int | None:
    """Bytes of weights on each device, with the table of rotary embeddings; None when pipeline stages differ."""
    if partition.pipeline_parallel_size > 1:
        return None
    moved = 0.0 if offload is None else offload.offloaded_bytes - offload.buffer_bytes
    return int(weight_bytes(model, options.dtype, partition) - moved) + model.rotary_bytes(activation_dtype(options))


def block_bytes(model: ModelSpec, options: EngineOptions, partition: Partition = ALONE, stage: int = 0) -> int:
    """Bytes of one KV block on one device of a pipeline stage (v1/kv_cache_interface.py `page_size_bytes`)."""
    of_kv = kv_dtype(options.dtype, options.kv_cache_dtype)
    of_layers = model.kv_bytes_per_token(of_kv, partition.tensor_parallel_size) // model.num_layers
    return of_layers * stage_layers(model.num_layers, partition.pipeline_parallel_size)[stage] * options.block_size


def _stage(
    model: ModelSpec,
    memory_bytes: float | None,
    options: EngineOptions,
    partition: Partition,
    stage: int,
    version: tuple[int, int],
    multiprocessors: int | None,
    offload: WeightOffload | None,
) -> MemoryAccount:
    weights = weights_by_part(model, options.dtype, partition, stage)
    if offload is not None:
        weights["in the host's memory"] = -offload.offloaded_bytes
        if offload.buffer_bytes:
            weights["fetched into"] = offload.buffer_bytes
    if rotary := model.rotary_bytes(activation_dtype(options)):
        weights["rotary table"] = rotary
    last = stage == partition.pipeline_parallel_size - 1
    peak = profiling_peak(model, options, partition, version, multiprocessors=multiprocessors, samples=last)
    graphs = _graph_bytes(options, version)
    stated = options.kv_cache_memory_bytes
    requested = None
    if stated is None:
        assert memory_bytes is not None
        requested = math.ceil(memory_bytes * options.gpu_memory_utilization)
        kv_bytes = requested - sum(weights.values()) - peak.total_bytes - graphs
    else:
        memory_bytes, kv_bytes = None, float(stated)
    bytes_each = block_bytes(model, options, partition, stage)
    return MemoryAccount(
        memory_bytes,
        requested,
        weights,
        peak,
        graphs,
        kv_bytes,
        bytes_each,
        int(kv_bytes // bytes_each),
        options.block_size,
        options.max_model_len or model.max_position_embeddings,
        () if stated is not None else _unknown(model, options, version),
    )


def _graph_bytes(options: EngineOptions, version: tuple[int, int]) -> int:
    """What vLLM counts at least for CUDA graphs: v1/worker/gpu_model_runner.py `profile_cudagraph_memory`.

    Each size has a graph of the layers in pieces, and one of the whole step if as many requests can decode.
    """
    if version < GRAPHS_SINCE:
        return 0
    sizes = options.capture_sizes()
    whole = [size for size in sizes if size <= options.max_num_seqs]
    return (max(len(sizes) - 1, 0) + max(len(whole) - 1, 0)) * MIB


def _unknown(model: ModelSpec, options: EngineOptions, version: tuple[int, int]) -> tuple[str, ...]:
    notes = [CONTEXT_UNKNOWN]
    if options.capture_sizes():
        if version >= GRAPHS_SINCE:
            notes.append(GRAPHS_UNKNOWN)
        elif version >= (0, 19):
            notes.append(GRAPHS_LEFT)
    if model.rotary_rows is None:
        notes.append(ROTARY_UNKNOWN)
    return tuple(notes)


def _refusal(model: ModelSpec, device: str, partition: Partition, account: MemoryAccount) -> str:
    sizes = f"tensor_parallel_size {partition.tensor_parallel_size}"
    if partition.pipeline_parallel_size > 1:
        sizes += f", pipeline_parallel_size {partition.pipeline_parallel_size}"
    to_use = account.kv_bytes if account.requested_bytes is None else account.requested_bytes
    return (
        f"{model.name} does not fit on {device} at {sizes}: {account.weight_bytes / 2**30:.2f} GiB of weights, "
        f"{account.peak.total_bytes / 2**30:.2f} GiB of activations, {to_use / 2**30:.2f} GiB to use"
    )
