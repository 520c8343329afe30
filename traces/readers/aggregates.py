"""Aggregate rows: mean TTFT and TPOT that were measured at a concurrency, a row per run, without its requests.

CSV or JSON Lines, of any tool whose columns say what they hold: `ALIASES` has the names, which state the unit. TPOT is
(latency - ttft) / (output tokens - 1), averaged over requests, as `vllm bench serve` and AIConfigurator's samples of
measured runs have it: the first token is not in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traces.decoding import decode_json
from traces.errors import InputError
from traces.readers.source import Source, first_line
from traces.readers.table import Cells, cells
from traces.trace import Trace, TraceRow

ALIASES = {
    "prompt_tokens": ("isl", "prompt_tokens"),
    "output_tokens": ("osl", "output_tokens"),
    "concurrency": ("concurrency", "conc", "batch_size"),
    "mean_ttft_ms": ("mean_ttft_ms", "ttft_ms", "silicon_ttft_ms"),
    "mean_tpot_ms": ("mean_tpot_ms", "tpot_ms", "silicon_tpot_ms"),
    "model": ("model", "model_path"),
    "tensor_parallel_size": ("tensor_parallel_size", "tp", "tp_size"),
    "pipeline_parallel_size": ("pipeline_parallel_size", "pp", "pp_size"),
}
"""What is read, and the columns it may stand in."""
OPTIONAL = ("model", "tensor_parallel_size", "pipeline_parallel_size")
_KNOWN = [name for names in ALIASES.values() for name in names]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A measured run of a closed loop whose requests had all the same lengths.

    Attributes:
        line: where it stands.
        concurrency: seats, each of which sends its next request when its last has ended.
        mean_ttft_s: mean time to first token.
        mean_tpot_s: mean of the requests' (latency - ttft) / (output tokens - 1).
        model: its name; None: not stated, as with the two degrees.
    """

    line: int
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    mean_ttft_s: float
    mean_tpot_s: float
    model: str | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None


def read_aggregates(path: Path, where: Sequence[str] = ()) -> tuple[list[Aggregate], tuple[str, ...]]:
    """The rows of a file, and what is to be said of it; `where` (`column=value`, all of them) picks some.

    Raises InputError with file, line and field.
    """
    wanted = _wanted(where)
    found: list[Aggregate] = []
    left_out = 0
    with Source(path) as source:
        for row in _rows(source, [*_KNOWN, *wanted]):
            for column in wanted:
                if column not in row.text:
                    accepted = "a column of the rows"
                    raise InputError("is missing", file=path, line=row.line, field=column, accepted=accepted)
            if any(row.text[column] != value for column, value in wanted.items()):
                left_out += 1
            else:
                found.append(_aggregate(row))
    if not found:
        raise InputError("no row is left" if left_out else "holds no rows", file=path, accepted="at least one row")
    if left_out:
        source.notes.append(f"{left_out} rows were left out: not {', '.join(where)}")
    return found, source.all_notes()


def closed_loop_trace(row: Aggregate, rounds: int) -> Trace:
    """`rounds` requests for each seat, of the row's lengths; no prefixes are shared. Raises InputError."""
    if rounds < 1:
        raise InputError(field="--rounds", found=rounds, accepted="at least 1")
    requests = tuple(
        TraceRow(request_id=str(i), arrival_s=0.0, prompt_tokens=row.prompt_tokens, output_tokens=row.output_tokens)
        for i in range(rounds * row.concurrency)
    )
    source = f"{rounds} rounds of {row.concurrency} seats, prompt {row.prompt_tokens}, output {row.output_tokens}"
    return Trace(requests, None, source, "")


def _wanted(where: Sequence[str]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for text in where:
        column, equals, value = text.partition("=")
        if not equals or not column or column in wanted:
            raise InputError(field="--where", found=text, accepted="column=value, each column once")
        wanted[column] = value
    return wanted


def _rows(source: Source, known: Sequence[str]) -> Iterator[Cells]:
    _, first = first_line(source.path)
    if not first.lstrip().startswith(b"{"):
        yield from cells(source, (), known)
        return
    unread: Counter[str] = Counter()
    for line, data in source.lines():
        value = decode_json(data, dict[str, Any], file=source.path, line=line)
        unread.update(name for name in value if name not in known)
        yield Cells(source.path, line, {k: "" if v is None else str(v) for k, v in value.items()})
    if unread:
        source.notes.append(f"fields that were not read: {', '.join(sorted(unread))}")


def _aggregate(row: Cells) -> Aggregate:
    column = {name: found for name in ALIASES if (found := _column(row, name)) is not None}
    count = {
        name: _count(row, column[name], 2 if name == "output_tokens" else 1)
        for name in column
        if name not in ("model", "mean_ttft_ms", "mean_tpot_ms")
    }
    return Aggregate(
        line=row.line,
        mean_ttft_s=_seconds(row, column["mean_ttft_ms"]),
        mean_tpot_s=_seconds(row, column["mean_tpot_ms"]),
        model=row.text[column["model"]] if "model" in column else None,
        **count,
    )


def _column(row: Cells, name: str) -> str | None:
    """The column in which something stands; an optional one may be absent or empty. Raises InputError."""
    found = [alias for alias in ALIASES[name] if alias in row.text]
    if len(found) > 1:
        raise InputError("are two names of one thing", file=row.file, line=row.line, field=", ".join(found))
    if name in OPTIONAL:
        return found[0] if found and row.text[found[0]] else None
    if not found:
        accepted = f"one of {', '.join(ALIASES[name])}"
        raise InputError("is missing", file=row.file, line=row.line, field=name, accepted=accepted)
    return found[0]


def _count(row: Cells, column: str, least: int) -> int:
    if (number := row.count(column)) < least or number > 2**31:
        raise row.error(column, f"a whole number from {least} to 2**31")
    return number


def _seconds(row: Cells, column: str) -> float:
    if (time_s := row.seconds(column, per_second=1000)) <= 0:
        raise row.error(column, "milliseconds, above 0")
    return time_s
