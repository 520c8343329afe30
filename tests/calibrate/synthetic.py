"""Captures of a bundled engine with a known residual and a few percent of noise in each step, as if measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from calibrate.subject import Subject
from harness.calibrate import subject_of
from harness.demo import BUNDLED
from harness.descriptions.scenario import read_scenario
from simulator.front_end import DIRECT, FrontEnd, simulate_behind
from simulator.scheduling.plan import StepPlan
from simulator.steps.correction import CorrectedModel
from simulator.steps.step_time import StepCost, StepTimeModel

TRUTH = {"dense": 1.04, "host_step_s": 4e-4}
"""The residual of a healthy engine."""

WAY = FrontEnd(1.4e-3)
"""And its front end."""


class Noisy:
    """A step-time model whose steps scatter by so much, relative."""

    def __init__(self, model: StepTimeModel, seed: int, spread: float) -> None:
        self._model = model
        self._rng = np.random.default_rng(seed)
        self._spread = spread

    def price(self, plan: StepPlan) -> StepCost:
        cost = self._model.price(plan)
        factor = np.exp(self._rng.normal(0.0, self._spread, plan.repeat))
        return replace(cost, device_s=cost.device_s * factor, host_s=cost.host_s * factor)

    def count(self, plan: StepPlan, times: int) -> None:
        self._model.count(plan, times)

    def notes(self) -> tuple[str, ...]:
        return self._model.notes()


@cache
def bundled(load: str, *, asynchronous: bool = False) -> Subject:
    """The first recording of a bundled load, and its uncorrected engine."""
    subject = subject_of(read_scenario(BUNDLED / f"{load}.yaml"), Path(BUNDLED / "captures" / f"{load}-1"))
    options = msgspec.structs.replace(subject.engine.options, async_scheduling=asynchronous)
    engine = replace(subject.engine, options=options)
    return replace(subject, cluster=replace(subject.cluster, engines=(engine,)))


def measured(
    subject: Subject,
    values: Mapping[str, float],
    *,
    seed: int,
    way: FrontEnd = DIRECT,
    spread: float = 0.03,
    steps: bool = True,
    step_time: StepTimeModel | None = None,
    **engine: Any,
) -> Subject:
    """The subject with a synthetic capture: its engine with this residual, or this step time, changed by `engine`."""
    model = step_time or CorrectedModel(subject.engine.step_time, values)
    real = replace(subject.engine, step_time=Noisy(model, seed, spread), **engine)
    capture = simulate_behind(way, subject.trace, real, record_batches=True, fast_forward=False).capture
    meta = msgspec.structs.replace(capture.meta, kind="measured", num_gpu_blocks=None)
    kept = capture.steps if steps else None
    return replace(subject, name=f"seed-{seed}", measured=replace(capture, meta=meta, steps=kept))
