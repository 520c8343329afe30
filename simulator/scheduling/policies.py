"""A user's own order of requests, and own rule of what the prefix cache evicts: classes as `module:Class`."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Protocol

from simulator.kv.kv_cache import KVCache, Run
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.request import Request
from simulator.scheduling.rules import Rules
from simulator.user_class import load_class
from traces.errors import InputError


class Order(Protocol):
    """Who is served first."""

    def key(self, request: Request) -> tuple[Any, ...]:
        """What requests are compared by: the lowest is admitted first and preempted last.

        It must not change while the request waits, and must tell any two requests apart: end it with `request.index`.
        """
        ...


class Eviction(Protocol):
    """What is evicted first."""

    def freed(self, block: Run) -> float:
        """What blocks that nobody holds are compared by: the lowest is evicted first; asked when one becomes free."""
        ...


class RankedKVCache(KVCache):
    """A KV cache that evicts by a user's rule: blocks in which nothing can be found first, then the lowest."""

    def __init__(
        self, num_gpu_blocks: int, *, prefix_caching: bool, unfinished_first: bool, eviction: Eviction
    ) -> None:
        super().__init__(num_gpu_blocks, prefix_caching=prefix_caching, unfinished_first=unfinished_first)
        self._eviction = eviction
        # Free blocks by their rank. Each time one becomes free it has a number; an entry of an older one is outdated.
        self._ranked: list[tuple[float, int, Run]] = []
        self._numbers: dict[Run, int] = {}
        self._n_freed = 0

    def _release(self, run: Run) -> None:
        super()._release(run)
        self._n_freed += 1
        self._numbers[run] = self._n_freed
        heapq.heappush(self._ranked, (self._eviction.freed(run), self._n_freed, run))

    def evicts_none(self, count: int) -> bool:
        """Whether nothing is evicted; not known before it is, where there is something to evict."""
        return count == 0

    def _next_free(self) -> Run:
        run = self._queue.behind
        while run is not self._queue:
            if run.hash is None:
                return run
            run = run.behind
        while True:
            _, number, run = heapq.heappop(self._ranked)
            if run.ref_count == 0 and self._numbers[run] == number:
                del self._numbers[run]
                return run

    def forget(self) -> None:
        """Lose all content; every block must be free."""
        super().forget()
        self._ranked.clear()
        self._numbers.clear()


def new_order(name: str) -> Order:
    """The order of a user's class. Raises InputError when it cannot be had or has no `key`."""
    order: Order = _made(name, "scheduling_order", "key")
    return order


def new_eviction(name: str) -> Eviction:
    """The eviction rule of a user's class. Raises InputError when it cannot be had or has no `freed`."""
    eviction: Eviction = _made(name, "cache_eviction", "freed")
    return eviction


def _made(name: str, field: str, method: str) -> Any:
    make: Callable[..., Any] = load_class(name, field=field)
    try:
        made = make()
    except TypeError as error:
        accepted = "a class that is called with nothing"
        raise InputError(f"cannot be called ({error})", field=field, found=name, accepted=accepted) from None
    if not callable(getattr(made, method, None)):
        raise InputError(field=field, found=name, accepted=f"a class with {method}()")
    return made


def new_cache(
    options: EngineOptions, num_gpu_blocks: int, rules: Rules, eviction: Eviction | None, blocks_per_hash: int
) -> KVCache:
    """An engine's KV blocks, all free, that evict by a user's rule or by the least recent use."""
    caching, unfinished_first = options.enable_prefix_caching, rules.unfinished_blocks_first
    if eviction is None:
        return KVCache(
            num_gpu_blocks,
            prefix_caching=caching,
            unfinished_first=unfinished_first,
            blocks_per_hash=blocks_per_hash,
        )
    return RankedKVCache(num_gpu_blocks, prefix_caching=caching, unfinished_first=unfinished_first, eviction=eviction)
