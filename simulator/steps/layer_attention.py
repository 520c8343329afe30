"""One layer's attention of a plan."""

from __future__ import annotations

import numpy as np

from profiles.attention import AttentionTable
from profiles.flash_attention import UnequalDecodes
from simulator.scheduling.plan import StepPlan
from traces.steps import Floats

STRETCH = 128
"""Over so many steps what unequal histories cost is taken to stay the same: they differ by as much, and grow alike."""
MOST_KEPT = 256
"""Batches of which it is kept; then all are forgotten."""


class LayerAttention:
    """Times of a plan's attention, of a profile's table and of what the kernel is known to make of unequal decodes.

    Attributes:
        table: measured times.
    """

    def __init__(self, table: AttentionTable, unequal: UnequalDecodes | None) -> None:
        """Keep them; `unequal`: what unequal decodes cost beside equal ones, None: the table's own shares say it."""
        self.table = table
        self._unequal = unequal
        self._kept_s: dict[tuple[int, bytes], float] = {}

    @property
    def reads_batches(self) -> bool:
        """Whether it looks at each request's history."""
        return self._unequal is not None

    def time_s(self, plan: StepPlan, repeat: int, padded: int) -> float | Floats:
        """Seconds; of a plan that is repeated, and in which requests decode, [repeat].

        Args:
            plan: the batch.
            repeat: how often.
            padded: decodes that the kernel sees, with those that fill a CUDA graph.
        """
        if not plan.n_requests:
            return 0.0
        if not plan.n_decode:
            return self.table.prefill_s(plan.chunks)
        mean_kv, max_kv = plan.decode_kv_sum / plan.n_decode, float(plan.decode_kv_max)
        if plan.chunks:
            if self._unequal is None:
                return self.table.mixed_s(plan.chunks, plan.n_decode, mean_kv, max_kv)
            together_s = self.table.mixed_s(plan.chunks, plan.n_decode, mean_kv, mean_kv)
            return together_s + self._unequal.beside_s(plan.chunks, _histories(plan), together_s)
        if self._unequal is not None:
            return self._alone_s(plan, repeat, padded, self._unequal)
        if repeat == 1:
            return self.table.decode_once_s(plan.n_decode, mean_kv, max_kv)
        repeats = np.arange(repeat)
        means = (plan.decode_kv_sum + repeats * plan.n_decode) / plan.n_decode
        return self.table.decode_s(plan.n_decode, means, (plan.decode_kv_max + repeats).astype(np.float64))

    def _alone_s(self, plan: StepPlan, repeat: int, padded: int, unequal: UnequalDecodes) -> float | Floats:
        """Of decodes without a prompt beside them."""
        n, mean_kv = plan.n_decode, plan.decode_kv_sum / plan.n_decode
        if repeat == 1:
            equal_s: float | Floats = self.table.decode_once_s(n, mean_kv, mean_kv)
        else:
            means = (plan.decode_kv_sum + np.arange(repeat) * n) / n
            equal_s = self.table.decode_s(n, means, means)
        if n == 1 or unequal.kernel.splits(padded):
            return equal_s
        # The same for all steps in which the mean is within one stretch, wherever a plan begins or ends.
        mean = plan.decode_kv_sum // n
        first, last = mean // STRETCH, (mean + repeat - 1) // STRETCH
        apart = _histories(plan) - mean
        excess_s = [self._excess_s(apart, stretch, unequal) for stretch in range(first, last + 1)]
        if first == last:
            return equal_s + excess_s[0]
        return equal_s + np.array(excess_s)[(mean + np.arange(repeat)) // STRETCH - first]

    def _excess_s(self, apart: Floats, stretch: int, unequal: UnequalDecodes) -> float:
        """What decodes so far `apart` from their mean cost in a stretch; kept, since some batches are planned twice.

        Once while a request's last token is under way, and again when its blocks are free.
        """
        key = stretch, apart.tobytes()
        excess_s = self._kept_s.get(key)
        if excess_s is None:
            if len(self._kept_s) == MOST_KEPT:
                self._kept_s.clear()
            excess_s = self._kept_s[key] = unequal.alone_s(apart + ((stretch + 1) * STRETCH - 1))
        return excess_s


def _histories(plan: StepPlan) -> Floats:
    """Tokens that the plan's decodes have computed, in the batch's order, [n_decode]."""
    computed = plan.computed_tokens
    if plan.chunks or plan.drafts is not None:
        computed = computed[plan.new_tokens == 1]
    histories: Floats = computed.astype(np.float64)
    return histories
