"""Who is served first and what the prefix cache evicts: by the scheduling policy, or by a user's own `module:Class`."""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from simulator.kv.kv_cache import KVCache, Run
from simulator.scheduling.request import Request
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

    def freed(self, run: Run) -> float:
        """What runs of blocks that nobody holds are compared by: the lowest is evicted first.

        Asked whenever one becomes free. Under a rule of a user's own each run is one block, known by `run.hash`.
        """
        ...


class Precedence:
    """Who is admitted first and preempted last: by the order of arrival, or by a key.

    Attributes:
        has_key: whether it is by a key: vLLM's policy `priority`, or a user's own order.
    """

    def __init__(self, policy: Literal["fcfs", "priority"], order: Order | None = None) -> None:
        """`order`: a user's own, in place of the policy's."""
        self.has_key = policy == "priority" or order is not None
        self._key = _urgency if order is None else order.key
        self._victim_key = _victim_urgency if order is None else order.key

    def queue(self, waiting: deque[Request], request: Request) -> None:
        """A new request goes behind all that came before, or where its key puts it."""
        if self.has_key:
            insort(waiting, request, key=self._key)
        else:
            waiting.append(request)

    def requeue(self, waiting: deque[Request], request: Request) -> None:
        """A request that was taken out of the queue before goes to its front, or where its key puts it."""
        if self.has_key:
            insort(waiting, request, key=self._key)
        else:
            waiting.appendleft(request)

    def sorted(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Requests in the order of admission, those of equal right as they stand."""
        return sorted(requests, key=self._key) if self.has_key else requests

    def victim(self, running: Sequence[Request]) -> int:
        """Place of the request to preempt: the one admitted last, or the first of those that are served last."""
        if not self.has_key:
            return len(running) - 1
        return max(range(len(running)), key=lambda i: self._victim_key(running[i]))


def _urgency(request: Request) -> tuple[Any, ...]:
    """Order of the priority policy: vLLM 0.32.0 v1/request.py, `Request.__lt__`."""
    return request.row.priority, request.row.arrival_s, request.row.request_id


def _victim_urgency(request: Request) -> tuple[Any, ...]:
    """Of two that came at one time, the one admitted first is preempted (vLLM 0.32.0 v1/core/sched/scheduler.py)."""
    return request.row.priority, request.row.arrival_s


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
