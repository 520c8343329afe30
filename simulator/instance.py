"""One engine in time: it plans a step, prices it, and takes in its output.

With synchronous scheduling a step is planned when the one before it has ended. With asynchronous scheduling two are
in flight: the next step is planned while one runs, so that the host's work is hidden, and an arrival waits for one
step more (vLLM 0.19 `v1/engine/core.py::step_with_batch_queue`, batch queue of two).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from simulator.plan import StepPlan
from simulator.request import Request
from simulator.scheduling import RequestScheduler
from simulator.step_time import StepCost, StepTimeModel
from traces.errors import EngineError
from traces.steps import Batches, Floats, Ints
from traces.trace import TraceRow


@dataclass(slots=True)
class Record:
    """What an instance keeps of its steps: one entry per plan, `times` steps each, and each step's own times.

    Attributes:
        plans: the plans that were run.
        times: how often each was run.
        scheduled_s: [times] of each plan, when each of its steps was planned.
        end_s: [times] of each plan, when each of its steps ended.
        kv_blocks: [times] of each plan, KV blocks in use.
    """

    plans: list[StepPlan] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    scheduled_s: list[Floats] = field(default_factory=list)
    end_s: list[Floats] = field(default_factory=list)
    kv_blocks: list[Ints] = field(default_factory=list)

    def columns(self, instance: int) -> dict[str, Ints | Floats]:
        """One array per column of `traces.steps.Steps`, one entry per step."""
        times = np.asarray(self.times, dtype=np.int64)

        def per_step(name: str) -> Ints:
            return np.repeat(np.array([getattr(plan, name) for plan in self.plans], dtype=np.int64), times)

        n_preempted = per_step("n_preempted")
        columns: dict[str, Ints | Floats] = {
            "instance": np.full(int(times.sum()), instance, dtype=np.int64),
            "scheduled_s": _joined(self.scheduled_s),
            "end_s": _joined(self.end_s),
            "n_preempted": n_preempted,
            "n_decode_tokens": per_step("n_decode"),
            "kv_blocks": np.concatenate(self.kv_blocks) if self.kv_blocks else np.zeros(0, dtype=np.int64),
        }
        for name in ("n_requests", "n_prefill_tokens", "n_running", "n_waiting"):
            columns[name] = per_step(name)
        return columns

    def batches(self) -> Batches:
        """The requests of each step."""
        counts = [plan.n_requests for plan, times in zip(self.plans, self.times, strict=True) for _ in range(times)]
        request, new_tokens, computed_tokens = [], [], []
        for plan, times in zip(self.plans, self.times, strict=True):
            indices = np.array([request_.index for request_ in plan.requests])
            for repeat in range(times):
                request.append(indices)
                new_tokens.append(plan.new_tokens)
                computed_tokens.append(plan.computed_tokens + repeat)
        return Batches(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate(request),
            np.concatenate(new_tokens),
            np.concatenate(computed_tokens),
        )


class Instance:
    """One engine: a scheduler, a step-time model and a clock.

    Attributes:
        now_s: when the next step can be planned.
        record: its steps so far.
        requests: those that were sent here, in order.
    """

    def __init__(
        self,
        scheduler: RequestScheduler,
        step_time: StepTimeModel,
        *,
        async_scheduling: bool,
        fast_forward: bool = True,
    ) -> None:
        self.now_s = 0.0
        self.record = Record()
        self.requests: list[Request] = []
        self._scheduler = scheduler
        self._step_time = step_time
        self._depth = 2 if async_scheduling else 1
        self._fast_forward = fast_forward
        self._arrivals: deque[tuple[TraceRow, int, tuple[int, ...]]] = deque()
        # Steps under way: number of the last one of each plan, and the times its steps end.
        self._in_flight: deque[tuple[int, Floats]] = deque()
        self._device_free_s = 0.0

    def submit(self, row: TraceRow, index: int, hashes: tuple[int, ...]) -> None:
        """Send a request; rows must come in order of arrival."""
        self._arrivals.append((row, index, hashes))

    def run(self) -> None:
        """Serve all that was submitted. Raises EngineError when a request can never go on, and says which."""
        while self._step():
            pass
        if self._scheduler.waiting:
            stuck = self._scheduler.waiting[0]
            free = self._scheduler.num_free_blocks
            raise EngineError(
                f"the simulation is stuck at {self.now_s:.3f} s: request '{stuck.row.request_id}' waits with "
                f"{stuck.num_tokens} tokens, {free} KV blocks are free, nothing is running"
            )

    def _step(self) -> bool:
        """Plan, price and run a step, or several alike; or wait for what comes next. False when nothing is left."""
        self._take_arrivals()
        plan = self._scheduler.schedule(self.now_s)
        if plan is None:
            return self._wait()
        cost = self._step_time.price(plan)
        self._run(plan, cost, *self._timed(cost))
        return True

    def _take_arrivals(self) -> None:
        while self._arrivals and self._arrivals[0][0].arrival_s <= self.now_s:
            self.requests.append(self._scheduler.add_request(*self._arrivals.popleft(), self.now_s))

    def _wait(self) -> bool:
        """Nothing can be planned: go on to the end of the step under way, or else to the next arrival."""
        if self._in_flight:
            self._finish_first()
            return True
        if self._arrivals:
            self.now_s = max(self.now_s, self._arrivals[0][0].arrival_s)
            return True
        return False

    def _timed(self, cost: StepCost) -> tuple[Floats, Floats]:
        """When each repeat of the plan would be planned and would end, [repeat] each, nothing else happening.

        A step is planned when all but `depth - 1` of those before it have ended and the host is free; it starts when
        the host has prepared it and the device is free. When the device is the slower of the two, repeats follow each
        other on it without a gap; when the host is, only the first is timed.
        """
        if self._depth == 1:
            ends = np.cumsum(np.concatenate([[self.now_s], cost.host_s + cost.device_s]))
            return ends[:-1], ends[1:]
        device_free_s = max(self._device_free_s, self.now_s + cost.host_s[0])
        one_by_one = not self._in_flight or device_free_s > self._device_free_s
        if one_by_one or (cost.host_s[1:] > cost.device_s[:-1]).any():
            return np.array([self.now_s]), np.array([device_free_s + cost.device_s[0]])
        ends = np.cumsum(np.concatenate([[device_free_s], cost.device_s]))[1:]
        return np.concatenate([[self.now_s, device_free_s], ends])[: len(ends)], ends

    def _run(self, plan: StepPlan, cost: StepCost, scheduled_s: Floats, end_s: Floats) -> None:
        """Run as many repeats as are planned before the next arrival is seen."""
        times = len(end_s) if self._fast_forward else 1
        if self._arrivals:
            times = min(times, max(1, int(np.searchsorted(scheduled_s, self._arrivals[0][0].arrival_s))))
        kv_blocks = self._scheduler.repeat(plan, times)
        self._step_time.count(plan, times)
        record = self.record
        record.plans.append(plan)
        record.times.append(times)
        record.scheduled_s.append(scheduled_s[:times])
        record.end_s.append(end_s[:times])
        record.kv_blocks.append(kv_blocks)
        self.now_s = float(scheduled_s[times - 1] + cost.host_s[times - 1])
        self._device_free_s = float(end_s[times - 1])
        self._in_flight.append((plan.first_step + times - 1, end_s[:times]))
        while len(self._in_flight) >= self._depth:
            self._finish_first()
        if self._in_flight and times > 1:
            self.now_s = max(self.now_s, float(end_s[times - 2]))

    def _finish_first(self) -> None:
        last_step, end_s = self._in_flight.popleft()
        self.now_s = max(self.now_s, float(end_s[-1]))
        self._scheduler.finish(last_step, self.now_s)


def token_times_s(request: Request, end_s: Floats) -> Floats:
    """When each token of a request came, from the ends of its instance's steps, [n_tokens]."""
    if not request.token_spans:
        return np.zeros(0)
    return np.concatenate([end_s[first : last + 1] for first, last in request.token_spans])


def _joined(parts: list[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.zeros(0)
