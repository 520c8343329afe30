"""The most memory that vLLM's dummy step takes for a moment when it starts, from the model's own layers.

Before it sizes the KV cache, vLLM runs one step of `max_num_batched_tokens` tokens and samples from as many rows as
requests can run (`profile_run` of v1/worker/gpu_model_runner.py, or v1/worker/gpu/model_runner.py where that runner is
the default). The peak over what is allocated in between is taken off the KV cache. Counted here are the tensors that
the code names, by their sizes, and not what the allocator rounds up. Read in vLLM 0.19 to 0.33; the sort of older
versions in PyTorch's `aten/src/ATen/native/cuda/Sort.cu`.
"""

from __future__ import annotations

from dataclasses import dataclass

from profiles.model import VOCAB_PADDING, ModelSpec, compute_dtype, dtype_bytes
from simulator.scheduling.options import EngineOptions
from simulator.steps.partition import Partition

FLOAT32 = 4
SORT_BYTES = 36
"""Bytes per logit while PyTorch sorts float32 rows: the logits (4), sorted values (4) and their places (8), places to
sort (8), and the radix sort's second buffers of values (4) and places (8); `Sort.cu::segmented_sort_pairs`, CUB's
`DeviceSegmentedRadixSort`. vLLM PR #32558 measured 1.25 GiB for 256 rows of 131,072: 40 with its copy of the input.
"""

TRITON_SINCE = (0, 17)
"""Top-k and top-p without a sort of the vocabulary (vLLM PR #33538, in the release notes of 0.17)."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The widest moment of the dummy step on one device.

    Attributes:
        layers_bytes: in the widest layer.
        sampler_bytes: while rows are sampled; 0 on a pipeline stage that does not sample.
        sampled_rows: how many.
        sampler: what samples, in words.
    """

    layers_bytes: int
    sampler_bytes: int
    sampled_rows: int
    sampler: str

    @property
    def total_bytes(self) -> int:
        """The wider of both: layers are over when the sampler runs."""
        return max(self.layers_bytes, self.sampler_bytes)

    @property
    def of(self) -> str:
        """Which it is, in words."""
        if self.sampler_bytes > self.layers_bytes:
            return f"sampler: {self.sampler}, {self.sampled_rows} rows"
        return "widest layer"


def profiling_peak(
    model: ModelSpec,
    options: EngineOptions,
    partition: Partition,
    version: tuple[int, int],
    *,
    multiprocessors: int | None = None,
    samples: bool = True,
) -> Peak:
    """The widest moment of the dummy step; `samples`: this pipeline stage is the last."""
    width = dtype_bytes(activation_dtype(options))
    tokens = options.max_num_batched_tokens
    rows = min(options.max_num_seqs, tokens)
    per_row, per_logit_float = _sampler_bytes(model, width, version)
    sampler_bytes = 0
    if samples:
        # The step's hidden states, those of the sampled rows, and a random copy of these.
        hidden = (tokens + 2 * rows) * model.hidden_size * width
        sampler_bytes = hidden + rows * per_row
        if per_logit_float:
            buffers = rows if multiprocessors is None else min(rows, multiprocessors)
            buffers = min(1 << (buffers - 1).bit_length(), multiprocessors or rows)
            sampler_bytes += buffers * model.vocab_size * FLOAT32
    return Peak(tokens * _layer_width(model, partition) * width, sampler_bytes, rows, _sampler(model, version))


def uses_second_runner(model: ModelSpec, version: tuple[int, int]) -> bool:
    """Whether vLLM's second model runner is the default, which samples without copies of the logits.

    `config/vllm.py::use_v2_model_runner` and `DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES` of 0.22, 0.23, 0.25 and 0.29.
    """
    if version >= (0, 29):
        return True
    if model.num_experts:
        return False
    families = {(0, 22): {"qwen3"}, (0, 23): {"qwen3", "llama", "mistral"}, (0, 24): {"qwen3", "llama", "mistral"}}
    return version >= (0, 25) or model.model_type in families.get(version, set())


def activation_dtype(options: EngineOptions) -> str:
    """Type of hidden states and of the table of rotary embeddings: 16 bit wide where weights have one byte."""
    return compute_dtype(options.dtype)


def _sampler(model: ModelSpec, version: tuple[int, int]) -> str:
    if uses_second_runner(model, version):
        return "logits as they are"
    return "softmax and noise" if version >= TRITON_SINCE else "sort of the vocabulary"


def _sampler_bytes(model: ModelSpec, width: int, version: tuple[int, int]) -> tuple[int, bool]:
    """Bytes for one row, and whether the Triton kernel's buffers come on top.

    Logits in the model's type, with the padding of the vocabulary, live as long as the sampler. On top: the sort; or
    float32 logits, probabilities and exponential noise (v1/sample/ops/topk_topp_sampler.py, `forward_native`); or
    nothing (v1/worker/gpu/sample/gumbel.py).
    """
    logits = -(-model.vocab_size // VOCAB_PADDING) * VOCAB_PADDING * width
    if uses_second_runner(model, version):
        return logits, False
    if version >= TRITON_SINCE:
        return logits + 3 * FLOAT32 * model.vocab_size, True
    return logits + SORT_BYTES * model.vocab_size, False


def _layer_width(model: ModelSpec, partition: Partition) -> int:
    """Numbers per token that live at once in the widest moment of a decoder layer.

    Three hidden states live all the while: the layer's input, which the model's loop still holds, what attention gave,
    and the residual (model_executor/models/llama.py). With them either queries, keys, values and attention's output, or
    the MLP's gate and up projections and their product, or the experts' two workspaces
    (fused_moe.py, `workspace_shapes`) and router logits.
    """
    tp = partition.tensor_parallel_size
    hidden = model.hidden_size
    q_width = model.num_heads * model.head_dim // tp
    kv_width = max(model.num_kv_heads // tp, 1) * model.head_dim
    attention = 2 * q_width + 2 * kv_width
    if not model.num_experts:
        return 3 * hidden + max(attention, 3 * model.intermediate_size // tp)
    ranks = partition.data_parallel_size
    inner = model.intermediate_size // (1 if partition.enable_expert_parallel else tp)
    workspaces = max(inner, hidden) + max(2 * inner, hidden)
    # Each rank computes its experts for the tokens of all ranks.
    experts = ranks * (model.num_experts_per_tok * workspaces + model.num_experts + (hidden if ranks > 1 else 0))
    return 3 * hidden + max(attention, experts)
