"""Steps with what a step-time model makes of them: a measured capture's, priced again, or a simulation's, listened to.

Runs of steps in which the same requests decode are priced in one sweep, as the simulator does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibrate.kv_transfer import kv_residual_of
from calibrate.parameters import Basis
from simulator.cluster import Cluster
from simulator.front_end import FrontEnd, simulate_behind
from simulator.scheduling.plan import StepPlan, recorded_plans
from simulator.simulate import Simulation
from simulator.steps.correction import AXES, CorrectedModel, Terms, axes, kv_tokens
from simulator.steps.step_time import StepCost, StepTimeModel
from traces.capture import Capture
from traces.errors import InputError
from traces.steps import STEP_COLUMNS, Batches, Floats, Ints, Mask, Steps
from traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Priced:
    """Steps of one engine with the model's prices; [n] or [n, k] each, in order of time.

    Attributes:
        end_s: when each ended.
        cycle_s: time each took, until its end, from the end of the one before, or from its planning after a pause.
        paused: whether the engine had nothing to do before it.
        device_s: the model's device time, uncorrected.
        host_s: the model's host time, uncorrected.
        on_device: [n, k] device time per unit of each parameter.
        on_host: [n, k] host time per unit of each parameter.
        axes: [n, 4] place of each on `simulator.steps.correction.AXES`.
    """

    end_s: Floats
    cycle_s: Floats
    paused: Mask
    device_s: Floats
    host_s: Floats
    on_device: Floats
    on_host: Floats
    axes: Ints

    def __len__(self) -> int:
        return len(self.cycle_s)

    def chosen(self, mask: Mask) -> Priced:
        """Some of the steps."""
        return Priced(*(getattr(self, name)[mask] for name in self.__slots__))

    def rows(self, changes: Floats, *, asynchronous: bool) -> tuple[Floats, Floats]:
        """Each step's time before any change, and per unit of each parameter's change, [n] and [n, k].

        Synchronous: host and device add up. Asynchronous: the host's work is hidden behind the step before, and only
        the longer of the two counts, except after a pause; which is longer is judged at `changes` [k].
        """
        both_s, both = self.device_s + self.host_s, self.on_device + self.on_host
        if not asynchronous:
            return both_s, both
        device_s, host_s = self.device_s + self.on_device @ changes, self.host_s + self.on_host @ changes
        hidden = ~self.paused & (device_s >= host_s)
        exposed = ~self.paused & (device_s < host_s)
        base_s = np.where(hidden, self.device_s, np.where(exposed, self.host_s, both_s))
        rows = np.where(hidden[:, None], self.on_device, np.where(exposed[:, None], self.on_host, both))
        return base_s, rows


def floors(parts: Sequence[Priced]) -> dict[str, float]:
    """How far below 0 the times of the residual can go: to where no host time, or a tenth of the device's, is left.

    The models' host time is linear in the requests of a step; the host's floors are its two coefficients, negated.
    """
    n_requests = np.concatenate([part.axes[:, AXES.index("requests per step")] for part in parts]).astype(np.float64)
    host_s = np.concatenate([part.host_s for part in parts])
    alike = n_requests.min() == n_requests.max()
    slope_s = 0.0 if alike else max(float(np.polyfit(n_requests, host_s, 1)[0]), 0.0)
    step_s = float((host_s - slope_s * n_requests).min())
    return {
        "device_step_s": -0.9 * min(float(part.device_s.min()) for part in parts),
        "host_step_s": -step_s if step_s > 1e-9 else 0.0,
        "host_request_s": -slope_s,
    }


class _Columns:
    """Rows of `Priced` as they come."""

    def __init__(self, names: Sequence[str]) -> None:
        self._place = {name: i for i, name in enumerate(names)}
        self._parts: list[tuple[Floats, Floats, Floats, Floats, Ints]] = []

    def add(self, plan: StepPlan, times: int, bare: StepCost, on_device: Terms, on_host: Terms) -> None:
        """The first `times` repeats of a plan. Raises InputError for a pipeline, whose steps overlap."""
        if len(bare.stages) > 1:
            message = "a calibration of pipeline stages is not modelled in this version"
            raise InputError(message, field="pipeline_parallel_size", found=len(bare.stages), accepted="1")
        terms = [np.zeros((times, len(self._place))) for _ in range(2)]
        for columns, found in zip(terms, (on_device, on_host), strict=True):
            for name, value in found.items():
                if (at := self._place.get(name)) is not None:
                    columns[:, at] = value[:times] if isinstance(value, np.ndarray) else value
        place = np.tile(np.array(axes(plan), dtype=np.int64), (times, 1))
        place[:, -1] = kv_tokens(plan, times)
        self._parts.append((bare.device_s[:times], bare.host_s[:times], terms[0], terms[1], place))

    def priced(self, end_s: Floats, cycle_s: Floats, paused: Mask) -> Priced:
        """All of them, with their times, [n] each."""
        if not self._parts:
            no_terms, no_axes = np.zeros((0, len(self._place))), np.zeros((0, len(AXES)), dtype=np.int64)
            return Priced(end_s, cycle_s, paused, end_s, end_s, no_terms, no_terms, no_axes)
        return Priced(end_s, cycle_s, paused, *(np.concatenate(part) for part in zip(*self._parts, strict=True)))


# -- simulated ---------------------------------------------------------------------------------------------------


class _Listening:
    """A corrected model that keeps what every step that was run is made of."""

    def __init__(self, model: CorrectedModel, names: Sequence[str]) -> None:
        self.columns = _Columns(names)
        self._model = model
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
    ears = []
    for engine in cluster.engines:
        model = engine.step_time
        ears.append(
            _Listening(
                model if isinstance(model, CorrectedModel) else CorrectedModel(model, {}, basis.terms), basis.names
            )
        )
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


# -- measured ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Repriced:
    """Recorded steps of one instance, priced again.

    Attributes:
        at: [n_steps] which of the capture's they are.
        priced: with their prices.
    """

    at: Mask
    priced: Priced


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
        columns = _Columns(basis.names)
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
