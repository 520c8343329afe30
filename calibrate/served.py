"""A simulation, with what all of its steps are made of: every step-time model is listened to while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibrate.kv_transfer import kv_residual_of
from calibrate.parameters import Basis
from calibrate.pricing import Columns, Priced
from simulator.cluster import Cluster
from simulator.front_end import FrontEnd, simulate_behind
from simulator.scheduling.plan import StepPlan
from simulator.simulate import Simulation
from simulator.steps.correction import CorrectedModel, Terms
from simulator.steps.step_time import StepCost, StepTimeModel
from traces.capture import Capture
from traces.outcome import Outcome
from traces.steps import Floats, Ints
from traces.trace import Trace


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Requests whose prompt another engine computes, [n_requests] each.

    Attributes:
        engine: the one that computed the prompt; -1 without a transfer.
        computed_s: when it had; NaN without a transfer.
        came_s: when its KV was there; NaN likewise.
    """

    engine: Ints
    computed_s: Floats
    came_s: Floats


@dataclass(frozen=True, slots=True)
class Served:
    """A simulation, and what its steps are made of.

    Attributes:
        simulation: as `simulate` gives it.
        priced: steps of each engine; ranks that step together are one.
        engine: [n_requests] the engine that served each request, or with prefill and decode apart its answer.
        handed_over: with prefill and decode apart, their prompts.
    """

    simulation: Simulation
    priced: tuple[Priced, ...]
    engine: Ints
    handed_over: HandedOver | None = None

    @property
    def capture(self) -> Capture:
        """The simulated capture."""
        return self.simulation.capture

    def twins(self, measured: Sequence[Outcome]) -> Ints:
        """Where in the simulated outcomes those of the same requests stand, [n]."""
        place = {outcome.request_id: i for i, outcome in enumerate(self.capture.outcomes)}
        return np.array([place[outcome.request_id] for outcome in measured], dtype=np.int64)


def corrected(cluster: Cluster, values: Mapping[str, float], basis: Basis) -> Cluster:
    """The cluster with every engine's step times corrected, and the time of KV transfers where that was fitted."""
    known = {name: values[name] for name in basis.names}
    engines = [replace(e, step_time=CorrectedModel(e.step_time, known, basis.terms)) for e in cluster.engines]
    return replace(cluster, engines=tuple(engines), kv_residual=kv_residual_of(values))


def serve(trace: Trace, cluster: Cluster, front_end: FrontEnd, basis: Basis) -> Served:
    """Simulate, and keep what every step is made of. Raises what `simulate` raises.

    Args:
        trace: the requests.
        cluster: corrected by parameters of `basis`, or not at all.
        front_end: the way to it.
        basis: the parameters whose terms are wanted.
    """
    ears = [_Listening(engine.step_time, basis) for engine in cluster.engines]
    heard = [replace(engine, step_time=ear) for engine, ear in zip(cluster.engines, ears, strict=True)]
    simulation = simulate_behind(front_end, trace, replace(cluster, engines=tuple(heard)))
    of_rank = np.repeat(np.arange(len(ears)), [engine.ranks for engine in cluster.engines])
    steps = simulation.capture.steps
    assert steps is not None
    priced = []
    for number, ear in enumerate(ears):
        own = of_rank[steps.instance] == number
        end_s, first = np.unique(steps.end_s[own], return_index=True)
        scheduled_s = steps.scheduled_s[own][first]
        before_s = np.concatenate([[-np.inf], end_s[:-1]])
        paused = scheduled_s >= before_s
        priced.append(ear.columns.priced(end_s, end_s - np.where(paused, scheduled_s, before_s), paused))
    instances = [0 if outcome.instance is None else outcome.instance for outcome in simulation.capture.outcomes]
    answered = of_rank[np.array(instances, dtype=np.int64)]
    return Served(simulation, tuple(priced), answered, _handed_over(simulation, of_rank))


def _handed_over(simulation: Simulation, of_rank: Ints) -> HandedOver | None:
    """The prompts of a simulation with prefill and decode apart; of one that was sent again, its last transfer."""
    sent, n = simulation.capture.transfers, len(simulation.capture.outcomes)
    if sent is None:
        return None
    engine, computed_s, came_s = np.full(n, -1), np.full(n, np.nan), np.full(n, np.nan)
    engine[sent.request], came_s[sent.request] = of_rank[sent.source], sent.end_s
    assert simulation.computed_s is not None
    computed_s[sent.request] = simulation.computed_s[sent.request]
    return HandedOver(engine, computed_s, came_s)


class _Listening:
    """A corrected model that keeps what every step that was run is made of."""

    def __init__(self, model: StepTimeModel, basis: Basis) -> None:
        """`model`: corrected by parameters of the basis, or not at all."""
        self.columns = Columns(basis.names)
        self._model = model if isinstance(model, CorrectedModel) else CorrectedModel(model, {}, basis.terms)
        self._last: tuple[StepCost, Terms, Terms] | None = None

    @property
    def reads_batches(self) -> bool:
        """Whether the model does."""
        return self._model.reads_batches

    def price(self, plan: StepPlan) -> StepCost:
        """The corrected price."""
        cost, *self._last = self._model.parts(plan)  # type: ignore[assignment]
        return cost

    def count(self, plan: StepPlan, times: int) -> None:
        """Keep the steps that were run of the plan that was priced last."""
        assert self._last is not None
        self.columns.add(plan, times, *self._last)
        self._model.count(plan, times)

    def notes(self) -> tuple[str, ...]:
        """The model's."""
        return self._model.notes()
