"""What a calibration found between a step-time model and a real engine, put back into its prices.

    device = model's + sum over classes of (scale - 1) * the class's time
             + device_step_s + prefill_step_s if it prefills
    host   = model's + host_step_s + host_request_s * requests

Linear in every parameter, so that a fit can read its regressors from here and the two can never part. How the values
are found is not known here; `calibrate` does that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from simulator.scheduling.plan import StepPlan
from simulator.steps.step_time import StepCost, StepTimeModel, reads_batches
from traces.errors import InputError
from traces.steps import Floats, Ints

Terms = dict[str, float | Floats]
"""Seconds of a step per unit of each parameter, by the parameter's name; [repeat] where repeats differ."""

TermsOf = Callable[[StepPlan, StepCost], tuple[Terms, Terms]]
"""A plan and its uncorrected cost to the terms on the device and on the host."""

SCALES = ("dense", "padding", "attention", "per_request", "moe", "communication")
"""Parameters that scale a class of operators: 1 corrects nothing."""

AXES = ("tokens per step", "prefill tokens per step", "requests per step", "KV tokens per step")
"""What steps are compared by when it is asked whether a calibration has seen their like."""


def residual_terms(plan: StepPlan, cost: StepCost) -> tuple[Terms, Terms]:
    """Terms of a residual; scales only where the model tells its operators apart.

    Where ranks step together, the step prefills when one of them does, and waits for the host with the most requests.
    """
    plans = (plan, *plan.alongside)
    device: Terms = {"device_step_s": 1.0, "prefill_step_s": 1.0 if any(each.chunks for each in plans) else 0.0}
    if (times := cost.operators) is not None:
        device |= {name: getattr(times, f"{name}_s") for name in SCALES}
    return device, {"host_step_s": 1.0, "host_request_s": float(max(each.n_requests for each in plans))}


def axes(plan: StepPlan) -> tuple[int, int, int, int]:
    """The plan's place on `AXES`, its first repeat's; of ranks that step together, the largest on each."""
    each = [
        (
            p.n_tokens,
            p.n_prefill_tokens,
            p.n_requests,
            p.decode_kv_sum + sum(chunk.computed_tokens for chunk in p.chunks),
        )
        for p in (plan, *plan.alongside)
    ]
    tokens, prefill, requests, kv = (max(column) for column in zip(*each, strict=True))
    return tokens, prefill, requests, kv


def kv_tokens(plan: StepPlan, times: int) -> Ints:
    """The plan's place on the last of `AXES` at each of its first repeats, [times]: all else stays as it is."""
    grown = np.arange(times)
    each = [
        p.decode_kv_sum + sum(chunk.computed_tokens for chunk in p.chunks) + p.n_decode * grown
        for p in (plan, *plan.alongside)
    ]
    return np.asarray(np.max(each, axis=0))


class CorrectedModel:
    """A step-time model with its residual put back.

    Attributes:
        model: what is corrected.
        changes: by parameter, its value less the one that corrects nothing; only those that differ from it.
    """

    def __init__(
        self,
        model: StepTimeModel,
        values: Mapping[str, float],
        terms: TermsOf = residual_terms,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        *,
        pace: float = 1.0,
    ) -> None:
        """Correct a model.

        Args:
            model: what is corrected.
            values: of the parameters.
            terms: what they are linear in.
            ranges: of `AXES`; steps outside are counted in the notes.
            pace: how many times as long as all that every step takes.
        """
        self.model = model
        self._pace = pace
        self.changes = {name: value - 1.0 if name in SCALES else value for name, value in values.items()}
        self.changes = {name: change for name, change in self.changes.items() if change}
        self._terms = terms
        self._ranges = dict(ranges or {})
        self._outside: Counter[str] = Counter()
        self._steps = 0

    @property
    def reads_batches(self) -> bool:
        """Whether the model does."""
        return reads_batches(self.model)

    def price(self, plan: StepPlan) -> StepCost:
        """Seconds of each repeat, [repeat]. Raises InputError when the correction does not fit the model."""
        return self.parts(plan)[0]

    def parts(self, plan: StepPlan) -> tuple[StepCost, StepCost, Terms, Terms]:
        """The corrected cost, the model's own, and the terms between the two on device and host."""
        bare = self.model.price(plan)
        on_device, on_host = self._terms(plan, bare)
        device_s, host_s = bare.device_s, bare.host_s
        for name, change in self.changes.items():
            if name in on_device:
                device_s = device_s + change * on_device[name]
            elif name in on_host:
                host_s = host_s + change * on_host[name]
            else:
                message = "scales a class of operators, and this step-time model does not tell them apart"
                raise InputError(message, field=f"calibration.{name}")
        if np.any(device_s <= 0) or np.any(host_s < 0):
            raise InputError(
                f"gives a step of {plan.n_tokens} tokens and {plan.n_requests} requests no time at all",
                field="calibration",
                accepted="a calibration fitted on steps like those it is used for",
            )
        if self._pace != 1.0:
            device_s, host_s = self._pace * device_s, self._pace * host_s
        return replace(bare, device_s=device_s, host_s=host_s), bare, on_device, on_host

    def count(self, plan: StepPlan, times: int) -> None:
        """Take note that the plan was run so many times, and on which axes it lies outside the fitted range."""
        self.model.count(plan, times)
        self._steps += times
        *places, _ = axes(plan)
        for name, place in zip(AXES, (*places, kv_tokens(plan, times)), strict=True):
            low, high = self._ranges.get(name, (-np.inf, np.inf))
            values = np.full(times, place)
            if outside := int(np.count_nonzero((values < low) | (values > high))):
                self._outside[name] += outside

    def notes(self) -> tuple[str, ...]:
        """The model's own, and the steps unlike those that were fitted."""
        outside = [
            f"{count} of {self._steps} steps lie outside the range that the calibration was fitted on: {name}"
            for name, count in sorted(self._outside.items())
        ]
        return (*self.model.notes(), *outside)
