"""The paged KV cache with prefix caching: which blocks are free, which are cached, what a prompt finds.

The rules are vLLM V1's (v1/core/block_pool.py, v1/core/kv_cache_manager.py of 0.32.0). A block is in use, or free; a
free block keeps its content, and can be found by its hash, until it is handed out again. Blocks have no numbers here:
a block that nobody can ever find by a hash is like any other such block, so the free queue holds them as *runs*, one
entry for any number of them. That makes the cost of a request depend on the blocks it may share, not on its length.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BlockHash = int | tuple[int, int]
"""Identity of a full block and all before it: the trace's hash, or (request index, block index) for a private one."""


class Block:
    """A full block that can be found by its hash."""

    __slots__ = ("hash", "ref_count")

    def __init__(self, hash_: BlockHash) -> None:
        self.hash = hash_
        self.ref_count = 1


class KVCache:
    """All KV blocks of one engine.

    Attributes:
        num_blocks: blocks that requests can hold: one less than the engine has, since block 0 is the null block that
            pads block tables.
        num_free: those that no request holds.
        num_evicted: cached blocks that were handed out again.
        num_cached_free: free blocks that hold the content of full blocks still.
    """

    def __init__(self, num_gpu_blocks: int, *, prefix_caching: bool, unfinished_first: bool = True) -> None:
        self.num_blocks = num_gpu_blocks - 1
        self.num_free = self.num_blocks
        self.num_evicted = 0
        self.num_cached_free = 0
        self._prefix_caching = prefix_caching
        self._unfinished_first = unfinished_first
        # Order of reuse. A Block stands for itself; an int key for a run of anonymous blocks, with its length.
        self._free: OrderedDict[Block | int, int] = OrderedDict({0: self.num_blocks})
        self._next_run = 1
        # Runs of full private blocks: nobody asks for their content, but it is there.
        self._full_runs: set[int] = set()
        # First in, first found: vLLM keeps duplicates of a hash and returns the one cached first.
        self._cached: dict[BlockHash, list[Block]] = {}

    @property
    def in_use(self) -> int:
        """Blocks that requests hold."""
        return self.num_blocks - self.num_free

    def find(self, hashes: Sequence[BlockHash], most: int) -> list[Block]:
        """The longest cached prefix, at most `most` blocks of it."""
        found: list[Block] = []
        if not self._prefix_caching or not self._cached:
            return found
        cached = self._cached
        for hash_ in hashes[:most]:
            blocks = cached.get(hash_)
            if blocks is None:
                break
            found.append(blocks[0])
        return found

    def num_free_without(self, found: Sequence[Block]) -> int:
        """Free blocks that would be left if these cached ones were taken into use."""
        return self.num_free - sum(block.ref_count == 0 for block in found)

    def hold(self, found: Sequence[Block]) -> None:
        """Take cached blocks into use."""
        for block in found:
            if block.ref_count == 0:
                del self._free[block]
                self.num_free -= 1
                self.num_cached_free -= 1
            block.ref_count += 1

    def allocate(self, count: int) -> None:
        """Take `count` free blocks into use, those to be reused first; the caller has seen that they are there."""
        self.num_free -= count
        free = self._free
        while count:
            entry = self._next_free()
            if isinstance(entry, int):
                length = free[entry]
                if entry in self._full_runs:
                    self.num_cached_free -= min(length, count)
                if length > count:
                    free[entry] = length - count
                    return
                del free[entry]
                self._full_runs.discard(entry)
                count -= length
            else:
                del free[entry]
                self._forget(entry)
                count -= 1

    def cache(self, hash_: BlockHash) -> Block:
        """Make a full block in use findable by its hash."""
        block = Block(hash_)
        self._cached.setdefault(hash_, []).append(block)
        return block

    def free(self, blocks: Sequence[Block], full: int, partial: int) -> None:
        """Give back a request's blocks: findable ones, `full` private ones behind them, `partial` unfinished ones.

        vLLM frees from the last block to the first, so that the end of a prefix goes before its beginning: unfinished
        blocks to the front of the queue (nothing in them can be found), full ones to its end. Up to vLLM 0.23 all go
        to its end (`simulator.rules`).
        """
        if partial or not self._prefix_caching:
            self._add_run(partial if self._prefix_caching else partial + full, front=self._unfinished_first)
        if full and self._prefix_caching:
            self._full_runs.add(self._next_run)
            self.num_cached_free += full
            self._add_run(full, front=False)
        for block in reversed(blocks):
            block.ref_count -= 1
            if block.ref_count == 0:
                self._release(block)

    def _release(self, block: Block) -> None:
        """Nobody holds a findable block any more: it is the last to be reused."""
        self._free[block] = 1
        self.num_free += 1
        self.num_cached_free += 1

    def allocate_each(self, counts: Sequence[int]) -> list[int]:
        """Allocate several times in a row. Returns `num_cached_free` after each."""
        entry = next(iter(self._free), None)
        total = sum(counts)
        if isinstance(entry, int) and entry not in self._full_runs and self._free[entry] >= total:
            # Nothing in them can be found: no content is lost.
            self.allocate(total)
            return [self.num_cached_free] * len(counts)
        after = []
        for count in counts:
            self.allocate(count)
            after.append(self.num_cached_free)
        return after

    def _next_free(self) -> Block | int:
        """What is reused next: a findable block, or the number of a run of others."""
        return next(iter(self._free))

    def forget(self) -> None:
        """Lose all content; every block must be free."""
        assert self.num_free == self.num_blocks, "blocks are in use"
        self._free = OrderedDict({0: self.num_blocks})
        self._next_run = 1
        self._full_runs.clear()
        self.num_cached_free = 0
        self._cached.clear()

    def _add_run(self, length: int, *, front: bool) -> None:
        if length == 0:
            return
        self.num_free += length
        run = self._next_run
        self._next_run += 1
        self._free[run] = length
        if front:
            self._free.move_to_end(run, last=False)

    def _forget(self, block: Block) -> None:
        """Evict a cached block: its content is about to be overwritten."""
        same = self._cached[block.hash]
        same.remove(block)
        self.num_cached_free -= 1
        if not same:
            del self._cached[block.hash]
        self.num_evicted += 1
