"""A capture's recorded steps, planned again by a scheduler: the same arrivals must give the same batches.

No step-time model takes part. What happened to the engine's scheduler is replayed in the order in which it happened:
a request was queued, a step was planned, an output came, a client went away. Every decision in between is planned
again. What differs is a rule of the engine that the scheduler does not know, an option, or a fault.

The KV cache is taken to be empty at the start of the capture.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import msgspec
import numpy as np

from simulator.kv.prefixes import engine_hashes
from simulator.scheduling.choice import RequestScheduler, SchedulerKind, new_scheduler
from simulator.scheduling.divergence import Batch, Context, Decision, Divergence, Rule, explain
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan
from simulator.scheduling.request import Request
from simulator.scheduling.rules import REFERENCE, Rules, rules_of, version_of
from simulator.scheduling.spec import SchedulerSpec
from traces.capture import Capture
from traces.errors import InputError
from traces.outcome import Outcome, Status
from traces.steps import Batches, Steps
from traces.trace import TraceRow

SAME_S = 1e-6
"""Two times of one event differ by no more: they were taken from the same stamp, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class StepReplay:
    """How far the recorded steps could be followed.

    Attributes:
        n_steps: steps that agreed, of each instance from the first on.
        n_recorded: steps of the capture.
        n_preempted: preemptions among those that agreed.
        divergence: where they parted, the earliest of all instances; None when all agree.
        notes: what was assumed.
    """

    n_steps: int
    n_recorded: int
    n_preempted: int
    divergence: Divergence | None
    notes: tuple[str, ...] = ()


class _Kind(IntEnum):
    """What can happen to a scheduler; at equal times in this order."""

    ABORT_UNDER_WAY = 0
    OUTPUT = 1
    ABORT = 2
    ADD = 3
    SCHEDULE = 4


@dataclass(frozen=True, slots=True, order=True)
class _Event:
    """`which`: place in the capture's steps, or in its outcomes."""

    time_s: float
    kind: _Kind
    which: int


def replay_steps(
    capture: Capture,
    options: EngineOptions | None = None,
    rules: Rules | None = None,
    kind: SchedulerKind = "native",
) -> StepReplay:
    """Follow a capture's steps, instance by instance, each until the first that differs.

    Args:
        capture: it must hold batches, and say when its requests were queued.
        options: of the engine; None: those that the capture recorded.
        rules: of the vLLM version to follow; None: of the capture's engine.
        kind: which scheduler plans.

    Raises:
        InputError: the capture lacks what that takes, or the steps held requests that are not in it.
        EngineError: vLLM's scheduler is asked for, and vllm is not installed or refuses the options.
    """
    steps = capture.steps
    if steps is None or steps.batches is None:
        raise InputError("the capture has no record of which requests were in each step", field="steps.batches")
    _check_complete(steps, steps.batches)
    options = options or _recorded_options(capture)
    if options.num_gpu_blocks is None or options.max_model_len is None:
        raise InputError("the capture did not record num_gpu_blocks and max_model_len", field="meta.num_gpu_blocks")
    if options.speculative_config is not None:
        message = "a capture does not say which drafted tokens were accepted: its steps cannot be planned again"
        raise InputError(message, field="engine.speculative_config")
    rules = rules or rules_of(version_of(capture.meta.engine) or REFERENCE)
    spec = SchedulerSpec(options, options.num_gpu_blocks, options.max_model_len, rules)
    n_steps = n_preempted = 0
    notes: list[str] = []
    divergences = []
    for instance in np.unique(steps.instance).tolist():
        scheduler = new_scheduler(kind, spec)
        replay = _InstanceReplay(capture, steps, options, scheduler, instance)
        divergence = replay.run()
        n_steps += replay.n_steps
        n_preempted += replay.n_preempted
        notes += replay.notes
        if divergence is not None:
            divergences.append(divergence)
    first = min(divergences, key=lambda divergence: divergence.time_s, default=None)
    return StepReplay(n_steps, len(steps), n_preempted, first, tuple(notes))


def _check_complete(steps: Steps, batches: Batches) -> None:
    """Refuse steps that held more requests than the capture does: what the others took is not known."""
    foreign = np.flatnonzero(steps.n_requests != np.diff(batches.offsets))
    if len(foreign):
        raise InputError(
            f"{len(foreign)} steps held requests that are not in the capture, the first is step {foreign[0]}",
            field="steps.n_requests",
        )


def _recorded_options(capture: Capture) -> EngineOptions:
    meta = capture.meta
    known = {name: value for name, value in meta.engine_options.items() if name in EngineOptions.__struct_fields__}
    try:
        return msgspec.convert({**known, "num_gpu_blocks": meta.num_gpu_blocks}, EngineOptions)
    except msgspec.ValidationError as error:
        raise InputError(f"engine options cannot be used ({error})", field="meta.engine_options") from None


class _InstanceReplay:
    """The events of one engine instance, and how far its steps agree."""

    def __init__(
        self, capture: Capture, steps: Steps, options: EngineOptions, scheduler: RequestScheduler, instance: int
    ) -> None:
        assert steps.batches is not None
        self.n_steps = 0
        self.n_preempted = 0
        self.notes: list[str] = []
        self._capture = capture
        self._steps = steps
        self._batches = steps.batches
        self._options = options
        self._scheduler = scheduler
        self._instance = instance
        self._rows = {row.request_id: row for row in capture.trace.rows}
        self._outcomes = [i for i, outcome in enumerate(capture.outcomes) if (outcome.instance or 0) == instance]
        self._requests: dict[str, Request] = {}
        # Steps under way: the place in the capture's steps, and the number of our plan.
        self._under_way: deque[int] = deque()
        self._last_step = self._last_steps()
        self._stopped = self._steps_that_stop()

    def run(self) -> Divergence | None:
        """Replay until a step differs; None when none does."""
        events = sorted(self._events())
        has_tried = False  # to plan, since the last step or output
        for place, event in enumerate(events):
            match event.kind:
                case _Kind.ADD:
                    self._add(event.which)
                case _Kind.ABORT | _Kind.ABORT_UNDER_WAY:
                    if not has_tried and _planned_nothing_from(events, place):
                        has_tried = self._tries_in_vain(event.time_s)
                    self._scheduler.abort(self._requests[self._capture.outcomes[event.which].request_id], event.time_s)
                case _Kind.SCHEDULE:
                    has_tried = False
                    plan = self._scheduler.schedule(event.time_s)
                    if (divergence := self._compare(event, plan)) is not None:
                        return divergence
                case _Kind.OUTPUT:
                    # Before an engine waits for an output it tries to plan; a step was recorded if that gave one.
                    if (
                        not has_tried
                        and self._has_room
                        and (plan := self._scheduler.schedule(event.time_s)) is not None
                    ):
                        return self._unrecorded(event, plan)
                    has_tried = False
                    stopped = [self._requests[self._id(i)] for i in self._stopped.get(event.which, ())]
                    self._scheduler.finish(self._under_way.popleft(), event.time_s, stopped)
        return None

    @property
    def _has_room(self) -> bool:
        """Whether a further step may be planned before the output of one that is under way."""
        return len(self._under_way) < (2 if self._options.async_scheduling else 1)

    def _tries_in_vain(self, now_s: float) -> bool:
        """Plan as the engine did in vain before a client went away; nothing is done where that would have given a step.

        The engine tried then or later, which is not recorded; a request that goes leaves its seat and its blocks.
        """
        if not self._under_way or not self._has_room or copy.deepcopy(self._scheduler).schedule(now_s) is not None:
            return False
        self._scheduler.schedule(now_s)
        return True

    # -- what happened -----------------------------------------------------------------------------------------

    def _events(self) -> Iterator[_Event]:
        steps = self._steps
        for step in np.flatnonzero(steps.instance == self._instance).tolist():
            scheduled_s, end_s = float(steps.scheduled_s[step]), float(steps.end_s[step])
            yield _Event(scheduled_s, _Kind.SCHEDULE, step)
            yield _Event(max(end_s, float(np.nextafter(scheduled_s, np.inf))), _Kind.OUTPUT, step)
        for i in self._outcomes:
            outcome = self._capture.outcomes[i]
            if outcome.queued_s is None:
                continue
            abort = self._abort_of(i) if outcome.status is Status.ABORTED else None
            if outcome.status is Status.ABORTED and abort is None:
                self.notes.append(
                    f"request '{outcome.request_id}' was aborted while it waited, at a time that is not known: left out"
                )
                continue
            yield _Event(outcome.queued_s, _Kind.ADD, i)
            if abort is not None:
                yield abort

    def _abort_of(self, i: int) -> _Event | None:
        """When a client went away: at the outcome's finish_s where the engine did no more for it after that.

        A finish_s that is the last token's leaves the step that was under way when the client went away: there the
        abort is put right before the output that did not come.
        """
        finish_s, last = self._capture.outcomes[i].finish_s, self._last_step.get(i)
        if last is None:
            return None if finish_s is None else _Event(finish_s, _Kind.ABORT, i)
        scheduled_s = float(self._steps.scheduled_s[last])
        if finish_s is not None and finish_s > scheduled_s:
            return _Event(finish_s, _Kind.ABORT, i)
        own = self._steps.instance == self._instance
        next_output_s = float(self._steps.end_s[own & (self._steps.end_s > scheduled_s)].min())
        return _Event(next_output_s, _Kind.ABORT_UNDER_WAY, i)

    def _last_steps(self) -> dict[int, int]:
        """The last step that each request was in."""
        step_of = np.repeat(np.arange(len(self._steps)), np.diff(self._batches.offsets))
        return dict(zip(self._batches.request.tolist(), step_of.tolist(), strict=True))

    def _steps_that_stop(self) -> dict[int, list[int]]:
        """Requests whose answer ended before its greatest length, by the step that brought the last token."""
        stopped: dict[int, list[int]] = {}
        for i in self._outcomes:
            outcome = self._capture.outcomes[i]
            if outcome.finish_s is None or not _stops(outcome, self._rows[outcome.request_id]):
                continue
            own = np.flatnonzero(self._steps.instance == self._instance)
            at = int(np.searchsorted(self._steps.end_s[own], outcome.finish_s - SAME_S))
            if at < len(own):
                stopped.setdefault(int(own[at]), []).append(i)
        return stopped

    def _add(self, i: int) -> None:
        outcome = self._capture.outcomes[i]
        row = self._rows[outcome.request_id]
        if _stops(outcome, row):
            # It did not end at its greatest length; where that is not known, anything longer does.
            row = msgspec.structs.replace(row, output_tokens=max(row.output_tokens, outcome.output_tokens + 1))
        hashes = engine_hashes(row, self._capture.trace, self._options.block_size)
        assert outcome.queued_s is not None
        self._requests[row.request_id] = self._scheduler.add_request(row, i, hashes, outcome.queued_s)

    # -- what is compared --------------------------------------------------------------------------------------

    def _compare(self, event: _Event, plan: StepPlan | None) -> Divergence | None:
        recorded, planned = self._recorded(event.which), _decision(plan)
        engine_blocks = self._capture.meta.num_gpu_blocks
        context = Context(self._scheduler, self._options, self._requests, event.time_s, engine_blocks)
        explanation = explain(recorded, planned, context)
        if explanation is not None:
            return self._divergence(event.which, event.time_s, *explanation, recorded, planned)
        assert plan is not None
        self._under_way.append(plan.first_step)
        self.n_steps += 1
        self.n_preempted += plan.n_preempted
        return None

    def _unrecorded(self, event: _Event, plan: StepPlan) -> Divergence:
        """The plan holds requests at a moment at which the engine had nothing to plan."""
        request_id = plan.requests[0].row.request_id
        cause = (
            f"request '{request_id}' can go on in the plan while step {event.which} runs; the engine planned nothing "
            "then: its scheduling is not asynchronous, or the request ended there, or lacked blocks"
        )
        nothing = Decision((), 0, 0, 0)
        return self._divergence(
            event.which, event.time_s, request_id, "planned nothing", cause, nothing, _decision(plan)
        )

    def _divergence(
        self,
        step: int,
        time_s: float,
        request_id: str | None,
        rule: Rule,
        cause: str,
        recorded: Decision,
        planned: Decision,
    ) -> Divergence:
        return Divergence(step, self._instance, time_s, request_id, rule, cause, recorded, planned)

    def _recorded(self, step: int) -> Decision:
        steps = self._steps
        return Decision(
            self._batch(step), int(steps.n_preempted[step]), int(steps.n_running[step]), int(steps.kv_blocks[step])
        )

    def _batch(self, step: int) -> Batch:
        batches = self._batches
        own = slice(int(batches.offsets[step]), int(batches.offsets[step + 1]))
        columns = (batches.request[own], batches.new_tokens[own], batches.computed_tokens[own])
        entries = zip(*(column.tolist() for column in columns), strict=True)
        return tuple((self._id(i), new, computed) for i, new, computed in entries)

    def _id(self, i: int) -> str:
        return self._capture.outcomes[i].request_id


def _planned_nothing_from(events: Sequence[_Event], place: int) -> bool:
    """Whether an output came next of all that an engine does, and not a step that it planned."""
    later = (events[i].kind for i in range(place, len(events)))
    return next((kind for kind in later if kind in (_Kind.OUTPUT, _Kind.SCHEDULE)), None) is _Kind.OUTPUT


def _stops(outcome: Outcome, row: TraceRow) -> bool:
    """Whether an answer ended by a word of the model's, and not at its greatest length."""
    if outcome.status is not Status.FINISHED:
        return False
    return outcome.output_tokens < row.output_tokens or outcome.reason in ("stop", "repetition")


def _decision(plan: StepPlan | None) -> Decision:
    if plan is None:
        return Decision((), 0, 0, 0)
    columns = zip(plan.requests, plan.new_tokens.tolist(), plan.computed_tokens.tolist(), strict=True)
    batch = tuple((request.row.request_id, new, computed) for request, new, computed in columns)
    return Decision(batch, plan.n_preempted, plan.n_running, plan.kv_blocks)
