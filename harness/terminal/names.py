"""Models and devices that are known by name: in the user's folders, in profiles there, and in the package."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from profiles.catalog import ProfileInfo, find_model, list_devices, list_profiles, model_configs, with_bundled
from profiles.model import ModelSpec, compute_dtype, model_of
from traces.errors import InputError

MODEL_COLUMNS = [
    "model",
    "family",
    "parameters",
    "layers",
    "hidden",
    "heads",
    "MLP",
    "vocabulary",
    "context",
    "KV/token",
]
DEVICE_COLUMNS = ["device", "memory", "bandwidth", "dense peak (TFLOP/s)", "rated", "to others", "known as too"]
UNKNOWN = "–"


def known_models(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """A row per model, by name: its dimensions as `ModelSpec` has them, and what follows from them.

    `parameters` are those of the published model, `kv_bytes_per_token` those of all layers on one device, of the type
    that the weights have. `source` is what holds the config: the catalogue, or a profile's folder. Of a config that is
    not modelled `error` says why, and there are no dimensions. Raises InputError for a file that is none.
    """
    everywhere = with_bundled(folders)
    rows = {name: _row(name, "catalogue", _by_name(name, everywhere)) for name in model_configs(everywhere)}
    for info in list_profiles(everywhere):
        if info.meta.model_config is not None and info.meta.model not in rows:
            rows[info.meta.model] = _row(info.meta.model, str(info.path), _of_profile(info))
    return [rows[name] for name in sorted(rows, key=str.lower)]


def _by_name(name: str, folders: Sequence[Path]) -> Callable[[], ModelSpec]:
    return lambda: find_model(name, folders)


def _of_profile(info: ProfileInfo) -> Callable[[], ModelSpec]:
    return lambda: model_of(info.meta.model_config or {}, info.meta.model, info.path / "profile.json")


def _row(name: str, source: str, read: Callable[[], ModelSpec]) -> dict[str, Any]:
    try:
        model = read()
    except InputError as error:
        return {"name": name, "source": source, "error": str(error)}
    kv_bytes = None if model.dtype is None else model.kv_bytes_per_token(compute_dtype(model.dtype))
    derived = {"parameters": model.num_parameters(), "kv_bytes_per_token": kv_bytes, "source": source, "error": None}
    return {**dataclasses.asdict(model), **derived}


def model_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of `known_models`, by `MODEL_COLUMNS`."""
    if row["error"] is not None:
        return (row["name"], "not modelled", *[UNKNOWN] * (len(MODEL_COLUMNS) - 2))
    mlp = str(row["intermediate_size"])
    if row["num_experts"]:
        mlp = f"{row['num_experts']} x {mlp}, {row['num_experts_per_tok']} used"
    kv_bytes = row["kv_bytes_per_token"]
    return (
        row["name"],
        row["model_type"],
        _billions(row["parameters"]),
        str(row["num_layers"]),
        str(row["hidden_size"]),
        f"{row['num_heads']} of {row['head_dim']}, {row['num_kv_heads']} KV",
        mlp,
        str(row["vocab_size"]),
        str(row["max_position_embeddings"] or UNKNOWN),
        UNKNOWN if kv_bytes is None else f"{kv_bytes / 2**10:g} KiB",
    )


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def known_devices(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """A row per device that is described, by name, as its description has it. Raises InputError.

    Of descriptions of one name the first counts, as it does for a cluster.
    """
    rows: dict[str, dict[str, Any]] = {}
    for device in list_devices(with_bundled(folders)):
        rows.setdefault(device.name, msgspec.to_builtins(device))
    return [rows[name] for name in sorted(rows, key=str.lower)]


def device_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of `known_devices`, by `DEVICE_COLUMNS`."""
    bandwidth, links = row["memory_bandwidth_bytes_per_s"], row["link_bandwidth_bytes_per_s"]
    peaks = [f"{dtype} {flops / 1e12:.4g}" for dtype, flops in row["peak_flops_per_s"].items()]
    return (
        row["name"],
        f"{row['memory_bytes'] / 2**30:.2f} GiB",
        UNKNOWN if bandwidth is None else f"{bandwidth / 1e12:.3g} TB/s",
        ", ".join(peaks) or UNKNOWN,
        UNKNOWN if row["tdp_w"] is None else f"{row['tdp_w']:g} W",
        UNKNOWN if links is None else f"{links / 1e9:g} GB/s",
        ", ".join(row["aliases"]) or UNKNOWN,
    )
