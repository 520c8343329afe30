"""A capture's recorded steps, planned again by our scheduler: the same arrivals must give the same batches.

No step-time model takes part: requests are queued when they really were, and each step is planned when the engine
planned it. What differs is a rule of the engine that the scheduler does not know, or a fault.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from simulator.options import EngineOptions
from simulator.scheduler import Scheduler
from simulator.simulate import engine_hashes
from traces.capture import Capture
from traces.errors import InputError
from traces.steps import Steps

Batch = list[tuple[str, int, int]]
"""Requests of a step in order: id, new tokens, tokens computed before."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first step at which the two differ."""

    step: int
    recorded: Batch
    planned: Batch


@dataclass(frozen=True, slots=True)
class StepReplay:
    """How far the recorded steps could be followed.

    Attributes:
        n_steps: steps that agreed, from the first on.
        n_preempted: preemptions among them.
        divergence: where they parted; None when all agree.
    """

    n_steps: int
    n_preempted: int
    divergence: Divergence | None


def replay_steps(capture: Capture) -> StepReplay:
    """Follow a capture's steps until the first that differs. Raises InputError when it lacks what that takes.

    For engines with synchronous scheduling, whose every output is taken in before the next step is planned.
    """
    steps, scheduler = capture.steps, _scheduler(capture)
    if steps is None or steps.batches is None:
        raise InputError("the capture has no record of which requests were in each step", field="steps.batches")
    rows = {row.request_id: row for row in capture.trace.rows}
    queued = sorted(
        ((o.queued_s, i) for i, o in enumerate(capture.outcomes) if o.queued_s is not None), key=lambda entry: entry[0]
    )
    n_preempted = 0
    waiting = 0
    for step in range(len(steps)):
        while waiting < len(queued) and queued[waiting][0] <= steps.scheduled_s[step]:
            index = queued[waiting][1]
            row = rows[capture.outcomes[index].request_id]
            hashes = engine_hashes(row, capture.trace, capture.meta.engine_options["block_size"])
            scheduler.add_request(row, index, hashes, queued[waiting][0])
            waiting += 1
        plan = scheduler.schedule(float(steps.scheduled_s[step]))
        planned: Batch = []
        if plan is not None:
            counts = zip(plan.requests, plan.new_tokens.tolist(), plan.computed_tokens.tolist(), strict=True)
            planned = [(request.row.request_id, new, computed) for request, new, computed in counts]
            scheduler.finish(plan.first_step, float(steps.end_s[step]))
            n_preempted += plan.n_preempted
        recorded = _batch(capture, steps, step)
        if planned != recorded:
            return StepReplay(step, n_preempted, Divergence(step, recorded, planned))
    return StepReplay(len(steps), n_preempted, None)


def _scheduler(capture: Capture) -> Scheduler:
    meta = capture.meta
    known = {name: value for name, value in meta.engine_options.items() if name in EngineOptions.__struct_fields__}
    options = msgspec.convert(known, EngineOptions)
    if meta.num_gpu_blocks is None or options.max_model_len is None:
        raise InputError("the capture did not record num_gpu_blocks and max_model_len", field="meta.num_gpu_blocks")
    if options.async_scheduling:
        accepted = "false: steps of two in flight are not replayed yet"
        raise InputError(field="engine_options.async_scheduling", found=True, accepted=accepted)
    return Scheduler(options, num_gpu_blocks=meta.num_gpu_blocks, max_model_len=options.max_model_len)


def _batch(capture: Capture, steps: Steps, step: int) -> Batch:
    batches = steps.batches
    assert batches is not None
    own = slice(int(batches.offsets[step]), int(batches.offsets[step + 1]))
    columns = (batches.request[own].tolist(), batches.new_tokens[own].tolist(), batches.computed_tokens[own].tolist())
    return [(capture.outcomes[index].request_id, new, computed) for index, new, computed in zip(*columns, strict=True)]
