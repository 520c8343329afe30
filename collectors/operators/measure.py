"""Measures a profile: starts an engine, plans, runs the passes, and makes the profile of what was measured."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from collectors.journal import say
from collectors.operators.budget import FEWEST_PASSES, Plan, plan_within, quickest_s
from collectors.operators.collectives import Row, collective_curves, devices_of, measure_collectives
from collectors.operators.composition import STEPS_ALONE, composition_of
from collectors.operators.options import Options
from collectors.operators.provenance import default_device, host_facts
from collectors.operators.samples import Answer, Parts, tables_of
from collectors.operators.sharding import sharded, share_of
from collectors.operators.shot_journal import Found, Measured, Planned, Recorded, ShotJournal, Took, shot_journal
from collectors.operators.shots import Limits, Shot
from profiles.model import ModelSpec, model_of
from profiles.profile import Profile, ProfileMeta
from profiles.profile_folder import write_profile
from traces.capture import check_new_folder
from traces.decoding import decode_json, read_bytes, sha256
from traces.errors import EngineError

Clock = Callable[[], float]


class Engine(Protocol):
    """Anything that can compute shots."""

    @property
    def name(self) -> str:
        """Name and version."""
        ...

    def time_shot(self, shot: Shot, warm_ups: int) -> Answer:
        """Measure a shot after so many warm-ups."""
        ...

    def time_batch(self, requests: list[list[int]], warm_ups: int, n_experts: int = 0) -> Answer:
        """Measure any batch of (new_tokens, history)."""
        ...

    def leading_kernels(self, shot: Shot) -> dict[str, list[str]]:
        """The kernels that take the most time of each operator."""
        ...

    def facts(self) -> dict[str, Any]:
        """What it runs on."""
        ...

    def close(self) -> None:
        """Stop it."""
        ...


def measure_profile(options: Options, between: Callable[[Engine], None] = lambda _: None) -> None:
    """Measure what the options name and write the profile; goes on where an earlier run was cut off.

    Args:
        options: what to measure.
        between: called with the engine after each pass over the shots.

    Raises:
        InputError: options that cannot be, or that differ from those of a run that was cut off.
        EngineError: the engine did not start.
        CollectorError: an operator was not seen, or a collective failed.
    """
    check_new_folder(options.out)
    config_file = options.model / "config.json"
    config = decode_json(read_bytes(config_file), dict[str, Any], file=config_file)
    model = model_of(config, options.model_name, config_file)
    changes = {tp: sharded(config, model, tp) for tp in options.tensor_parallel}
    host, devices = host_facts(), devices_of(options.collectives)
    options.limits(model)
    identity = {**options.identity(), "config.json": sha256(msgspec.json.encode(config, order="sorted")), **host}
    with shot_journal(options.out, identity) as journal:
        recorded = journal.recorded
        if n_shots := sum(measured.n_shots for measured in recorded.by_tp.values()):
            say(f"goes on after {n_shots} shots that were measured before")
        if devices is not None and "collectives" not in recorded.found:
            journal.keep(Found("collectives", msgspec.to_builtins(measure_collectives(devices, options.engine))))
        for tp in options.tensor_parallel:
            _measure_degree(options, share_of(config, model, tp), changes[tp], tp, journal, between)
        write_profile(profile_of(options, config, model, recorded, host), options.out)


def _measure_degree(
    options: Options,
    model: ModelSpec,
    changes: dict[str, Any],
    tp: int,
    journal: ShotJournal,
    between: Callable[[Engine], None],
) -> None:
    """All shots at a degree. The engine is started only when one is missing."""
    budget_s, recorded = options.budget_s / len(options.tensor_parallel), journal.recorded
    if tp in recorded.by_tp and _is_done(budget_s, recorded.by_tp[tp]):
        return
    limits = options.limits(model)
    engine = _start(options, model, limits, changes)
    try:
        journal.keep(Found("engine", {"name": engine.name, **engine.facts()}))
        if tp not in recorded.by_tp:
            journal.keep(Planned(tp, _plan(options, limits, engine)))
        measured = recorded.by_tp[tp]
        say(("" if options.tensor_parallel == (1,) else f"tensor-parallel degree {tp}: ") + measured.plan.text())
        if f"kernels, tp {tp}" not in recorded.found and not options.steps_only:
            journal.keep(Found(f"kernels, tp {tp}", _kernels(engine, measured.plan)))
        run_passes(budget_s, tp, journal, engine.time_shot, between=lambda: between(engine))
    finally:
        engine.close()


def _start(options: Options, model: ModelSpec, limits: Limits, changes: dict[str, Any]) -> Engine:
    if options.engine == "torch":
        from collectors.operators.torch_engine import TorchEngine

        return TorchEngine(options, model, limits)
    from collectors.operators.vllm_engine import VllmEngine

    try:
        return VllmEngine(options, model, limits, changes)
    except Exception as error:
        raise EngineError(f"vLLM did not start: {error}") from error


def _plan(options: Options, limits: Limits, engine: Engine) -> Plan:
    def seconds(shot: Shot) -> float:
        engine.time_shot(shot, 1)
        return quickest_s(lambda: engine.time_shot(shot, 0))

    parts = len(options.tensor_parallel)
    return plan_within(options.budget_s, limits, seconds, steps_only=options.steps_only, parts=parts)


def run_passes(
    budget_s: float,
    tp: int,
    journal: ShotJournal,
    fire: Callable[[Shot, int], Answer],
    clock: Clock = time.perf_counter,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Run what is left of a degree's passes; after the fewest, one that would not end within the budget is left out.

    Args:
        budget_s: seconds for all passes, those of earlier runs included.
        tp: the tensor-parallel degree.
        journal: keeps what was measured; has the plan.
        fire: measures a shot after so many warm-ups; one when it is the first time in this run, which makes the
            kernels of its size ready.
        clock: seconds.
        between: called after each pass.
    """
    measured = journal.recorded.by_tp[tp]
    warm: set[Shot] = set()
    while not _is_done(budget_s, measured):
        shot = measured.next_shot()
        begun_s = clock()
        answer = fire(shot, int(shot not in warm))
        journal.keep(Took(tp, clock() - begun_s, answer))
        warm.add(shot)
        if measured.n_shots % len(measured.plan.shots) == 0:
            between()
    passes = measured.n_shots // len(measured.plan.shots)
    if passes < measured.plan.passes:
        say(f"slower than estimated: {passes} passes of {measured.plan.passes}")
    say(f"took {measured.spent_s:.0f} s")


def _is_done(budget_s: float, measured: Measured) -> bool:
    """Whether no further pass is to begin; a pass takes as long as those before."""
    passes, begun = divmod(measured.n_shots, len(measured.plan.shots))
    if begun or passes < FEWEST_PASSES:
        return False
    return passes >= measured.plan.passes or measured.spent_s * (passes + 1) / passes > budget_s


def _kernels(engine: Engine, plan: Plan) -> dict[str, dict[str, list[str]]]:
    """The leading kernels of each operator in prefill and in decode, which may have different ones."""
    prefill = max((shot for shot in plan.shots if not shot.n_decode), key=lambda shot: shot.n_tokens)
    decode = max((shot for shot in plan.shots if not shot.prefill_tokens), key=lambda shot: shot.decode_kv_sum)
    return {"prefill": engine.leading_kernels(prefill), "decode": engine.leading_kernels(decode)}


def profile_of(
    options: Options, config: dict[str, Any], model: ModelSpec, recorded: Recorded, host: dict[str, Any]
) -> Profile:
    """The profile that a measurement makes. Raises CollectorError when an operator was not seen."""
    composition = STEPS_ALONE if options.steps_only else composition_of(model)
    curves, notes = collective_curves(msgspec.convert(recorded.found.get("collectives", []), list[Row]))
    engine = dict(recorded.found["engine"])
    meta = ProfileMeta(
        device=options.device or default_device(host),
        model=options.model_name,
        dtype=options.dtype,
        kv_cache_dtype=options.kv_cache_dtype,
        engine=engine.pop("name"),
        source="collectors.operators",
        recorded_at=datetime.date.today().isoformat(),
        method=_method(options, engine["device_type"]),
        model_config=config,
        composition=composition,
        notes=(*_notes(options, model), *notes),
        measured={
            "statistic": "median; spread is 1.4826 * median absolute deviation / median; n samples",
            **{f"tp {tp}": _how_often(measured) for tp, measured in sorted(recorded.by_tp.items())},
            "block_size": options.block_size,
            "enforce_eager": not options.compiled,
            **{name: found for name, found in recorded.found.items() if name.startswith("kernels")},
            **host,
            **engine,
        },
    )
    parts = Parts(composition, model.num_layers)
    tables = {tp: tables_of(measured.samples, parts) for tp, measured in recorded.by_tp.items()}
    return Profile(meta, tables, collectives=curves or None)


def _how_often(measured: Measured) -> dict[str, Any]:
    plan = measured.plan
    passes = measured.n_shots // len(plan.shots)
    return {"n_shots": len(plan.shots), "n_passes": passes, "every": plan.every, "took_s": round(measured.spent_s, 1)}


def _method(options: Options, device_type: str) -> str:
    """How a time was taken, in a line."""
    steps = "compiled steps" if options.compiled else "eager steps"
    if options.steps_only:
        return f"whole {steps} without timers; median"
    timers = {"profiler": "torch.profiler's kernels inside modules"}.get(
        options.timer, "events around modules" if device_type == "cuda" else "host timers around modules"
    )
    return f"{timers} in {steps}; median over steps of the mean over layers"


def _notes(options: Options, model: ModelSpec) -> tuple[str, ...]:
    """What a reader of the profile should know."""
    notes = ["random weights; every request samples greedily"]
    if options.engine == "torch":
        notes.append("kernels are plain torch's, not an engine's")
    if not options.steps_only:
        beside = "steps.csv holds the same batches without timers; what they take beside their operators is the host's"
        notes.insert(0, f"{beside} time")
    if model.num_experts and not options.steps_only:
        reached = "tokens reach experts uniformly at random, but in moe.csv exactly as many as it says"
        notes.append(f"{reached}; moe is the whole block of gate, choice and experts")
    if options.tensor_parallel != (1,):
        notes.append("a tensor-parallel rank's share was computed by one device alone: no step holds a collective")
    return tuple(notes)
