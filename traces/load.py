"""A load: which part of a trace is served, at which rate its requests come, and how long they are."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace
from math import inf

import msgspec

from traces import reshape
from traces.errors import InputError
from traces.row_changes import Naming, RowChange, Scaling, Speed, Window
from traces.trace import Trace, TraceRow


class Load(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to a trace before it is served, in this order. None: it is not done.

    Attributes:
        start_s: requests from this second on; it becomes second 0.
        end_s: requests before this second, counted as `start_s` is.
        share: of the requests, drawn at random, whole sessions together; above 0, at most 1.
        speed: so many times the rate of arrivals; delays within sessions stay.
        request_rate: requests offered per second, from the first arrival to the last, in place of `speed`.
        prompt_scale: prompts so many times as long, shared prefixes too.
        output_scale: answers so many times as long.
    """

    start_s: float | None = None
    end_s: float | None = None
    share: float | None = None
    speed: float | None = None
    request_rate: float | None = None
    prompt_scale: float | None = None
    output_scale: float | None = None

    def check(self, name: Naming = str) -> None:
        """Raise InputError, about what `name` calls it, for what can be done to no trace."""
        self.window(name)
        self.pace(name)
        self.lengths(None, name)
        if self.share is not None:
            reshape.check_share(self.share, name)
        if self.request_rate is not None:
            reshape.check_request_rate(self.request_rate, name)
            if self.speed is not None:
                raise InputError(field=name("request_rate"), found=f"{name('speed')} too", accepted="one of them")

    def window(self, name: Naming = str) -> Window | None:
        """The part of the time. Raises InputError."""
        if self.start_s is None and self.end_s is None:
            return None
        return Window(self.start_s or 0.0, inf if self.end_s is None else self.end_s, name)

    def pace(self, name: Naming = str) -> Speed | None:
        """The rate, where it is a multiple of the trace's. Raises InputError."""
        return None if self.speed is None else Speed(self.speed, name)

    def lengths(self, hash_block_size: int | None, name: Naming = str) -> Scaling | None:
        """The lengths, of a trace with hashes of such blocks. Raises InputError."""
        if self.prompt_scale is None and self.output_scale is None:
            return None
        prompt_scale, output_scale = (
            1.0 if scale is None else scale for scale in (self.prompt_scale, self.output_scale)
        )
        return Scaling(prompt_scale, output_scale, hash_block_size, name)


def loaded(trace: Trace, load: Load, seed: int, name: Naming = str) -> Trace:
    """The trace under a load; `seed` draws its share. Its notes say what was done.

    Raises InputError, about what `name` calls it, for what cannot be done to this trace.
    """
    load.check(name)
    if (window := load.window(name)) is not None:
        trace = reshape.changed(trace, window)
    if load.share is not None:
        trace = reshape.share(trace, load.share, seed, name)
    if load.request_rate is not None:
        trace = reshape.paced(trace, load.request_rate, name)
    if (pace := load.pace(name)) is not None:
        trace = reshape.changed(trace, pace)
    if (lengths := load.lengths(trace.hash_block_size, name)) is not None:
        trace = reshape.changed(trace, lengths)
    return trace


class LoadStream:
    """A load that rows come under one by one; without a share and a request rate, which need all of them."""

    def __init__(self, load: Load, hash_block_size: int | None, name: Naming = str) -> None:
        """No row has come yet; their hashes are of blocks of so many tokens. Raises InputError."""
        found = (load.window(name), load.pace(name), load.lengths(hash_block_size, name))
        self._changes: list[RowChange] = [change for change in found if change is not None]

    def rows(self, rows: Iterable[TraceRow]) -> Generator[TraceRow]:
        """The rows under the load. Raises InputError."""
        for row in rows:
            under: TraceRow | None = row
            for change in self._changes:
                if under is not None:
                    under = change.row(under)
            if under is not None:
                yield under

    def trace(self, trace: Trace) -> Trace:
        """The trace with notes on what was done to its rows, once all have passed. Raises InputError."""
        return replace(trace, notes=(*trace.notes, *(note for change in self._changes for note in change.ended())))
