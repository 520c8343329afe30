"""How a simulated request's times change with the parameters, to first order: seconds per unit of each.

A request's time is a sum of step times, and a step's time is linear in the parameters
(`simulator.steps.correction`); the batches are taken as they were simulated.

    TTFT           what was left of the step that the arrival met, all steps up to the first token's, and its way there
    decode time    all steps after the first token's, up to the last token's

With prefill and decode apart, TTFT is two such sums: of the prefill engine's steps up to the one that ends the prompt,
and of the decode engine's from when the KV is there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrate.parameters import FRONT_END, Basis
from calibrate.pricing import Priced
from calibrate.served import Served
from traces.outcome import Outcome
from traces.steps import Floats, Ints


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Seconds per unit of each parameter, those of the step and then the front end's; [n_requests, k] each.

    In the order of the outcomes; rows of requests without a first or a last token are NaN.
    """

    ttft: Floats
    decode: Floats

    @property
    def e2el(self) -> Floats:
        """Both together."""
        return self.ttft + self.decode


def sensitivity(served: Served, basis: Basis, changes: Floats, *, asynchronous: bool) -> Sensitivity:
    """The rows of every request of a simulation.

    Args:
        served: the simulation.
        basis: whose terms its steps hold.
        changes: [k] what was simulated, less what corrects nothing.
        asynchronous: whether the engines plan a step ahead.
    """
    outcomes = served.capture.outcomes
    n, k = len(outcomes), len(basis.parameters)
    ttft, decode = np.full((n, k + len(FRONT_END)), np.nan), np.full((n, k + len(FRONT_END)), np.nan)
    known = np.array([outcome.first_token_s is not None and outcome.finish_s is not None for outcome in outcomes])
    stamps_s = {
        name: np.array([getattr(outcome, name) for outcome in outcomes], dtype=np.float64)
        for name in ("arrival_s", "first_token_s", "finish_s")
    }
    begins_s = stamps_s["arrival_s"]
    if served.handed_over is not None:
        begins_s = np.where(np.isnan(served.handed_over.came_s), begins_s, served.handed_over.came_s)
    for number, priced in enumerate(served.priced):
        _, rows = priced.rows(changes, asynchronous=asynchronous)
        own = np.flatnonzero(known & (served.engine == number))
        if len(own):
            ttft[own, :k], decode[own, :k] = _stages(
                begins_s[own], stamps_s["first_token_s"][own], stamps_s["finish_s"][own], priced, rows
            )
            ttft[own, k:], decode[own, k:] = [_way(outcomes[i]) for i in own], 0.0
    if served.handed_over is not None:
        ttft[:, :k] += _prompts(served, stamps_s["arrival_s"], changes, asynchronous=asynchronous)
    return Sensitivity(ttft, decode)


def _prompts(served: Served, arrival_s: Floats, changes: Floats, *, asynchronous: bool) -> Floats:
    """What the prefill engines' steps add to each TTFT, [n, k]: those until the prompt was computed; 0 without such."""
    over = served.handed_over
    assert over is not None
    found = np.zeros((len(arrival_s), len(changes)))
    for number, priced in enumerate(served.priced):
        own = np.flatnonzero((over.engine == number) & ~np.isnan(over.computed_s))
        if len(own):
            _, rows = priced.rows(changes, asynchronous=asynchronous)
            found[own], _ = _stages(arrival_s[own], over.computed_s[own], over.computed_s[own], priced, rows)
    return found


def _stages(
    arrival_s: Floats, first_s: Floats, finish_s: Floats, priced: Priced, rows: Floats
) -> tuple[Floats, Floats]:
    """Rows of TTFT and decode time of one engine's requests, [n, k] each, from when they were there, [n]."""
    total = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)])
    most = len(priced) - 1
    met: Ints = np.minimum(np.searchsorted(priced.end_s, arrival_s, side="right"), most)
    first, last = (np.minimum(np.searchsorted(priced.end_s, time_s), most) for time_s in (first_s, finish_s))
    left = np.clip((priced.end_s[met] - arrival_s) / priced.cycle_s[met], 0.0, 1.0)
    return total[first + 1] - total[met + 1] + left[:, None] * rows[met], total[last + 1] - total[first + 1]


def _way(outcome: Outcome) -> tuple[float, float]:
    """Seconds of TTFT per unit of each front-end parameter.

    A request that is admitted as soon as the scheduler sees it is later by its whole way; one that queues is not.
    """
    queues = None not in (outcome.scheduled_s, outcome.queued_s) and outcome.scheduled_s != outcome.queued_s
    return (0.0, 0.0) if queues else (1.0, float(outcome.prompt_tokens))
