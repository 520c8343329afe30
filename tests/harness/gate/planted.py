"""Errors planted into the step-time model, between what was measured and what is simulated with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.deploy import deployment
from simulator.scheduling.plan import StepPlan
from simulator.steps.step_time import StepCost, StepTimeModel


class Scaled:
    """A step-time model whose every step takes `factor` times as long."""

    def __init__(self, model: StepTimeModel, factor: float) -> None:
        self._model = model
        self._factor = factor

    def price(self, plan: StepPlan) -> StepCost:
        cost = self._model.price(plan)
        return replace(cost, device_s=cost.device_s * self._factor, host_s=cost.host_s * self._factor)

    def count(self, plan: StepPlan, times: int) -> None:
        self._model.count(plan, times)

    def notes(self) -> tuple[str, ...]:
        return self._model.notes()


def plant(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Make every step of every simulation from now on take `factor` times as long; no input changes."""
    real = deployment.calibrated

    def planted(step_time: StepTimeModel, /, *arguments: Any, **named: Any) -> Any:
        fitted = real(step_time, *arguments, **named)
        return replace(fitted, step_time=Scaled(fitted.step_time, factor))

    monkeypatch.setattr(deployment, "calibrated", planted)
