"""What a calibration may fit: each parameter with its unit, its prior, and how far from it is still plausible.

The priors are deliberately wide: they hold a parameter where the data say nothing and hardly move it where they do.
None is taken from a measured run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.steps.correction import TermsOf, residual_terms
from traces.steps import Floats


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    Attributes:
        name: as `simulator.steps.correction.residual_terms` or `front_end_of` spells it.
        unit: of its value; `1` for a scale.
        prior: its value before any data, which corrects nothing.
        prior_sd: standard deviation of the prior.
        meaning: what it stands for, in a few words.
        least: what it cannot be below.
    """

    name: str
    unit: str
    prior: float
    prior_sd: float
    meaning: str
    least: float = -np.inf


@dataclass(frozen=True, slots=True)
class Basis:
    """What a step's time is linear in.

    Attributes:
        parameters: in the order of every array over them.
        terms: a step's seconds per unit of each.
    """

    parameters: tuple[Parameter, ...]
    terms: TermsOf

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return names_of(self.parameters)

    @property
    def with_front_end(self) -> tuple[Parameter, ...]:
        """What a request's time is linear in: the parameters of its steps, then those of `FRONT_END`."""
        return (*self.parameters, *FRONT_END)

    @property
    def neutral(self) -> Floats:
        """Their values where nothing is corrected, [k]."""
        return np.array([parameter.prior for parameter in self.parameters])

    def changes(self, values: Mapping[str, float]) -> Floats:
        """Their values out of a mapping, less what corrects nothing, [k]."""
        return array_of(self.parameters, values) - self.neutral


RESIDUAL = Basis(
    (
        Parameter("dense", "1", 1.0, 0.1, "token-wise operators, against the profile's", 0.0),
        Parameter("attention", "1", 1.0, 0.1, "attention", 0.0),
        Parameter("moe", "1", 1.0, 0.1, "experts", 0.0),
        Parameter("communication", "1", 1.0, 0.1, "collectives", 0.0),
        Parameter("per_request", "1", 1.0, 0.2, "logits and sampler", 0.0),
        Parameter("padding", "1", 1.0, 0.5, "what padding to a CUDA graph's size costs; 0: nothing is padded", 0.0),
        Parameter("device_step_s", "s", 0.0, 2e-3, "each step on the device: what asynchronous scheduling cannot hide"),
        Parameter("prefill_step_s", "s", 0.0, 2e-3, "each step with a prefill chunk, which is not one CUDA graph", 0.0),
        Parameter("host_step_s", "s", 0.0, 2e-3, "each step on the host"),
        Parameter("host_request_s", "s", 0.0, 2e-5, "each request of a step on the host"),
    ),
    residual_terms,
)
"""The residual of a step-time model."""

FRONT_END = (
    Parameter("front_end_s", "s", 0.0, 20e-3, "a request's way to the engine: HTTP, tokenizer, message", 0.0),
    Parameter("front_end_token_s", "s", 0.0, 2e-6, "the same, per prompt token", 0.0),
)
"""A request's way to the engine."""

KV_TRANSFER = (
    Parameter("kv_transfer_s", "s", 0.0, 10e-3, "each KV transfer beside its links' latency", 0.0),
    Parameter("kv_transfer", "1", 1.0, 1.0, "bytes of a KV transfer, against their links' bandwidth", 0.01),
)
"""KV from prefill to decode engines; only where there are such."""

HANDOVER = Parameter("handover_s", "s", 0.0, 20e-3, "a request's way from its prefill to its decode engine", 0.0)
"""Likewise, before its KV is asked for."""


def names_of(parameters: Sequence[Parameter]) -> tuple[str, ...]:
    """Names of parameters."""
    return tuple(parameter.name for parameter in parameters)


def array_of(parameters: Sequence[Parameter], values: Mapping[str, float]) -> Floats:
    """Their values out of a mapping, [k]."""
    return np.array([values[parameter.name] for parameter in parameters])


def within(parameters: Sequence[Parameter], least: Mapping[str, float]) -> list[Parameter]:
    """The same with further lower bounds, by name."""
    return [replace(each, least=max(each.least, least.get(each.name, -np.inf))) for each in parameters]
