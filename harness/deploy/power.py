"""Power and energy of a scenario: what its cluster description and its devices' files say, put to a simulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness.descriptions.cluster import ClusterSpec, InstanceSpec
from profiles.catalog import known_device
from profiles.device import DevicePower, DeviceSpec, power_fault
from profiles.model import ModelSpec, compute_dtype, dtype_bytes
from profiles.power_cap import read_cap_table
from simulator.engine import Engine
from simulator.network.topology import Place
from simulator.power.beside import Memories, beside
from simulator.power.nodes import NodePower
from simulator.power.run import Machine, PowerRun, power_run
from simulator.simulate import Simulation
from simulator.steps.partition import layer_passes
from simulator.steps.power_cap import CappedModel
from traces.capture import Capture
from traces.decoding import Document
from traces.outcome import Status
from traces.statistics import STATISTICS, statistic
from traces.steps import Floats
from traces.windows import Grid, grid_over


@dataclass(frozen=True, slots=True)
class EngineMade:
    """An engine, what it was made of, and its memories; `model` is None where no profile says it.

    `split`: the devices of a rank split its tokens before the experts (`use_sequence_parallel_moe`).
    """

    engine: Engine
    spec: InstanceSpec
    model: ModelSpec | None
    memories: Memories | None = None
    split: bool = False


@dataclass(frozen=True, slots=True)
class PowerPlan:
    """What is needed to say what a deployment draws.

    Attributes:
        machines: its ranks.
        nodes: what each of its nodes draws.
        memories: of ranks, by their numbers, beside those of their devices.
    """

    machines: tuple[Machine, ...]
    nodes: tuple[NodePower, ...]
    memories: dict[int, Memories] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Energy:
    """A run's energy.

    Attributes:
        run: power and energy of its components.
        request_j: joules of each request; None where it is not known which requests were in each step.
    """

    run: PowerRun
    request_j: Floats | None


def plan_power(
    cluster: ClusterSpec, made: Sequence[EngineMade], folders: Sequence[Path]
) -> tuple[tuple[Engine, ...], PowerPlan | None]:
    """The engines on their devices, slowed where these are capped, and what they draw; None where nothing is said.

    Raises InputError with file, line and field for a description that is no whole.
    """
    placed = [_places(one) for one in made]
    engines = tuple(replace(one.engine, places=places) for one, places in zip(made, placed, strict=True))
    if not cluster.power:
        return engines, None
    _check(cluster)
    n_nodes = 1 + max(place.node for places in placed for place in places)
    nodes = cluster.power if len(cluster.power) >= n_nodes else cluster.power * n_nodes
    machines: list[Machine] = []
    memories: dict[int, Memories] = {}
    capped = []
    for one, engine, places in zip(made, engines, placed, strict=True):
        device = known_device(engine.device, folders)
        power = nodes[places[0].node].devices.get(engine.device) or (device.power if device else None)
        capped.append(_capped(engine, power, device, cluster.document))
        stages, sent = engine.pipeline_parallel_size, _link_bytes(one)
        for i in range(engine.ranks):
            if one.memories is not None:
                memories[len(machines)] = replace(one.memories, step_time=capped[-1].step_time)
            machines.append(Machine(len(machines), engine.rank_places(i), power, stages, *sent))
    return tuple(capped), PowerPlan(tuple(machines), nodes, memories)


def energy_of(simulation: Simulation, plan: PowerPlan) -> Energy:
    """Power and energy of a finished simulation, from second 0 until its last step and request are over."""
    steps = simulation.capture.steps
    assert steps is not None
    trace, end_s = simulation.capture.trace, end_of(simulation.capture)
    besides = [beside(rank, memories, steps, trace) for rank, memories in plan.memories.items()]
    run = power_run(steps, plan.machines, plan.nodes, end_s, simulation.network, besides, simulation.moves)
    if steps.batches is None:
        return Energy(run, None)
    return Energy(run, run.request_j(steps.batches, len(simulation.capture.outcomes)))


def end_of(capture: Capture) -> float:
    """When the last step and the last request are over: until then devices are held and energy is counted."""
    times_s = [outcome.finish_s for outcome in capture.outcomes if outcome.finish_s is not None]
    if capture.steps is not None:
        times_s.append(float(capture.steps.end_s.max(initial=0.0)))
    return max(times_s, default=0.0)


def energy_figures(energy: Energy, capture: Capture) -> dict[str, Any]:
    """The figures of summary.json. None: not known.

    Joules per token are the run's over tokens of finished requests; those per request are the request's own, idle
    energy apart.
    """
    run = energy.run
    if not run.components:
        return {"total_j": None, "components": {}, "unknown": list(run.unknown), "notes": list(run.notes)}
    finished = np.array([outcome.status is Status.FINISHED for outcome in capture.outcomes], dtype=bool)
    outputs = sum(outcome.output_tokens for outcome in capture.outcomes if outcome.status is Status.FINISHED)
    prompts = sum(outcome.prompt_tokens for outcome in capture.outcomes if outcome.status is Status.FINISHED)
    parts = {name: _parts(run, name) for name in run.components}
    whole = {key: sum(part[key] for part in parts.values()) for key in ("total_j", "serving_j", "idle_j", "sent_j")}
    shares = None if energy.request_j is None else energy.request_j[finished]
    return {
        "window_s": run.end_s,
        **whole,
        "mean_w": whole["total_j"] / run.end_s if run.end_s else None,
        "components": {
            name: {**part, "j_per_token": _over(part["total_j"], prompts + outputs)} for name, part in parts.items()
        },
        "j_per_token": _over(whole["total_j"], prompts + outputs),
        "j_per_output_token": _over(whole["total_j"], outputs),
        "serving_j_per_output_token": _over(whole["serving_j"], outputs),
        "j_per_request": _over(whole["total_j"], int(finished.sum())),
        "request_j": None if shares is None else {name: statistic(shares, name) for name in STATISTICS},
        "unknown": list(run.unknown),
        "notes": list(run.notes),
    }


def with_power(capture: Capture, energy: Energy, grids: Mapping[str, Grid] | None = None) -> Capture:
    """The capture with its power over time, by the second, or some of its series over other windows; with its notes."""
    meta = msgspec.structs.replace(capture.meta, notes=(*capture.meta.notes, *_notes(energy.run)))
    series = energy.run.series(grid_over(capture)) if energy.run.components else {}
    for name, grid in (grids or {}).items():
        if name in series:
            series[name] = energy.run.series(grid)[name]
    return replace(capture, meta=meta, series={**capture.series, **series})


def device_counts(engines: Sequence[Engine]) -> dict[str, int]:
    """How many devices of each name the engines stand on."""
    counts: Counter[str] = Counter()
    for engine in engines:
        counts[engine.device] += len(engine.places)
    return dict(counts)


def device_figures(engines: Sequence[Engine]) -> dict[str, Any]:
    """`n_devices` and `devices`, as summary.json has them: all of the cluster, whether they were busy or not."""
    counts = device_counts(engines)
    devices = [{"device": name, "count": count} for name, count in counts.items()]
    return {"n_devices": sum(counts.values()), "devices": devices}


def _notes(run: PowerRun) -> tuple[str, ...]:
    known = f"power_w is the sum of {', '.join(run.components)}" if run.components else "power_w: nothing is known"
    missing = (f"not known, and in no sum: {', '.join(run.unknown)}",) if run.unknown else ()
    return (known, *missing, *run.notes)


def request_energy_csv(capture: Capture, request_j: Floats) -> str:
    """A line per request with its joules."""
    rows = zip(capture.outcomes, request_j.tolist(), strict=True)
    lines = [f"{outcome.request_id},{joules:.9g}" for outcome, joules in rows]
    return "\n".join(["request_id,energy_j", *lines]) + "\n"


def _parts(run: PowerRun, name: str) -> dict[str, float]:
    return {
        "total_j": run.energy_j(name),
        "serving_j": run.serving_j(name),
        "idle_j": run.idle_j(name),
        "sent_j": run.sent_j(name),
    }


def _over(joules: float, count: int) -> float | None:
    return joules / count if count else None


def _check(cluster: ClusterSpec) -> None:
    """Raise InputError for levels that are no whole, and for levels of a device that no engine has."""
    names = {spec.device for spec in cluster.instances}
    for node in cluster.power:
        for name, power in node.devices.items():
            at: list[str | int] = ["power", "devices", name]
            if (wrong := power_fault(power)) is not None:
                raise cluster.document.error([*at, wrong[0]], accepted=wrong[1])
            if "power" in cluster.document.value and name not in names:
                raise cluster.document.error(at, "is no engine's device", accepted=", ".join(sorted(names)))


def _places(made: EngineMade) -> tuple[Place, ...]:
    """The engine's devices; where none were placed, as many as it needs on its node."""
    needed = made.spec.tensor_parallel_size * made.spec.pipeline_parallel_size * made.engine.ranks
    return made.engine.places or tuple(Place(made.spec.nodes[0], i) for i in range(needed))


def _capped(engine: Engine, power: DevicePower | None, device: DeviceSpec | None, document: Document) -> Engine:
    """The engine under its devices' power cap. Raises InputError for a cap whose cost was not measured."""
    if power is None or power.power_cap_w is None or power.cap_slowdown is None:
        return engine
    tdp_w = power.tdp_w or (device.tdp_w if device else None)
    at: list[str | int] = ["power", "devices", engine.device]
    if tdp_w is None:
        raise document.error([*at, "tdp_w"], "is missing", accepted="the rated power that the cap is a share of")
    table = read_cap_table(document.path.parent / power.cap_slowdown)
    if (slowdown := table.slowdown(power.power_cap_w / tdp_w)) is None:
        raise document.error([*at, "power_cap_w"], accepted=f"{table.measured()} of {tdp_w:g} W")
    note = (
        f"{engine.device} capped at {power.power_cap_w:g} W of {tdp_w:g}: steps with prompts take "
        f"{slowdown.prefill:.3g} times as long, decodes {slowdown.decode:.3g} times ({table.path.name})"
    )
    return replace(engine, step_time=CappedModel(engine.step_time, slowdown, note))


def _link_bytes(made: EngineMade) -> tuple[float | None, float]:
    """What a rank's devices send each other for each token and each request of a step, all of them together.

    A ring all-reduce of n ranks sends 2 (n - 1) times the buffer, an all-gather or reduce-scatter n - 1 times; what is
    exchanged is what `simulator.steps.partition.communication` times.
    """
    spec, model = made.spec, made.model
    tensor, stages, ranks = spec.tensor_parallel_size, spec.pipeline_parallel_size, made.engine.ranks
    if tensor == stages == ranks == 1:
        return 0.0, 0.0
    if model is None:
        return None, 0.0
    width = dtype_bytes(compute_dtype(made.engine.options.dtype))
    hidden, peers = model.hidden_size * width, tensor - 1
    per_token = (layer_passes(split=made.split) * model.num_layers + 2) * peers * hidden
    per_token += (stages - 1) * 2 * hidden * (1 + peers)
    senders = tensor * ranks - 1 if made.split else tensor * (ranks - 1)
    per_token += model.num_layers * senders * (2 * hidden + model.num_experts * width)
    return float(per_token), float(peers * model.vocab_size * width)
