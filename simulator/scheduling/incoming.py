"""KV that a scheduler's requests wait for: from another engine that computed it, or from a tier that keeps it.

Blocks are taken first, for the whole prompt, and the request waits outside of the queues until their content has come
(vLLM 0.32 v1/core/sched/scheduler.py: `WAITING_FOR_REMOTE_KVS`, `kv_holding_waiting`).
"""

from __future__ import annotations

import heapq

import numpy as np

from simulator.kv.kv_cache import Found, n_blocks
from simulator.scheduling.kv_cache_manager import KVCacheManager
from simulator.scheduling.request import PromptKV, Request


class IncomingKV:
    """The requests of one scheduler that hold blocks for KV on its way, and are not running yet.

    Attributes:
        holding: them, in order of reservation.
        reserved: those of them whose KV another engine computed, and that nobody has asked for yet (`take_reserved`).
    """

    def __init__(self, kv_cache_manager: KVCacheManager) -> None:
        self.holding: list[Request] = []
        self.reserved: list[Request] = []
        self._kv_cache_manager = kv_cache_manager
        # Tokens whose KV is there once a load is; the whole prompt but its last token where another engine computed it.
        self._loaded_tokens: dict[Request, int] = {}
        # Loads under way: when each is there, a number that keeps the order of equal times, and whose it is.
        self._loads: list[tuple[float, int, Request]] = []
        self._n_loads = 0

    def __contains__(self, request: Request) -> bool:
        return request.kv in (PromptKV.RECEIVING, PromptKV.RECEIVED)

    @property
    def next_load_s(self) -> float:
        """When KV from a tier is next there; infinite when none is on its way."""
        return self._loads[0][0] if self._loads else np.inf

    @property
    def arrived(self) -> list[Request]:
        """Requests whose KV is there, in order of reservation."""
        return [request for request in self.holding if request.kv is PromptKV.RECEIVED]

    def hit_of(self, request: Request) -> int:
        """Tokens of a request that need not be computed once its KV is there."""
        return self._loaded_tokens.get(request, request.num_tokens - 1)

    def loaded_of(self, request: Request) -> int:
        """Tokens of a request whose KV is there once it has come."""
        return self._loaded_tokens.get(request, request.num_tokens)

    def take_reserved(self) -> list[Request]:
        """Requests for another engine's KV that are new since somebody last asked."""
        reserved, self.reserved = self.reserved, []
        return reserved

    def expect(self, request: Request, found: Found, new_blocks: int, block_size: int) -> None:
        """A request takes blocks for what another engine computed, and for what was found here."""
        self._hold(request, found, new_blocks)
        request.cached_tokens = n_blocks(found) * block_size
        self.reserved.append(request)

    def load(self, request: Request, found: Found, new_blocks: int, tokens: int, done_s: float) -> None:
        """A request takes blocks for its prompt, of which its first `tokens` are there at `done_s`."""
        self._hold(request, found, new_blocks)
        self._loaded_tokens[request] = tokens
        self._n_loads += 1
        heapq.heappush(self._loads, (done_s, self._n_loads, request))

    def _hold(self, request: Request, found: Found, new_blocks: int) -> None:
        self._kv_cache_manager.hold(request, found, new_blocks)
        request.kv = PromptKV.RECEIVING
        self.holding.append(request)

    def advance(self, now_s: float) -> None:
        """Loads end that are there by now."""
        while self._loads and self._loads[0][0] <= now_s:
            _, _, request = heapq.heappop(self._loads)
            if request in self._loaded_tokens:
                request.kv = PromptKV.RECEIVED

    def admit(self, request: Request) -> int:
        """A request whose KV is there begins to run. Returns the tokens that need not be computed."""
        hit = self.hit_of(request)
        self._leave(request)
        return hit

    def lose(self, request: Request) -> None:
        """What a request waits for will not come: it gives its blocks back."""
        self._kv_cache_manager.free_unfilled(request)
        self._leave(request)

    def _leave(self, request: Request) -> None:
        request.kv = PromptKV.COMPUTED_HERE
        self.holding.remove(request)
        self._loaded_tokens.pop(request, None)
