"""Whether scenario and capture speak of the same engine: what one leaves unsaid, and where the two contradict.

A comparison of two different engines says nothing about the twin, so that a contradiction makes it invalid. What
cannot be told is a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from harness.descriptions.cluster import InstanceSpec
from profiles.catalog import find_device, list_profiles, model_configs
from profiles.model import QUANTIZED_BYTES, compute_dtype
from simulator.scheduling.options import CHOSEN_BY_DEVICE, EngineOptions
from simulator.scheduling.rules import version_of
from traces.capture import CaptureMeta
from traces.errors import InputError

KNOWN_OPTIONS = tuple(field.encode_name for field in msgspec.structs.fields(EngineOptions))

PARALLELISM = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel")
"""vLLM's options that spread a model over devices: the cluster description says them."""

INERT_OPTIONS = ("model", "seed")
"""Recorded options that change no time: the model is compared by name, and lengths are pinned."""

DECIDE_BLOCKS = ("gpu_memory_utilization", "kv_cache_memory_bytes")
"""Options that say nothing but how many KV blocks there are, where that number is not known."""

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


def agree(
    said: dict[str, Any],
    spec: InstanceSpec,
    measured: CaptureMeta,
    folders: Sequence[Path],
    version: tuple[int, int] | None = None,
) -> Agreement:
    """Compare a scenario's engine with a capture's.

    Args:
        said: engine options that the scenario states, none of them None.
        spec: its model and device.
        measured: of the capture.
        folders: where models and devices are known by name.
        version: vLLM's, as the scenario states it; None: the capture's.
    """
    recorded = _recorded(measured)
    if spec.collectives.disable_custom_all_reduce:
        recorded.pop("disable_custom_all_reduce", None)  # simulated, as the description says it too
    taken = {name: value for name, value in recorded.items() if name in KNOWN_OPTIONS and name not in said}
    simulated = {**spec.parallelism, **said}
    other = {n: v for n, v in sorted(recorded.items()) if n in simulated and not _same(n, simulated, recorded)}
    unused = [name for name in DECIDE_BLOCKS if name in other and "num_gpu_blocks" in {**recorded, **said}]
    mismatches = [_mismatch(name, simulated[name], value) for name, value in other.items() if name not in unused]
    version = version or version_of(measured.engine)
    by_version = version_defaults(version, {**recorded, **said})
    notes = _option_notes({**said, **by_version}, taken, recorded)
    notes += [
        f"{name} {simulated[name]} here, {other[name]} measured: not used, as KV blocks are known" for name in unused
    ]
    if by_version and version is not None:
        notes.append(default_note(version, by_version))
    taken |= by_version
    for what, ours, theirs, both_known in _other_names(spec, measured, folders):
        if both_known:
            mismatches.append(_mismatch(what, ours, theirs))
        else:
            notes.append(f"the capture calls its {what} {theirs!r}, the scenario {ours!r}: taken to be the same")
    if measured.kind == "simulated":
        notes.insert(0, "the capture is itself simulated: this says nothing about a real engine")
    return Agreement(taken, tuple(mismatches), tuple(notes))


def with_recorded_experts(spec: InstanceSpec, measured: CaptureMeta) -> InstanceSpec:
    """The engines with the capture's `enable_expert_parallel`, where their own description does not say it."""
    found = measured.engine_options.get("enable_expert_parallel")
    if spec.says_expert_parallel or not isinstance(found, bool):
        return spec
    return replace(spec, enable_expert_parallel=found)


def _recorded(measured: CaptureMeta) -> dict[str, Any]:
    """The options that the capture recorded; a dtype of auto is the model's own, which it does not tell."""
    recorded = {name: value for name, value in measured.engine_options.items() if value is not None}
    if recorded.get("dtype") == "auto":
        del recorded["dtype"]
    if measured.num_gpu_blocks is not None:
        recorded["num_gpu_blocks"] = measured.num_gpu_blocks
    return recorded


def _same(name: str, simulated: dict[str, Any], recorded: dict[str, Any]) -> bool:
    """Whether an option that both sides state means the same on both."""
    ours, theirs = simulated[name], recorded[name]
    match name:
        case "dtype":
            # vLLM's is that of activations, whatever the weights of a checkpoint are.
            return ours == theirs or (ours in QUANTIZED_BYTES and theirs == compute_dtype(ours))
        case "kv_cache_dtype":
            dtypes = [one.get("dtype") for one in (simulated, recorded)]
            of_activations = {"auto", *(compute_dtype(dtype) for dtype in dtypes if dtype is not None)}
            return ours == theirs or {ours, theirs} <= of_activations
    return bool(ours == theirs)


def version_defaults(version: tuple[int, int] | None, stated: dict[str, Any]) -> dict[str, Any]:
    """Defaults of a vLLM version that are not those of `EngineOptions`, where nothing else is stated.

    Asynchronous scheduling is vLLM's default from 0.14 on (`vllm/config/scheduler.py`, `async_scheduling`).
    """
    if version is None or version >= (0, 14) or "async_scheduling" in stated:
        return {}
    return {"async_scheduling": False}


def default_note(version: tuple[int, int], options: dict[str, Any]) -> str:
    """What to say of `version_defaults`."""
    return f"defaults of vLLM {version[0]}.{version[1]}, which nothing states otherwise: {_listed(options)}"


def _mismatch(name: str, simulated: Any, measured: Any) -> str:
    return f"configuration mismatch: {name} {simulated} simulated, {measured} measured"


def _option_notes(said: dict[str, Any], taken: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    notes = []
    if taken:
        notes.append(f"engine options taken from the capture, since the scenario does not state them: {_listed(taken)}")
    defaults = msgspec.structs.asdict(EngineOptions())
    settled = {*said, *taken, *CHOSEN_BY_DEVICE}
    assumed = {k: v for k, v in defaults.items() if v is not None and k not in settled}
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
        ours, theirs = _described(spec.device, folders), _described(measured.device, folders)
        if ours is None or ours != theirs:
            profiled = {info.meta.device for info in list_profiles(folders)}
            # What a profile alone calls its device may be another word for one that is described.
            is_label = ours is None and theirs is not None
            both = ((ours, spec.device), (theirs, measured.device))
            both_known = all(described is not None or name in profiled for described, name in both)
            others.append(("device", spec.device, measured.device, both_known and not is_label))
    return others


def _described(name: str, folders: Sequence[Path]) -> str | None:
    """The name under which the catalogue describes a device; None where it does not."""
    try:
        return find_device(name, folders).name
    except InputError:
        return None
