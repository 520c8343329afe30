"""The KV blocks of one scheduler's requests: what each finds, holds, lets others find, and gives back.

vLLM's class of this name does the same (0.32.0, v1/core/kv_cache_manager.py). Blocks themselves are the KV cache's
(`simulator.kv.kv_cache`), which knows no requests; who gets any is the scheduler's to say.
"""

from __future__ import annotations

from collections.abc import Mapping

from simulator.kv.kv_cache import Found, Held, KVCache, n_blocks
from simulator.kv.tiers import KVTiers
from simulator.scheduling.policies import RankedKVCache
from simulator.scheduling.request import Request, RequestStatus
from simulator.scheduling.spec import SchedulerSpec


class KVCacheManager:
    """Requests and their blocks.

    Attributes:
        kv_cache: the blocks.
        tiers: where more of a prompt's KV may be than on the GPU; None: nowhere.
        sharing: running requests with blocks that others could find once they are computed.
        now_s: when the last step was planned; what becomes findable goes to tiers from then on.
    """

    def __init__(self, spec: SchedulerSpec) -> None:
        self.kv_cache = _new_cache(spec)
        self.tiers: KVTiers | None = None
        self.sharing: list[Request] = []
        self.now_s = 0.0
        self._block_size = spec.options.block_size
        drafter = spec.options.speculative_config
        self._drops_last_block = drafter is not None and drafter.drops_last_block
        self._drops_last_chunk = drafter is not None and drafter.drops_last_chunk
        # Ended requests whose blocks another engine is still to read: findable, private and unfinished ones.
        self._kept: dict[Request, tuple[Held, int, int]] = {}

    def blocks_of(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self._block_size)

    # -- finding and holding -----------------------------------------------------------------------------------

    def find(self, request: Request) -> Found:
        """The cached prefix of a waiting request (vLLM: `get_computed_blocks`).

        The last token is always computed, so that there are logits to sample from; and the last block of what is found,
        where the drafter needs what is not cached.
        """
        found = self.kv_cache.find(request.block_hashes, (request.num_tokens - 1) // self._block_size)
        if found and self._drops_last_block:
            return self.kv_cache.find(request.block_hashes, n_blocks(found) - 1)
        return found

    def reach(self, request: Request, tiers: KVTiers, n_found: int) -> int:
        """Blocks of a prompt that tiers have, the first `n_found` being here.

        The last token is always computed, and the last chunk where the drafter needs what is not kept.
        """
        drops_last = self._drops_last_chunk
        most = (request.num_tokens if drops_last else request.num_tokens - 1) // self._block_size
        hashes = request.block_hashes
        return tiers.reach(hashes, n_found, min(most, len(hashes)), drops_last=drops_last)

    def hold(self, request: Request, found: Found, new_blocks: int) -> None:
        """A waiting request takes what it has found into use, and free blocks behind it."""
        n_found = n_blocks(found)
        request.blocks, request.num_shared_blocks = self.kv_cache.hold(found), n_found
        self.kv_cache.allocate(new_blocks)
        request.num_blocks = n_found + new_blocks

    def touch(self, request: Request) -> None:
        """A request begins to run: tiers evict its prompt last."""
        if self.tiers is not None:
            self.tiers.touch(request.block_hashes)

    # -- sharing -----------------------------------------------------------------------------------------------

    def begin_sharing(self, request: Request) -> None:
        """Of a request that begins to run, make findable what it has and what it is about to compute.

        A full block is findable as soon as it is scheduled, by the next request of the same step already.
        """
        if request.num_shared_blocks < request.num_hashed_blocks:
            self.sharing.append(request)
            self.share_one(request, request.num_cached_tokens)

    def share(self, offsets: Mapping[Request, int], cached_step: int) -> None:
        """Make the cached blocks of known hash findable.

        Requests in lockstep are cached up to their offset plus `cached_step`; all of them up to `num_cached_tokens`.
        """
        for request in self.sharing.copy():
            cached = request.num_cached_tokens
            if request in offsets:
                cached = max(cached, offsets[request] + cached_step)
            self.share_one(request, cached)

    def share_one(self, request: Request, cached_tokens: int) -> None:
        """Make a request's blocks findable that are in the prefix cache now; with the last of them it is done."""
        self.make_findable(request, cached_tokens)
        if request.num_shared_blocks == request.num_hashed_blocks:
            self.sharing.remove(request)

    def make_findable(self, request: Request, cached_tokens: int) -> None:
        """Make the blocks of known hash findable that a request's first so many tokens fill, here and in tiers."""
        before = request.num_shared_blocks
        self._cache_blocks(request, min(cached_tokens // self._block_size, request.num_hashed_blocks))
        if self.tiers is not None:
            for j in range(before, request.num_shared_blocks):
                self.tiers.store(request.block_hashes, j, self.now_s)

    def make_own_findable(self, request: Request) -> None:
        """Make all full blocks of a request findable, by itself at least: of those that it alone has, nobody knows."""
        full = request.num_cached_tokens // self._block_size
        for j in range(len(request.block_hashes), -(-full // self.kv_cache.blocks_per_hash)):
            request.block_hashes.append((request.index, j))
        request.num_hashed_blocks = max(request.num_hashed_blocks, full)
        self._cache_blocks(request, full)

    def _cache_blocks(self, request: Request, full: int) -> None:
        """Make a request's first `full` blocks findable."""
        per_hash = self.kv_cache.blocks_per_hash
        while (at := request.num_shared_blocks) < full:
            number, first = divmod(at, per_hash)
            end = min(per_hash, first + full - at)
            self.kv_cache.cache(request.blocks, request.block_hashes[number], first, end)
            request.num_shared_blocks += end - first

    # -- giving back -------------------------------------------------------------------------------------------

    def free(self, request: Request) -> None:
        """A running request gives back its blocks, or keeps them for another engine when it has all its tokens.

        The full ones beyond those that others can find are its own.
        """
        private = max(request.num_cached_tokens // self._block_size - request.num_shared_blocks, 0)
        unfinished = request.num_blocks - request.num_shared_blocks - private
        if request.kept and request.status is RequestStatus.RUNNING and request.num_tokens >= request.target_tokens:
            self._kept[request] = (request.blocks.copy(), private, unfinished)
        else:
            self.kv_cache.free(request.blocks, private, unfinished)
        request.blocks.clear()
        request.num_shared_blocks = 0
        if request in self.sharing:
            self.sharing.remove(request)

    def free_unfilled(self, request: Request) -> None:
        """A waiting request gives back blocks whose content will not come."""
        self.kv_cache.free(request.blocks, 0, request.num_blocks - request.num_shared_blocks)
        request.blocks.clear()
        request.num_shared_blocks = 0

    def keeps(self, request: Request) -> bool:
        """Whether the blocks of an ended request are kept for another engine."""
        return request in self._kept

    def release(self, request: Request) -> None:
        """Free the blocks of an ended request that were kept for another engine."""
        self.kv_cache.free(*self._kept.pop(request))

    def forget(self) -> None:
        """Lose what is cached, and what is kept for another engine; no request may hold blocks."""
        for request in list(self._kept):
            self.release(request)
        self.kv_cache.forget()
        if self.tiers is not None:
            self.tiers.forget()


def _new_cache(spec: SchedulerSpec) -> KVCache:
    """An engine's KV blocks, all free, that evict by a user's rule or by the least recent use."""
    caching, unfinished_first = spec.options.enable_prefix_caching, spec.rules.unfinished_blocks_first
    if spec.eviction is not None:
        return RankedKVCache(
            spec.num_gpu_blocks, prefix_caching=caching, unfinished_first=unfinished_first, eviction=spec.eviction
        )
    return KVCache(
        spec.num_gpu_blocks,
        prefix_caching=caching,
        unfinished_first=unfinished_first,
        blocks_per_hash=spec.blocks_per_hash,
    )
