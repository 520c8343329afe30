"""Whether scenario and capture speak of the same engine: what one leaves unsaid, and where the two contradict.

A comparison of two different engines says nothing about the twin, so that a contradiction makes it invalid. What
cannot be told is a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from harness.descriptions.cluster import InstanceSpec
from profiles.catalog import find_device, list_profiles, model_configs
from simulator.scheduling.options import EngineOptions
from traces.capture import CaptureMeta
from traces.errors import InputError

KNOWN_OPTIONS = tuple(field.encode_name for field in msgspec.structs.fields(EngineOptions))

PARALLELISM = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel")
"""vLLM's options that spread a model over devices: the cluster description says them."""

INERT_OPTIONS = ("model", "seed")
"""Recorded options that change no time: the model is compared by name, and lengths are pinned."""

_Other = tuple[str, str, str, bool]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a capture says of its engine, beside what the scenario says.

    Attributes:
        taken: options that the scenario leaves unsaid and the capture recorded.
        mismatches: where the two contradict each other; each makes a comparison invalid.
        notes: what was taken over, assumed, or cannot be told.
    """

    taken: dict[str, Any]
    mismatches: tuple[str, ...]
    notes: tuple[str, ...]


def agree(said: dict[str, Any], spec: InstanceSpec, measured: CaptureMeta, folders: Sequence[Path]) -> Agreement:
    """Compare a scenario's engine with a capture's.

    Args:
        said: engine options that the scenario states, none of them None.
        spec: its model and device.
        measured: of the capture.
        folders: where models and devices are known by name.
    """
    recorded = _recorded(measured)
    taken = {name: value for name, value in recorded.items() if name in KNOWN_OPTIONS and name not in said}
    simulated = {**spec.parallelism, **said}
    mismatches = [
        _mismatch(name, simulated[name], value)
        for name, value in sorted(recorded.items())
        if name in simulated and simulated[name] != value
    ]
    notes = _option_notes(said, taken, recorded)
    for what, ours, theirs, both_known in _other_names(spec, measured, folders):
        if both_known:
            mismatches.append(_mismatch(what, ours, theirs))
        else:
            notes.append(f"the capture calls its {what} {theirs!r}, the scenario {ours!r}: taken to be the same")
    if measured.kind == "simulated":
        notes.insert(0, "the capture is itself simulated: this says nothing about a real engine")
    return Agreement(taken, tuple(mismatches), tuple(notes))


def _recorded(measured: CaptureMeta) -> dict[str, Any]:
    """The options that the capture recorded; a dtype of auto is the model's own, which it does not tell."""
    recorded = {name: value for name, value in measured.engine_options.items() if value is not None}
    if recorded.get("dtype") == "auto":
        del recorded["dtype"]
    if measured.num_gpu_blocks is not None:
        recorded["num_gpu_blocks"] = measured.num_gpu_blocks
    return recorded


def _mismatch(name: str, simulated: Any, measured: Any) -> str:
    return f"configuration mismatch: {name} {simulated} simulated, {measured} measured"


def _option_notes(said: dict[str, Any], taken: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    notes = []
    if taken:
        notes.append(f"engine options taken from the capture, since the scenario does not state them: {_listed(taken)}")
    defaults = msgspec.structs.asdict(EngineOptions())
    assumed = {k: v for k, v in defaults.items() if v is not None and k not in said and k not in taken}
    if assumed:
        notes.append(f"neither scenario nor capture states these engine options, defaults are used: {_listed(assumed)}")
    unknown = {k: v for k, v in recorded.items() if k not in (*KNOWN_OPTIONS, *PARALLELISM, *INERT_OPTIONS)}
    if unknown:
        notes.append(f"recorded engine options that are not simulated: {_listed(unknown)}")
    return notes


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(options.items()))


def _other_names(spec: InstanceSpec, measured: CaptureMeta, folders: Sequence[Path]) -> list[_Other]:
    """What is called otherwise, the scenario's name, the capture's, and whether both names are known.

    A server may give its model any name, and a recorder its device: only two known names contradict each other.
    """
    others: list[_Other] = []
    if measured.model != spec.model:
        known = {*model_configs(folders), *(info.meta.model for info in list_profiles(folders))}
        others.append(("model", spec.model, measured.model, {spec.model, measured.model} <= known))
    if measured.device is not None and measured.device != spec.device:
        ours, theirs = _device(spec.device, folders), _device(measured.device, folders)
        if ours is None or ours != theirs:
            others.append(("device", spec.device, measured.device, None not in (ours, theirs)))
    return others


def _device(name: str, folders: Sequence[Path]) -> str | None:
    """The name under which a device is known, to the catalogue or to a profile; None when it is not."""
    try:
        return find_device(name, folders).name
    except InputError:
        return name if name in {info.meta.device for info in list_profiles(folders)} else None
