"""Time of one layer's attention for any batch, from a measured grid of (prefill chunk, its history, decodes, theirs).

Three tables are made of the grid once:

    P  prefill alone      (prefill tokens, history)      seconds
    D  decode alone       (decodes, history)             seconds
    R  mixed / (P + D)    all four axes                  a ratio, from full overlap (about 0.5) to none (1)

P and D are complete or nearly so in every profile; the mixed grid has missing corners, and its ratio is filled from
neighbours, where a time could not be. Batches that the grid does not hold are composed:

* several prefill chunks are one chunk of the same number of tokens and the same work, and never faster than the
  slowest of them alone. Work is token pairs, sum of q * (history + q / 2): what FlashAttention computes under a causal
  mask (Dao, FlashAttention-2, arXiv:2307.08691, section 3.1);
* decodes of unequal history are `n` decodes of the mean history plus a measured share (`skew`) of the distance to `n`
  decodes of the longest: one long request keeps its thread blocks busy after the others are done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profiles.interpolation import bracket, extend_linear, extend_nearest, fill_inside, interpolate
from profiles.profile import AttentionRows, SkewRows
from traces.errors import ProfileError
from traces.steps import Floats

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A prefill chunk in a batch: tokens computed in this step, and tokens whose KV existed before."""

    new_tokens: int
    computed_tokens: int

    @property
    def work(self) -> float:
        """Pairs of a query and a key under a causal mask."""
        return self.new_tokens * (self.computed_tokens + self.new_tokens / 2)


class AttentionTable:
    """One layer's attention on one device at one tensor-parallel degree.

    Attributes:
        largest: largest measured (prefill tokens, prefill history, decodes, decode history).
        filled_corners: points of the mixed grid that were filled from neighbours.
    """

    def __init__(self, rows: AttentionRows, skew: SkewRows | None = None) -> None:
        """Make the tables. Raises ProfileError when there is no prefill-only or no decode-only point."""
        prefill = (rows.n_decode == 0) & (rows.prefill_tokens > 0)
        decode = (rows.prefill_tokens == 0) & (rows.n_decode > 0)
        mixed = (rows.prefill_tokens > 0) & (rows.n_decode > 0)
        if not prefill.any() or not decode.any():
            raise ProfileError("attention needs points of prefill alone and of decode alone", field="attention")
        self._decode_rows: dict[int, Floats] = {}
        self._p_axes, p = _grid((rows.prefill_tokens, rows.prefill_kv_tokens), rows.time_s, prefill)
        self._d_axes, d = _grid((rows.n_decode, rows.decode_kv_tokens), rows.time_s, decode)
        self._p = extend_linear(self._p_axes, fill_inside(self._p_axes, p))
        self._d = extend_linear(self._d_axes, fill_inside(self._d_axes, d))
        self.largest = (
            self._p_axes[0][-1],
            self._p_axes[1][-1],
            self._d_axes[0][-1],
            self._d_axes[1][-1],
        )
        self._r_axes, self._r, self.filled_corners = self._mixed_ratio(rows, mixed)
        self._skew = _skew_shares(skew) if skew is not None else {}

    def prefill_s(self, chunks: list[Chunk]) -> float:
        """Seconds for prefill chunks alone."""
        if len(chunks) == 1:
            return self._chunk_s(chunks[0].new_tokens, chunks[0].computed_tokens)
        tokens = sum(chunk.new_tokens for chunk in chunks)
        work = sum(chunk.work for chunk in chunks)
        history = work / tokens - tokens / 2
        together = self._chunk_s(tokens, history) if history >= 0 else self._chunk_s(float(np.sqrt(2 * work)), 0)
        return max(together, *(self._chunk_s(chunk.new_tokens, chunk.computed_tokens) for chunk in chunks))

    def decode_s(self, n: int, mean_kv: Floats, max_kv: Floats, prefill_tokens: int = 0) -> Floats:
        """Seconds for n decodes of the given mean and longest history, [k] -> [k]."""
        row = self._decode_row(n)
        mean_s = interpolate(self._d_axes[1], row, mean_kv)
        share = self._skew_share(n, prefill_tokens)
        if share == 0.0:
            return mean_s
        return mean_s + share * (interpolate(self._d_axes[1], row, max_kv) - mean_s)

    def mixed_s(self, chunks: list[Chunk], n: int, mean_kv: float, max_kv: float) -> float:
        """Seconds for prefill chunks and n decodes in one step."""
        apart_s = self.prefill_s(chunks)
        if n == 0:
            return apart_s
        tokens = sum(chunk.new_tokens for chunk in chunks)
        apart_s += float(self.decode_s(n, np.array([mean_kv]), np.array([max_kv]), tokens)[0])
        if self._r is None:
            return apart_s
        history = max(sum(chunk.work for chunk in chunks) / tokens - tokens / 2, 0.0)
        return apart_s * self._ratio((tokens, history, n, mean_kv))

    def _chunk_s(self, tokens: float, history: float) -> float:
        """P at one chunk: linear in history, and in the chunk's work between measured chunk lengths."""
        lengths, histories = self._p_axes
        low, high, _ = bracket(lengths, tokens)
        j0, j1, v = bracket(histories, history)
        at_low = self._p[low, j0] + v * (self._p[low, j1] - self._p[low, j0])
        if low == high:
            return float(at_low)
        at_high = self._p[high, j0] + v * (self._p[high, j1] - self._p[high, j0])
        work_low, work_high = (length * (history + length / 2) for length in (lengths[low], lengths[high]))
        share = (tokens * (history + tokens / 2) - work_low) / (work_high - work_low)
        return float(at_low + share * (at_high - at_low))

    def _decode_row(self, n: int) -> Floats:
        """D's row at n decodes, by history, [len(histories)]; kept, since batches of one size recur."""
        row = self._decode_rows.get(n)
        if row is None:
            low, high, share = bracket(self._d_axes[0], n)
            row = self._d[low] + share * (self._d[high] - self._d[low])
            self._decode_rows[n] = row
        return row

    def _mixed_ratio(self, rows: AttentionRows, mixed: Mask) -> tuple[tuple[Floats, ...], Floats | None, int]:
        if not mixed.any():
            return (), None, 0
        columns = (rows.prefill_tokens, rows.prefill_kv_tokens, rows.n_decode, rows.decode_kv_tokens)
        axes, together_s = _grid(columns, rows.time_s, mixed)
        prefill_s = np.array([[self._chunk_s(tokens, history) for history in axes[1]] for tokens in axes[0]])
        decode_s = np.array([interpolate(self._d_axes[1], self._decode_row(int(n)), axes[3]) for n in axes[2]])
        inside = fill_inside(axes, together_s / (prefill_s[:, :, None, None] + decode_s[None, None, :, :]))
        return axes, extend_nearest(inside), int(np.isnan(inside).sum())

    def _ratio(self, at: tuple[float, float, float, float]) -> float:
        """R at one point: linear in each axis inside the measured range, the edge's value outside."""
        assert self._r is not None
        brackets = [bracket(axis, min(value, axis[-1])) for axis, value in zip(self._r_axes, at, strict=True)]
        cell = self._r[np.ix_(*((low, high) for low, high, _ in brackets))]
        for _, _, share in reversed(brackets):
            cell = cell[..., 0] + share * (cell[..., 1] - cell[..., 0])
        return float(cell)

    def _skew_share(self, n: int, prefill_tokens: int) -> float:
        if n < 2 or not self._skew:
            return 0.0
        sizes = self._skew[prefill_tokens > 0]
        return float(np.interp(n, sizes[0], sizes[1]))


def _grid(columns: tuple[Floats, ...], values: Floats, chosen: Mask) -> tuple[tuple[Floats, ...], Floats]:
    """The chosen points on the union of their axes, NaN where nothing was measured."""
    axes = tuple(np.unique(column[chosen]) for column in columns)
    dense = np.full([len(axis) for axis in axes], np.nan)
    at = tuple(np.searchsorted(axis, column[chosen]) for axis, column in zip(axes, columns, strict=True))
    dense[at] = values[chosen]
    return axes, dense


def _skew_shares(rows: SkewRows) -> dict[bool, tuple[Floats, Floats]]:
    """Share of the way from the mean to the longest that unequal decodes cost, by batch size: with prefill, without.

    Least squares through the origin per batch size, so that points where the two uniform batches hardly differ, and
    noise rules, have no weight.
    """
    shares: dict[bool, tuple[Floats, Floats]] = {}
    for with_prefill in (False, True):
        own = (rows.prefill_tokens > 0) == with_prefill
        if not own.any():
            continue
        way = rows.uniform_max_s - rows.uniform_mean_s
        cost = rows.time_s - rows.uniform_mean_s
        sizes = np.unique(rows.n_decode[own])
        share = [
            (way * cost)[own & (rows.n_decode == n)].sum() / (way**2)[own & (rows.n_decode == n)].sum() for n in sizes
        ]
        shares[with_prefill] = (sizes, np.asarray(share))
    if len(shares) == 1:
        shares[not next(iter(shares))] = next(iter(shares.values()))
    return shares
