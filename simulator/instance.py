"""One engine in time: it plans a step, prices it, and takes in its output.

With synchronous scheduling a step is planned when the one before it has ended. With asynchronous scheduling two are
in flight: the next step is planned while one runs, so that the host's work is hidden, and an arrival waits for one
step more (vLLM 0.19 `v1/engine/core.py::step_with_batch_queue`, batch queue of two). With pipeline parallelism there
are as many in flight as stages, and each stage takes the next batch when it has passed the last one on; with both
together one more (vLLM 0.32, same place). Then the engine plans on and on, and plans of nothing are in flight too:
a request's next token comes as many plannings behind its last as there are stages, when every stage has been told of it
(`v1/worker/gpu/pp_utils.py::PPHandler`).

Data-parallel ranks of a mixture-of-experts model step together, since each holds some of every layer's experts
(vLLM 0.19 `v1/engine/core.py::DPEngineCoreProc`): an instance is one rank or several, and one clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from simulator.rank import Rank
from simulator.scheduling.lockstep_scheduler import LockstepScheduler
from simulator.scheduling.plan import StepPlan
from simulator.scheduling.request import Request
from simulator.scheduling.scheduler import Scheduler
from simulator.steps.beside_loads import BesideLoads
from simulator.steps.step_time import StepCost, StepTimeModel
from traces.errors import EngineError
from traces.steps import Floats

Tell = Callable[[Rank, Request, float], None]
"""What is to be told of a request on a rank, and when it happened."""


@dataclass(slots=True)
class _InFlight:
    """Steps under way: of each rank that takes part the number of the last one, and when they end."""

    last_steps: tuple[tuple[Rank, int], ...]
    end_s: float


@dataclass(slots=True)
class _Sweep:
    """Steps alike that were planned and priced together: by rank, in all, and when each is planned and ends, [times].

    `leaves_cache`: whether all of them together leave the prefix caches as they are; None: nobody has asked.
    """

    planned: list[tuple[Rank, StepPlan]]
    plan: StepPlan
    cost: StepCost
    scheduled_s: Floats
    end_s: Floats
    leaves_cache: bool | None = None


class Instance:
    """One engine: ranks that step together, a step-time model and a clock.

    Attributes:
        ranks: its schedulers.
        now_s: when the next step can be planned.
        holds_sweeps: whether sweeps are planned beyond what is known of arrivals, and run when that is (`settle`).
    """

    def __init__(
        self,
        ranks: Sequence[Rank],
        step_time: StepTimeModel,
        *,
        steps_in_flight: int,
        decode_stagger: int = 1,
        beside: BesideLoads | None = None,
        fast_forward: bool = True,
        on_finish: Tell | None = None,
        on_reserve: Tell | None = None,
        on_plan: Callable[[StepPlan, Floats, Floats], None] | None = None,
        on_step: Callable[[StepPlan, Floats, Floats], None] | None = None,
    ) -> None:
        """An engine at second 0, with nothing to do.

        Args:
            ranks: its schedulers.
            step_time: how long its steps take.
            steps_in_flight: steps planned and not ended, at most.
            decode_stagger: plannings from one token of a request to the next, above 1 in a pipeline that is planned
                ahead of its outputs.
            beside: KV on the links of its weights, which `step_time` looks at; None: there is none.
            fast_forward: run alike steps in one sweep.
            on_finish: told of requests that have ended, or were rejected.
            on_reserve: told of requests for whose KV, computed elsewhere, blocks were reserved.
            on_plan: told of each rank's plan that is run, and when its steps are planned and end.
            on_step: likewise of the plan of all ranks together.
        """
        self.ranks = tuple(ranks)
        self.now_s = 0.0
        self._step_time = step_time
        self._depth = steps_in_flight
        self._fast_forward = fast_forward
        self._on_finish = on_finish
        self._on_reserve = on_reserve
        self._on_plan = on_plan
        self._on_step = on_step
        self.holds_sweeps = False
        self._held: _Sweep | None = None
        self._in_flight: deque[_InFlight] = deque()
        self._n_steps = 0
        # When each pipeline stage has passed its last batch on; one stage without pipeline parallelism.
        self._stage_free_s: list[float] = [0.0]
        self._stagger = decode_stagger
        self._beside = beside
        # When the last steps planned, plans of nothing among them, and all before them have left the last stage.
        self._left_s: deque[float] = deque(maxlen=decode_stagger)

    def step(self, until_s: float = np.inf) -> bool:
        """Plan, price and run a step, or several alike that are planned before `until_s`; or wait for what comes next.

        Returns False when there is nothing left to do or to wait for.
        """
        if self._held is not None:
            self.settle(np.inf)
            return True
        told = False
        if self._beside is not None:
            self._beside.look(self.now_s)
        for rank in self.ranks:
            for ended in rank.take_arrivals(self.now_s) + rank.give_up(self.now_s):
                self._tell(rank, ended)
                told = True
        planned = [(rank, plan) for rank in self.ranks if (plan := rank.scheduler.schedule(self.now_s)) is not None]
        sent_for = self._tell_reserved()
        if not planned:
            # KV that had arrived before blocks were reserved for it can be used at once.
            return sent_for or self._wait()
        plan = planned[0][1] if len(self.ranks) == 1 else self._together(planned)
        cost = self._step_time.price(plan)
        # Whoever was told may send something at this very moment: nobody knows yet what comes next.
        may_sweep = plan.repeat > 1 and self._fast_forward and not (told or sent_for or self._finds_less)
        if not (may_sweep and self._sweep(planned, plan, cost, until_s)):
            self._run_once(planned, plan, cost)
        return True

    @property
    def _finds_less(self) -> bool:
        """Whether each step finds less KV on the links of its weights than the one before."""
        return self._beside is not None and self._beside.is_shared_now

    @property
    def has_requests(self) -> bool:
        """Whether a request runs here, waits, or has just arrived."""
        return any(
            rank.n_running or rank.scheduler.waiting or (rank.arrivals and rank.arrivals[0].time_s <= self.now_s)
            for rank in self.ranks
        )

    @property
    def alive(self) -> bool:
        """Whether requests are sent here."""
        return self.ranks[0].alive

    @alive.setter
    def alive(self, alive: bool) -> None:
        for rank in self.ranks:
            rank.alive = alive

    @property
    def is_holding(self) -> bool:
        """Whether a sweep is planned and not run."""
        return self._held is not None

    @property
    def due_s(self) -> float:
        """When it must be asked again: at its next step, or at the last of a sweep that is held back.

        Until then nobody joins its queues or leaves them.
        """
        return self.now_s if self._held is None else float(self._held.scheduled_s[-1])

    def settle(self, until_s: float) -> None:
        """Run those steps of the sweep held back that are planned before `until_s`, one at least, and drop the others.

        Dropped steps are planned anew, to the same end as far as nothing has changed.
        """
        held, self._held = self._held, None
        assert held is not None
        times = int(held.scheduled_s.searchsorted(until_s))
        if times < 2:
            self._run_once(held.planned, held.plan, held.cost)
        else:
            self._run_sweep(held, times)

    def cache_stays(self, until_s: float) -> bool:
        """Whether steps of the sweep held back that are planned before `until_s` leave prefix caches as they are."""
        held = self._held
        assert held is not None
        if held.leaves_cache is None:
            held.leaves_cache = _cache_stays(held, len(held.scheduled_s))
        return held.leaves_cache or _cache_stays(held, int(held.scheduled_s.searchsorted(until_s)))

    def _tell_reserved(self) -> bool:
        """Tell of requests for whose KV blocks were reserved, and whether there were any: it may come at any time."""
        told = False
        if self._on_reserve is not None:
            for rank in self.ranks:
                for request in rank.take_reserved():
                    self._on_reserve(rank, request, self.now_s)
                    told = True
        return told

    def fail(self, now_s: float, for_s: float) -> list[int]:
        """Lose all requests and the cache; nothing is planned for so long. Returns the requests' indices.

        Steps under way are dropped; with synchronous scheduling the one under way counts as ended.
        """
        lost = [index for rank in self.ranks for index in rank.lose_all(now_s)]
        self._in_flight.clear()
        self.now_s = max(self.now_s, now_s) + for_s
        self._stage_free_s = [0.0]
        self._left_s.clear()
        if self._beside is not None:
            self._beside.forget()
        return lost

    def check_done(self) -> None:
        """Raise EngineError when a request can never go on, naming it and what it waits for."""
        for rank in self.ranks:
            if rank.scheduler.waiting:
                stuck = rank.scheduler.waiting[0]
                raise EngineError(
                    f"the simulation is stuck at {self.now_s:.3f} s: request '{stuck.row.request_id}' waits with "
                    f"{stuck.num_tokens} tokens on instance {rank.number}, {rank.scheduler.num_free_blocks} KV blocks "
                    "are free, nothing is running"
                )

    def _together(self, planned: list[tuple[Rank, StepPlan]]) -> StepPlan:
        """One plan of all ranks that have something to do, repeated as often as none of the others can join."""
        plans = [plan for _, plan in planned]
        busy = {rank.number for rank, _ in planned}
        waits = any(rank.number not in busy and (rank.n_running or rank.scheduler.waiting) for rank in self.ranks)
        repeat = 1 if waits else min(plan.repeat for plan in plans)
        return msgspec.structs.replace(plans[0], first_step=self._n_steps, repeat=repeat, alongside=tuple(plans[1:]))

    def _wait(self) -> bool:
        """Nothing can be planned: go on to the end of the step under way, or else to the next arrival."""
        if self._in_flight:
            if self._stagger == 1:
                self._finish_first()
            else:
                self._put_nothing_under_way()
            return True
        if any(_plans_again(rank) for rank in self.ranks):
            return True
        next_change_s = min(rank.next_change_s for rank in self.ranks)
        if next_change_s == np.inf:
            return False
        self.now_s = max(self.now_s, next_change_s)
        return True

    def _run_once(self, planned: list[tuple[Rank, StepPlan]], plan: StepPlan, cost: StepCost) -> None:
        """Run a plan once."""
        scheduled_s, host_s = self.now_s, float(cost.host_s[0])
        end_s = self._end_of_one_s(cost)
        self._n_steps += 1
        self._step_time.count(plan, 1)
        for rank, own in planned:
            rank.record.add(own, scheduled_s, end_s, rank.scheduler.num_cached_free)
            if self._on_plan is not None:
                self._on_plan(own, np.array([scheduled_s]), np.array([end_s]))
        if self._on_step is not None:
            self._on_step(plan, np.array([scheduled_s]), np.array([end_s]))
        if self._beside is not None:
            self._beside.ran(plan, end_s - float(cost.device_s[0]), end_s)
        self._put_under_way(planned, 1, scheduled_s + host_s, end_s)

    def _end_of_one_s(self, cost: StepCost) -> float:
        """When a step that is planned now will end.

        It starts when the host has prepared it and the device is free.
        """
        if len(cost.stages) > 1:
            end_s = self._through_stages(cost)
            self._left_s.append(end_s)
            return end_s
        host_s, device_s = float(cost.host_s[0]), float(cost.device_s[0])
        if self._depth == 1:
            end_s = self.now_s + (host_s + device_s)
        else:
            end_s = max(self._stage_free_s[0], self.now_s + host_s) + device_s
        self._stage_free_s = [end_s]
        return end_s

    def _through_stages(self, cost: StepCost) -> float:
        """When a batch leaves the last pipeline stage; it enters each once the batch before has left it."""
        at_s = self.now_s + cost.host_s[0]
        if len(self._left_s) == self._stagger > 1:
            at_s = max(at_s, self._left_s[0])
        free_s = self._stage_free_s if len(self._stage_free_s) == len(cost.stages) else [0.0] * len(cost.stages)
        self._stage_free_s = []
        for share, stage_free_s in zip(cost.stages, free_s, strict=True):
            at_s = max(at_s, stage_free_s) + share * cost.device_s[0]
            self._stage_free_s.append(at_s)
        return float(at_s)

    def _sweep(self, planned: list[tuple[Rank, StepPlan]], plan: StepPlan, cost: StepCost, until_s: float) -> bool:
        """Run a plan as often as nothing changes. Returns False, and runs nothing, when that is once."""
        times_s = self._times_s(cost)
        if times_s is None:
            return False
        scheduled_s, end_s = times_s
        next_change_s = min([rank.next_change_s for rank in self.ranks])
        if not self.holds_sweeps:
            next_change_s = min(next_change_s, until_s)
        times = int(scheduled_s.searchsorted(next_change_s))
        if times < 2:
            return False
        sweep = _Sweep(planned, plan, cost, scheduled_s[:times], end_s[:times])
        if self.holds_sweeps:
            self._held = sweep
        else:
            self._run_sweep(sweep, times)
        return True

    def _run_sweep(self, sweep: _Sweep, times: int) -> None:
        """Run the first so many steps of a sweep, two or more."""
        planned, plan, cost = sweep.planned, sweep.plan, sweep.cost
        scheduled_s, end_s = sweep.scheduled_s[:times], sweep.end_s[:times]
        self._n_steps += times
        self._step_time.count(plan, times)
        for rank in self.ranks:
            rank.come_round(float(scheduled_s[1]))
        for rank, own in planned:
            kv_blocks, kv_cached = rank.scheduler.repeat(own, times)
            rank.record.add_sweep(own, scheduled_s, end_s, kv_blocks, kv_cached)
            if self._on_plan is not None:
                self._on_plan(own, scheduled_s, end_s)
        if self._on_step is not None:
            self._on_step(plan, scheduled_s, end_s)
        if self._beside is not None:
            self._beside.ran(plan, float(end_s[-1]) - float(cost.device_s[times - 1]), float(end_s[-1]))
        self._stage_free_s = [float(end_s[-1])]
        self._put_under_way(planned, times, float(scheduled_s[-1] + cost.host_s[times - 1]), float(end_s[-1]))
        if self._in_flight:
            # Of a sweep only the last step is still under way; nobody ends in one before it.
            self.now_s = max(self.now_s, float(end_s[-2]))
            for rank, own in planned:
                rank.scheduler.finish(own.first_step + times - 2, self.now_s)

    def _times_s(self, cost: StepCost) -> tuple[Floats, Floats] | None:
        """When each repeat of the plan would be planned and would end, [repeat] each, nothing else happening.

        A step is planned when all but `depth - 1` of those before it have ended and the host is free. When the device
        is the slower of the two, repeats follow each other on it without a gap; None when they do not.
        """
        if len(cost.stages) > 1:
            return None
        if self._depth == 1:
            ends = _cumulated(self.now_s, cost.host_s + cost.device_s)
            return ends[:-1], ends[1:]
        free_s = self._stage_free_s[0]
        if not self._in_flight or self.now_s + cost.host_s[0] > free_s:
            return None
        if np.count_nonzero(cost.host_s[1:] > cost.device_s[:-1]):
            return None
        ends = _cumulated(free_s, cost.device_s)
        scheduled_s = np.empty(len(cost.device_s))
        scheduled_s[0], scheduled_s[1:] = self.now_s, ends[:-2]
        return scheduled_s, ends[1:]

    def _put_under_way(
        self, planned: list[tuple[Rank, StepPlan]], times: int, host_free_s: float, end_s: float
    ) -> None:
        """Steps have begun: go on to when the next one can be planned."""
        self.now_s = host_free_s
        last_steps = tuple([(rank, own.first_step + times - 1) for rank, own in planned])
        self._in_flight.append(_InFlight(last_steps, end_s))
        while len(self._in_flight) >= self._depth:
            self._finish_first()

    def _put_nothing_under_way(self) -> None:
        """A plan of nothing takes its place behind others."""
        self._left_s.append(self._left_s[-1])
        self._in_flight.append(_InFlight((), 0.0))
        while len(self._in_flight) >= self._depth:
            self._finish_first()

    def _finish_first(self) -> None:
        first = self._in_flight.popleft()
        self.now_s = max(self.now_s, first.end_s)
        for rank, last_step in first.last_steps:
            for request in rank.scheduler.finish(last_step, self.now_s):
                self._tell(rank, request)
        while self._in_flight and not self._in_flight[0].last_steps:
            self._in_flight.popleft()  # plans of nothing in front of all others hold up nobody

    def _tell(self, rank: Rank, request: Request) -> None:
        if self._on_finish is not None:
            self._on_finish(rank, request, self.now_s)


def _cumulated(start: float, steps: Floats) -> Floats:
    """Sums of the first 0, 1, ... n of the steps [n] behind a start, [n + 1]."""
    sums = np.empty(len(steps) + 1)
    sums[0], sums[1:] = start, steps
    return np.add.accumulate(sums, out=sums)


def _plans_again(rank: Rank) -> bool:
    """Whether a rank's scheduler is to plan again though nothing has happened."""
    return isinstance(rank.scheduler, Scheduler) and rank.scheduler.plans_again


def _cache_stays(sweep: _Sweep, times: int) -> bool:
    """Whether the first so many steps of a sweep leave the prefix caches as they are."""
    schedulers = [rank.scheduler for rank, _ in sweep.planned]
    return all(isinstance(scheduler, LockstepScheduler) and scheduler.cache_stays(times) for scheduler in schedulers)
