"""A model spread over devices: which layers each pipeline stage has, and what the parts say to each other.

Tensor parallelism splits every layer, so that each device has a share of every sum: two all-reduces a layer
(`RowParallelLinear` of attention and MLP), one for the embedding, an all-gather for the logits. Pipeline parallelism
splits the layers; a stage hands hidden states and residual on. With data parallelism over a mixture of experts each
rank gathers all ranks' tokens before the experts and scatters the sums after (vLLM's default
`all2all_backend: allgather_reducescatter`). Sources: vLLM 0.32 `model_executor/layers/{linear,vocab_parallel_embedding,
logits_processor}.py`, `distributed/{utils,parallel_state}.py`, `distributed/device_communicators/all2all.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiles.model import ModelSpec, dtype_bytes
from simulator.network.collectives import CollectiveTimes, Hop
from traces.errors import InputError
from traces.steps import Floats


@dataclass(frozen=True, slots=True)
class Partition:
    """How one model is spread, and what the devices of each group take to talk.

    Attributes:
        tensor_parallel_size: devices that share each layer.
        pipeline_parallel_size: stages.
        data_parallel_size: ranks that share the experts of each layer.
        enable_expert_parallel: devices hold whole experts.
        tensor: among the devices that share a layer; None when there is one.
        data: among the ranks that share experts; None when there is one.
        next_stage: each device of a stage to its like in the next, all at once; None when there is one stage.
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    tensor: CollectiveTimes | None = None
    data: CollectiveTimes | None = None
    next_stage: Hop | None = None

    def notes(self) -> tuple[str, ...]:
        """Where the times of communication are from."""
        times = [times for times in (self.tensor, self.data) if times is not None]
        return tuple(dict.fromkeys(note for one in times for note in one.notes()))


ALONE = Partition()
"""The whole model on one device."""


@dataclass(frozen=True, slots=True)
class Communication:
    """Seconds that a step's parts take to talk, by what they depend on.

    Attributes:
        layer_s: [max tokens + 1] of each layer, over the step's tokens.
        experts_s: [ranks * max tokens + 1] of each layer's experts, over the tokens of all data-parallel ranks.
        once_s: [max tokens + 1] of the embedding.
        request_s: [max requests + 1] of the logits, over the step's requests.
        stage_s: [max tokens + 1] from one pipeline stage to the next.
    """

    layer_s: Floats
    experts_s: Floats
    once_s: Floats
    request_s: Floats
    stage_s: Floats


def communication(
    partition: Partition, model: ModelSpec, dtype: str, *, max_tokens: int, max_requests: int
) -> Communication:
    """Communication of a step with 0..max_tokens tokens on each data-parallel rank and 0..max_requests requests."""
    width = dtype_bytes(dtype)
    hidden_bytes = np.arange(max_tokens + 1, dtype=np.float64) * model.hidden_size * width
    requests = np.arange(max_requests + 1, dtype=np.float64)
    layer_s, once_s, stage_s = np.zeros_like(hidden_bytes), np.zeros_like(hidden_bytes), np.zeros_like(hidden_bytes)
    request_s = np.zeros_like(requests)
    if partition.tensor is not None:
        one_s = partition.tensor.all_reduce_s(hidden_bytes)
        layer_s, once_s = layer_s + 2 * one_s, once_s + one_s
        request_s = partition.tensor.all_gather_s(requests * model.vocab_size * width)
    tokens = np.arange(partition.data_parallel_size * max_tokens + 1, dtype=np.float64)
    experts_s = np.zeros_like(tokens)
    if partition.data is not None:
        # Hidden states and router logits of all ranks to each; sums of all tokens back to whose they are.
        experts_s = partition.data.all_gather_s(tokens * (model.hidden_size + model.num_experts) * width)
        experts_s = experts_s + partition.data.reduce_scatter_s(tokens * model.hidden_size * width)
    if partition.next_stage is not None:
        # Hidden states and residual; each device of a stage sends its share, and the next stage gathers them.
        stage_s = partition.next_stage.time_s(2 * hidden_bytes / partition.tensor_parallel_size)
        if partition.tensor is not None:
            stage_s = stage_s + partition.tensor.all_gather_s(2 * hidden_bytes)
    for seconds in (layer_s, experts_s, once_s, request_s, stage_s):
        seconds[0] = 0.0
    return Communication(layer_s, experts_s, once_s, request_s, stage_s)


def stage_layers(num_layers: int, pipeline_parallel_size: int) -> tuple[int, ...]:
    """Layers of each pipeline stage (vLLM 0.32 `distributed/utils.py::get_pp_indices`).

    What is left over goes to the stages before the last, from the back. Raises InputError for more stages than layers.
    """
    if pipeline_parallel_size > num_layers:
        raise InputError(
            field="pipeline_parallel_size", found=pipeline_parallel_size, accepted=f"at most {num_layers} layers"
        )
    each, left = divmod(num_layers, pipeline_parallel_size)
    layers = [each] * pipeline_parallel_size
    for i in range(2, left + 2):
        layers[-i] += 1
    return tuple(layers)
