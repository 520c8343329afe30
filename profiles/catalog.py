"""What can be simulated: profiles, models and devices by name, in the user's folders first and the bundled one last.

Folders hold `profile.json` at any depth, `models/**/config.json` (the folder's path is the model's name),
`models/**/<name>.json` (LLMServingSim keeps them so) and `devices/*.yaml`. A name that is not there is an error that
lists what is; never a look-alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from profiles.compiled import read_once
from profiles.device import DeviceSpec, read_device
from profiles.model import QUANTIZED_BYTES, ModelSpec, read_model
from profiles.profile import Curve, OperatorTables, Profile, ProfileMeta
from profiles.profile_folder import read_meta
from traces.decoding import decode_json, read_bytes
from traces.errors import InputError, ProfileError, nearest

BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True, slots=True)
class ProfileInfo:
    """A profile that is there: its folder and its description."""

    path: Path
    meta: ProfileMeta

    @property
    def key(self) -> str:
        """Device, model and types, in one line."""
        return f"{self.meta.device} / {self.meta.model} / {self.meta.dtype} / kv {self.meta.kv_cache_dtype}"


def with_bundled(folders: Sequence[Path]) -> list[Path]:
    """The user's folders, then the bundled one. Raises InputError for a folder that is not there."""
    for folder in folders:
        if not folder.is_dir():
            raise InputError("no such folder", file=folder, field="profiles")
    return [*folders, BUNDLED]


def list_profiles(folders: Sequence[Path]) -> list[ProfileInfo]:
    """Every profile in the folders, in their order; reads descriptions only."""
    files = [file for folder in folders for file in sorted(folder.rglob("profile.json"))]
    return [ProfileInfo(file.parent, read_meta(file.parent)) for file in files]


def find_profile(device: str, model: str, dtype: str, kv_cache_dtype: str, folders: Sequence[Path]) -> Profile:
    """The first profile of exactly this device, model and types. Raises ProfileError, listing what is there.

    A device may go by any name that its description in `folders` gives it, and a KV cache of the model's own type is
    one of type auto.
    """
    names = _names_of_device(device, folders)
    wanted = (model, dtype, _kv_dtype(kv_cache_dtype, dtype))
    there = list_profiles(folders)
    for info in there:
        meta = info.meta
        if meta.device in names and (meta.model, meta.dtype, _kv_dtype(meta.kv_cache_dtype, meta.dtype)) == wanted:
            return read_once(info.path)
    key = f"{device} / {model} / {dtype} / kv {kv_cache_dtype}"

    def distance(info: ProfileInfo) -> tuple[int, float, str]:
        same = (info.meta.device in names) + (info.meta.model == model)
        return -same, -SequenceMatcher(None, info.key, key).ratio(), info.key

    keys = list(dict.fromkeys(info.key for info in sorted(there, key=distance)))
    nearest_first = "; ".join(keys[:_MOST_LISTED]) or "none"
    more = f" and {len(keys) - _MOST_LISTED} more" if len(keys) > _MOST_LISTED else ""
    other_types = any(info.meta.device in names and info.meta.model == model for info in there)
    types = ", engine.dtype and engine.kv_cache_dtype of one that is there" if other_types else ""
    accepted = f"a measured one{types}, or a source of times; there are: {nearest_first}{more}"
    raise ProfileError(f"no profile of {key}", accepted=accepted)


_MOST_LISTED = 8


def _kv_dtype(kv_cache_dtype: str, dtype: str) -> str:
    """`auto` is the type that the model computes in (vLLM 0.32 `utils/torch_utils.py::kv_cache_dtype_str_to_dtype`),
    which the name of quantized weights does not tell.
    """
    return dtype if kv_cache_dtype == "auto" and dtype not in QUANTIZED_BYTES else kv_cache_dtype


def find_model(name: str, folders: Sequence[Path]) -> ModelSpec:
    """A model by name, or by the path of a config.json or of its folder. Raises InputError, naming the nearest."""
    configs = _model_files(folders)
    if name in configs:
        return read_model(configs[name], name)
    path = Path(name)
    if path.suffix == ".json":
        return read_model(path, None if path.name == "config.json" else path.stem)
    if (path / "config.json").is_file():
        return read_model(path / "config.json")
    accepted = f"{nearest(name, configs)}; or its Hugging Face config as models/{name}.json in a folder of profiles"
    raise InputError(field="model", found=name, accepted=accepted)


def model_configs(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Every known model's Hugging Face config, by name."""
    return {name: decode_json(read_bytes(file), dict, file=file) for name, file in _model_files(folders).items()}


def find_device(name: str, folders: Sequence[Path]) -> DeviceSpec:
    """A device by name or alias. Raises InputError, naming the nearest."""
    if (device := known_device(name, folders)) is not None:
        return device
    known = {known for device in list_devices(folders) for known in (device.name, *device.aliases)}
    accepted = f"{nearest(name, known)}; or its description under devices/ in a folder of profiles"
    raise InputError(field="device", found=name, accepted=accepted)


def known_device(name: str, folders: Sequence[Path]) -> DeviceSpec | None:
    """A device by name or alias; None where nobody describes it."""
    return next((each for each in list_devices(folders) if name in (each.name, *each.aliases)), None)


def list_devices(folders: Sequence[Path]) -> list[DeviceSpec]:
    """Every device that is described, in the order of the folders."""
    return [read_device(file) for folder in folders for file in sorted(folder.glob("devices/*.yaml"))]


def _names_of_device(name: str, folders: Sequence[Path]) -> set[str]:
    """The name, and every other that the first description that knows it gives the device."""
    device = known_device(name, folders)
    return {name} if device is None else {device.name, *device.aliases}


def _model_files(folders: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        root = folder / "models"
        for file in sorted(root.rglob("*.json")):
            if file.name == "config.json":
                found.setdefault(file.parent.relative_to(root).as_posix(), file)
            elif not (file.parent / "config.json").exists():  # beside one lie a tokenizer's files
                found.setdefault(file.relative_to(root).with_suffix("").as_posix(), file)
    return found


def diff_profiles(a: Profile, b: Profile) -> list[dict[str, Any]]:
    """How the times of b compare with those of a: one row per degree and operator that either has.

    Each row has tp, operator, how many points both measured and how many only one (n_common, n_only_a, n_only_b), and
    the least, median and largest ratio b / a of the times at common points; None where there are none.
    """
    rows = []
    for tp in sorted(set(a.tables) | set(b.tables)):
        ours, theirs = _points(a.tables.get(tp)), _points(b.tables.get(tp))
        for operator in sorted(set(ours) | set(theirs)):
            first, second = ours.get(operator, {}), theirs.get(operator, {})
            ratios = np.array([second[at] / first[at] for at in sorted(set(first) & set(second))])
            row: dict[str, Any] = {"tp": tp, "operator": operator, "n_common": len(ratios)}
            row |= {"n_only_a": len(first) - len(ratios), "n_only_b": len(second) - len(ratios)}
            for name, value in (("min", np.min), ("median", np.median), ("max", np.max)):
                row[f"ratio_{name}"] = float(value(ratios)) if len(ratios) else None
            rows.append(row)
    return rows


def _points(tables: OperatorTables | None) -> dict[str, dict[tuple[float, ...], float]]:
    """Every measured time by operator and point."""
    if tables is None:
        return {}
    points = {name: _curve_points(curve) for name, curve in {**tables.dense, **tables.per_request}.items()}
    rows = tables.attention
    n_chunks = np.ones(len(rows.time_s)) if rows.n_chunks is None else rows.n_chunks
    at = zip(rows.prefill_tokens, rows.prefill_kv_tokens, rows.n_decode, rows.decode_kv_tokens, n_chunks, strict=True)
    points["attention"] = dict(zip(at, rows.time_s, strict=True))
    if tables.moe is not None:
        points["moe"] = dict(
            zip(zip(tables.moe.n_tokens, tables.moe.n_experts, strict=True), tables.moe.time_s, strict=True)
        )
    return points


def _curve_points(curve: Curve) -> dict[tuple[float, ...], float]:
    return {(x,): time_s for x, time_s in zip(curve.x, curve.time_s, strict=True)}
