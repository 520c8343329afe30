"""Changes that need one row of a trace at a time: a part of the time, another rate, other lengths.

`traces.reshape` applies them to a whole trace, `traces.load.LoadStream` to rows as they are read. Each is told every
row once, in order of arrival, and then says what it did. Fields of errors are called as `name` says: an option of the
command line, or a key of a file.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import inf
from typing import Protocol

import msgspec

from traces.errors import InputError
from traces.hashes import stretched
from traces.trace import TraceRow

Naming = Callable[[str], str]
"""What the caller calls a parameter, such as `--speed` for `speed`."""

LEAST_SCALE, MOST_SCALE = 0.001, 1000.0
"""Factors of lengths: beyond them a number of tokens was given for a factor."""

_MOST_TOKENS = 2**63 - 1


class RowChange(Protocol):
    """One change."""

    def row(self, row: TraceRow) -> TraceRow | None:
        """The row as it is now; None: it is left out. Raises InputError."""
        ...

    def ended(self) -> list[str]:
        """Notes on what was done, once all rows have passed. Raises InputError where that was nothing."""
        ...


class Window:
    """The requests that arrive from `start_s` on and before `end_s`; the start becomes second 0."""

    def __init__(self, start_s: float, end_s: float, name: Naming = str) -> None:
        """Raises InputError for a window that is none."""
        self._field = name("start_s" if start_s else "end_s")
        if not 0 <= start_s < end_s:
            accepted = f"{name('start_s')} from second 0 on, before {name('end_s')}"
            raise InputError(field=self._field, found=f"{start_s:g} to {end_s:g}", accepted=accepted)
        self._start_s, self._end_s = start_s, end_s
        self._n_left = self._n = 0

    def row(self, row: TraceRow) -> TraceRow | None:
        """The row, that much earlier; None outside the window."""
        self._n += 1
        if not self._start_s <= row.arrival_s < self._end_s:
            return None
        self._n_left += 1
        return msgspec.structs.replace(row, arrival_s=row.arrival_s - self._start_s)

    def ended(self) -> list[str]:
        """Which part it was. Raises InputError where no row arrived in it."""
        note = f"requests from second {self._start_s:g} to {self._end_s:g}, {self._n_left} of {self._n}"
        if not self._n_left:
            raise InputError(f"no request is left: {note}", field=self._field)
        return [note]


class Speed:
    """Arrivals at `factor` times the rate; delays within sessions stay."""

    def __init__(self, factor: float, name: Naming = str) -> None:
        """Raises InputError for a factor that is none."""
        self._field = name("speed")
        if not 0 < factor < inf:
            raise InputError(field=self._field, found=factor, accepted="a factor above 0")
        self._factor = factor
        self._is_any_later = False

    def row(self, row: TraceRow) -> TraceRow:
        """The row, sooner or later. Raises InputError where that is never."""
        arrival_s = row.arrival_s / self._factor
        if arrival_s == inf:
            accepted = f"a factor by which request {row.request_id!r}, at second {row.arrival_s:g}, still arrives"
            raise InputError(field=self._field, found=self._factor, accepted=accepted)
        self._is_any_later |= arrival_s > 0
        return msgspec.structs.replace(row, arrival_s=arrival_s)

    def ended(self) -> list[str]:
        """The factor. Raises InputError where all rows arrive at second 0, whatever it is."""
        if not self._is_any_later:
            raise InputError("has no effect: all requests arrive at second 0", field=self._field)
        return [f"arrivals at {self._factor:g} times the rate"]


class Scaling:
    """Prompts and answers of other lengths: times a factor each, to the nearest token, at least 1.

    Prompts that share a prefix share one that is as much longer, down to whole blocks (`traces.hashes.stretched`).
    Blocks of answers stay where answers are scaled as prompts are. Where not, they are left out: a later prompt that
    holds the answer would hold it at another length than the answer has.
    """

    def __init__(
        self, prompt_scale: float, output_scale: float, hash_block_size: int | None, name: Naming = str
    ) -> None:
        """Of rows whose hashes are of blocks of so many tokens. Raises InputError for a factor that is none."""
        for field, factor in (("prompt_scale", prompt_scale), ("output_scale", output_scale)):
            if not LEAST_SCALE <= factor <= MOST_SCALE:
                accepted = f"a factor from {LEAST_SCALE:g} to {MOST_SCALE:g}"
                raise InputError(field=name(field), found=factor, accepted=accepted)
        self._said = f"prompts at {prompt_scale:g} times their length, answers at {output_scale:g} times"
        self._prompt, self._output = _decimal(prompt_scale), _decimal(output_scale)
        self._hash_block_size = hash_block_size
        self._name = name
        self._n_answers = self._n_within = 0

    def row(self, row: TraceRow) -> TraceRow:
        """The row with other lengths. Raises InputError where they are beyond 64 bits."""
        prompt_tokens, output_tokens = _times(row.prompt_tokens, self._prompt), _times(row.output_tokens, self._output)
        for field, tokens in (("prompt_scale", prompt_tokens), ("output_scale", output_tokens)):
            if tokens > _MOST_TOKENS:
                accepted = f"at most {_MOST_TOKENS} tokens of request {row.request_id!r}"
                raise InputError(field=self._name(field), found=tokens, accepted=accepted)
        hashes = row.block_hashes
        if self._prompt != self._output:
            self._n_within += row.session_id is not None or row.after is not None
            if hashes is not None and self._hash_block_size is not None:
                hashes = hashes[: row.prompt_tokens // self._hash_block_size]
                self._n_answers += hashes != row.block_hashes
        if hashes is not None:
            hashes = stretched(hashes, self._prompt)
        return msgspec.structs.replace(
            row, prompt_tokens=prompt_tokens, output_tokens=output_tokens, block_hashes=hashes
        )

    def ended(self) -> list[str]:
        """The factors, and how many requests they do not fit."""
        notes = [self._said]
        if self._n_answers:
            notes.append(f"blocks of {self._n_answers} answers are left out: prompts that hold them are scaled unlike")
        if self._n_within:
            notes.append(f"{self._n_within} requests of sessions: answers within their prompts are scaled as prompts")
        return notes


def _decimal(factor: float) -> Fraction:
    """The factor exactly as it is written, so that 10 blocks times 0.1 are one block."""
    return Fraction(str(float(factor)))


def _times(tokens: int, factor: Fraction) -> int:
    """To the nearest whole number, from a half on up, at least 1.

    Rounded so, prompt and answer together have no fewer full blocks than `stretched` gives hashes.
    """
    return max(1, (2 * tokens * factor.numerator + factor.denominator) // (2 * factor.denominator))
