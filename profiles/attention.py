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
* that holds where a device has room for chunks beside each other. One that a single chunk fills computes them in turn,
  each padded to the kernel's tile of queries, and each token of each at its own cost beside its pairs (a CPU's cores,
  vLLM 0.32 `csrc/cpu/cpu_attn_impl.hpp`). Where batches of several chunks were measured, they tell the share of the way
  from the one to the other, by tokens of the batch;
* decodes of unequal history are `n` decodes of the mean history plus a measured share (`skew`) of the distance to `n`
  decodes of the longest: one long request keeps its thread blocks busy after the others are done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from profiles.interpolation import (
    bracket,
    extend_linear,
    extend_nearest,
    fill_inside,
    interpolate,
    interpolate_ascending,
    interpolate_one,
)
from profiles.profile import AttentionRows, SkewRows
from traces.errors import ProfileError
from traces.steps import Floats, Mask


@dataclass(frozen=True, slots=True)
class Chunk:
    """A prefill chunk in a batch: tokens computed in this step, and tokens whose KV existed before."""

    new_tokens: int
    computed_tokens: int

    @property
    def work(self) -> float:
        """Pairs of a query and a key under a causal mask."""
        return self.new_tokens * (self.computed_tokens + self.new_tokens / 2)


@dataclass(frozen=True, slots=True)
class AttentionArrays:
    """What the three tables are made of, once they are compiled. Nobody writes to it.

    Attributes:
        p_axes: prefill tokens [a] and history [b].
        p: [a, b] seconds.
        d_axes: decodes [c] and their history [d].
        d: [c, d] seconds.
        r_axes: of all four; () where no mixed batch was measured.
        r: ratio at them; None likewise.
        filled_corners: points of it that were filled from neighbours.
        skew: batch sizes and the share of each, for decodes beside a prefill (True) and alone.
        serial: tokens and the share of each, of several chunks; None where they were not measured.
    """

    p_axes: tuple[Floats, ...]
    p: Floats
    d_axes: tuple[Floats, ...]
    d: Floats
    r_axes: tuple[Floats, ...]
    r: Floats | None
    filled_corners: int
    skew: dict[bool, tuple[Floats, Floats]]
    serial: tuple[Floats, Floats] | None


def compile_attention(rows: AttentionRows, skew: SkewRows | None = None) -> AttentionArrays:
    """Make the tables. Raises ProfileError when there is no prefill-only or no decode-only point."""
    one_chunk = np.full(len(rows.time_s), True) if rows.n_chunks is None else rows.n_chunks == 1
    prefill = (rows.n_decode == 0) & (rows.prefill_tokens > 0) & one_chunk
    decode = (rows.prefill_tokens == 0) & (rows.n_decode > 0)
    mixed = (rows.prefill_tokens > 0) & (rows.n_decode > 0)
    if not prefill.any() or not decode.any():
        raise ProfileError("attention needs points of prefill alone and of decode alone", field="attention")
    p_axes, p = _grid((rows.prefill_tokens, rows.prefill_kv_tokens), rows.time_s, prefill)
    d_axes, d = _grid((rows.n_decode, rows.decode_kv_tokens), rows.time_s, decode)
    p, d = extend_linear(p_axes, fill_inside(p_axes, p)), extend_linear(d_axes, fill_inside(d_axes, d))
    shares = _skew_shares(skew) if skew is not None else {}
    alone = AttentionArrays(p_axes, p, d_axes, d, (), None, 0, shares, None)
    table = AttentionTable(alone)
    r_axes, r, filled_corners = table.mixed_ratio(rows, mixed)
    serial = table.serial_shares(rows, ~one_chunk)
    return replace(alone, r_axes=r_axes, r=r, filled_corners=filled_corners, serial=serial)


class AttentionTable:
    """One layer's attention on one device at one tensor-parallel degree.

    Attributes:
        largest: largest measured (prefill tokens, prefill history, decodes, decode history).
        filled_corners: points of the mixed grid that were filled from neighbours.
    """

    def __init__(self, rows: AttentionRows | AttentionArrays, skew: SkewRows | None = None) -> None:
        """From compiled tables, or from rows, which are compiled. Raises ProfileError as `compile_attention`."""
        made = rows if isinstance(rows, AttentionArrays) else compile_attention(rows, skew)
        # Plain numbers: a batch asks for a few of them, which is no work for numpy.
        self._p_axes: list[list[float]] = [axis.tolist() for axis in made.p_axes]
        self._p: list[list[float]] = made.p.tolist()
        self._p_floor_s = float(made.p.min())
        self._d_axes: list[list[float]] = [axis.tolist() for axis in made.d_axes]
        self._d = made.d
        self._decode_rows: dict[int, list[float]] = {}
        self._r_axes: list[list[float]] = [axis.tolist() for axis in made.r_axes]
        self._r = made.r
        self.largest = (*(axis[-1] for axis in self._p_axes), *(axis[-1] for axis in self._d_axes))
        self.filled_corners = made.filled_corners
        self._skew = made.skew
        self._skew_share_of: dict[tuple[int, bool], float] = {}
        self._serial = made.serial

    def prefill_s(self, chunks: list[Chunk]) -> float:
        """Seconds for prefill chunks alone."""
        if len(chunks) == 1:
            return self._chunk_s(chunks[0].new_tokens, chunks[0].computed_tokens)
        together_s, in_turn_s, slowest_s = self._several_s(chunks)
        if self._serial is not None:
            tokens = sum(chunk.new_tokens for chunk in chunks)
            together_s += float(np.interp(tokens, *self._serial)) * (in_turn_s - together_s)
        return max(together_s, slowest_s)

    def _several_s(self, chunks: list[Chunk]) -> tuple[float, float, float]:
        """Seconds of several chunks as one of their tokens and work, of one after another, and of the slowest alone."""
        alone_s = [self._chunk_s(chunk.new_tokens, chunk.computed_tokens) for chunk in chunks]
        in_turn_s = sum(alone_s) - (len(chunks) - 1) * self._p_floor_s
        tokens = sum(chunk.new_tokens for chunk in chunks)
        work = sum(chunk.work for chunk in chunks)
        history = work / tokens - tokens / 2
        together_s = self._chunk_s(tokens, history) if history >= 0 else self._chunk_s(float(np.sqrt(2 * work)), 0)
        return together_s, in_turn_s, max(alone_s)

    def serial_shares(self, rows: AttentionRows, several: Mask) -> tuple[Floats, Floats] | None:
        """Share of the way from one chunk of the same tokens and work to chunks one after another, by tokens.

        From 0 to 1, since the two are bounds: what lies outside is the error of a short way. None where several chunks
        were not measured.
        """
        if not several.any() or rows.n_chunks is None:
            return None
        chunks = [
            [Chunk(int(rows.prefill_tokens[i]), int(rows.prefill_kv_tokens[i]))] * int(rows.n_chunks[i])
            for i in np.flatnonzero(several)
        ]
        tokens = np.array([sum(chunk.new_tokens for chunk in own) for own in chunks], dtype=np.float64)
        bounds = np.array([self._several_s(own)[:2] for own in chunks])
        sizes, share = _shares(tokens, bounds[:, 1] - bounds[:, 0], rows.time_s[several] - bounds[:, 0])
        return sizes, np.clip(share, 0.0, 1.0)

    def decode_s(self, n: int, mean_kv: Floats, max_kv: Floats, prefill_tokens: int = 0) -> Floats:
        """Seconds for n decodes of the given mean and longest history, which ascend, [k] -> [k]."""
        row = self._decode_row(n)
        share = self._skew_share(n, prefill_tokens)
        mean_s = interpolate_ascending(self._d_axes[1], row, mean_kv)
        if share == 0.0:
            return mean_s
        return mean_s + share * (interpolate_ascending(self._d_axes[1], row, max_kv) - mean_s)

    def decode_once_s(self, n: int, mean_kv: float, max_kv: float, prefill_tokens: int = 0) -> float:
        """`decode_s` to the last bit, of one step."""
        row = self._decode_row(n)
        share = self._skew_share(n, prefill_tokens)
        mean_s = interpolate_one(self._d_axes[1], row, mean_kv)
        if share == 0.0:
            return mean_s
        return mean_s + share * (interpolate_one(self._d_axes[1], row, max_kv) - mean_s)

    def decode_keys_per_s(self, n: int) -> float:
        """Keys that n decodes read in a second, all together, as their time grows with history; inf: it does not."""
        row, histories = self._decode_row(n), self._d_axes[1]
        grown_s = row[-1] - row[0]
        return n * (histories[-1] - histories[0]) / grown_s if grown_s > 0 else float("inf")

    def mixed_s(self, chunks: list[Chunk], n: int, mean_kv: float, max_kv: float) -> float:
        """Seconds for prefill chunks and n decodes in one step."""
        apart_s = self.prefill_s(chunks)
        if n == 0:
            return apart_s
        tokens = sum(chunk.new_tokens for chunk in chunks)
        apart_s += self.decode_once_s(n, mean_kv, max_kv, tokens)
        if self._r is None:
            return apart_s
        history = max(sum(chunk.work for chunk in chunks) / tokens - tokens / 2, 0.0)
        return apart_s * self._ratio((tokens, history, n, mean_kv))

    def _chunk_s(self, tokens: float, history: float) -> float:
        """P at one chunk: linear in history, and in the chunk's work between measured chunk lengths."""
        lengths, histories = self._p_axes
        low, high, _ = bracket(lengths, tokens)
        j0, j1, v = bracket(histories, history)
        row = self._p[low]
        at_low = row[j0] + v * (row[j1] - row[j0])
        if low == high:
            return at_low
        row = self._p[high]
        at_high = row[j0] + v * (row[j1] - row[j0])
        work_low, work_high = (length * (history + length / 2) for length in (lengths[low], lengths[high]))
        share = (tokens * (history + tokens / 2) - work_low) / (work_high - work_low)
        return at_low + share * (at_high - at_low)

    def _decode_row(self, n: int) -> list[float]:
        """D's row at n decodes, by history, [len(histories)]; kept, since batches of one size recur."""
        row = self._decode_rows.get(n)
        if row is None:
            low, high, share = bracket(self._d_axes[0], n)
            made: Floats = self._d[low] + share * (self._d[high] - self._d[low])
            row = self._decode_rows[n] = made.tolist()
        return row

    def mixed_ratio(self, rows: AttentionRows, mixed: Mask) -> tuple[tuple[Floats, ...], Floats | None, int]:
        """R's axes, R itself (None without a mixed batch), and how many of its points were not measured."""
        if not mixed.any():
            return (), None, 0
        columns = (rows.prefill_tokens, rows.prefill_kv_tokens, rows.n_decode, rows.decode_kv_tokens)
        axes, together_s = _grid(columns, rows.time_s, mixed)
        prefill_s = np.array([[self._chunk_s(tokens, history) for history in axes[1]] for tokens in axes[0]])
        histories = np.array(self._d_axes[1])
        decode_s = np.array([interpolate(histories, np.array(self._decode_row(int(n))), axes[3]) for n in axes[2]])
        inside = fill_inside(axes, together_s / (prefill_s[:, :, None, None] + decode_s[None, None, :, :]))
        return axes, extend_nearest(inside), int(np.isnan(inside).sum())

    def _ratio(self, at: tuple[float, float, float, float]) -> float:
        """R at one point: linear in each axis inside the measured range, the edge's value outside."""
        assert self._r is not None
        brackets = [bracket(axis, min(value, axis[-1])) for axis, value in zip(self._r_axes, at, strict=True)]
        (tokens, tokens_high, _), (history, history_high, _), (n, n_high, _), (kv, kv_high, _) = brackets
        # One by one: a cell of 16 numbers is no work for numpy.
        r = self._r
        cell: list[float] = [
            r.item(i, j, k, m)
            for i in (tokens, tokens_high)
            for j in (history, history_high)
            for k in (n, n_high)
            for m in (kv, kv_high)
        ]
        for _, _, share in reversed(brackets):
            cell = [low + share * (high - low) for low, high in zip(cell[::2], cell[1::2], strict=True)]
        return cell[0]

    def _skew_share(self, n: int, prefill_tokens: int) -> float:
        if n < 2 or not self._skew:
            return 0.0
        key = (n, prefill_tokens > 0)
        share = self._skew_share_of.get(key)
        if share is None:
            self._skew_share_of[key] = share = float(np.interp(n, *self._skew[key[1]]))
        return share


def _grid(columns: tuple[Floats, ...], values: Floats, chosen: Mask) -> tuple[tuple[Floats, ...], Floats]:
    """The chosen points on the union of their axes, NaN where nothing was measured."""
    axes = tuple(np.unique(column[chosen]) for column in columns)
    dense = np.full([len(axis) for axis in axes], np.nan)
    at = tuple(np.searchsorted(axis, column[chosen]) for axis, column in zip(axes, columns, strict=True))
    dense[at] = values[chosen]
    return axes, dense


def _shares(sizes: Floats, way: Floats, cost: Floats) -> tuple[Floats, Floats]:
    """Sizes and, of each, the share of the way that it costs: least squares of `cost = share * way`.

    So points where the way is short, and noise rules, have no weight; where there is none the share is 0.
    """
    distinct = np.unique(sizes)
    squares = np.array([(way**2)[sizes == size].sum() for size in distinct])
    share = np.array([(way * cost)[sizes == size].sum() for size in distinct])
    return distinct, np.divide(share, squares, out=np.zeros_like(share), where=squares > 0)


def _skew_shares(rows: SkewRows) -> dict[bool, tuple[Floats, Floats]]:
    """Share of the way from the mean to the longest that unequal decodes cost, by batch size: with prefill, without."""
    shares: dict[bool, tuple[Floats, Floats]] = {}
    for with_prefill in (False, True):
        own = (rows.prefill_tokens > 0) == with_prefill
        if not own.any():
            continue
        way = rows.uniform_max_s - rows.uniform_mean_s
        cost = rows.time_s - rows.uniform_mean_s
        shares[with_prefill] = _shares(rows.n_decode[own], way[own], cost[own])
    if len(shares) == 1:
        shares[not next(iter(shares))] = next(iter(shares.values()))
    return shares
