"""An operator profile: what each operator of one model costs on one device, measured. A folder on disk:

    profile.json      which device, model and engine, how it was measured, how the operators make up a step
    dense.csv         tp, operator, n_tokens, time_us              token-wise operators
    per_request.csv   tp, operator, n_requests, time_us            operators with one row per request
    attention.csv     tp, prefill_tokens, prefill_kv_tokens, n_decode, decode_kv_tokens, time_us
    moe.csv           tp, n_tokens, n_experts, time_us             experts, where the model has them
    skew.csv          where measured: decode batches of unequal history, beside uniform ones of mean and of longest
    steps.csv         where measured: whole steps, un-instrumented

`tp` is the tensor-parallel degree. Times are microseconds in the files and seconds everywhere else.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from profiles.csv_table import CsvTable, read_csv
from traces.capture import new_folder
from traces.decoding import decode_json, read_bytes
from traces.errors import InputError, ProfileError, nearest
from traces.steps import Floats

PROFILE_SCHEMA = "servetwin.profile/1"


class Composition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How operators make up a step; an operator that runs twice is named twice.

    Attributes:
        once: run once a step, over its tokens.
        per_layer: run in each layer; `attention` and `moe` have tables of their own, the others are token-wise.
        per_request: run once a step, over one row per request.
    """

    once: tuple[str, ...]
    per_layer: tuple[str, ...]
    per_request: tuple[str, ...]

    def dense(self) -> set[str]:
        """The token-wise operators."""
        return {*self.once, *self.per_layer} - {"attention", "moe"}


class ProfileMeta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured, where and how.

    Attributes:
        device: name of the device, as a cluster description spells it.
        model: name of the model.
        dtype: type of weights and activations.
        kv_cache_dtype: type of the KV cache; auto: as dtype.
        engine: engine and version whose operators these are; None when not recorded.
        source: who measured it.
        recorded_at: ISO date; None when not recorded.
        method: how a time was taken, and what it is (mean, median) of how many.
        model_config: the model's Hugging Face config.json; None when not at hand.
        composition: how operators make up a step.
        notes: what a reader should know.
        measured: further facts of the measurement.
    """

    schema_version: str = PROFILE_SCHEMA
    device: str
    model: str
    dtype: str
    kv_cache_dtype: str = "auto"
    engine: str | None = None
    source: str
    recorded_at: str | None = None
    method: str
    model_config: dict[str, Any] | None = None
    composition: Composition
    notes: tuple[str, ...] = ()
    measured: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Curve:
    """Time of one operator by size: x [n] ascending tokens or requests, time_s [n]."""

    x: Floats
    time_s: Floats


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """One layer's attention, [n] each: a prefill chunk with its history beside decodes of equal history; 0 is none."""

    prefill_tokens: Floats
    prefill_kv_tokens: Floats
    n_decode: Floats
    decode_kv_tokens: Floats
    time_s: Floats


@dataclass(frozen=True, slots=True)
class MoeRows:
    """One layer's experts, [n] each: by tokens and by how many experts they reach."""

    n_tokens: Floats
    n_experts: Floats
    time_s: Floats


@dataclass(frozen=True, slots=True)
class SkewRows:
    """Decode batches of two history lengths, [n] each, beside the uniform batches of mean and of longest history."""

    n_decode: Floats
    n_long: Floats
    prefill_tokens: Floats
    prefill_kv_tokens: Floats
    short_kv_tokens: Floats
    long_kv_tokens: Floats
    mean_kv_tokens: Floats
    uniform_mean_s: Floats
    uniform_max_s: Floats
    time_s: Floats


@dataclass(frozen=True, slots=True)
class StepRows:
    """Whole steps, [n] each: the batch as in `AttentionRows`, its requests, the time of the un-instrumented step."""

    prefill_tokens: Floats
    prefill_kv_tokens: Floats
    n_decode: Floats
    decode_kv_tokens: Floats
    n_requests: Floats
    step_s: Floats
    instrumented_s: Floats
    repeats: Floats


@dataclass(frozen=True, slots=True)
class OperatorTables:
    """All that was measured at one tensor-parallel degree."""

    dense: dict[str, Curve]
    per_request: dict[str, Curve]
    attention: AttentionRows
    moe: MoeRows | None = None
    skew: SkewRows | None = None
    steps: StepRows | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """An operator profile as read: its description, its tables by tensor-parallel degree, digest and folder."""

    meta: ProfileMeta
    tables: dict[int, OperatorTables]
    sha256: str = ""
    path: Path = field(default_factory=Path)


Rows = TypeVar("Rows", AttentionRows, MoeRows, SkewRows, StepRows)


def read_profile(path: Path) -> Profile:
    """Read a profile folder. Raises InputError with file, line and field, ProfileError when an operator is missing."""
    meta = read_meta(path)
    has_moe = "moe" in meta.composition.per_layer
    if not has_moe and (path / "moe.csv").exists():
        accepted = "no such file, or 'moe' in composition.per_layer of profile.json"
        raise InputError("belongs to no operator of the model's composition", file=path / "moe.csv", accepted=accepted)
    needed: dict[str, dict[int, Any]] = {
        "attention": _row_groups(path / "attention.csv", AttentionRows),
        "dense": _curves(path / "dense.csv", "n_tokens", meta.composition.dense()),
        "per_request": _curves(path / "per_request.csv", "n_requests", set(meta.composition.per_request)),
    }
    if has_moe:
        needed["moe"] = _row_groups(path / "moe.csv", MoeRows)
    optional: dict[str, dict[int, Any]] = {
        name: _row_groups(path / f"{name}.csv", kind)
        for name, kind in (("skew", SkewRows), ("steps", StepRows))
        if (path / f"{name}.csv").exists()
    }
    _check_degrees(path, needed, optional)
    tables = {}
    for tp in sorted(needed["attention"]):
        parts: dict[str, Any] = {name: groups.get(tp) for name, groups in {**needed, **optional}.items()}
        tables[tp] = OperatorTables(**parts)
    return Profile(meta, tables, _digest(path), path)


def _check_degrees(path: Path, needed: dict[str, dict[int, Any]], optional: dict[str, dict[int, Any]]) -> None:
    """Raise ProfileError when a degree that one table has is missing from one that every degree needs."""
    seen_in = {tp: name for name, groups in {**optional, **needed}.items() for tp in groups}
    for name, groups in needed.items():
        for tp in sorted(seen_in.keys() - groups.keys()):
            accepted = f"rows of tp {tp}, as {seen_in[tp]}.csv has"
            raise ProfileError("no rows", file=path / f"{name}.csv", field="tp", accepted=accepted)


def read_meta(path: Path) -> ProfileMeta:
    """Read a profile's description alone. Raises InputError."""
    file = path / "profile.json"
    if not file.is_file():
        raise InputError("is not a profile", file=path, accepted="a folder with a profile.json")
    meta = decode_json(read_bytes(file), ProfileMeta, file=file)
    if meta.schema_version != PROFILE_SCHEMA:
        raise InputError(file=file, field="schema_version", found=meta.schema_version, accepted=PROFILE_SCHEMA)
    return meta


def write_profile(profile: Profile, out: Path) -> None:
    """Write the profile as the folder `out`, all of it or nothing. Raises InputError when `out` is not empty."""
    tables = profile.tables
    with new_folder(out) as folder:
        text = msgspec.json.format(msgspec.json.encode(profile.meta), indent=1)
        (folder / "profile.json").write_bytes(text + b"\n")
        _write_curves(folder / "dense.csv", "n_tokens", {tp: table.dense for tp, table in tables.items()})
        _write_curves(folder / "per_request.csv", "n_requests", {tp: table.per_request for tp, table in tables.items()})
        for name, kind in _ROW_FILES.items():
            rows = {tp: getattr(table, name) for tp, table in tables.items() if getattr(table, name) is not None}
            if rows:
                _write_rows(folder / f"{name}.csv", kind, rows)


_ROW_FILES: dict[str, type[Any]] = {"attention": AttentionRows, "moe": MoeRows, "skew": SkewRows, "steps": StepRows}


def _file_columns(kind: type[Any]) -> dict[str, str]:
    """Column in the file by field: times stand there in microseconds."""
    return {f.name: f.name[:-2] + "_us" if f.name.endswith("_s") else f.name for f in fields(kind)}


def _row_groups(file: Path, kind: type[Rows]) -> dict[int, Rows]:
    """Rows by tensor-parallel degree."""
    columns: dict[str, str] = _file_columns(kind)
    table = read_csv(file, ["tp", *columns.values()])
    if kind is AttentionRows:
        _check_batches(table)
    if kind in (AttentionRows, MoeRows):
        table.check_unique(["tp", *(column for column in columns.values() if column != "time_us")])
    tp = table.numbers("tp", above_0=True, whole=True)
    data = {
        name: table.numbers(column, above_0=column.endswith("_us")) * (1e-6 if column.endswith("_us") else 1.0)
        for name, column in columns.items()
    }
    groups = {}
    for degree in np.unique(tp):
        groups[int(degree)] = kind(**{name: values[tp == degree] for name, values in data.items()})
    return groups


def _check_batches(table: CsvTable) -> None:
    """Raise InputError at the first row of attention that computes nothing, or whose history belongs to nothing."""
    chunk, batch = table.numbers("prefill_tokens") > 0, table.numbers("n_decode") > 0
    for name, wrong, accepted in (
        ("n_decode", ~chunk & ~batch, "prefill tokens or decodes"),
        ("prefill_kv_tokens", ~chunk & (table.numbers("prefill_kv_tokens") > 0), "0, as there is no prefill"),
        ("decode_kv_tokens", ~batch & (table.numbers("decode_kv_tokens") > 0), "0, as there are no decodes"),
    ):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise table.error(row, name, found=float(table.numbers(name)[row]), accepted=accepted)


def _curves(file: Path, x_name: str, wanted: set[str]) -> dict[int, dict[str, Curve]]:
    """Curves by tensor-parallel degree and operator."""
    table = read_csv(file, ["tp", "operator", x_name, "time_us"])
    tp = table.numbers("tp", above_0=True, whole=True)
    return {int(degree): curves_of(table, "operator", x_name, wanted, tp=int(degree)) for degree in np.unique(tp)}


def curves_of(
    table: CsvTable, operator_name: str, x_name: str, wanted: set[str], *, tp: int | None = None
) -> dict[str, Curve]:
    """One curve per operator of `wanted` from a table with `operator_name`, `x_name` and time_us.

    With `tp`, from its rows of that degree. Raises InputError for an operator that is not wanted or a point measured
    twice, ProfileError for one with no rows.
    """
    operators = np.asarray(table.texts(operator_name))
    x, time_s = table.numbers(x_name, above_0=True), table.numbers("time_us", above_0=True) * 1e-6
    for name in np.unique(operators):
        if name not in wanted:
            row = int(np.flatnonzero(operators == name)[0])
            accepted = f"an operator of the model's composition; {nearest(str(name), wanted)}"
            raise table.error(row, operator_name, found=str(name), accepted=accepted)
    of_degree = np.full(len(x), True) if tp is None else table.numbers("tp") == tp
    curves = {}
    for name in sorted(wanted):
        own = np.flatnonzero((operators == name) & of_degree)
        if not len(own):
            where = "" if tp is None else f" at tp {tp}"
            raise ProfileError(f"no rows of operator '{name}'{where}", file=table.file, field=operator_name)
        order = own[np.argsort(x[own], kind="stable")]
        if (repeat := np.flatnonzero(np.diff(x[order]) == 0)).size:
            raise table.error(int(order[repeat[0] + 1]), x_name, f"is measured twice for '{name}'")
        curves[name] = Curve(x[order], time_s[order])
    return curves


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return "sha256:" + digest.hexdigest()


def _write_curves(file: Path, x_name: str, groups: Mapping[int, dict[str, Curve]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["tp", "operator", x_name, "time_us"])
        for tp, curves in sorted(groups.items()):
            for name, curve in sorted(curves.items()):
                for x, time_s in zip(curve.x, curve.time_s, strict=True):
                    writer.writerow([tp, name, _text(x), _text(time_s * 1e6)])


def _write_rows(file: Path, kind: type[Any], groups: Mapping[int, Any]) -> None:
    columns = _file_columns(kind)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["tp", *columns.values()])
        for tp, rows in sorted(groups.items()):
            data = [getattr(rows, name) * (1e6 if name.endswith("_s") else 1.0) for name in columns]
            writer.writerows([tp, *map(_text, row)] for row in zip(*data, strict=True))


def _text(value: float) -> str:
    """A number as short as microseconds to the picosecond allow."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
