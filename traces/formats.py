"""Which reader reads which file: the one place that knows every format of traces and of measured runs.

A format is told by what the file holds, never by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

from traces import llmservingsim_run, power_log, series_file
from traces.capture import Capture, read_capture
from traces.decoding import read_bytes
from traces.errors import InputError, nearest
from traces.readers import azure, lengths, llmservingsim, mooncake, otel, own, sharegpt, tracev2
from traces.readers.jsonl import keys
from traces.readers.mapped import how_to_map
from traces.readers.source import Reader, Source, first_line, whole
from traces.results import aiperf, guidellm, inference_perf, vllm_bench
from traces.trace import Trace, TraceRow, is_trace, read_trace


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """A format of traces.

    Attributes:
        fits: whether a file that starts with this line (the first that is not blank) is of the format.
        read: reads a file whole.
        rows: reads it row by row, where the format allows it.
    """

    fits: Callable[[bytes], bool]
    read: Callable[[Path], Trace]
    rows: Reader | None = None


def _by_rows(fits: Callable[[bytes], bool], rows: Reader) -> TraceFormat:
    return TraceFormat(fits, lambda path: whole(path, rows), rows)


TRACE_FORMATS: dict[str, TraceFormat] = {
    "servetwin": TraceFormat(is_trace, read_trace, own.rows),
    "llmservingsim": TraceFormat(llmservingsim.is_workload, llmservingsim.read_workload, llmservingsim.rows),
    "azure": _by_rows(azure.is_azure, azure.rows),
    "mooncake": _by_rows(mooncake.is_mooncake, mooncake.rows),
    "bailian": _by_rows(mooncake.is_bailian, mooncake.bailian_rows),
    "burstgpt": _by_rows(lengths.is_burstgpt, lengths.burstgpt_rows),
    "vidur": _by_rows(lengths.is_vidur, lengths.vidur_rows),
    "splitwise": _by_rows(lengths.is_splitwise, lengths.splitwise_rows),
    "tracev2": _by_rows(tracev2.is_tracev2, tracev2.rows),
    "otlp": _by_rows(otel.is_otlp, otel.rows),
    "spans": _by_rows(otel.is_journal, otel.journal_rows),
    "sharegpt": TraceFormat(sharegpt.is_sharegpt, lambda path: sharegpt.read_sharegpt(path, None)),
}
"""By name. No file fits two of them."""

CAPTURE_FOLDERS = ("servetwin", "llmservingsim")
"""Formats of a run that are folders."""
CAPTURE_FILES = {
    "aiperf": "profile_export.jsonl",
    "guidellm": "benchmarks.json",
    "inference-perf": "per_request_lifecycle_metrics.json",
}
"""Of the folders that load generators write, the file with a row per request."""
POWER_LOGS = ("nvidia-smi", "ipmitool")
TIMED_BY_CLOCK = ("series", *POWER_LOGS)
"""Formats of files whose times can be read in several ways."""
CAPTURE_FORMATS = (*CAPTURE_FOLDERS, "vllm-bench", *CAPTURE_FILES, *TIMED_BY_CLOCK)


def read_any_trace(path: Path, format: str | None = None, tokenizer: Path | None = None) -> Trace:
    """Read a trace of any known format, told by its first line unless `format` names it.

    `tokenizer` (a tokenizer.json, or a model's folder with one) is for formats that hold text. Raises InputError.
    """
    known = _trace_format(path, format)
    if tokenizer is None:
        return known.read(path)
    if known is not TRACE_FORMATS["sharegpt"]:
        raise InputError(field="--tokenizer", found=str(tokenizer), accepted="only with text, as sharegpt has")
    return sharegpt.read_sharegpt(path, tokenizer)


class TraceStream:
    """The rows of a trace one by one, as they are read: memory does not grow with the file.

    What can only be known of a whole file is not checked: that ids are unique. A format that cannot be read row by row
    (ShareGPT's, one JSON value) is read whole first.
    """

    def __init__(self, path: Path, format: str | None = None) -> None:
        """Nothing is read but the first line. Raises InputError."""
        self._path = path
        self._format = _trace_format(path, format)
        self._source = Source(path)
        self._whole = None if self._format.rows is not None else self._format.read(path)

    def __iter__(self) -> Generator[TraceRow]:
        """The rows; whoever leaves off before their end closes them.

        Raises InputError, also where arrivals do not ascend.
        """
        if self._format.rows is None:
            assert self._whole is not None
            yield from self._whole.rows
            return
        previous_s = 0.0
        with self._source as source:
            for line, row in self._format.rows(source):
                if row.arrival_s < previous_s:
                    accepted = (
                        f"arrivals in ascending order, from second {previous_s} on; read whole, a trace is sorted"
                    )
                    raise InputError(file=self._path, line=line, found=row.arrival_s, accepted=accepted)
                previous_s = row.arrival_s
                yield row

    @property
    def share_read(self) -> float:
        """How much of the file was read so far, from 0 to 1."""
        return 1.0 if self._whole is not None else self._source.share_read()

    def trace(self) -> Trace:
        """The trace without its rows: its block size is known once the first row is, all else once all rows are."""
        if self._whole is not None:
            return replace(self._whole, rows=())
        source = self._source
        return Trace((), source.hash_block_size, str(self._path), source.sha256(), source.all_notes())


def stream_trace(path: Path, format: str | None = None) -> Generator[TraceRow]:
    """The rows of a `TraceStream`. Raises InputError."""
    return iter(TraceStream(path, format))


def _trace_format(path: Path, name: str | None) -> TraceFormat:
    if path.is_dir():
        accepted = "a file; of a folder of ServeGen's clients, what `servetwin trace synth --servegen` draws"
        raise InputError("is a folder", file=path, accepted=accepted)
    if name is None:
        line, text = first_line(path)
        if not text:
            raise InputError("is empty", file=path, accepted="a trace with at least one request")
        name = next((name for name, known in TRACE_FORMATS.items() if known.fits(text)), None)
        if name is None:
            accepted = f"a trace in one of the formats {', '.join(TRACE_FORMATS)}; or {how_to_map(path, text)}"
            raise InputError("is of no known format", file=path, line=line, accepted=accepted)
    if name not in TRACE_FORMATS:
        raise InputError("unknown trace format", found=name, accepted=nearest(name, TRACE_FORMATS))
    return TRACE_FORMATS[name]


def import_capture(
    path: Path,
    format: str | None = None,
    trace: Trace | None = None,
    part: int | None = None,
    clock: series_file.SeriesClock = series_file.AS_WRITTEN,
) -> Capture:
    """Read a measured run of any known format, told by the files in its folder unless `format` names it.

    Of a folder that a load generator wrote, the file with a row per request is read; a table is a plain time series,
    and needs the trace. `trace` is the workload that the run served, for formats that do not hold it; servetwin's own
    captures do. `part` is one of several runs in a file, by number. `clock` says how the times of a plain time series
    are to be read. Raises InputError.
    """
    if not path.exists():
        raise InputError("no such file or folder", file=path)
    format = format or _capture_format(path)
    if format not in CAPTURE_FORMATS:
        raise InputError("unknown capture format", found=format, accepted=nearest(format, CAPTURE_FORMATS))
    _check_asked(path, format, part, clock)
    file = path / CAPTURE_FILES[format] if path.is_dir() and format in CAPTURE_FILES else path
    match format:
        case "servetwin":
            if trace is not None:
                raise InputError("holds its own trace", file=path, accepted="no other trace beside it")
            return read_capture(path)
        case "llmservingsim":
            return llmservingsim_run.read_run(path, trace)
        case "vllm-bench":
            return vllm_bench.read_vllm_bench(file, trace)
        case "guidellm":
            return guidellm.read_guidellm(file, part, trace)
        case "aiperf":
            return aiperf.read_aiperf(file, trace)
        case "inference-perf":
            return inference_perf.read_inference_perf(file, part, trace)
        case "nvidia-smi" | "ipmitool":
            return power_log.read_power_log_capture(path, trace, clock, format)
        case _:
            return series_file.read_series_capture(path, trace, clock)


def _check_asked(path: Path, format: str, part: int | None, clock: series_file.SeriesClock) -> None:
    """Raise InputError for a file where a folder is needed, and for what is asked and has no effect."""
    if path.is_file() and format in CAPTURE_FOLDERS:
        accepted = f"a folder, as {format} has, or --format series"
        raise InputError("is not a folder", file=path, accepted=accepted)
    if part is not None and format not in ("guidellm", "inference-perf"):
        raise InputError(field="--part", found=part, accepted=f"nothing for {format}, which holds one run")
    if clock != series_file.AS_WRITTEN and format not in TIMED_BY_CLOCK:
        raise InputError(field="--times, --zero", accepted=f"nothing for {format}, whose times say what they are of")


def _capture_format(path: Path) -> str:
    if path.is_file():
        return _file_format(path)
    if (path / "outcomes.parquet").is_file():
        return "servetwin"
    if llmservingsim_run.is_run(path):
        return "llmservingsim"
    if known := next((name for name, file in CAPTURE_FILES.items() if (path / file).is_file()), None):
        return known
    accepted = (
        "meta.json with outcomes.parquet (servetwin) or with requests.jsonl (llmservingsim); "
        f"{', '.join(f'{file} ({name})' for name, file in CAPTURE_FILES.items())}; a file"
    )
    raise InputError("is a run of no known format", file=path, accepted=accepted)


def _file_format(path: Path) -> str:
    """The format of a file: JSON is told by its outermost names; what is no power log either is a table of series."""
    data = read_bytes(path).lstrip()
    if data.startswith(b"["):
        return "inference-perf"
    if not data.startswith(b"{"):
        return power_log.power_log_tool(data) or "series"
    first_line = data.split(b"\n", 1)[0]
    names = keys(first_line) or keys(data)
    if "metadata" in names and "metrics" in names:
        return "aiperf"
    if "benchmarks" in names:
        return "guidellm"
    if names.keys() & {"input_lens", "ttfts", "mean_ttft_ms", "request_throughput"}:
        return "vllm-bench"
    accepted = f"what one of {', '.join(CAPTURE_FORMATS)} writes"
    raise InputError("is a run of no known format", file=path, line=1, accepted=accepted)
