"""An operator profile on disk, a folder:

    profile.json      which device, model and engine, how it was measured, how the operators make up a step
    dense.csv         tp, operator, n_tokens, time_us              token-wise operators
    per_request.csv   tp, operator, n_requests, time_us            operators with one row per request
    attention.csv     tp, prefill_tokens, prefill_kv_tokens, n_decode, decode_kv_tokens, time_us; n_chunks if above 1
    moe.csv           tp, n_tokens, n_experts, time_us             experts, where the model has them
    skew.csv          where measured: decode batches of unequal history, beside uniform ones of mean and of longest
    steps.csv         where measured: whole steps, un-instrumented
    collectives.csv   where measured: op, ranks, bytes, time_us of messages between devices

`tp` is the tensor-parallel degree. Times are microseconds in the files and seconds everywhere else. Every table may say
how sure its times are: `spread`, the samples' 1.4826 * median absolute deviation by their median, and `n`, how many
they were (Rousseeuw and Croux, JASA 88, 1993: the factor makes it a normal distribution's standard deviation).
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from profiles.csv_table import CsvTable, read_csv
from profiles.profile import (
    COLLECTIVES,
    NO_OPERATORS,
    PROFILE_SCHEMA,
    AttentionRows,
    Composition,
    Curve,
    MoeRows,
    OperatorTables,
    Profile,
    ProfileMeta,
    SkewRows,
    StepRows,
)
from traces.capture import new_folder
from traces.decoding import decode_json, read_bytes
from traces.errors import InputError, ProfileError, nearest
from traces.steps import Floats, Ints

Rows = TypeVar("Rows", AttentionRows, MoeRows, SkewRows, StepRows)


def read_profile(path: Path) -> Profile:
    """Read a profile folder. Raises InputError with file, line and field, ProfileError when an operator is missing."""
    meta = read_meta(path)
    needed = sorted(meta.composition.tables())
    for stray in {"dense", "per_request", "attention", "moe"}.difference(needed):
        if (file := path / f"{stray}.csv").exists():
            accepted = "no such file, or its operators in composition of profile.json"
            raise InputError("belongs to no operator of the model's composition", file=file, accepted=accepted)
    optional = [name for name in ("skew", "steps") if name not in needed and (path / f"{name}.csv").exists()]
    groups = {name: _table(path, name, meta.composition) for name in (*needed, *optional)}
    _check_degrees(path, {name: groups[name] for name in needed}, {name: groups[name] for name in optional})
    tables = {}
    for tp in sorted(groups[needed[0]]):
        parts: dict[str, Any] = {name: group.get(tp) for name, group in groups.items()}
        tables[tp] = OperatorTables(**{**NO_OPERATORS, **parts})
    collectives = read_collectives(path / "collectives.csv") if (path / "collectives.csv").exists() else None
    return Profile(meta, tables, digest_of(path), path, collectives)


def _table(path: Path, name: str, composition: Composition) -> dict[int, Any]:
    """One table by tensor-parallel degree."""
    file = path / f"{name}.csv"
    if name == "dense":
        return _curves(file, "n_tokens", composition.dense())
    if name == "per_request":
        return _curves(file, "n_requests", set(composition.per_request))
    return _row_groups(file, _ROW_FILES[name])


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


_ROW_FILES: dict[str, type[Any]] = {"attention": AttentionRows, "moe": MoeRows, "skew": SkewRows, "steps": StepRows}


def _file_columns(kind: type[Any]) -> dict[str, str]:
    """Column in the file by field: times stand there in microseconds."""
    return {f.name: f.name[:-2] + "_us" if f.name.endswith("_s") else f.name for f in fields(kind)}


def _optional_columns(kind: type[Any]) -> dict[str, str]:
    """Those of fields that can be None."""
    may_be_none = {f.name for f in fields(kind) if "None" in str(f.type)}
    return {name: column for name, column in _file_columns(kind).items() if name in may_be_none}


def _row_groups(file: Path, kind: type[Rows]) -> dict[int, Rows]:
    """Rows by tensor-parallel degree."""
    columns: dict[str, str] = _file_columns(kind)
    optional: dict[str, str] = _optional_columns(kind)
    needed: list[str] = [column for name, column in columns.items() if name not in optional]
    table = read_csv(file, ["tp", *needed], optional=list(optional.values()))
    if kind is AttentionRows:
        _check_batches(table)
    if kind in (AttentionRows, MoeRows):
        points: list[str] = ["n_chunks"] if table.has("n_chunks") else []
        table.check_unique(["tp", *points, *(column for column in needed if column != "time_us")])
    tp = table.numbers("tp", above_0=True, whole=True)
    data = {name: _numbers(table, column, name in optional) for name, column in columns.items()}
    groups = {}
    for degree in np.unique(tp):
        own: dict[str, Any] = {
            name: None if values is None else _known(values[tp == degree]) for name, values in data.items()
        }
        groups[int(degree)] = kind(**own)
    return groups


def _numbers(table: CsvTable, column: str, optional: bool) -> Floats | None:
    """A column in the code's units; an optional one may be absent or have empty cells."""
    if optional and not table.has(column):
        return None
    is_time, is_count = column.endswith("_us"), column in ("n", "n_chunks")
    gaps = optional and column != "n_chunks"
    return table.numbers(column, above_0=is_time or is_count, gaps=gaps) * (1e-6 if is_time else 1.0)


def _known(values: Floats) -> Floats | None:
    """The values; None when none of them is known."""
    return None if len(values) and np.isnan(values).all() else values


def _check_batches(table: CsvTable) -> None:
    """Raise InputError at the first row of attention that computes nothing, or whose history belongs to nothing."""
    chunk, batch = table.numbers("prefill_tokens") > 0, table.numbers("n_decode") > 0
    n_chunks = table.numbers("n_chunks", above_0=True, whole=True) if table.has("n_chunks") else np.ones(len(chunk))
    for name, wrong, accepted in (
        ("n_chunks", (n_chunks > 1) & (~chunk | batch), "1, as there is no prefill, or are decodes"),
        ("n_decode", ~chunk & ~batch, "prefill tokens or decodes"),
        ("prefill_kv_tokens", ~chunk & (table.numbers("prefill_kv_tokens") > 0), "0, as there is no prefill"),
        ("decode_kv_tokens", ~batch & (table.numbers("decode_kv_tokens") > 0), "0, as there are no decodes"),
    ):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise table.error(row, name, found=float(table.numbers(name)[row]), accepted=accepted)


def _curves(file: Path, x_name: str, wanted: set[str]) -> dict[int, dict[str, Curve]]:
    """Curves by tensor-parallel degree and operator."""
    table = read_csv(file, ["tp", "operator", x_name, "time_us"], optional=SURENESS)
    tp = table.numbers("tp", above_0=True, whole=True)
    return {int(degree): curves_of(table, "operator", x_name, wanted, tp=int(degree)) for degree in np.unique(tp)}


SURENESS = ("spread", "n")
"""The optional columns of every table of times."""


def curves_of(
    table: CsvTable, operator_name: str, x_name: str, wanted: set[str], *, tp: int | None = None
) -> dict[str, Curve]:
    """One curve per operator of `wanted` from a table with `operator_name`, `x_name` and time_us.

    With `tp`, from its rows of that degree. Raises InputError for an operator that is not wanted or a point measured
    twice, ProfileError for one with no rows.
    """
    operators = np.asarray(table.texts(operator_name))
    for name in np.unique(operators):
        if name not in wanted:
            row = int(np.flatnonzero(operators == name)[0])
            accepted = f"an operator of the model's composition; {nearest(str(name), wanted)}"
            raise table.error(row, operator_name, found=str(name), accepted=accepted)
    of_degree = np.full(len(operators), True) if tp is None else table.numbers("tp") == tp
    curves = {}
    for name in sorted(wanted):
        own = np.flatnonzero((operators == name) & of_degree)
        if not len(own):
            where = "" if tp is None else f" at tp {tp}"
            raise ProfileError(f"no rows of operator '{name}'{where}", file=table.file, field=operator_name)
        curves[name] = _curve(table, x_name, own, name)
    return curves


def _curve(table: CsvTable, x_name: str, own: Ints, name: str) -> Curve:
    """The curve that stands in the rows `own`. Raises InputError for a point measured twice."""
    x, time_s = table.numbers(x_name, above_0=True), table.numbers("time_us", above_0=True) * 1e-6
    order = own[np.argsort(x[own], kind="stable")]
    if (repeat := np.flatnonzero(np.diff(x[order]) == 0)).size:
        raise table.error(int(order[repeat[0] + 1]), x_name, f"is measured twice for '{name}'")
    sureness = [_numbers(table, column, optional=True) for column in SURENESS]
    return Curve(x[order], time_s[order], *(None if one is None else _known(one[order]) for one in sureness))


def read_collectives(file: Path) -> dict[str, dict[int, Curve]]:
    """Curves over bytes by operation and number of ranks. Raises InputError."""
    table = read_csv(file, ["op", "ranks", "bytes", "time_us"], optional=SURENESS)
    ops, ranks = np.asarray(table.texts("op")), table.numbers("ranks", above_0=True, whole=True)
    known = np.isin(ops, COLLECTIVES)
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        raise table.error(row, "op", found=str(ops[row]), accepted=", ".join(COLLECTIVES))
    if (ranks < 2).any():
        raise table.error(int(np.flatnonzero(ranks < 2)[0]), "ranks", found=1, accepted="2 or more")
    curves: dict[str, dict[int, Curve]] = {}
    for op in COLLECTIVES:
        for n in np.unique(ranks[ops == op]):
            own = np.flatnonzero((ops == op) & (ranks == n))
            curves.setdefault(op, {})[int(n)] = _curve(table, "bytes", own, op)
    return curves


def digest_of(path: Path) -> str:
    """Digest of a profile folder: names and contents of its files."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return "sha256:" + digest.hexdigest()


def write_profile(profile: Profile, out: Path) -> None:
    """Write the profile as the folder `out`, all of it or nothing. Raises InputError when `out` is not empty."""
    tables = profile.tables
    with new_folder(out) as folder:
        text = msgspec.json.format(msgspec.json.encode(profile.meta), indent=1)
        (folder / "profile.json").write_bytes(text + b"\n")
        for name, x_name in (("dense", "n_tokens"), ("per_request", "n_requests")):
            curves = {tp: getattr(table, name) for tp, table in tables.items() if getattr(table, name)}
            if curves:
                _write_curves(folder / f"{name}.csv", ("tp", "operator", x_name), curves)
        for name, kind in _ROW_FILES.items():
            rows = {tp: getattr(table, name) for tp, table in tables.items() if getattr(table, name) is not None}
            if any(len(getattr(row, fields(kind)[0].name)) for row in rows.values()):
                _write_rows(folder / f"{name}.csv", kind, rows)
        if profile.collectives:
            _write_curves(folder / "collectives.csv", ("op", "ranks", "bytes"), profile.collectives)


def _write_curves(file: Path, keys: Sequence[str], groups: Mapping[Any, Mapping[Any, Curve]]) -> None:
    """Curves by two keys, with the optional columns that any of them has."""
    sure = [name for name in SURENESS if any(getattr(c, name) is not None for g in groups.values() for c in g.values())]
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*keys, "time_us", *sure])
        for first, curves in sorted(groups.items()):
            for second, curve in sorted(curves.items()):
                columns = [_texts(curve.x), _texts(curve.time_s * 1e6)]
                columns += [_texts(getattr(curve, name), len(curve.x)) for name in sure]
                writer.writerows([first, second, *row] for row in zip(*columns, strict=True))


def _write_rows(file: Path, kind: type[Any], groups: Mapping[int, Any]) -> None:
    optional = _optional_columns(kind)
    absent = {name for name in optional if all(getattr(rows, name) is None for rows in groups.values())}
    columns = {name: column for name, column in _file_columns(kind).items() if name not in absent}
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["tp", *columns.values()])
        for tp, rows in sorted(groups.items()):
            n_rows = len(getattr(rows, fields(kind)[0].name))
            data = [_scaled(name, getattr(rows, name), n_rows) for name in columns]
            writer.writerows([tp, *row] for row in zip(*data, strict=True))


def _scaled(name: str, values: Floats | None, n_rows: int) -> list[str]:
    """A field's column: times in microseconds; without a number of chunks it is one."""
    if name == "n_chunks" and values is None:
        return ["1"] * n_rows
    return _texts(values * 1e6 if values is not None and name.endswith("_s") else values, n_rows)


def _texts(values: Floats | None, n_rows: int = 0) -> list[str]:
    """A column; empty cells for what is not known."""
    return [""] * n_rows if values is None else ["" if np.isnan(value) else _text(value) for value in values]


def _text(value: float) -> str:
    """A number as short as microseconds to the picosecond allow."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
