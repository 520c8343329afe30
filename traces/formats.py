"""Which reader reads which file: the one place that knows every format of traces and of measured runs.

A format is told by what the file holds, never by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from traces import llmservingsim, series_file
from traces.capture import Capture, read_capture
from traces.decoding import lines, read_bytes
from traces.errors import InputError, nearest
from traces.trace import Trace, is_trace, read_trace

TRACE_FORMATS: dict[str, tuple[Callable[[bytes], bool], Callable[[Path], Trace]]] = {
    "servetwin": (is_trace, read_trace),
    "llmservingsim": (llmservingsim.is_workload, llmservingsim.read_workload),
}
"""By name: whether a file's first line is of the format, and its reader."""

CAPTURE_FORMATS = ("servetwin", "llmservingsim", "series")


def read_any_trace(path: Path, format: str | None = None) -> Trace:
    """Read a trace of any known format, told by its first line unless `format` names it. Raises InputError."""
    if format is None:
        _, first_line = next(lines(read_bytes(path)), (0, b""))
        if not first_line:
            raise InputError("is empty", file=path, accepted="a trace with at least one request")
        format = next((name for name, (fits, _) in TRACE_FORMATS.items() if fits(first_line)), None)
        if format is None:
            accepted = f"a trace in one of the formats {', '.join(TRACE_FORMATS)}"
            raise InputError("is of no known format", file=path, line=1, accepted=accepted)
    if format not in TRACE_FORMATS:
        raise InputError("unknown trace format", found=format, accepted=nearest(format, TRACE_FORMATS))
    return TRACE_FORMATS[format][1](path)


def import_capture(path: Path, format: str | None = None, trace: Trace | None = None) -> Capture:
    """Read a measured run of any known format, told by the files in its folder unless `format` names it.

    A file is a plain time series, and needs the trace.
    `trace` is the workload that the run served, for formats that do not hold it; servetwin's own captures do.
    Raises InputError.
    """
    if not path.exists():
        raise InputError("no such file or folder", file=path)
    format = format or _capture_format(path)
    if path.is_file() and format in CAPTURE_FORMATS and format != "series":
        raise InputError("is not a folder", file=path, accepted=f"a folder, as {format} has, or --format series")
    match format:
        case "servetwin":
            if trace is not None:
                raise InputError("holds its own trace", file=path, accepted="no other trace beside it")
            return read_capture(path)
        case "llmservingsim":
            return llmservingsim.read_run(path, trace)
        case "series":
            return series_file.read_series_capture(path, trace)
        case unknown:
            raise InputError("unknown capture format", found=unknown, accepted=nearest(unknown, CAPTURE_FORMATS))


def _capture_format(path: Path) -> str:
    if path.is_file():
        return "series"
    if (path / "outcomes.parquet").is_file():
        return "servetwin"
    if llmservingsim.is_run(path):
        return "llmservingsim"
    accepted = "meta.json with outcomes.parquet (servetwin) or with requests.jsonl (llmservingsim); a file (series)"
    raise InputError("is a run of no known format", file=path, accepted=accepted)
