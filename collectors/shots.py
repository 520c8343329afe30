"""Which batches to measure for an operator profile, and what measuring them will take.

A shot is a whole step of a chosen batch; one shot yields a point for every operator. The grid is regular in the four
axes of `profiles.attention`: prefill chunks alone, decodes alone, and both together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CHUNKS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Prefill tokens without history: what sets the token-wise operators."""
LONG_CHUNKS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Prefill tokens with history; from 1, so that no shorter chunk lies outside the grid."""
CHUNK_HISTORIES = (128, 512, 1024, 2048, 4096, 8192, 16384)
DECODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
DECODE_HISTORIES = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
MIXED_CHUNKS = (32, 128, 256, 512, 1024, 2048, 4096)
MIXED_CHUNK_HISTORIES = (0, 512)
MIXED_DECODES = (1, 8, 31, 63, 127, 255)
MIXED_DECODE_HISTORIES = (128, 512, 1024)


@dataclass(frozen=True, slots=True)
class Shot:
    """A batch: one prefill chunk with its history, and decodes of equal history; 0 is none."""

    prefill_tokens: int
    prefill_kv_tokens: int
    n_decode: int
    decode_kv_tokens: int

    @property
    def n_tokens(self) -> int:
        """Tokens computed."""
        return self.prefill_tokens + self.n_decode

    @property
    def n_requests(self) -> int:
        """Requests in the batch."""
        return self.n_decode + (self.prefill_tokens > 0)

    def requests(self) -> list[list[int]]:
        """The batch as the worker takes it: (new_tokens, history) of each request."""
        chunk = [[self.prefill_tokens, self.prefill_kv_tokens]] if self.prefill_tokens else []
        return chunk + [[1, self.decode_kv_tokens]] * self.n_decode

    def kv_blocks(self, block_size: int) -> int:
        """KV blocks that the batch holds once it has run."""
        return sum(-(-(new + history) // block_size) for new, history in self.requests())


@dataclass(frozen=True, slots=True)
class Limits:
    """How far to measure: tokens of a prefill chunk, requests, history of a request, KV blocks of a batch."""

    max_tokens: int
    max_requests: int
    max_kv_tokens: int
    block_size: int
    kv_blocks: int


def plan_shots(limits: Limits, every: int = 1) -> list[Shot]:
    """The grid within the limits; with `every` above 1, every so many values of each axis and always its ends."""

    def axis(values: Sequence[int], most: int) -> list[int]:
        fitting = [value for value in values if value <= most]
        return sorted({*fitting[::every], *fitting[-1:]})

    tokens, requests, kv = limits.max_tokens, limits.max_requests, limits.max_kv_tokens
    shots = [Shot(n, 0, 0, 0) for n in axis(CHUNKS, tokens)]
    shots += [Shot(n, h, 0, 0) for n in axis(LONG_CHUNKS, tokens) for h in axis(CHUNK_HISTORIES, kv)]
    shots += [Shot(0, 0, n, h) for n in axis(DECODES, requests) for h in axis(DECODE_HISTORIES, kv)]
    shots += [
        Shot(n, h, d, k)
        for n in axis(MIXED_CHUNKS, tokens)
        for h in axis(MIXED_CHUNK_HISTORIES, kv)
        for d in axis(MIXED_DECODES, requests - 1)
        for k in axis(MIXED_DECODE_HISTORIES, kv)
    ]
    return [shot for shot in shots if shot.kv_blocks(limits.block_size) <= limits.kv_blocks]


def estimate_s(shots: Sequence[Shot], measure: Callable[[Shot], float]) -> list[float]:
    """Seconds that measuring each shot will take, from a few that are measured.

    A constant, plus so much per token, per pair of query and key in prefill, and per token of history in decode, by
    least squares, and never less than the quickest shot.

    Args:
        shots: all of them.
        measure: measures one and returns the seconds it took.
    """
    terms = np.array([_terms(shot) for shot in shots])
    by_tokens = np.argsort(terms[:, 1], kind="stable")
    extremes = [by_tokens[0], by_tokens[len(shots) // 2], *terms.argmax(axis=0)]
    probes = list(dict.fromkeys(int(i) for i in extremes))
    measured_s = np.array([measure(shots[i]) for i in probes])
    scale = np.maximum(terms.max(axis=0), 1.0)
    rates, *_ = np.linalg.lstsq(terms[probes] / scale, measured_s, rcond=None)
    return [float(seconds) for seconds in np.maximum(terms / scale @ rates, measured_s.min())]


def _terms(shot: Shot) -> tuple[float, float, float, float]:
    pairs = shot.prefill_tokens * (shot.prefill_kv_tokens + shot.prefill_tokens / 2)
    return 1.0, float(shot.n_tokens), pairs, float(shot.n_decode * shot.decode_kv_tokens)
