"""Decode attention under FlashAttention 2, whose kernel for one query of each request is another beside a prompt.

vLLM calls it once for a whole batch (`v1/attention/backends/flash_attn.py`), and the call has two ways
(vllm-project/flash-attention `csrc/flash_attn/flash_api.cpp`, `mha_varlen_fwd`, `seqlenq_ngroups_swapped`):

* packed, where no request has more than one query and there is no sliding window: the query heads that share keys and
  values stand in one tile, so that these are read once. Histories are split over the device as long as requests and
  heads do not make enough blocks to fill it (`num_splits_heuristic`);
* apart, in any other batch: each query head of each request is a thread block of its own, which reads the keys for
  itself. Blocks begin head by head (`flash_fwd_launch_template.h`, grid of tiles, requests, heads), so that heads which
  share keys find them in the cache only as far as they are on the device at once.

So decodes cost several times as much beside a prompt, however short it is. FlashAttention 3 packs always, and is what
vLLM takes on devices of compute capability 9.0; capability 10 has FlashInfer.

Where histories are not split, a long request is a long block, and the last blocks leave the memory idle
(`profiles.thread_blocks`). So requests of unequal length cost most where they are just enough not to be split: 38 of
Llama-3.1-8B on 188 multiprocessors, 17 on 84.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from profiles.attention import AttentionTable, Chunk
from profiles.device import DeviceSpec
from profiles.model import ModelSpec, dtype_bytes
from profiles.operators import Operators
from profiles.profile import AttentionRows
from profiles.thread_blocks import left_over_of_equal_s, left_over_s
from traces.steps import Floats

PACKED_S = 13.5e-6
"""What a packed batch takes beside its reading, launches and the sum over splits among it."""
PACKED_READING = 1.18
"""Its reading, by the time that as many bytes take at the memory's peak.

Both are least squares of relative errors over the 224 decode-only batches of 2 and more requests and up to 4,096 tokens
of history in LLMServingSim's profiles of an RTX PRO 6000 (vLLM 0.19; 1,597 GB/s): 13.7 us and 1.16 for Llama-3.1-8B,
13.3 us and 1.20 for Qwen3-30B-A3B.
"""

SIZES = tuple(sorted({*(float(2**i) for i in range(10)), *(float(3 * 2**i) for i in range(2, 8))}))
HISTORIES = (0.0, *(float(2**i) for i in range(6, 18)))
CHUNKS = tuple(float(2**i) for i in range(4, 12))
CHUNK_HISTORIES = (0.0, 2048.0, 16384.0)

TILE_QUERIES = 64
"""Queries of a tile (`flash_fwd_launch_template.h`, `run_mha_fwd_splitkv_dispatch`: the kernel that pages KV)."""
TILE_RATE = 0.67
"""Share of a multiprocessor's matrix peak that a thread block alone on it reaches.

Least squares over LLMServingSim's batches of unequal decodes on an RTX PRO 6000 (vLLM 0.19, `skew.csv`) that are not
split: 49 to 58 keys in a microsecond over its four tables (Llama-3.1-8B and Qwen3-30B-A3B, tensor parallel 1 and 2), 51
over all. With it the times of these 474 are met within 1.1 to 2.7 % on the average (as if they were equal: 5 to 7 %),
of every fifth of 50,700 beside a prompt within 5 to 6 % (9 to 12 %). `tests/benchmarks/unequal_decodes.py` prints them.
"""
SHARED_BYTES = {"8.0": 164 * 1024, "8.7": 164 * 1024}
"""Shared memory of a multiprocessor by compute capability (CUDA C++ Programming Guide 13, technical specifications)."""
OTHER_SHARED_BYTES = 100 * 1024
"""Of the other devices of capability 8 and 12."""


@dataclass(frozen=True, slots=True)
class FlashAttention2:
    """Both ways on one device, for one layer.

    Attributes:
        heads: query heads on the device.
        group: of those, how many share keys and values.
        key_bytes: keys and values of one token.
        bytes_per_s: the memory's peak.
        multiprocessors: of the device.
        packs: whether a batch without a prompt is packed: the model has no sliding window.
        slots: thread blocks that are at work at once.
        key_s: what one alone takes for each key.
    """

    heads: int
    group: int
    key_bytes: float
    bytes_per_s: float
    multiprocessors: int
    packs: bool
    slots: int
    key_s: float

    def splits(self, n: int) -> bool:
        """Whether histories of n packed requests are split: their blocks fill less than 0.8 of the device.

        It is taken for twice as large as it is (`set_params_splitkv`: "128 threads per block").
        """
        return self.packs and n * self.heads // self.group < 0.8 * 2 * self.multiprocessors


def flash_attention_2(device: DeviceSpec, model: ModelSpec, tp: int, dtype: str) -> FlashAttention2 | None:
    """The kernel on one of `tp` devices; None where vLLM takes another, or too little is known of the device.

    Args:
        device: compute capability 8 or 12.
        model: its heads.
        tp: tensor-parallel degree.
        dtype: of keys and values, 16 bits: of others vLLM's FlashAttention 2 knows nothing.
    """
    capability, multiprocessors = device.compute_capability, device.multiprocessors
    bytes_per_s, peak = device.memory_bandwidth_bytes_per_s, device.peak_flops_per_s.get(dtype)
    if capability is None or multiprocessors is None or bytes_per_s is None or peak is None:
        return None
    if capability.split(".")[0] not in ("8", "12") or dtype_bytes(dtype) != 2:
        return None
    shape = Operators(model, tp, dtype).decode(1, 0)
    tile_keys = 256 if shape.head_dim <= 64 else 128 if shape.head_dim <= 128 else 64
    tile_bytes = (TILE_QUERIES + 2 * tile_keys) * shape.head_dim * 2
    return FlashAttention2(
        heads=shape.num_heads,
        group=shape.num_heads // shape.num_kv_heads,
        key_bytes=2 * shape.num_kv_heads * shape.head_dim * 2,
        bytes_per_s=bytes_per_s,
        multiprocessors=multiprocessors,
        packs=not model.has_sliding_window,
        slots=multiprocessors * max(1, SHARED_BYTES.get(capability, OTHER_SHARED_BYTES) // tile_bytes),
        key_s=4 * TILE_QUERIES * shape.head_dim / (TILE_RATE * peak / multiprocessors),
    )


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Seconds of decode batches, with the kernel's own measurements where it is apart.

    Attributes:
        kernel: the two ways.
        request_s: each request, apart.
        key_s: each key, apart, as long as the memory keeps up.
    """

    kernel: FlashAttention2
    request_s: float
    key_s: float

    def packed_s(self, n: Floats, history: Floats) -> Floats:
        """Of n requests of so many tokens before, [k] -> [k]."""
        return PACKED_S + PACKED_READING * self._read_s(n, history)

    def apart_s(self, n: Floats, history: Floats) -> Floats:
        """The same beside a prompt, or with a sliding window.

        One block of the device's multiprocessors each: with `m` of them and n requests, m / n heads are at work at
        once, and those of a group share what they read.
        """
        kernel = self.kernel
        together = np.clip(kernel.multiprocessors / n, 1.0, kernel.group)
        read_s = kernel.group / together * self._read_s(n, history)
        own_s = n * self.request_s + np.maximum(n * (history + 1) * self.key_s, read_s)
        return np.maximum(own_s, self.packed_s(n, history))

    def alone_s(self, n: Floats, history: Floats) -> Floats:
        """Without a prompt beside them."""
        return self.packed_s(n, history) if self.kernel.packs else self.apart_s(n, history)

    def _read_s(self, n: Floats, history: Floats) -> Floats:
        """To read each key once."""
        return n * (history + 1) * self.kernel.key_bytes / self.kernel.bytes_per_s


@dataclass(frozen=True, slots=True)
class UnequalDecodes:
    """What unequal histories cost beside as many equal ones of their mean, in one layer.

    Attributes:
        kernel: its blocks.
        table: times of equal ones.
    """

    kernel: FlashAttention2
    table: AttentionTable

    def alone_s(self, histories: Floats) -> float:
        """Of decodes without a prompt beside them that are not split; `histories` [n] tokens, in the batch's order.

        What equal ones leave over in a last, half empty round is in the time that was measured of them; of more than
        two rounds it is next to nothing.
        """
        kernel, n = self.kernel, len(histories)
        heads = kernel.heads // kernel.group if kernel.packs else kernel.heads
        known = heads, kernel.slots, kernel.key_s, heads * self.table.decode_keys_per_s(n)
        found_s = left_over_s(histories + 1, *known)
        if kernel.slots < n * heads <= 2 * kernel.slots:
            found_s -= left_over_of_equal_s(float(histories.sum()) / n + 1, n, *known)
        return found_s

    def beside_s(self, chunks: Sequence[Chunk], histories: Floats, together_s: float) -> float:
        """Of decodes beside prefill chunks, which take `together_s` with equal ones.

        A tile of queries of a prompt is a block too: it reads what was there before it, and the prompt up to itself.
        """
        tiles = [
            np.minimum(np.arange(TILE_QUERIES, chunk.new_tokens + TILE_QUERIES, TILE_QUERIES), chunk.new_tokens)
            + float(chunk.computed_tokens)
            for chunk in chunks
        ]
        kernel, n = self.kernel, len(histories)
        unequal = np.concatenate([histories + 1, *tiles])
        equal = unequal.copy()
        equal[:n] = histories.sum() / n + 1
        keys_per_s = kernel.heads * float(equal.sum()) / together_s
        equal_s, unequal_s = (
            left_over_s(keys, kernel.heads, kernel.slots, kernel.key_s, keys_per_s) for keys in (equal, unequal)
        )
        return unequal_s - equal_s


def fit_apart(kernel: FlashAttention2, n: Floats, history: Floats, time_s: Floats) -> DecodeTimes | None:
    """Times from batches that were measured apart, [k] each: least squares of relative errors.

    Of batches whose blocks fill the device three times over, where neither its size nor a last, half empty round of
    blocks has much of a say. None where they do not tell requests and keys apart.
    """
    full = n * kernel.heads >= 3 * kernel.multiprocessors
    if len(np.unique(n[full] / (n * (history + 1))[full])) < 2:
        return None
    columns = np.column_stack([n, n * (history + 1)])[full] / time_s[full, None]
    (request_s, key_s), *_ = np.linalg.lstsq(columns, np.ones(len(columns)), rcond=None)
    return DecodeTimes(kernel, float(request_s), float(key_s)) if min(request_s, key_s) > 0 else None


def with_decodes(chunks: AttentionRows, times: DecodeTimes) -> AttentionRows:
    """Prefill chunks as measured, decodes alone, and both together: the chunk's own time and that of decodes apart."""
    n, history = (grid.ravel() for grid in np.meshgrid(SIZES, HISTORIES, indexing="ij"))
    none = np.zeros(len(n))
    alone = AttentionRows(none, none, n, history, times.alone_s(n, history))
    table = AttentionTable(_joined([chunks, alone]))
    apart_s = times.apart_s(n, history)
    mixed = []
    for tokens, before in product(CHUNKS, CHUNK_HISTORIES):
        chunk_s = table.prefill_s([Chunk(int(tokens), int(before))])
        mixed.append(AttentionRows(none + tokens, none + before, n, history, chunk_s + apart_s))
    return _joined([chunks, alone, *mixed])


def _joined(parts: list[AttentionRows]) -> AttentionRows:
    """All rows; a spread where it was measured."""
    names = ("prefill_tokens", "prefill_kv_tokens", "n_decode", "decode_kv_tokens", "time_s")
    tokens, before, n, history, time_s = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    spreads = [np.full(len(part.time_s), np.nan) if part.spread is None else part.spread for part in parts]
    spread = np.concatenate(spreads)
    return AttentionRows(tokens, before, n, history, time_s, None if np.isnan(spread).all() else spread)
