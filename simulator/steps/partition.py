"""A model spread over devices: which layers each pipeline stage has, and what the parts say to each other.

Tensor parallelism splits every layer, so that each device has a share of every sum: two all-reduces a layer
(`RowParallelLinear` of attention and MLP), one for the embedding, an all-gather for the logits. Pipeline parallelism
splits the layers; a stage hands hidden states and residual on. Sources: vLLM 0.32
`model_executor/layers/{linear,vocab_parallel_embedding,logits_processor}.py`, `distributed/{utils,parallel_state}.py`.

With data parallelism over a mixture of experts tokens are gathered before the experts and their sums scattered after
(vLLM's default `all2all_backend: allgather_reducescatter`, `distributed/device_communicators/all2all.py`). Where each
rank is several devices, that is done in one of two ways, as `use_sequence_parallel_moe` says. In a layer:

| | each device hands on | gathered, scattered among | behind that, among a rank's devices |
|---|---|---|---|
| not split | all tokens of its rank | its likes of all ranks | an all-reduce of the sums |
| split | its share of them | all devices of all ranks | an all-gather of the sums |

All devices see all tokens in both, and compute the same of their experts; a rank's tokens are padded to equal shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from profiles.model import ModelSpec, dtype_bytes
from simulator.network.collectives import CollectiveTimes, Hop
from simulator.network.topology import Place
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
        data: among the devices of `expert_groups`, which gather tokens of experts; None when there is one rank.
        next_stage: each device of a stage to its like in the next, all at once; None when there is one stage.
        use_sequence_parallel_moe: the devices of a rank split its tokens before the experts.
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    tensor: CollectiveTimes | None = None
    data: CollectiveTimes | None = None
    next_stage: Hop | None = None
    use_sequence_parallel_moe: bool = False

    def entering(self, n_tokens: int) -> int:
        """Tokens that enter the experts for so many of a rank: a multiple of its devices where these split them.

        vLLM 0.32 `model_executor/models/utils.py::sequence_parallel_chunk_impl`, `forward_context.py`
        (`_compute_sp_num_tokens`); the router and the experts compute what was added like any other token.
        """
        devices = self.tensor_parallel_size if self.use_sequence_parallel_moe else 1
        return -(-n_tokens // devices) * devices

    def notes(self) -> tuple[str, ...]:
        """Where the times of communication are from, and who hands tokens to the experts."""
        times = [times for times in (self.tensor, self.data) if times is not None]
        split = (SPLIT_NOTE,) if self.use_sequence_parallel_moe else ()
        return (*split, *dict.fromkeys(note for one in times for note in one.notes()))


SPLIT_NOTE = "experts: the devices of a rank split its tokens before them, as vLLM's use_sequence_parallel_moe"

ALONE = Partition()
"""The whole model on one device."""

SPLIT_SINCE: dict[str, tuple[int, int] | None] = {"qwen3_moe": (0, 11), "mixtral": None, "phimoe": None}
"""Families with experts, and the vLLM version from which on their code splits tokens; None: it does not.

Read in 0.10.2, 0.11.0, 0.15.1 and each minor version from 0.19 to 0.33 (`model_executor/models/{qwen3_moe,mixtral,
phimoe}.py`: `is_sequence_parallel`; vLLM PR #24982).
"""


def use_sequence_parallel_moe(
    model: ModelSpec, version: tuple[int, int], *, tensor: int, data: int, expert_parallel: bool
) -> bool:
    """Whether the devices of a rank split its tokens before the experts.

    vLLM 0.32 `config/parallel.py::use_sequence_parallel_moe`, with the default all-to-all backend, which is in its list
    in all versions that were read; and whether the model's own code heeds it. Raises InputError for a family with
    experts whose code was not read.

    Args:
        model: what is spread.
        version: of vLLM, major and minor.
        tensor: devices of a rank that share each layer.
        data: ranks that share the experts.
        expert_parallel: devices hold whole experts.
    """
    if not (expert_parallel and tensor > 1 and data > 1):
        return False
    if model.model_type not in SPLIT_SINCE:
        accepted = f"one of {', '.join(SPLIT_SINCE)} where ranks of several devices share experts"
        raise InputError(field="model", found=f"{model.name}, of type {model.model_type}", accepted=accepted)
    since = SPLIT_SINCE[model.model_type]
    return since is not None and version >= since


def expert_groups(of_ranks: Sequence[Sequence[Place]], *, split: bool) -> list[tuple[Place, ...]]:
    """The devices that gather tokens of experts and scatter their sums among each other, group by group.

    Args:
        of_ranks: of each rank the devices that share a layer.
        split: these split their rank's tokens, and so all of them are one group (vLLM's expert-parallel group, rank by
            rank); else each exchanges with its likes of other ranks (its data-parallel group).
    """
    return [tuple(chain.from_iterable(of_ranks))] if split else list(zip(*of_ranks, strict=True))


def layer_passes(*, split: bool) -> int:
    """How often a layer's hidden states go round the devices that share it, behind attention and behind the MLP.

    An all-reduce is two passes of a ring, an all-gather one.
    """
    return 2 + (1 if split else 2)


@dataclass(frozen=True, slots=True)
class Communication:
    """Seconds that a step's parts take to talk, by what they depend on.

    Attributes:
        layer_s: [max tokens + 1] of each layer, over the step's tokens.
        experts_s: [ranks * entering(max tokens) + 1] of each layer's experts, over all tokens that enter them.
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
        one_s = behind_s = partition.tensor.all_reduce_s(hidden_bytes)
        if partition.use_sequence_parallel_moe:
            entering = np.array([partition.entering(n) for n in range(max_tokens + 1)], dtype=np.float64)
            behind_s = partition.tensor.all_gather_s(entering * model.hidden_size * width)
        layer_s, once_s = layer_s + (one_s + behind_s), once_s + one_s
        request_s = partition.tensor.all_gather_s(requests * model.vocab_size * width)
    most = partition.data_parallel_size * partition.entering(max_tokens)
    tokens = np.arange(most + 1, dtype=np.float64)
    experts_s = np.zeros_like(tokens)
    if partition.data is not None:
        # Hidden states and router logits of all to each; sums of all tokens back to whose they are.
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
