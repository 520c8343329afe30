"""The prefixes of a trace's requests, as its engines know them: hashes at their block size, and no more than matter.

A trace may know prefixes by blocks larger than an engine's. Then each of its hashes stands for several of the engine's
blocks (`traces.hashes.refined`), and the engine's KV cache works with those hashes as they are
(`simulator.kv.kv_cache.KVCache.blocks_per_hash`). Blocks behind the last one that two requests have in common need no
hash at all: nobody asks for them, and the engine treats them as the request's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import overload

from traces.errors import InputError
from traces.hashes import refined, resized
from traces.trace import Trace, TraceRow


class BlockHashes(Sequence[int]):
    """Hashes of an engine's blocks, of which each of the trace's is `parts`: made only when somebody looks at them.

    Attributes:
        whole: the trace's hashes.
        parts: engine's blocks of each.
    """

    __slots__ = ("_length", "parts", "whole")

    def __init__(self, whole: Sequence[int], parts: int, length: int | None = None) -> None:
        """The first `length` blocks; None: all."""
        self.whole = whole
        self.parts = parts
        self._length = len(whole) * parts if length is None else length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...

    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        if isinstance(at, slice):
            first, end, step = at.indices(self._length)
            if first == 0 and step == 1:
                return BlockHashes(self.whole, self.parts, end)
        return refined(self.whole, self.parts)[: self._length][at]


class Prefixes:
    """Hashes of a trace's rows, for engines of one block size or another."""

    def __init__(self, trace: Trace, *, is_whole: bool = True) -> None:
        """Of a trace; `is_whole`: all of its requests are there, so that it is known which hashes only one has."""
        self._trace = trace
        self._counts: Counter[int] | None = None
        if is_whole and trace.hash_block_size is not None:
            self._counts = Counter()
            for row in trace.rows:
                self._counts.update(row.block_hashes or ())

    def blocks_per_hash(self, block_size: int) -> int:
        """Blocks of an engine that one hash of the trace stands for; 1 where they are no smaller."""
        size = self._trace.hash_block_size
        return size // block_size if size is not None and size % block_size == 0 else 1

    def blocks(self, row: TraceRow, block_size: int) -> Sequence[int]:
        """Hashes of all of a row's full blocks. Raises InputError when they cannot be brought to the block size."""
        if row.block_hashes is None or (parts := self.blocks_per_hash(block_size)) == 1:
            return engine_hashes(row, self._trace, block_size)
        return BlockHashes(row.block_hashes, parts)

    def shared(self, row: TraceRow, block_size: int) -> tuple[int, ...]:
        """Hashes, of `blocks_per_hash` blocks each, up to the last that another request may have too.

        Raises InputError.
        """
        if row.block_hashes is None:
            return ()
        end = len(row.block_hashes)
        if self._counts is not None:
            while end and self._counts[row.block_hashes[end - 1]] == 1:
                end -= 1
        known = row.block_hashes[:end]
        return known if self.blocks_per_hash(block_size) > 1 else _at_size(known, self._trace, block_size)


def engine_hashes(row: TraceRow, trace: Trace, block_size: int) -> tuple[int, ...]:
    """A row's hashes for blocks of the engine's size; () when it has none. Raises InputError."""
    return () if row.block_hashes is None else _at_size(row.block_hashes, trace, block_size)


def _at_size(hashes: Sequence[int], trace: Trace, block_size: int) -> tuple[int, ...]:
    """Hashes of the trace's blocks, for blocks of the engine's size.

    A hash covers all before its block, so that every k-th hash of small blocks is the hash of a block k times as
    large, and one of a large block stands for k small ones (`traces.hashes`). Raises InputError when neither size is a
    multiple of the other.
    """
    if trace.hash_block_size is None:
        return ()
    found = resized(hashes, trace.hash_block_size, block_size)
    if found is None:
        raise InputError(
            "prefix hashes cannot be brought to this block size",
            file=trace.source,
            field="hash_block_size",
            found=trace.hash_block_size,
            accepted=f"a divisor or a multiple of block_size {block_size}",
        )
    return found
