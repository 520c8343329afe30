"""Decode attention under FlashAttention 2, whose kernel for one query of each request is another beside a prompt.

vLLM calls it once for a whole batch (`v1/attention/backends/flash_attn.py`), and the call has two ways
(vllm-project/flash-attention `csrc/flash_attn/flash_api.cpp`, `mha_varlen_fwd`, `seqlenq_ngroups_swapped`):

* packed, where no request has more than one query and there is no sliding window: the query heads that share keys and
  values stand in one tile, so that these are read once, and long histories are split over the device;
* apart, in any other batch: each query head of each request is a thread block of its own, which reads the keys for
  itself. Blocks begin head by head (`flash_fwd_launch_template.h`, grid of tiles, requests, heads), so that heads which
  share keys find them in the cache only as far as they are on the device at once.

So decodes cost several times as much beside a prompt, however short it is. FlashAttention 3 packs always, and is what
vLLM takes on devices of compute capability 9.0; capability 10 has FlashInfer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from profiles.attention import AttentionTable, Chunk
from profiles.profile import AttentionRows
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
    """

    heads: int
    group: int
    key_bytes: float
    bytes_per_s: float
    multiprocessors: int
    packs: bool


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
