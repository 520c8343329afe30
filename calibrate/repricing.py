"""A measured capture's steps, priced again: the recorded batches, and how long each of them took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrate.parameters import Basis
from calibrate.pricing import Columns, Priced
from simulator.engine import Engine
from simulator.scheduling.plan import recorded_plans
from simulator.steps.step_time import StepTimeModel
from traces.capture import Capture
from traces.errors import InputError
from traces.steps import STEP_COLUMNS, Batches, Floats, Mask, Steps


@dataclass(frozen=True, slots=True)
class Repriced:
    """Recorded steps of one instance, priced again.

    Attributes:
        at: [n_steps] which of the capture's they are.
        priced: with their prices.
    """

    at: Mask
    priced: Priced


def has_batches(capture: Capture, engine: Engine) -> bool:
    """Whether steps were recorded with the requests of each, of engines like this one, and each engine steps alone."""
    return capture.steps is not None and capture.steps.batches is not None and engine.ranks == 1


def reprice(capture: Capture, model: StepTimeModel, basis: Basis) -> list[Repriced]:
    """Price a capture's steps, instance by instance.

    Raises InputError when it does not say which requests were in each.

    Args:
        capture: with steps and batches; of several instances, of those that step apart.
        model: prices them; nothing is counted in its notes.
        basis: the parameters whose terms are wanted.
    """
    steps = capture.steps
    if steps is None or steps.batches is None:
        message = "the capture has no record of which requests were in each step"
        raise InputError(message, field="steps.batches", accepted="a capture taken with the step recorder")
    found = []
    for instance in np.unique(steps.instance).tolist():
        own = _of_instance(steps, steps.batches, instance)
        assert own.batches is not None
        columns = Columns(basis.names)
        for plan in recorded_plans(own.batches, np.arange(len(own))):
            bare = model.price(plan)
            columns.add(plan, plan.repeat, bare, *basis.terms(plan, bare))
        cycles = _cycles(_came_s(capture, steps, steps.batches, instance), own, own.batches)
        found.append(Repriced(steps.instance == instance, columns.priced(own.end_s, *cycles)))
    return found


def all_priced(capture: Capture, model: StepTimeModel, basis: Basis) -> list[Priced]:
    """The steps of a capture, of each instance, as `reprice` gives them."""
    return [each.priced for each in reprice(capture, model, basis)]


def _of_instance(steps: Steps, batches: Batches, instance: int) -> Steps:
    """The steps of one instance, with their batches."""
    own = steps.instance == instance
    if own.all():
        return steps
    counts = np.diff(batches.offsets)
    entries = np.repeat(own, counts)
    offsets = np.concatenate([[0], np.cumsum(counts[own])]).astype(np.int64)
    columns = {name: getattr(steps, name)[own] for name in STEP_COLUMNS}
    kept = (getattr(batches, name)[entries] for name in ("request", "new_tokens", "computed_tokens"))
    return Steps(**columns, batches=Batches(offsets, *kept))


def _came_s(capture: Capture, steps: Steps, batches: Batches, instance: int) -> Floats:
    """When each request was there for an instance to work on, [n_requests]; NaN where that is not known.

    Queued; or, where another instance had computed its prompt, when its KV had come, or else its first step here.
    """
    came_s = np.array([np.nan if o.queued_s is None else o.queued_s for o in capture.outcomes], dtype=np.float64)
    scheduled_s = np.repeat(steps.scheduled_s, np.diff(batches.offsets))
    here = np.repeat(steps.instance == instance, np.diff(batches.offsets))
    first_s, elsewhere_s = (np.full(len(came_s), np.inf) for _ in range(2))
    np.minimum.at(first_s, batches.request[here], scheduled_s[here])
    np.minimum.at(elsewhere_s, batches.request[~here], scheduled_s[~here])
    came_s = np.where(elsewhere_s < first_s, first_s, came_s)
    if (sent := capture.transfers) is not None:
        own = sent.target == instance
        came_s[sent.request[own]] = sent.end_s[own]
    return came_s


def _cycles(came_s: Floats, steps: Steps, batches: Batches) -> tuple[Floats, Mask]:
    """Time of each step, [n], and whether the engine was out of work before it, [n].

    What the engine's loop does between two steps belongs to the second: it is the host's time. After a pause the step
    begins when it is planned.
    """
    in_engine = np.zeros(len(steps) + 1, dtype=np.int64)
    step = np.repeat(np.arange(len(steps)), np.diff(batches.offsets))
    last = np.full(len(came_s), -1)
    np.maximum.at(last, batches.request, step)
    for request_s, last_step in zip(came_s.tolist(), last.tolist(), strict=True):
        if last_step < 0 or np.isnan(request_s):
            continue
        first = int(np.searchsorted(steps.scheduled_s, request_s))
        in_engine[min(first, last_step) + 1] += 1
        in_engine[last_step + 1] -= 1
    paused = np.cumsum(in_engine)[:-1] == 0
    before_s = np.concatenate([[-np.inf], steps.end_s[:-1]])
    start_s = np.where(paused, np.maximum(steps.scheduled_s, before_s), before_s)
    return steps.end_s - start_s, paused
