"""The paged KV cache with prefix caching: which blocks are free, which are cached, what a prompt finds.

The rules are vLLM V1's (v1/core/block_pool.py, v1/core/kv_cache_manager.py of 0.32.0). A block is in use, or free; a
free block keeps its content, and can be found by its hash, until it is handed out again. Blocks have no numbers here:
those that are always used together are a *run*, one object for any number of them. Of a trace that knows prefixes by
blocks larger than the engine's, each hash stands for several of the engine's blocks, mostly one run; blocks that nobody
can ever find are a run too. So the cost of a request depends on the hashes it has, and not on its length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from traces.steps import Ints

BlockHash = int | tuple[int, int]
"""Identity of full blocks and all before them: the trace's hash, or (request index, number) for a private one."""


class Run:
    """Blocks in a row, all of them in use by the same requests, or all of them free.

    Attributes:
        hash: by which they are found; None when they cannot be.
        first: the first of them, of those that the hash stands for.
        end: behind the last.
        ref_count: requests that hold them.
        rest: what was split off behind them while they were in use.
        is_full: whether their content is complete.
    """

    __slots__ = ("behind", "end", "first", "hash", "in_front", "is_full", "ref_count", "rest")

    def __init__(self, hash_: BlockHash | None, first: int, end: int, *, ref_count: int, is_full: bool = True) -> None:
        self.hash = hash_
        self.first = first
        self.end = end
        self.ref_count = ref_count
        self.is_full = is_full
        self.rest: Run | None = None
        # Neighbours in the free queue.
        self.in_front = self.behind = self


Found = Sequence[tuple[Run, int, int]]
"""Cached blocks as a search finds them: of each run the first of them, and the end."""

Held = list[tuple[Run, int]]
"""Blocks that a request holds: of each run where they end. A run that has been split goes on in its `rest`."""


def n_blocks(found: Found) -> int:
    """How many blocks were found."""
    return sum(end - first for _, first, end in found)


class KVCache:
    """All KV blocks of one engine.

    Attributes:
        num_blocks: blocks that requests can hold: one less than the engine has, since block 0 is the null block that
            pads block tables.
        blocks_per_hash: blocks that one hash stands for.
        num_free: those that no request holds.
        num_evicted: cached blocks that were handed out again.
        num_cached_free: free blocks that hold the content of full blocks still.
    """

    def __init__(
        self, num_gpu_blocks: int, *, prefix_caching: bool, unfinished_first: bool = True, blocks_per_hash: int = 1
    ) -> None:
        self.num_blocks = num_gpu_blocks - 1
        self.blocks_per_hash = blocks_per_hash
        self.num_evicted = 0
        self._prefix_caching = prefix_caching
        self._unfinished_first = unfinished_first
        self._reset()

    def _reset(self) -> None:
        """All blocks are free and nothing is in them."""
        self.num_free = 0
        self.num_cached_free = 0
        # Order of reuse: a ring, which begins behind this run of no blocks.
        self._queue = Run(None, 0, 0, ref_count=0)
        # First in, first found: vLLM keeps duplicates of a hash and returns the one cached first.
        self._cached: dict[BlockHash, list[Run]] = {}
        self._add_run(self.num_blocks, is_full=False, front=False)

    @property
    def in_use(self) -> int:
        """Blocks that requests hold."""
        return self.num_blocks - self.num_free

    def find(self, hashes: Sequence[BlockHash], most: int) -> Found:
        """The longest cached prefix, at most `most` blocks of it."""
        found: list[tuple[Run, int, int]] = []
        if not self._prefix_caching or not self._cached:
            return found
        cached, size = self._cached, self.blocks_per_hash
        for hash_ in hashes:
            runs = cached.get(hash_)
            if runs is None or most <= 0:
                break
            wanted, run = min(size, most), runs[0]
            if run.first == 0 and run.end >= wanted:
                found.append((run, 0, wanted))
            elif not _find_in(runs, wanted, found):
                break
            most -= wanted
        return found

    def n_found(self, hashes: Sequence[BlockHash], most: int) -> int:
        """How many blocks `find` finds."""
        if not self._prefix_caching:
            return 0
        cached, size, left = self._cached, self.blocks_per_hash, most
        for hash_ in hashes:
            runs = cached.get(hash_)
            if runs is None or left <= 0:
                break
            wanted, run = min(size, left), runs[0]
            if run.first > 0 or run.end < wanted:
                found: list[tuple[Run, int, int]] = []
                is_whole = _find_in(runs, wanted, found)
                left -= n_blocks(found)
                if not is_whole:
                    break
            else:
                left -= wanted
        return most - left

    def num_free_without(self, found: Found) -> int:
        """Free blocks that would be left if these cached ones were taken into use."""
        return self.num_free - sum(end - first for run, first, end in found if run.ref_count == 0)

    def hold(self, found: Found) -> Held:
        """Take cached blocks into use; nothing may have happened since they were found."""
        held = []
        for run, first, end in found:
            while run.end <= first and run.rest is not None:
                run = run.rest  # an earlier part of it was taken just now
            own = self._take(run, first, end) if run.ref_count == 0 else self._split(run, first, end)
            own.ref_count += 1
            held.append((own, end))
        return held

    def allocate(self, count: int) -> None:
        """Take `count` free blocks into use, those to be reused first; the caller has seen that they are there."""
        self.num_free -= count
        while count:
            count -= self._take_next(count)

    def allocate_in_turn(self, taken: Ints) -> Ints:
        """Allocate several times in a row, until `taken` blocks [n] were, ascending. Returns `num_cached_free` then."""
        before, total = self.num_cached_free, int(taken[-1])
        # Blocks with content among the first so many: a line of slope 0 or 1 over the blocks of each run.
        blocks, contents = [0], [0]
        self.num_free -= total
        while blocks[-1] < total:
            blocks.append(blocks[-1] + self._take_next(total - blocks[-1]))
            contents.append(before - self.num_cached_free)
        if contents[-1] == total:
            return before - taken
        if contents[-1] == 0:
            return before - 0 * taken
        lost = np.interp(taken, blocks, contents)
        return before - lost.astype(np.int64)

    def evicts_none(self, count: int) -> bool:
        """Whether the free blocks that are reused next, so many, hold nothing that can be found."""
        run = self._queue.behind
        while count > 0:
            if run.hash is not None or run is self._queue:
                return False
            count -= run.end - run.first
            run = run.behind
        return True

    def _take_next(self, most: int) -> int:
        """Take blocks of the run that is reused next, at most so many. Returns how many they were."""
        run = self._next_free()
        taken = min(most, run.end - run.first)
        # A run is freed from its last block to its first, and reused in this order.
        run.end -= taken
        if run.is_full:
            self.num_cached_free -= taken
        if run.hash is not None:
            self.num_evicted += taken
        if run.end == run.first:
            _leave_queue(run)
            self._forget(run)
        return taken

    def cache(self, held: Held, hash_: BlockHash, first: int = 0, end: int = 1) -> None:
        """Make full blocks in use findable by their hash; the request that `held` is of holds them."""
        runs = self._cached.setdefault(hash_, [])
        if first and runs and held[-1] == (runs[-1], first):
            last = runs[-1]
            if last.end == first and last.ref_count == 1:
                # Nobody has found a part of it yet, and nothing was cached since.
                last.end = end
                held[-1] = (last, end)
                return
        run = Run(hash_, first, end, ref_count=1)
        runs.append(run)
        held.append((run, end))

    def free(self, held: Held, full: int, partial: int) -> None:
        """Give back a request's blocks: findable ones, `full` private ones behind them, `partial` unfinished ones.

        vLLM frees from the last block to the first, so that the end of a prefix goes before its beginning: unfinished
        blocks to the front of the queue (nothing in them can be found), full ones to its end. Up to vLLM 0.23 all go
        to its end (`simulator.scheduling.rules`).
        """
        if not self._prefix_caching:
            full, partial = 0, partial + full
        self._add_run(partial, is_full=False, front=self._unfinished_first)
        self._add_run(full, is_full=True, front=False)
        for run, end in reversed(held):
            parts = [run]
            while parts[-1].end < end:
                rest = parts[-1].rest
                assert rest is not None
                parts.append(rest)
            for part in reversed(parts):
                part.ref_count -= 1
                if part.ref_count == 0:
                    self._release(part)

    def forget(self) -> None:
        """Lose all content; every block must be free."""
        assert self.num_free == self.num_blocks, "blocks are in use"
        self._reset()

    def _next_free(self) -> Run:
        """What is reused next."""
        return self._queue.behind

    def _release(self, run: Run) -> None:
        """Nobody holds a findable run any more: it is the last to be reused."""
        _enter_queue(run, self._queue.in_front)
        self.num_free += run.end - run.first
        self.num_cached_free += run.end - run.first

    def _add_run(self, length: int, *, is_full: bool, front: bool) -> None:
        """Free blocks that nobody can find."""
        if length:
            run = Run(None, 0, length, ref_count=0, is_full=is_full)
            _enter_queue(run, self._queue if front else self._queue.in_front)
            self.num_free += length
            self.num_cached_free += length * is_full

    def _take(self, run: Run, first: int, end: int) -> Run:
        """A part of a free run, out of the queue; what is left of it keeps its place there, the end in front."""
        self.num_free -= end - first
        self.num_cached_free -= end - first
        runs = self._cached_runs(run)
        at = runs.index(run)
        if run.first < first:
            before = Run(run.hash, run.first, first, ref_count=0)
            runs.insert(at, before)
            at += 1
            _enter_queue(before, run)
        if run.end == end:
            run.first = first
            _leave_queue(run)
            return run
        run.first = end
        part = Run(run.hash, first, end, ref_count=0)
        runs.insert(at, part)
        return part

    def _split(self, run: Run, first: int, end: int) -> Run:
        """A part of a run in use, as a run of its own; those who hold all of it find it through `rest`."""
        if run.first < first:
            run = self._split_at(run, first)
        if end < run.end:
            self._split_at(run, end)
        return run

    def _split_at(self, run: Run, at: int) -> Run:
        """Split a run in use in two. Returns the second."""
        second = Run(run.hash, at, run.end, ref_count=run.ref_count)
        second.rest = run.rest
        run.end, run.rest = at, second
        runs = self._cached_runs(run)
        runs.insert(runs.index(run) + 1, second)
        return second

    def _cached_runs(self, run: Run) -> list[Run]:
        assert run.hash is not None
        return self._cached[run.hash]

    def _forget(self, run: Run) -> None:
        """All blocks of a run are about to be overwritten."""
        if run.hash is not None:
            same = self._cached[run.hash]
            same.remove(run)
            if not same:
                del self._cached[run.hash]


def _find_in(runs: Sequence[Run], wanted: int, found: list[tuple[Run, int, int]]) -> bool:
    """Find the first `wanted` blocks of a hash in several runs of them; of each block the run that was cached first.

    Returns whether all were found; those before the first that was not are in `found` either way.
    """
    at = 0
    while at < wanted:
        covering = next((i for i, run in enumerate(runs) if run.first <= at < run.end), None)
        if covering is None:
            return False
        run = runs[covering]
        end = min([wanted, run.end, *(earlier.first for earlier in runs[:covering] if earlier.first > at)])
        found.append((run, at, end))
        at = end
    return True


def _enter_queue(run: Run, in_front: Run) -> None:
    """Put a run into the queue, right behind another."""
    run.in_front, run.behind = in_front, in_front.behind
    in_front.behind.in_front = run
    in_front.behind = run


def _leave_queue(run: Run) -> None:
    run.in_front.behind, run.behind.in_front = run.behind, run.in_front
    run.in_front = run.behind = run
