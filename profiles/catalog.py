"""What can be simulated: profiles, models and devices by name, in the user's folders first and the bundled one last.

Folders hold `profile.json` at any depth, `models/**/config.json` (the folder's path is the model's name) and
`devices/*.yaml`. A name that is not there is an error that lists what is; never a look-alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profiles.device import DeviceSpec, read_device
from profiles.model import ModelSpec, read_model
from profiles.profile import Curve, OperatorTables, Profile, ProfileMeta, read_meta, read_profile
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
    """The first profile of exactly this device, model and types. Raises ProfileError, listing what is there."""
    there = list_profiles(folders)
    for info in there:
        meta = info.meta
        if (meta.device, meta.model, meta.dtype, meta.kv_cache_dtype) == (device, model, dtype, kv_cache_dtype):
            return read_profile(info.path)
    wanted = f"{device} / {model} / {dtype} / kv {kv_cache_dtype}"
    same = sorted({info.key for info in there if info.meta.model == model or info.meta.device == device})
    known = "; ".join(same or sorted({info.key for info in there})) or "none"
    raise ProfileError(f"no profile of {wanted}", accepted=f"a measured one; there are: {known}")


def find_model(name: str, folders: Sequence[Path]) -> ModelSpec:
    """A model by name, or by the path of a config.json. Raises InputError, naming the nearest."""
    if name.endswith(".json"):
        return read_model(Path(name))
    configs = _model_files(folders)
    if name not in configs:
        raise InputError(field="model", found=name, accepted=nearest(name, configs))
    return read_model(configs[name], name)


def model_configs(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Every known model's Hugging Face config, by name."""
    return {name: decode_json(read_bytes(file), dict, file=file) for name, file in _model_files(folders).items()}


def find_device(name: str, folders: Sequence[Path]) -> DeviceSpec:
    """A device by name or alias. Raises InputError, naming the nearest."""
    known: set[str] = set()
    for folder in folders:
        for file in sorted(folder.glob("devices/*.yaml")):
            device = read_device(file)
            if name in (device.name, *device.aliases):
                return device
            known |= {device.name, *device.aliases}
    raise InputError(field="device", found=name, accepted=nearest(name, known))


def _model_files(folders: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        root = folder / "models"
        for file in sorted(root.rglob("config.json")):
            found.setdefault(file.parent.relative_to(root).as_posix(), file)
    return found


def diff_profiles(a: Profile, b: Profile) -> list[dict[str, Any]]:
    """How the times of b compare with those of a: one row per degree and operator with points in common.

    Each row has tp, operator, n_common, and the least, median and largest ratio b / a of the times at those points.
    """
    rows = []
    for tp in sorted(set(a.tables) & set(b.tables)):
        ours, theirs = _points(a.tables[tp]), _points(b.tables[tp])
        for operator in sorted(set(ours) | set(theirs)):
            first, second = ours.get(operator, {}), theirs.get(operator, {})
            ratios = np.array([second[at] / first[at] for at in sorted(set(first) & set(second))])
            row: dict[str, Any] = {"tp": tp, "operator": operator, "n_common": len(ratios)}
            for name, value in (("min", np.min), ("median", np.median), ("max", np.max)):
                row[f"ratio_{name}"] = float(value(ratios)) if len(ratios) else None
            rows.append(row)
    return rows


def _points(tables: OperatorTables) -> dict[str, dict[tuple[float, ...], float]]:
    """Every measured time by operator and point."""
    points = {name: _curve_points(curve) for name, curve in {**tables.dense, **tables.per_request}.items()}
    rows = tables.attention
    at = zip(rows.prefill_tokens, rows.prefill_kv_tokens, rows.n_decode, rows.decode_kv_tokens, strict=True)
    points["attention"] = dict(zip(at, rows.time_s, strict=True))
    if tables.moe is not None:
        points["moe"] = dict(
            zip(zip(tables.moe.n_tokens, tables.moe.n_experts, strict=True), tables.moe.time_s, strict=True)
        )
    return points


def _curve_points(curve: Curve) -> dict[tuple[float, ...], float]:
    return {(x,): time_s for x, time_s in zip(curve.x, curve.time_s, strict=True)}
