"""A step's time from step records alone, for engines whose operators cannot be profiled.

    step = step_s + request_s * requests + prefill_step_s if it prefills + token_s * tokens
           + sum over knots of token_beyond_knot_s * tokens beyond the knot
           + pair_s * query-key pairs of prefill chunks + kv_token_s * history that attention reads

No coefficient is below 0, so that time grows with every quantity, and with tokens the faster the more there are: flat
where weights are read, steeper where they are computed with. Each one's prior is 0, with the standard deviation at
which it alone would make the mean step at the largest quantity seen. What the data leave open of the coefficients
therefore makes a prediction the less sure, the further its steps are from those that were fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from calibrate.parameters import Basis, Parameter
from calibrate.pricing import Priced
from simulator.correction import AXES, Terms
from simulator.plan import StepPlan
from simulator.step_time import StepCost
from traces.errors import InputError
from traces.steps import Floats

KNOTS = (16, 64, 256, 1024, 4096)
"""Tokens beyond which a token may take longer; those that the data do not straddle are left out."""

FEWEST_BESIDE = 10
"""Steps on either side of a knot, at least; also a two-hundredth of them."""


class Unpriced:
    """A step-time model that knows nothing: a whole-step model corrects it to all there is."""

    def price(self, plan: StepPlan) -> StepCost:
        """No time at all, [repeat]."""
        return StepCost(np.zeros(plan.repeat), np.zeros(plan.repeat))

    def count(self, plan: StepPlan, times: int) -> None:
        """Counts nothing."""

    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()


def names(knots: Sequence[int]) -> tuple[str, ...]:
    """Of the coefficients."""
    beyond = (f"token_beyond_{knot}_s" for knot in knots)
    return ("step_s", "request_s", "prefill_step_s", "token_s", *beyond, "pair_s", "kv_token_s")


def whole_step_terms(plan: StepPlan, _: StepCost, *, knots: Sequence[int]) -> tuple[Terms, Terms]:
    """A plan's quantities by the coefficient that they go with, [repeat] where repeats differ; none is the host's.

    Of ranks that step together, each quantity is the largest of any.
    """
    each = [_quantities(one, plan.repeat, knots) for one in (plan, *plan.alongside)]
    largest = np.max(np.stack(each), axis=0)
    return dict(zip(names(knots), largest.T, strict=True)), {}


def _quantities(plan: StepPlan, repeat: int, knots: Sequence[int]) -> Floats:
    """[repeat, k]"""
    fixed = [1.0, plan.n_requests, float(bool(plan.chunks)), plan.n_tokens]
    fixed += [max(plan.n_tokens - knot, 0) for knot in knots]
    fixed += [sum(chunk.work for chunk in plan.chunks)]
    kv = plan.decode_kv_sum + np.arange(repeat) * plan.n_decode + sum(chunk.computed_tokens for chunk in plan.chunks)
    return np.column_stack([np.tile(np.array(fixed, dtype=np.float64), (repeat, 1)), kv])


def basis_of(knots: Sequence[int], prior_sd: Sequence[float]) -> Basis:
    """The coefficients of a whole-step model. Raises InputError when their priors are not as many."""
    if len(names(knots)) != len(prior_sd):
        raise InputError(field="parameters", found=len(prior_sd), accepted=", ".join(names(knots)))
    parameters = [Parameter(name, "s", 0.0, sd, "", 0.0) for name, sd in zip(names(knots), prior_sd, strict=True)]
    return Basis(tuple(parameters), partial(whole_step_terms, knots=tuple(knots)))


EVERY = basis_of(KNOTS, [1.0] * len(names(KNOTS)))
"""All coefficients that there can be, before any data."""


def whole_step_basis(steps: Sequence[Priced]) -> tuple[Basis, tuple[int, ...]]:
    """The coefficients that steps, priced by `EVERY`, could tell, with their priors; and the knots."""
    tokens = np.concatenate([part.axes[:, AXES.index("tokens per step")] for part in steps])
    least = max(FEWEST_BESIDE, len(tokens) // 200)
    knots = tuple(k for k in KNOTS if min(int((tokens <= k).sum()), int((tokens > k).sum())) >= least)
    mean_s = float(np.concatenate([part.cycle_s for part in steps]).mean())
    seen = np.concatenate([part.on_device for part in steps]).max(axis=0)
    largest = dict(zip(EVERY.names, np.maximum(seen, 1.0).tolist(), strict=True))
    return basis_of(knots, [mean_s / largest[name] for name in names(knots)]), knots


def narrowed(steps: Priced, basis: Basis) -> Priced:
    """Steps priced by `EVERY` with the columns of one basis only."""
    own = [EVERY.names.index(name) for name in basis.names]
    return replace(steps, on_device=steps.on_device[:, own], on_host=steps.on_host[:, own])
