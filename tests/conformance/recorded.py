"""A conformance scenario as a step recorder would have put it down: a capture of an engine that has no model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import numpy as np

from simulator.kv.kv_cache import BlockHash
from simulator.rank import token_times_s
from simulator.scheduling.choice import RequestScheduler
from simulator.scheduling.plan import StepPlan
from simulator.scheduling.request import Request, RequestStatus
from simulator.scheduling.rules import REFERENCE_RULES, Rules
from tests.conformance.compare import our_scheduler
from tests.conformance.scenario import Scenario, states_of
from traces.capture import Capture, CaptureMeta
from traces.outcome import Outcome, Status
from traces.steps import Batches, Ints, Steps, steps_from_columns
from traces.trace import Trace, TraceRow


class Recorder:
    """A scheduler that notes what is asked of another one, each call a second after the one before."""

    def __init__(self, scheduler: RequestScheduler) -> None:
        self.plans: list[StepPlan] = []
        self.scheduled_s: list[float] = []
        self.end_s: list[float] = []
        self.requests: list[Request] = []
        self._scheduler = scheduler
        self._now_s = 0.0

    @property
    def waiting(self) -> Sequence[Request]:
        return self._scheduler.waiting

    @property
    def running(self) -> Sequence[Request]:
        return self._scheduler.running

    @property
    def num_free_blocks(self) -> int:
        return self._scheduler.num_free_blocks

    def add_request(self, row: TraceRow, index: int, hashes: tuple[BlockHash, ...], now_s: float) -> Request:
        self._now_s += 1
        self.requests.append(self._scheduler.add_request(row, index, hashes, self._now_s))
        return self.requests[-1]

    def schedule(self, now_s: float) -> StepPlan | None:
        self._now_s += 1
        plan = self._scheduler.schedule(self._now_s)
        if plan is not None:
            self.plans.append(plan)
            self.scheduled_s.append(self._now_s)
        return plan

    def repeat(self, plan: StepPlan, times: int) -> Ints:
        return self._scheduler.repeat(plan, times)

    def finish(self, last_step: int, end_s: float, stopped: Collection[Request] = ()) -> list[Request]:
        self._now_s += 1
        self.end_s.append(self._now_s)
        return self._scheduler.finish(last_step, self._now_s, stopped)

    def abort(self, request: Request, now_s: float) -> None:
        self._now_s += 1
        self._scheduler.abort(request, self._now_s)


class NeverEndsError(Exception):
    """Requests take each other's blocks for ever, as with the priority policy they may in vLLM too."""


def recorded(scenario: Scenario, rules: Rules = REFERENCE_RULES) -> Capture:
    """What a recorder would have written of a scenario, run through our scheduler. Raises NeverEndsError."""
    recorder = Recorder(our_scheduler(scenario, rules))
    for _ in states_of(scenario, recorder):
        pass
    if any(request.is_open for request in recorder.requests):
        raise NeverEndsError
    steps = _steps(recorder)
    outcomes = tuple(_outcome(request, steps) for request in recorder.requests)
    options = {**msgspec.to_builtins(scenario.options), "max_model_len": scenario.max_model_len}
    meta = CaptureMeta(
        kind="measured",
        engine=rules.name,
        model="none",
        device=None,
        engine_options=options,
        num_gpu_blocks=scenario.num_gpu_blocks,
        clock="calls of the scheduler",
    )
    rows = tuple(
        msgspec.structs.replace(request.row, block_hashes=scenario.arrivals[request.index].hashes)
        for request in recorder.requests
    )
    return Capture(meta, Trace(rows, scenario.options.block_size, "scenario", "sha256:none"), outcomes, steps)


def _steps(recorder: Recorder) -> Steps:
    plans = recorder.plans
    columns = {
        name: np.array([getattr(plan, name) for plan in plans], dtype=np.int64)
        for name in ("n_requests", "n_prefill_tokens", "n_preempted", "n_running", "n_waiting", "kv_blocks")
    }
    batches = Batches(
        np.cumsum([0, *(plan.n_requests for plan in plans)]),
        np.array([request.index for plan in plans for request in plan.requests], dtype=np.int64),
        np.concatenate([np.zeros(0, dtype=np.int64), *(plan.new_tokens for plan in plans)]),
        np.concatenate([np.zeros(0, dtype=np.int64), *(plan.computed_tokens for plan in plans)]),
    )
    return steps_from_columns(
        {
            **columns,
            "instance": np.zeros(len(plans), dtype=np.int64),
            "scheduled_s": np.array(recorder.scheduled_s),
            "end_s": np.array(recorder.end_s),
            "n_decode_tokens": np.array([plan.n_decode for plan in plans], dtype=np.int64),
        },
        batches,
    )


def _outcome(request: Request, steps: Steps) -> Outcome:
    times_s = token_times_s(request, steps.end_s).tolist()
    row = request.row
    aborted = request.status is RequestStatus.ABORTED
    return Outcome(
        request_id=row.request_id,
        status=Status.ABORTED if aborted else Status.FINISHED,
        reason="abort" if aborted else "length" if len(times_s) == row.output_tokens else "stop",
        prompt_tokens=row.prompt_tokens,
        output_tokens=len(times_s),
        arrival_s=row.arrival_s,
        instance=0,
        queued_s=request.queued_s,
        scheduled_s=request.scheduled_s,
        first_token_s=times_s[0] if times_s else None,
        finish_s=request.finish_s if aborted else times_s[-1],
        num_preemptions=request.num_preemptions,
        token_times_s=tuple(times_s),
    )
