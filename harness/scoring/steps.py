"""A capture's recorded steps against the scheduler's decisions: the same arrivals, batch by batch, without times."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.deploy.asked import engine_asked, located
from harness.descriptions.scenario import read_scenario
from harness.running.requests import refuse_load
from simulator.engine import check_options
from simulator.scheduling.divergence import Entry
from simulator.scheduling.step_replay import replay_steps
from traces.capture import new_folder, read_capture
from traces.errors import InputError

MOST_SHOWN = 5
"""Requests of a batch that are printed."""


def validate_steps(scenario_path: Path, capture_path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Replay a capture's steps through the scenario's scheduler; what the scenario leaves unsaid is the capture's.

    Needs no profile: no step is timed. Returns whether all steps agree, how many did, the first divergence with its
    likely cause, notes. Raises InputError when the capture holds no batches, or what an engine is made of is not known.
    """
    scenario = read_scenario(scenario_path, overrides)
    refuse_load(scenario)
    measured = read_capture(capture_path)
    asked = engine_asked(scenario, measured.meta)
    if asked.options.max_model_len is None or asked.options.num_gpu_blocks is None:
        message = "neither scenario nor capture says it"
        name = "max_model_len" if asked.options.max_model_len is None else "num_gpu_blocks"
        raise InputError(message, file=scenario.path, field=f"engine.{name}")
    with located(scenario):
        check_options(asked.options, asked.options.max_model_len, asked.rules)
    try:
        replay = replay_steps(measured, asked.options, asked.rules, scenario.file.scheduler)
    except InputError as error:
        raise error if error.file is not None else InputError(str(error), file=capture_path) from None
    return {
        "agrees": replay.divergence is None,
        "n_steps": replay.n_steps,
        "n_recorded": replay.n_recorded,
        "n_preempted": replay.n_preempted,
        "rules": asked.rules.name,
        "scheduler": scenario.file.scheduler,
        "divergence": None if replay.divergence is None else dataclasses.asdict(replay.divergence),
        "reasons": list(asked.mismatches),
        "notes": [*asked.notes, *replay.notes, *measured.meta.notes],
    }


def write_steps(result: dict[str, Any], out: Path) -> None:
    """Write steps.json, or nothing. Raises InputError when `out` is not new or empty."""
    with new_folder(out) as folder:
        (folder / "steps.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def steps_text(result: dict[str, Any]) -> str:
    """The result for a terminal: how many steps agree, and the first that does not."""
    scheduler = "vLLM's own scheduler" if result["scheduler"] == "vllm" else f"the rules of {result['rules']}"
    counts = f"{result['n_steps']} of {result['n_recorded']} recorded steps, {result['n_preempted']} preemptions"
    lines = [f"note: {note}" for note in result["notes"]]
    lines += [f"warning: {reason}" for reason in result["reasons"]]
    lines += ["", f"Planned again by {scheduler}: {counts} agree."]
    if (parted := result["divergence"]) is None:
        return "\n".join([*lines, "Every batch agrees."])
    lines += [
        "",
        f"First divergence: step {parted['step']} of instance {parted['instance']}, at {parted['time_s']:.6f} s",
        f"likely cause: {parted['rule']}",
        parted["cause"],
    ]
    for side in ("recorded", "planned"):
        other = parted["planned" if side == "recorded" else "recorded"]
        lines.append(f"{side}: {_batch_text(parted[side]['batch'], other['batch'])}")
    return "\n".join(lines)


def _batch_text(batch: Sequence[Entry], other: Sequence[Entry]) -> str:
    """What of a batch is not in the other one, as far as it fits."""
    own = [entry for entry in batch if entry not in other]
    shown = ", ".join(f"'{request_id}' {new} tokens after {computed}" for request_id, new, computed in own[:MOST_SHOWN])
    more = f", and {len(own) - MOST_SHOWN} more" if len(own) > MOST_SHOWN else ""
    return f"{len(batch)} requests; only here: {shown or 'none'}{more}"
