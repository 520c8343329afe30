"""Which batches to measure for an operator profile, and what measuring them will take.

A shot is a whole step of a chosen batch; one shot yields a point for every operator. The grid is regular in the four
axes of `profiles.attention`: prefill chunks alone, decodes alone, and both together. Beside it stand several chunks in
a step, decodes of unequal history, and, for a model with experts, batches whose tokens are made to reach a chosen
number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CHUNKS = (
    *(1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    *(768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384),
)
"""Prefill tokens without history: what sets the token-wise operators."""
LONG_CHUNKS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Prefill tokens with history; from 1, so that no shorter chunk lies outside the grid."""
CHUNK_HISTORIES = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
DECODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
DECODE_HISTORIES = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
MIXED_CHUNKS = (32, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
MIXED_DECODES = (1, 8, 31, 63, 127, 255, 511, 1023)
MIXED_CHUNK_HISTORIES = (0, 512)
MIXED_DECODE_HISTORIES = (128, 512, 1024)
"""Of batches of both; their times are ratios to the two alone, which vary slowly, and reach no further."""
SEVERAL_CHUNKS = 4
"""Chunks in a batch of several, each as long as a chunk with history of the grid."""
SKEWED_DECODES = 4
"""Fewest decodes of unequal history: of fewer, one can hardly be longer than twice the mean."""
LONGEST_BY_MEAN = 8
"""The longest history of unequal ones is at most so many times their mean."""
EXPERT_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Tokens of shots that reach a chosen number of experts."""


@dataclass(frozen=True, slots=True)
class Shot:
    """A batch: one prefill chunk with its history, and decodes of equal history; 0 is none.

    Attributes:
        n_chunks: prefill chunks, all alike.
        n_long: of the decodes, how many have a history of `long_kv_tokens` and not of `decode_kv_tokens`.
        long_kv_tokens: their history.
        n_experts: how many experts the tokens reach; 0: as a router with uniform scores chooses.
    """

    prefill_tokens: int
    prefill_kv_tokens: int
    n_decode: int
    decode_kv_tokens: int
    n_chunks: int = 1
    n_long: int = 0
    long_kv_tokens: int = 0
    n_experts: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens computed."""
        return self.n_chunks * self.prefill_tokens + self.n_decode

    @property
    def n_requests(self) -> int:
        """Requests in the batch."""
        return self.n_decode + self.n_chunks * (self.prefill_tokens > 0)

    @property
    def is_plain(self) -> bool:
        """Whether it is a point of the regular grid, routed as it comes: one chunk, equal decodes."""
        return self.n_chunks == 1 and not self.n_long and not self.n_experts

    @property
    def decode_kv_sum(self) -> int:
        """History of all decodes together."""
        return self.n_long * self.long_kv_tokens + (self.n_decode - self.n_long) * self.decode_kv_tokens

    def requests(self) -> list[list[int]]:
        """The batch as an engine takes it: (new_tokens, history) of each request."""
        chunks = [[self.prefill_tokens, self.prefill_kv_tokens]] * (self.n_chunks if self.prefill_tokens else 0)
        equal = [[1, self.decode_kv_tokens]] * (self.n_decode - self.n_long)
        return chunks + [[1, self.long_kv_tokens]] * self.n_long + equal

    def uniform(self, history: int) -> Shot:
        """The same batch with decodes of equal history."""
        return Shot(self.prefill_tokens, self.prefill_kv_tokens, self.n_decode, history)

    def kv_blocks(self, block_size: int) -> int:
        """KV blocks that the batch holds once it has run."""
        return sum(-(-(new + history) // block_size) for new, history in self.requests())


@dataclass(frozen=True, slots=True)
class Limits:
    """How far to measure.

    Attributes:
        max_tokens: of a prefill chunk.
        max_requests: of a batch.
        max_kv_tokens: history of a request.
        block_size: tokens of a KV block.
        kv_blocks: of a batch.
        top_k: experts that a token uses; 0 in a dense model.
        num_experts: of a layer; 0 in a dense model.
    """

    max_tokens: int
    max_requests: int
    max_kv_tokens: int
    block_size: int
    kv_blocks: int
    top_k: int = 0
    num_experts: int = 0


def plan_shots(limits: Limits, every: int = 1, *, steps_only: bool = False) -> list[Shot]:
    """The shots within the limits.

    Args:
        limits: how far the grid reaches.
        every: above 1, every so many values of each axis and always its ends.
        steps_only: without the shots that tell of operators alone: several chunks, unequal histories, experts.
    """
    tokens, requests, kv = limits.max_tokens, limits.max_requests, limits.max_kv_tokens
    decodes, histories = _axis(DECODES, requests, every), _axis(DECODE_HISTORIES, kv, every)
    long_chunks, chunk_histories = _axis(LONG_CHUNKS, tokens, every), _axis(CHUNK_HISTORIES, kv, every)
    mixed_chunks, mixed_decodes = _axis(MIXED_CHUNKS, tokens, every), _axis(MIXED_DECODES, requests - 1, every)
    mixed_histories = _within(MIXED_DECODE_HISTORIES, kv, every)
    shots = [Shot(n, 0, 0, 0) for n in _axis(CHUNKS, tokens, every)]
    shots += [Shot(n, h, 0, 0) for n in long_chunks for h in chunk_histories]
    shots += [Shot(0, 0, n, h) for n in decodes for h in histories]
    shots += [
        Shot(n, h, d, k)
        for n in mixed_chunks
        for h in _within(MIXED_CHUNK_HISTORIES, kv, every)
        for d in mixed_decodes
        for k in mixed_histories
    ]
    if not steps_only:
        there = {shot for shot in shots if shot.kv_blocks(limits.block_size) <= limits.kv_blocks}
        candidates = _skewed(0, decodes, histories)
        if mixed_chunks:
            candidates += _skewed(mixed_chunks[len(mixed_chunks) // 2], mixed_decodes, mixed_histories)
        shots += [shot for shot in candidates if set(_uniform_pair(shot)) <= there]
        shots += _several_chunks(limits, every)
        shots += _expert_shots(limits, every)
    return [shot for shot in shots if shot.kv_blocks(limits.block_size) <= limits.kv_blocks]


def _axis(values: Sequence[int], most: int, every: int) -> list[int]:
    """Every so many of the values up to `most`, and `most` itself; none when all are above it."""
    within = _within(values, most, every)
    return sorted({*within, most}) if within else []


def _within(values: Sequence[int], most: int, every: int) -> list[int]:
    """Every so many of the values up to `most`, and the last of them."""
    fitting = [value for value in values if value <= most]
    return sorted({*fitting[::every], *fitting[-1:]})


def _several_chunks(limits: Limits, every: int) -> list[Shot]:
    """Chunks that fill a step between them, without history and with."""
    if limits.max_requests < SEVERAL_CHUNKS:
        return []
    return [
        Shot(n, history, 0, 0, n_chunks=SEVERAL_CHUNKS)
        for n in _within(LONG_CHUNKS, limits.max_tokens // SEVERAL_CHUNKS, every)
        for history in _within(MIXED_CHUNK_HISTORIES, limits.max_kv_tokens, every)
        if n > 1  # what computes a single token is a decode
    ]


def _skewed(prefill_tokens: int, decodes: Sequence[int], histories: Sequence[int]) -> list[Shot]:
    """Decodes of which one, or a quarter, are as long as any and the others so short that the mean is on the grid.

    The mean lies within one token of a history of the grid, so that the equal batches to compare with, of the mean and
    of the longest, are shots of the grid themselves.
    """
    if not histories:
        return []
    longest = histories[-1]
    means = [mean for mean in histories if LONGEST_BY_MEAN * mean >= longest > mean]
    shots = []
    at_least = SKEWED_DECODES
    for n in decodes:
        if n < at_least:
            continue
        at_least = 2 * n
        for mean, n_long in ((mean, n_long) for mean in means for n_long in sorted({1, n // 4})):
            short = round((n * mean - n_long * longest) / (n - n_long))
            if short >= 1:
                shots.append(Shot(prefill_tokens, 0, n, short, n_long=n_long, long_kv_tokens=longest))
    return shots


def mean_history(shot: Shot) -> int:
    """The grid's history that a skewed shot's mean lies next to."""
    return round(shot.decode_kv_sum / shot.n_decode)


def _uniform_pair(shot: Shot) -> tuple[Shot, Shot]:
    """The shots of equal decodes that a skewed one is compared with: of the mean, and of the longest."""
    return shot.uniform(mean_history(shot)), shot.uniform(shot.long_kv_tokens)


def skewed_shots(shots: Sequence[Shot]) -> Iterator[tuple[Shot, Shot, Shot]]:
    """Every skewed shot with the two of equal decodes."""
    for shot in shots:
        if shot.n_long:
            yield shot, *_uniform_pair(shot)


def _expert_shots(limits: Limits, every: int) -> list[Shot]:
    """Tokens times reached experts: doubled from what one token uses, to all that exist or that so many can reach."""
    if not limits.num_experts:
        return []
    reached = []
    n_experts = limits.top_k
    while n_experts < limits.num_experts:
        reached.append(n_experts)
        n_experts *= 2
    reached.append(limits.num_experts)
    return [
        Shot(n, 0, 0, 0, n_experts=k)
        for n in _axis(EXPERT_TOKENS, limits.max_tokens, every)
        for k in _within(reached, limits.num_experts, every)
        if k <= n * limits.top_k
    ]


def estimate_s(shots: Sequence[Shot], measure: Callable[[Shot], float]) -> list[float]:
    """Seconds that measuring each shot will take, from a few that are measured.

    A constant, plus so much per token, per pair of query and key in prefill, per token of history in decode, and per
    expert that is reached, by least squares, and never less than the quickest shot.

    Args:
        shots: all of them.
        measure: measures one and returns the seconds it took.
    """
    terms = np.array([_terms(shot) for shot in shots])
    terms = terms[:, terms.any(axis=0)]
    by_tokens = np.argsort(terms[:, 1], kind="stable")
    extremes = [by_tokens[0], by_tokens[len(shots) // 2], *terms.argmax(axis=0)]
    probes = list(dict.fromkeys(int(i) for i in extremes))
    measured_s = np.array([measure(shots[i]) for i in probes])
    scale = np.maximum(terms.max(axis=0), 1.0)
    rates, *_ = np.linalg.lstsq(terms[probes] / scale, measured_s, rcond=None)
    return [float(seconds) for seconds in np.maximum(terms / scale @ rates, measured_s.min())]


def _terms(shot: Shot) -> tuple[float, ...]:
    pairs = shot.n_chunks * shot.prefill_tokens * (shot.prefill_kv_tokens + shot.prefill_tokens / 2)
    return 1.0, float(shot.n_tokens), pairs, float(shot.decode_kv_sum), float(shot.n_experts)
