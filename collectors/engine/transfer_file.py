"""Reads what the transfer recorder wrote: a header for each start of the engine, and the prompts whose KV it read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from collectors.engine.step_file import Recording, whole_lines
from collectors.request_ids import id_of_engine
from traces.decoding import decode_json
from traces.errors import CollectorError, InputError
from traces.transfers import KVTransfers, transfers_from_columns


class _Any(msgspec.Struct):
    """What every line says first, and what those that tell of trouble say."""

    kind: str
    reason: str = ""


class RecordedTransfer(msgspec.Struct, frozen=True, kw_only=True):
    """A `transfer` line of the recorder. What NIXL did not say is None."""

    id: str
    n_blocks: int
    asked_ns: int
    posted_ns: int
    found_ns: int
    under_way_ns: int | None = None
    failed: bool = False
    n_bytes: int | None = None
    n_descriptors: int | None = None
    transfer_s: float | None = None
    post_s: float | None = None

    def times_s(self) -> tuple[float, float, float]:
        """When it was posted, when it was last seen under way, and when all was there, on the host's monotonic clock.

        NIXL's time of a transfer ends when the engine looks and finds it over, unless it was over once it was posted:
        then the two times that NIXL gives are the same, and are its own. Without them it was posted when asked for.
        """
        asked_s, found_s = self.asked_ns / 1e9, self.found_ns / 1e9
        if self.transfer_s is not None and self.transfer_s == self.post_s:
            return asked_s, asked_s + self.transfer_s, asked_s + self.transfer_s
        start_s = asked_s if self.transfer_s is None else max(asked_s, found_s - self.transfer_s)
        seen_s = start_s if self.under_way_ns is None else self.under_way_ns / 1e9
        return start_s, min(max(start_s, seen_s), found_s), found_s


@dataclass(frozen=True, slots=True)
class TransferRecording:
    """The transfers that one engine read, by the client's id, and why some may be missing."""

    transfers: dict[str, RecordedTransfer]
    trouble: tuple[str, ...] = ()


def read_transfers(path: Path, skipped_bytes: int = 0) -> TransferRecording:
    """Read the recorder's file, but for what had been written before and is of no interest.

    Raises:
        InputError: a line is not the recorder's.
        CollectorError: the file is missing.
    """
    transfers: dict[str, RecordedTransfer] = {}
    trouble: list[str] = []
    try:
        stream = path.open("rb")
    except OSError:
        why = "is the decode server running with the transfer recorder and SERVETWIN_TRANSFERS?"
        raise CollectorError(f"{path}: no such file; {why}") from None
    with stream:
        for number, end, line in whole_lines(stream):
            told = decode_json(line, _Any, file=path, line=number)
            if told.kind in ("refused", "stopped"):
                trouble.append(f"the transfer recorder was off: {told.reason}")
            elif told.kind == "header" or end <= skipped_bytes:
                continue
            elif told.kind == "transfer":
                transfer = decode_json(line, RecordedTransfer, file=path, line=number)
                transfers[id_of_engine(transfer.id)] = transfer
            elif told.kind == "lost":
                trouble.append("the transfer recorder lost lines while its file could not be written")
            else:
                accepted = "header, transfer, stopped, lost, refused"
                raise InputError(file=path, line=number, field="kind", found=told.kind, accepted=accepted)
    return TransferRecording(transfers, tuple(trouble))


def transfers_of(
    read: TransferRecording, recordings: Sequence[Recording], ids: Mapping[str, int], origin_s: float
) -> KVTransfers:
    """The transfers of the requests that a capture holds.

    The prompt was computed by the first of the engines that have a record of the request, and read by the last. Those
    that failed, and those of unknown size, are left out.

    Args:
        read: of the engine that reads.
        recordings: of the step recorder, one for each engine.
        ids: each request's place among the capture's outcomes, by the client's id.
        origin_s: second 0 of the capture on the host's monotonic clock.
    """
    rows = []
    for name, one in read.transfers.items():
        engines = [number for number, recording in enumerate(recordings) if name in recording.requests]
        if name in ids and len(engines) > 1 and not one.failed and one.n_bytes is not None:
            start_s, under_way_s, end_s = (time_s - origin_s for time_s in one.times_s())
            rows.append((ids[name], engines[0], engines[-1], one.n_bytes, start_s, under_way_s, end_s))
    columns = np.array(rows, dtype=np.float64).reshape(-1, 7).T
    names = ("request", "source", "target", "n_bytes", "start_s", "under_way_s", "end_s")
    return transfers_from_columns(dict(zip(names, columns, strict=True)))
