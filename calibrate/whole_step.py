"""A step's time from step records alone, for engines whose operators cannot be profiled.

    step = step_s + request_s * requests + prefill_step_s if it prefills + token_s * tokens
           + sum over knots of token_beyond_knot_s * tokens beyond the knot
           + pair_s * query-key pairs of prefill chunks + kv_token_s * history that attention reads

No coefficient is below 0, so that time grows with every quantity, and with tokens the faster the more there are: flat
where weights are read, steeper where they are computed with. Each one's prior is 0, with the standard deviation at
which it alone would make a long step of the largest quantity seen. What the data leave open of the coefficients
therefore makes a prediction the less sure, the further its steps are from those that were fitted. Beyond the largest
step seen each quantity may also cost more or less than inside: three further coefficients, which are 0 and never told,
but as unsure as half of what a unit of the quantity costs at the edge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from calibrate.parameters import Basis, Parameter
from calibrate.pricing import Priced
from simulator.scheduling.plan import StepPlan
from simulator.steps.correction import AXES, Terms
from simulator.steps.step_time import StepCost
from traces.errors import InputError
from traces.steps import Floats

KNOTS = (16, 64, 256, 1024, 4096)
"""Tokens beyond which a token may take longer; those that the data do not straddle are left out."""

LONG = 0.99
"""Quantile of the steps' times that is a long step's, and of their size that is at the edge."""

BEYOND = ("beyond_tokens_s", "beyond_requests_s", "beyond_kv_tokens_s")
"""Coefficients of what lies beyond the largest step seen, on each of these axes."""

EDGE_AXES = ("tokens per step", "requests per step", "KV tokens per step")

UNSURE_BEYOND = 0.5
"""How far a unit beyond the edge may cost more or less, as a share of its average cost at the edge."""

FEWEST_BESIDE = 10
"""Steps on either side of a knot, at least; also a two-hundredth of them."""


class Unpriced:
    """A step-time model that knows nothing: a whole-step model corrects it to all there is."""

    reads_batches = False

    def price(self, plan: StepPlan) -> StepCost:
        """No time at all, [repeat]."""
        return StepCost(np.zeros(plan.repeat), np.zeros(plan.repeat))

    def count(self, plan: StepPlan, times: int) -> None:
        """Counts nothing."""

    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True)
class Shape:
    """Where the cost of a step may bend.

    Attributes:
        knots: tokens at which the cost of a token may change.
        edges: largest tokens, requests and KV tokens of a step that was fitted.
    """

    knots: tuple[int, ...]
    edges: tuple[float, float, float]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the coefficients."""
        beyond = (f"token_beyond_{knot}_s" for knot in self.knots)
        return ("step_s", "request_s", "prefill_step_s", "token_s", *beyond, "pair_s", "kv_token_s", *BEYOND)


def whole_step_terms(plan: StepPlan, _: StepCost, *, shape: Shape) -> tuple[Terms, Terms]:
    """A plan's quantities by the coefficient that they go with, [repeat] where repeats differ; none is the host's.

    Of ranks that step together, each quantity is the largest of any.
    """
    each = [_quantities(one, plan.repeat, shape) for one in (plan, *plan.alongside)]
    largest = np.max(np.stack(each), axis=0)
    return dict(zip(shape.names, largest.T, strict=True)), {}


def _quantities(plan: StepPlan, repeat: int, shape: Shape) -> Floats:
    """[repeat, k]"""
    fixed = [1.0, plan.n_requests, float(bool(plan.chunks)), plan.n_tokens]
    fixed += [max(plan.n_tokens - knot, 0) for knot in shape.knots]
    fixed += [sum(chunk.work for chunk in plan.chunks)]
    kv = plan.decode_kv_sum + np.arange(repeat) * plan.n_decode + sum(chunk.computed_tokens for chunk in plan.chunks)
    tokens, requests, kv_tokens = shape.edges
    beyond = [max(plan.n_tokens - tokens, 0.0), max(plan.n_requests - requests, 0.0)]
    rows = np.tile(np.array([*fixed, 0.0, *beyond], dtype=np.float64), (repeat, 1))
    rows[:, len(fixed)] = kv
    return np.column_stack([rows, np.maximum(kv - kv_tokens, 0.0)])


def basis_of(shape: Shape, prior_sd: Sequence[float]) -> Basis:
    """The coefficients of a whole-step model. Raises InputError when their priors are not as many."""
    if len(shape.names) != len(prior_sd):
        raise InputError(field="parameters", found=len(prior_sd), accepted=", ".join(shape.names))
    least = (-np.inf if name in BEYOND else 0.0 for name in shape.names)
    parameters = [
        Parameter(name, "s", 0.0, sd, "", low) for name, sd, low in zip(shape.names, prior_sd, least, strict=True)
    ]
    return Basis(tuple(parameters), partial(whole_step_terms, shape=shape))


def whole_step_basis(steps: Sequence[Priced]) -> tuple[Basis, Shape]:
    """The coefficients that steps could tell, with their priors. The steps are priced by `EVERY`."""
    cycle_s = np.concatenate([part.cycle_s for part in steps])
    places = np.concatenate([part.axes for part in steps]).astype(np.float64)
    tokens = places[:, AXES.index("tokens per step")]
    least = max(FEWEST_BESIDE, len(tokens) // 200)
    knots = tuple(k for k in KNOTS if min(int((tokens <= k).sum()), int((tokens > k).sum())) >= least)
    columns = [places[:, AXES.index(name)] for name in EDGE_AXES]
    shape = Shape(knots, edges_of({name: (0.0, float(c.max())) for name, c in zip(EDGE_AXES, columns, strict=True)}))
    seen = np.concatenate([part.on_device for part in steps]).max(axis=0)
    largest = dict(zip(EVERY.names, np.maximum(seen, 1.0).tolist(), strict=True))
    long_s = float(np.quantile(cycle_s, LONG))
    prior_sd = {name: long_s / largest[name] for name in shape.names}
    for name, column in zip(BEYOND, columns, strict=True):
        at_edge = column >= np.quantile(column, LONG)
        prior_sd[name] = UNSURE_BEYOND * float(np.median(cycle_s[at_edge])) / max(float(column.max()), 1.0)
    return basis_of(shape, [prior_sd[name] for name in shape.names]), shape


def edges_of(ranges: Mapping[str, tuple[float, float]]) -> tuple[float, float, float]:
    """The edges out of the ranges of fitted steps. Raises InputError when one is missing."""
    if missing := [name for name in EDGE_AXES if name not in ranges]:
        raise InputError("is missing", field=f"ranges.{missing[0]}")
    tokens, requests, kv_tokens = (ranges[name][1] for name in EDGE_AXES)
    return tokens, requests, kv_tokens


NO_EDGES = Shape(KNOTS, (np.inf, np.inf, np.inf))

EVERY = basis_of(NO_EDGES, [1.0] * len(NO_EDGES.names))
"""All coefficients that there can be, before any data."""
