"""Reads what the step recorder wrote: a header for each start of the engine, its steps, its requests as they ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from collectors.request_ids import id_of_engine
from traces.decoding import decode_json
from traces.errors import CollectorError, InputError

FLUSHED_WITHIN_S = 1.5
"""By when the recorder has written what it knows: it writes four times a second."""


class _Any(msgspec.Struct):
    """What every line of the recorder says first, and what those that tell of trouble say."""

    kind: str
    reason: str = ""
    records: dict[str, int] = {}


class RecordedHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The `header` line of the recorder."""

    vllm_version: str
    wall_ns: int
    monotonic_ns: int
    num_gpu_blocks: int
    options: dict[str, Any]
    engine: dict[str, Any] = {}

    @property
    def wall_minus_monotonic_s(self) -> float:
        """Between the host's two clocks when the engine started."""
        return (self.wall_ns - self.monotonic_ns) / 1e9


class RecordedStep(msgspec.Struct, frozen=True, kw_only=True):
    """A `step` line of the recorder."""

    index: int
    schedule_begin_ns: int
    schedule_end_ns: int
    output_ns: int
    update_end_ns: int
    requests: tuple[tuple[str, int, int], ...]
    tokens: tuple[tuple[str, int], ...]
    preempted: tuple[str, ...]
    n_running: int
    n_waiting: int
    kv_blocks: int
    recorder_ns: int | None = None


class RecordedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A `request` line of the recorder."""

    id: str
    arrival_wall_s: float
    queued_ns: int
    end_ns: int
    prompt_tokens: int
    max_tokens: int
    output_tokens: int
    num_preemptions: int
    reason: str
    block_hashes: tuple[int, ...] = ()
    scheduled_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    cached_tokens: int | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Recording:
    """One engine's record.

    Attributes:
        header: of its latest start.
        steps: in the order they were planned.
        requests: by the id that the client gave them; an id given before goes by the engine's own.
        trouble: why some of it may be missing.
    """

    header: RecordedHeader
    steps: list[RecordedStep]
    requests: dict[str, RecordedRequest]
    trouble: tuple[str, ...] = ()


def sizes(path: Path) -> dict[str, int]:
    """Bytes that the recorder has written up to now, by file: one for each data-parallel rank. No file, no entry."""
    return {str(file): file.stat().st_size for file in _files(path)}


def read_recordings(path: Path, skipped_bytes: Mapping[str, int] | None = None) -> tuple[Recording, ...]:
    """Read the files of all data-parallel ranks, in their order.

    Args:
        path: of rank 0; the others have a number behind it.
        skipped_bytes: by file, what had been written before and is of no interest.

    Raises:
        InputError: a line is not the recorder's.
        CollectorError: a file is missing, or holds no header.
    """
    files = _files(path)
    if not files:
        raise CollectorError(f"{path}: no such file; is the server running with the recorder and SERVETWIN_STEPS?")
    return tuple(_read(file, (skipped_bytes or {}).get(str(file), 0)) for file in files)


def whole_lines(stream: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Number, end in bytes, and text of each line; not of one that the server is writing, or was cut off in."""
    end = 0
    for number, line in enumerate(stream, start=1):
        end += len(line)
        if line.endswith(b"\n"):
            yield number, end, line


def _files(path: Path) -> list[Path]:
    ranks = [file for file in path.parent.glob(f"{path.name}.*") if file.suffix[1:].isdigit()]
    return [file for file in (path, *sorted(ranks, key=lambda file: int(file.suffix[1:]))) if file.is_file()]


def _read(path: Path, skipped_bytes: int) -> Recording:
    header: RecordedHeader | None = None
    steps: list[RecordedStep] = []
    requests: dict[str, RecordedRequest] = {}
    trouble: list[str] = []
    with path.open("rb") as stream:
        for number, end, line in whole_lines(stream):
            told = decode_json(line, _Any, file=path, line=number)
            if told.kind == "header":
                header = decode_json(line, RecordedHeader, file=path, line=number)
            elif told.kind == "refused":
                header, trouble = None, [f"the recorder was off: {told.reason}"]
            elif end <= skipped_bytes or told.kind == "summary":
                continue
            elif told.kind == "step":
                steps.append(decode_json(line, RecordedStep, file=path, line=number))
            elif told.kind == "request":
                request = decode_json(line, RecordedRequest, file=path, line=number)
                name = id_of_engine(request.id)
                requests[request.id if name in requests else name] = request
            elif told.kind == "stopped":
                trouble.append(f"the recorder stopped while the server went on: {told.reason}")
            elif told.kind == "lost":
                lost = ", ".join(f"{count} {kind}" for kind, count in sorted(told.records.items()))
                trouble.append(f"the recorder lost lines while its file could not be written: {lost}")
            else:
                accepted = "header, step, request, summary, stopped, lost, refused"
                raise InputError(file=path, line=number, field="kind", found=told.kind, accepted=accepted)
    if header is None:
        why = "; ".join(trouble) or "holds no header; was the server started with the recorder?"
        raise CollectorError(f"{path}: {why}")
    steps.sort(key=lambda step: step.schedule_begin_ns)
    return Recording(header, steps, requests, tuple(trouble))
