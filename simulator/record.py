"""What a rank keeps of its steps: columns of numbers, to which a step costs a few bytes and no object."""

from __future__ import annotations

from array import array

import numpy as np

from simulator.scheduling.plan import StepPlan
from traces.steps import Batches, Floats, Ints

_PER_PLAN = ("n_requests", "n_prefill_tokens", "n_decode_tokens", "n_preempted", "n_running", "n_waiting")
"""Columns of `traces.steps.Steps` that are the same in all steps of a plan."""


class Record:
    """The steps of a rank, in order.

    Attributes:
        n_sweeps: plans that were run, each for one step or more.
        n_dropped: the first steps, of which nothing is kept.
    """

    def __init__(self, *, keeps_batches: bool = True) -> None:
        """No steps yet; `keeps_batches`: keep which requests are in each."""
        self.n_sweeps = 0
        self.n_dropped = 0
        self._keeps_batches = keeps_batches
        self._plans: list[StepPlan] = []
        self._times = array("q")
        # Of each plan the columns of _PER_PLAN, one after another.
        self._facts = array("q")
        self._scheduled_s = array("d")
        self._end_s = array("d")
        self._kv_blocks = array("q")
        self._kv_cached = array("q")

    def __len__(self) -> int:
        return len(self._end_s)

    def add(self, plan: StepPlan, scheduled_s: float, end_s: float, kv_cached: int | None) -> None:
        """Keep a plan that was run once.

        Args:
            plan: it.
            scheduled_s: when it was planned.
            end_s: when it ended.
            kv_cached: free KV blocks that hold content still; None: not known, and so of all plans.
        """
        self._add_plan(plan, 1)
        self._scheduled_s.append(scheduled_s)
        self._end_s.append(end_s)
        self._kv_blocks.append(plan.kv_blocks)
        if kv_cached is not None:
            self._kv_cached.append(kv_cached)

    def add_sweep(
        self, plan: StepPlan, scheduled_s: Floats, end_s: Floats, kv_blocks: Ints, kv_cached: Ints | None
    ) -> None:
        """Keep a plan that was run `len(end_s)` times; KV blocks in use, and free ones with content, at each."""
        self._add_plan(plan, len(end_s))
        self._scheduled_s.frombytes(scheduled_s.tobytes())
        self._end_s.frombytes(end_s.tobytes())
        self._kv_blocks.frombytes(kv_blocks.tobytes())
        if kv_cached is not None:
            self._kv_cached.frombytes(kv_cached.tobytes())

    def _add_plan(self, plan: StepPlan, times: int) -> None:
        self.n_sweeps += 1
        self._times.append(times)
        self._facts.extend(
            (
                plan.n_requests,
                plan.n_prefill_tokens,
                plan.n_decode + plan.n_draft_tokens,
                plan.n_preempted,
                plan.n_running,
                plan.n_waiting,
            )
        )
        if self._keeps_batches:
            self._plans.append(plan)

    def end_column_s(self) -> Floats:
        """When each step ended, from the first that is kept on, [n_kept]."""
        return np.array(self._end_s)

    def columns(self, rank: int) -> dict[str, Ints | Floats]:
        """One array per column of `traces.steps.Steps`, one entry per step."""
        columns: dict[str, Ints | Floats] = {
            "instance": np.full(len(self), rank, dtype=np.int64),
            "scheduled_s": np.array(self._scheduled_s),
            "end_s": self.end_column_s(),
            "kv_blocks": np.array(self._kv_blocks),
        }
        if len(self._kv_cached) == len(self):
            columns["kv_cached"] = np.array(self._kv_cached)
        facts = np.repeat(np.array(self._facts).reshape(-1, len(_PER_PLAN)), np.array(self._times), axis=0)
        return columns | dict(zip(_PER_PLAN, facts.T, strict=True))

    def batches(self) -> Batches:
        """The requests of each step."""
        counts: list[int] = []
        request: list[Ints] = [np.zeros(0, dtype=np.int64)]
        new_tokens: list[Ints] = [np.zeros(0, dtype=np.int64)]
        computed_tokens: list[Ints] = [np.zeros(0, dtype=np.int64)]
        for plan, times in zip(self._plans, self._times, strict=True):
            indices = np.array([request_.index for request_ in plan.requests])
            for repeat in range(times):
                counts.append(plan.n_requests)
                request.append(indices)
                new_tokens.append(plan.new_tokens)
                computed_tokens.append(plan.computed_tokens + repeat)
        return Batches(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate(request),
            np.concatenate(new_tokens),
            np.concatenate(computed_tokens),
        )

    @property
    def n_steps(self) -> int:
        """Steps so far, forgotten ones included."""
        return self.n_dropped + len(self)

    def drop_before(self, step: int) -> None:
        """Forget all of the steps before this one, and of the others all but their ends."""
        del self._end_s[: step - self.n_dropped]
        self.n_dropped = step
        for column in (self._scheduled_s, self._kv_blocks, self._kv_cached, self._times, self._facts):
            del column[:]
