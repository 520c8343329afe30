"""Profiles of Vidur (`data/profiling/compute/<device>/<org>/<model>/{mlp,attention}.csv`) to our own.

Its times are milliseconds of one layer on one of `num_tensor_parallel_workers` devices; of each operator it keeps the
least, largest, mean and median and the standard deviation of some twenty runs, and predicts from medians. How operators
make up a step: microsoft/vidur `vidur/execution_time_predictor/sklearn_execution_time_predictor.py` and
`vidur/entities/execution_time.py`, where a layer adds one residual, and where the embedding does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from profiles.csv_table import CsvTable, read_csv
from profiles.model import model_of
from profiles.profile import AttentionRows, Composition, Curve, OperatorTables, Profile, ProfileMeta
from profiles.vidur_network import Network
from traces.errors import InputError
from traces.steps import Floats

ONCE = ("emb",)
IN_LAYERS = (
    "input_layernorm", "attn_pre_proj", "attn_rope", "attn_kv_cache_save", "attention", "attn_post_proj",
    "post_attention_layernorm", "mlp_up_proj", "mlp_act", "mlp_down_proj", "add",
)  # fmt: skip
"""A layer's operators in order; attention and attn_kv_cache_save are in attention.csv, all others in mlp.csv."""

MAY_BE_ABSENT = ("input_layernorm", "post_attention_layernorm", "add", "attn_kv_cache_save")
"""Of models without them, or not measured; Vidur takes 0 for these."""

_TOKEN_WISE = tuple(name for name in (*ONCE, *IN_LAYERS) if name not in ("attention", "attn_kv_cache_save"))
_MODEL = {"n_head": "num_heads", "n_kv_head": "num_kv_heads", "n_embd": "hidden_size",
          "n_expanded_embd": "intermediate_size"}  # fmt: skip


def has_profile(folder: Path) -> bool:
    """Whether a folder holds the two files."""
    return (folder / "mlp.csv").is_file() and (folder / "attention.csv").is_file()


def import_profiles(source: Path, configs: dict[str, dict[str, Any]], network: Network | None = None) -> list[Profile]:
    """Every profile at or below `source`, whose last folders are <device>/<org>/<model>. Raises InputError.

    `network`: what was measured between such devices; None: nothing.
    """
    folders = sorted(file.parent for file in source.resolve().rglob("attention.csv") if has_profile(file.parent))
    if not folders:
        raise InputError("holds no Vidur profile", file=source, accepted="folders with an mlp.csv and an attention.csv")
    profiles = [_import(folder, configs) for folder in folders]
    return profiles if network is None else [_with_network(profile, network) for profile in profiles]


def _with_network(profile: Profile, network: Network) -> Profile:
    network.check_device(profile.meta.device)
    meta = msgspec.structs.replace(profile.meta, notes=(*profile.meta.notes, *network.notes))
    return replace(profile, meta=meta, collectives=network.collectives)


def _import(folder: Path, configs: dict[str, dict[str, Any]]) -> Profile:
    if len(folder.parts) < 4:
        raise InputError("names no device and model", file=folder, accepted="<device>/<org>/<model>")
    device, model = folder.parts[-3], "/".join(folder.parts[-2:])
    notes = ["no output head and no sampler: Vidur has none", "its reshapes of attention's in- and output are left out"]
    mlp = _Table(folder / "mlp.csv", _TOKEN_WISE, ("num_tokens", *_MODEL, "num_tensor_parallel_workers"))
    attention = _Table(
        folder / "attention.csv",
        ("attn_kv_cache_save", "attn_prefill", "attn_decode"),
        ("batch_size", "prefill_chunk_size", "kv_cache_size", "num_tensor_parallel_workers", "block_size", "n_embd",
         "n_q_head", "n_kv_head"),
    )  # fmt: skip
    for table, name in ((mlp, "n_embd"), (mlp, "n_head"), (attention, "block_size"), (attention, "n_embd")):
        table.check_one(name)
    if (config := configs.get(model)) is not None:
        _check_model(mlp, config, model)
    absent = [name for name in MAY_BE_ABSENT if not (mlp.has(name) or attention.has(name))]
    if absent:
        notes.append(f"not measured, and not in the composition: {', '.join(absent)}")
    layers = tuple(name for name in IN_LAYERS if name not in absent)
    degrees = np.unique(mlp.column("num_tensor_parallel_workers"))
    tables = {int(tp): _degree(mlp, attention, float(tp)) for tp in degrees}
    for table in (mlp, attention):
        notes += table.notes()
    return Profile(
        ProfileMeta(
            device=device,
            model=model,
            dtype="float16",
            source="Vidur",
            method="CUDA time of each kernel; median of some twenty runs, their standard deviation as spread",
            model_config=config,
            composition=Composition(ONCE, layers, ()),
            notes=tuple(notes),
        ),
        tables,
    )


def _degree(mlp: _Table, attention: _Table, tp: float) -> OperatorTables:
    """All of one tensor-parallel degree."""
    of_mlp = mlp.column("num_tensor_parallel_workers") == tp
    rows = attention.column("num_tensor_parallel_workers") == tp
    if not rows.any():
        message, accepted = "no rows", f"rows of {tp:.0f} workers, as mlp.csv has"
        raise InputError(message, file=attention.file, field="num_tensor_parallel_workers", accepted=accepted)
    tokens = [mlp.column("num_tokens")]
    dense = {name: _curve(*mlp.times(name, tokens, of_mlp)) for name in _TOKEN_WISE if mlp.has(name)}
    n, chunk = attention.column("batch_size"), attention.column("prefill_chunk_size")
    history, is_chunk = attention.column("kv_cache_size"), chunk > 0
    # Vidur's own feature: `num_tokens` is the larger of chunk and batch.
    if attention.has("attn_kv_cache_save"):
        dense["attn_kv_cache_save"] = _curve(*attention.times("attn_kv_cache_save", [np.maximum(chunk, n)], rows))
    chunks, chunk_s, chunk_spread = attention.times("attn_prefill", [chunk, history], rows & is_chunk)
    decodes, decode_s, decode_spread = attention.times("attn_decode", [n, history], rows & ~is_chunk)
    none, also_none = np.zeros(len(chunks)), np.zeros(len(decodes))
    return OperatorTables(
        dense,
        {},
        AttentionRows(
            np.concatenate([chunks[:, 0], also_none]),
            np.concatenate([chunks[:, 1], also_none]),
            np.concatenate([none, decodes[:, 0]]),
            np.concatenate([none, decodes[:, 1]]),
            np.concatenate([chunk_s, decode_s]),
            np.concatenate([chunk_spread, decode_spread]),
        ),
    )


def _curve(points: Floats, time_s: Floats, spread: Floats) -> Curve:
    return Curve(points[:, 0], time_s, spread)


class _Table:
    """One of its files: the medians of some operators by some numbers, and what was left out of it."""

    def __init__(self, file: Path, operators: Sequence[str], numbers: Sequence[str]) -> None:
        needed = [column for name in operators if name not in MAY_BE_ABSENT for column in _stats(name)]
        optional = [column for name in operators if name in MAY_BE_ABSENT for column in _stats(name)]
        self.file = file
        self._csv: CsvTable = read_csv(file, [*numbers, *needed], optional=optional, others=True)
        self._zero = self._again = 0

    def has(self, name: str) -> bool:
        """Whether an operator was measured at all."""
        median, std = _stats(name)
        measured = self._csv.has(median) and any(self._csv.texts(median))
        if measured and not self._csv.has(std):
            raise InputError("is missing", file=self.file, line=1, field=std, accepted=f"as {median} is there")
        return measured

    def column(self, name: str) -> Floats:
        """A column of whole numbers, [n]; those that are 0 by nature may be."""
        may_be_0 = name in ("prefill_chunk_size", "kv_cache_size")
        return self._csv.numbers(name, above_0=not may_be_0, whole=True)

    def times(self, name: str, by: list[Floats], rows: np.typing.NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
        """Points [k, len(by)], their times in seconds and relative spreads, [k], ascending.

        A time of 0 is below what its timer tells, and left out; of a point measured several times, the mean counts.
        Raises InputError when nothing is left, or a cell is empty.
        """
        median, std = (self._csv.numbers(column, gaps=True) * 1e-3 for column in _stats(name))
        if (empty := rows & (np.isnan(median) | np.isnan(std))).any():
            at = int(np.flatnonzero(empty)[0])
            column = _stats(name)[0 if np.isnan(median[at]) else 1]
            raise self._csv.error(at, column, "is empty", accepted="milliseconds")
        self._zero += int((rows & (median == 0)).sum())
        rows = rows & (median > 0)
        if not rows.any():
            raise InputError("has no times above 0", file=self.file, field=_stats(name)[0])
        points, group, runs = np.unique(np.column_stack(by)[rows], axis=0, return_inverse=True, return_counts=True)
        self._again += int(runs.sum() - len(runs))
        time_s = np.bincount(group.reshape(-1), median[rows]) / runs
        spread = np.bincount(group.reshape(-1), std[rows]) / runs / time_s
        return points, time_s, spread

    def check_one(self, name: str) -> None:
        """Raise InputError at the first row that is of another model or engine than the first."""
        values = self.column(name)
        if (other := np.flatnonzero(values != values[0])).size:
            raise self._csv.error(
                int(other[0]), name, found=float(values[other[0]]), accepted=f"{values[0]:g}, as before"
            )

    def value(self, name: str) -> float:
        """The first row's."""
        return float(self.column(name)[0])

    def notes(self) -> list[str]:
        """What was left out or averaged."""
        notes = [f"{self.file.name}: {self._again} points measured again, averaged"] if self._again else []
        return notes + ([f"{self.file.name}: {self._zero} times of 0 ms left out"] if self._zero else [])


def _stats(name: str) -> tuple[str, str]:
    """The two columns of an operator that are read."""
    return f"time_stats.{name}.median", f"time_stats.{name}.std"


def _check_model(mlp: _Table, config: dict[str, Any], name: str) -> None:
    """Raise InputError when the catalogue's model of that name has other dimensions."""
    model = model_of(config, name)
    for column, field in _MODEL.items():
        if mlp.value(column) != (wanted := getattr(model, field)):
            accepted = f"{wanted}, the catalogue's {name}"
            raise InputError(file=mlp.file, field=column, found=mlp.value(column), accepted=accepted)
