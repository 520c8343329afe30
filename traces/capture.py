"""A capture: the record of one run, real or simulated, in the same shape. A folder on disk:

    meta.json           what ran: engine, model, device, clock, versions, notes
    trace.jsonl.gz      the requests as they were to be served
    outcomes.parquet    one row per request
    steps.parquet       one row per step, where recorded
    batches.parquet     the requests of each step, where recorded
    transfers.parquet   KV that one engine sent another, where recorded
    series.parquet      time series, long form: name, time_s, value; begin_s where a series has it

This module owns the folder and knows nothing of what the numbers mean; `traces.metrics` does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import msgspec
import numpy as np

from traces.arrow import numpy_column
from traces.decoding import decode_json, read_bytes
from traces.errors import InputError
from traces.outcome import Outcome, Status
from traces.steps import STEP_COLUMNS, Batches, Floats, Steps, steps_from_columns
from traces.trace import Trace, read_trace, write_trace
from traces.transfers import TRANSFER_COLUMNS, WHOLE_COLUMNS, KVTransfers, transfers_from_columns

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

CAPTURE_SCHEMA = "servetwin.capture/1"

OUTCOMES_PER_GROUP = 16_384
"""Rows of a row group of outcomes.parquet, so that it can be written and read in pieces."""


class CaptureMeta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ran, where, and how its numbers are to be read.

    Attributes:
        kind: a real engine's record, or a simulated one.
        engine: its name and version, as `vllm 0.32.0`; None when it was not recorded.
        model: name of the model served.
        device: name of the device it ran on; None when it was not recorded.
        engine_options: options the engine ran with, by vLLM's names; only those that are known.
        num_gpu_blocks: KV blocks of each instance, as the engine reported them; None when not recorded.
        weight_bytes: bytes of weights on one device; None when not known, or when devices hold different shares.
        kv_block_bytes: bytes of one KV block on one device; None likewise.
        clock: what second 0 is, and which clocks were joined how.
        recorded_at: ISO date of a measured run; None for a simulated one, which has no date.
        reasons: why this run must not be scored; empty for a valid run.
        notes: what was assumed, left out or counted.
        provenance: digests and versions of what went in, by name.
    """

    schema_version: str = CAPTURE_SCHEMA
    kind: Literal["measured", "simulated"]
    engine: str | None
    model: str
    device: str | None
    engine_options: dict[str, Any] = {}
    num_gpu_blocks: int | None = None
    weight_bytes: int | None = None
    kv_block_bytes: int | None = None
    clock: str
    recorded_at: str | None = None
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: dict[str, str | None] = {}


@dataclass(frozen=True, slots=True)
class Series:
    """A quantity over time; its unit stands in its name (`power_w`, `kv_usage`).

    Attributes:
        time_s: [n] seconds on the capture's clock, ascending. For a rate over a window, the window's end.
        value: [n].
        begin_s: [n] where each window begins, where the log says that; None: only that it ends at `time_s`.
    """

    time_s: Floats
    value: Floats
    begin_s: Floats | None = None


@dataclass(frozen=True, slots=True)
class Capture:
    """The record of one run. `outcomes` are in the trace's order."""

    meta: CaptureMeta
    trace: Trace
    outcomes: tuple[Outcome, ...]
    steps: Steps | None = None
    series: dict[str, Series] = field(default_factory=dict)
    transfers: KVTransfers | None = None

    def outcomes_frame(self) -> pd.DataFrame:
        """The outcomes as a pandas table, one row per request."""
        import pandas as pd

        return pd.DataFrame([_plain(outcome) for outcome in self.outcomes])

    def steps_frame(self) -> pd.DataFrame | None:
        """The steps as a pandas table, one row per step; None when they were not recorded."""
        import pandas as pd

        if self.steps is None:
            return None
        return pd.DataFrame({name: getattr(self.steps, name) for name in STEP_COLUMNS})


def write_capture(capture: Capture, out: Path) -> None:
    """Write the capture as the folder `out`, all of it or nothing. Raises InputError when `out` is not empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(name: str, columns: pa.Table) -> None:
        pq.write_table(columns, folder / name, compression="zstd")

    with new_folder(out) as folder:
        (folder / "meta.json").write_bytes(msgspec.json.format(msgspec.json.encode(capture.meta), indent=1) + b"\n")
        write_trace(capture.trace, folder / "trace.jsonl.gz")
        with OutcomeWriter(folder / "outcomes.parquet") as outcomes:
            outcomes.add(capture.outcomes)
        if capture.steps is not None:
            columns = {name: getattr(capture.steps, name) for name in (*STEP_COLUMNS, "kv_cached")}
            write("steps.parquet", _table({name: column for name, column in columns.items() if column is not None}))
            if (batches := capture.steps.batches) is not None:
                step = np.repeat(np.arange(len(batches.offsets) - 1), np.diff(batches.offsets))
                entries = {name: getattr(batches, name) for name in ("request", "new_tokens", "computed_tokens")}
                write("batches.parquet", _table({"step": step, **entries}))
        if capture.transfers is not None:
            write("transfers.parquet", _table({name: getattr(capture.transfers, name) for name in TRANSFER_COLUMNS}))
        if capture.series:
            names = [name for name in sorted(capture.series) for _ in capture.series[name].time_s]
            parts = [capture.series[name] for name in sorted(capture.series)]
            columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("time_s", "value")}
            if any(part.begin_s is not None for part in parts):
                told = [np.full(len(part.time_s), np.nan) if part.begin_s is None else part.begin_s for part in parts]
                columns["begin_s"] = np.concatenate(told)
            write("series.parquet", _table(columns).add_column(0, "name", _column(names, pa.string())))


class OutcomeWriter:
    """Writes outcomes.parquet piece by piece; how they come in pieces does not change its bytes."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._schema = _outcome_schema()
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._waiting: list[Outcome] = []

    def __enter__(self) -> OutcomeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._waiting:
                self._write(self._waiting)
        finally:
            self._writer.close()

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Write these outcomes behind those before, as soon as there are enough for a row group."""
        self._waiting += outcomes
        while len(self._waiting) >= OUTCOMES_PER_GROUP:
            self._write(self._waiting[:OUTCOMES_PER_GROUP])
            del self._waiting[:OUTCOMES_PER_GROUP]

    def _write(self, outcomes: Sequence[Outcome]) -> None:
        import pyarrow as pa

        columns = [_column([_value(one, field.name) for one in outcomes], field.type) for field in self._schema]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))


def read_capture(path: Path) -> Capture:
    """Read a capture folder. Raises InputError when it is none, or is damaged."""
    if not (path / "meta.json").is_file():
        raise InputError("is not a capture", file=path, accepted="a folder with a meta.json")
    meta = decode_json(read_bytes(path / "meta.json"), CaptureMeta, file=path / "meta.json")
    if meta.schema_version != CAPTURE_SCHEMA:
        file = path / "meta.json"
        raise InputError(file=file, field="schema_version", found=meta.schema_version, accepted=CAPTURE_SCHEMA)
    trace = read_trace(path / "trace.jsonl.gz", may_be_empty=True)
    outcomes = tuple(_outcome(row, path) for row in _read_table(path / "outcomes.parquet").to_pylist())
    transfers = _read_transfers(path, len(outcomes))
    return Capture(meta, trace, outcomes, _read_steps(path), _read_series(path), transfers)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` once the block ends well; on an error nothing is left behind.

    Raises InputError when `out` exists and is not an empty folder, or cannot be written.
    """
    check_new_folder(out)
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield folder
        folder.chmod(0o777 & ~_umask())
        folder.replace(out)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(f"cannot be written ({error.strerror or error})", file=out) from None
        raise


def check_new_folder(out: Path) -> None:
    """Raise InputError unless `out` can become a new folder; makes the folder it is to stand in."""
    refuse_taken_folder(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", file=out) from None


def refuse_taken_folder(out: Path) -> None:
    """Raise InputError when a new folder cannot be called so; asked before long work, and again when it is written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("already exists", file=out, accepted="a new or empty folder")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _value(outcome: Outcome, name: str) -> Any:
    return outcome.status.value if name == "status" else getattr(outcome, name)


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values or None as a column of numbers, texts or lists of numbers.

    From its buffers, since whatever else makes an array imports pandas, which takes longer than to write most captures.
    """
    import pyarrow as pa

    known = np.array([value is not None for value in values], dtype=np.bool_)
    gaps = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    if pa.types.is_string(kind):
        texts = [b"" if value is None else value.encode() for value in values]
        buffers = [gaps, _offsets(texts), pa.py_buffer(b"".join(texts))]
        return pa.Array.from_buffers(kind, len(values), buffers)
    if pa.types.is_list(kind):
        lists = [value or () for value in values]
        return pa.Array.from_buffers(
            kind,
            len(values),
            [gaps, _offsets(lists)],
            children=[_numbers(list(chain.from_iterable(lists)), np.float64)],
        )
    numbers = [0 if value is None else value for value in values]
    return _numbers(numbers, np.int64 if pa.types.is_integer(kind) else np.float64, gaps)


def _numbers(values: Sequence[Any] | np.ndarray[Any, Any], dtype: type[np.generic], gaps: Any = None) -> pa.Array:
    import pyarrow as pa

    kind = pa.int64() if dtype is np.int64 else pa.float64()
    array = np.ascontiguousarray(values, dtype=dtype)
    return pa.Array.from_buffers(kind, len(array), [gaps, pa.py_buffer(array)])


def _offsets(parts: Sequence[Any]) -> pa.Buffer:
    """Where each part begins, and the last ends."""
    import pyarrow as pa

    return pa.py_buffer(np.cumsum([0, *map(len, parts)]).astype(np.int32))


def _table(columns: dict[str, Any]) -> pa.Table:
    """Columns of numbers as a table."""
    import pyarrow as pa

    kinds = {name: np.float64 if column.dtype.kind == "f" else np.int64 for name, column in columns.items()}
    return pa.Table.from_arrays(
        [_numbers(column, kinds[name]) for name, column in columns.items()], names=list(columns)
    )


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {**msgspec.structs.asdict(outcome), "status": outcome.status.value}


def _outcome_schema() -> pa.Schema:
    import pyarrow as pa

    kinds: dict[Any, pa.DataType] = {
        str: pa.string(),
        Status: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        tuple[float, ...]: pa.list_(pa.float64()),
    }
    hints = get_type_hints(Outcome)
    return pa.schema([pa.field(name, kinds[_without_none(hint)]) for name, hint in hints.items()])


def _without_none(hint: Any) -> Any:
    """`int` of `int | None`."""
    choices = [choice for choice in get_args(hint) if choice is not type(None)]
    return choices[0] if type(None) in get_args(hint) else hint


def _outcome(row: dict[str, Any], path: Path) -> Outcome:
    try:
        return msgspec.convert(row, Outcome)
    except msgspec.ValidationError as error:
        raise InputError(f"holds a row that is no outcome ({error})", file=path / "outcomes.parquet") from None


def _read_table(path: Path, **columns: str) -> pa.Table:
    """A Parquet file, which has these columns: of `int64`, `double` or `string`, without gaps. Raises InputError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:  # `read_table` imports pandas, which takes longer than to read most
            table = file.read()
        table.validate(full=True)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise InputError(f"cannot be read as Parquet ({str(error).splitlines()[0]})", file=path) from None
    for name, kind in columns.items():
        if name not in table.column_names:
            raise InputError("is missing", file=path, field=name, accepted=f"a column of {kind}")
        column = table.column(name)
        if str(column.type) != kind or column.null_count:
            raise InputError(file=path, field=name, found=str(column.type), accepted=f"{kind} without gaps")
    return table


def _read_steps(path: Path) -> Steps | None:
    if not (path / "steps.parquet").exists():
        return None
    table = _read_table(path / "steps.parquet")
    columns = {name: numpy_column(table.column(name)) for name in table.column_names}
    batches = None
    if (path / "batches.parquet").exists():
        file = path / "batches.parquet"
        entries = _read_table(file, step="int64", request="int64", new_tokens="int64", computed_tokens="int64")
        step = numpy_column(entries.column("step"))
        if (np.diff(step) < 0).any() or (len(step) and not 0 <= step[0] <= step[-1] < table.num_rows):
            raise InputError(file=file, field="step", accepted=f"0 to {table.num_rows - 1}, ascending")
        counts = np.bincount(step, minlength=table.num_rows)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        batches = Batches(
            offsets, *(numpy_column(entries.column(name)) for name in ("request", "new_tokens", "computed_tokens"))
        )
    return steps_from_columns(columns, batches)


def _read_transfers(path: Path, n_requests: int) -> KVTransfers | None:
    file = path / "transfers.parquet"
    if not file.exists():
        return None
    kinds = {name: "int64" if name in WHOLE_COLUMNS else "double" for name in TRANSFER_COLUMNS}
    table = _read_table(file, **kinds)
    found = transfers_from_columns({name: numpy_column(table.column(name)) for name in TRANSFER_COLUMNS}, file)
    if len(found) and not 0 <= found.request.min() <= found.request.max() < n_requests:
        raise InputError(file=file, field="request", accepted=f"0 to {n_requests - 1}")
    return found


def _read_series(path: Path) -> dict[str, Series]:
    if not (path / "series.parquet").exists():
        return {}
    table = _read_table(path / "series.parquet", name="string", time_s="double", value="double")
    names = np.asarray(table.column("name").to_pylist())
    time_s, value = numpy_column(table.column("time_s")), numpy_column(table.column("value"))
    series = {str(name): Series(time_s[names == name], value[names == name]) for name in np.unique(names)}
    if "begin_s" in table.column_names:
        begin_s = numpy_column(_read_table(path / "series.parquet", begin_s="double").column("begin_s"))
        series = {name: _with_begins(one, begin_s[names == name], path) for name, one in series.items()}
    return series


def _with_begins(series: Series, begin_s: Floats, path: Path) -> Series:
    """A series whose windows begin there; as it is where none is told. Raises InputError for what are no windows."""
    if np.isnan(begin_s).all():
        return series
    if not (begin_s < series.time_s).all() or not (begin_s[1:] >= series.time_s[:-1]).all():
        accepted = "before time_s, and not before the row above ends"
        raise InputError(file=path / "series.parquet", field="begin_s", accepted=accepted)
    return replace(series, begin_s=begin_s)
