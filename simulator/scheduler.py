"""vLLM V1's scheduler: which requests compute how many tokens in the next step.

"There's no 'decoding phase' nor 'prefill phase' in the scheduler. Each request just has the num_computed_tokens and
num_tokens" (vLLM 0.32.0, v1/core/sched/scheduler.py): at each step requests catch up, under one token budget; the
running ones first, in order of admission, then the waiting ones, first come, first served. A request that finds no
block takes them from the one admitted last, which starts over later.

The running queue is a table: one column per request in order of admission, one row per count (`_COMPUTED` and so on),
so that a step of many requests, or many steps of the same requests, is a few numpy operations.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from simulator.kv_cache import BlockHash, KVCache
from simulator.options import EngineOptions
from simulator.plan import StepPlan, plan_of
from simulator.request import Request, RequestStatus
from traces.steps import Ints
from traces.trace import TraceRow

_COMPUTED = 0
"""Tokens whose KV exists or is being computed (`num_computed_tokens`)."""
_TOKENS = 1
"""Tokens that exist, and those that steps under way will bring (vLLM: plus `num_output_placeholders`)."""
_TARGET = 2
"""Tokens the request ends with."""
_BLOCKS = 3
"""KV blocks it holds."""
_SHARED = 4
"""Those of them that others can find, from the first on."""
_HASHED = 5
"""Blocks whose hash is known."""
_SPAN = 6
"""First step of its present run of steps that each bring a token; -1 when there is none."""
_LAST = 7
"""Last step that was planned to bring it a token; -1 when there is none."""
_ROWS = 8

_MOST_REPEATS = 512
"""Bounds the work that a plan's pricing can waste when something changes before all repeats are run."""


class Scheduler:
    """Queues and KV cache of one engine.

    Attributes:
        waiting: requests not running, those to be admitted first in front.
        running: requests holding KV blocks, in order of admission.
        kv_cache: the blocks.
    """

    def __init__(self, options: EngineOptions, *, num_gpu_blocks: int, max_model_len: int) -> None:
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.kv_cache = KVCache(num_gpu_blocks, prefix_caching=options.enable_prefix_caching)
        self._options = options
        self._max_model_len = max_model_len
        self._state: Ints = np.zeros((_ROWS, options.max_num_seqs), dtype=np.int64)
        self._next_step = 0
        self._finished_step = -1
        # Preempted while a step was still to bring them a token.
        self._stale: list[Request] = []

    def add_request(self, row: TraceRow, index: int, hashes: tuple[BlockHash, ...], now_s: float) -> Request:
        """Queue a request; one that can never be served comes back REJECTED, with the reason."""
        target = min(row.prompt_tokens + row.output_tokens, self._max_model_len)
        request = Request(row, index, target, list(hashes), row.prompt_tokens)
        blocks = -(-(target - 1) // self._options.block_size)
        if row.prompt_tokens >= self._max_model_len:
            request.reason = f"prompt of {row.prompt_tokens} tokens, max_model_len is {self._max_model_len}"
        elif blocks > self.kv_cache.num_blocks:
            request.reason = f"needs {blocks} KV blocks, the engine has {self.kv_cache.num_blocks}"
        if request.reason is not None:
            request.status = RequestStatus.REJECTED
            return request
        request.queued_s = now_s
        self.waiting.append(request)
        return request

    def schedule(self, now_s: float) -> StepPlan | None:
        """Plan the next step and take the blocks it needs; None when no request can compute anything now."""
        tokens, budget, preempted = self._schedule_running()
        self._share_scheduled(tokens)
        n_before = len(self.running)
        if not preempted:
            tokens = self._schedule_waiting(tokens, budget, now_s)
        if not tokens.any():
            return None
        return self._planned(tokens, n_before, preempted)

    def repeat(self, plan: StepPlan, times: int) -> Ints:
        """Run a plan `times` times instead of once, in one go. Returns the KV blocks in use at each, [times]."""
        blocks = np.full(times, plan.kv_blocks, dtype=np.int64)
        if times == 1:
            return blocks
        state = self._state[:, : len(self.running)]
        blocks[1:] += self._growth(state)[: times - 1]
        self.kv_cache.allocate(int(blocks[-1] - blocks[0]))
        state[_COMPUTED] += times - 1
        state[_TOKENS] += times - 1
        state[_LAST] += times - 1
        state[_BLOCKS] = -(-state[_COMPUTED] // self._options.block_size)
        self._share(state, state[_COMPUTED] - self._options.async_scheduling)
        self._next_step += times - 1
        return blocks

    def finish(self, last_step: int, end_s: float) -> list[Request]:
        """Take in the output of all steps up to `last_step`. Returns the requests that are finished."""
        self._finished_step = last_step
        done = self._finish_stale(end_s)
        state = self._state[:, : len(self.running)]
        ended = (state[_TOKENS] >= state[_TARGET]) & (state[_LAST] <= last_step) & (state[_LAST] >= 0)
        if ended.any():
            for i in np.flatnonzero(ended):
                done.append(self._end(self.running[i], int(i), end_s))
            self._keep(~ended)
        if self._options.async_scheduling:
            state = self._state[:, : len(self.running)]
            self._share(state, state[_COMPUTED] - (state[_LAST] > last_step))
        return done

    # -- running -----------------------------------------------------------------------------------------------

    def _schedule_running(self) -> tuple[Ints, int, int]:
        """Tokens for each running request, [n_running]; the budget that is left; how many were preempted."""
        budget = self._options.max_num_batched_tokens
        state = self._state[:, : len(self.running)]
        want = state[_TOKENS] - state[_COMPUTED]
        # A request whose last token is under way has nothing more to compute (vLLM: avoids a step past max_tokens).
        want[state[_TOKENS] >= state[_TARGET]] = 0
        if threshold := self._prefill_threshold():
            np.minimum(want, threshold, out=want)
        if want.sum() > budget:
            want = np.clip(budget - (np.cumsum(want) - want), 0, want)
        after = -(-(state[_COMPUTED] + want) // self._options.block_size)
        new_blocks = np.maximum(after - state[_BLOCKS], 0)
        if (total := int(new_blocks.sum())) > self.kv_cache.num_free:
            return self._schedule_running_short(want, new_blocks)
        self.kv_cache.allocate(total)
        state[_BLOCKS] += new_blocks
        return want, budget - int(want.sum()), 0

    def _schedule_running_short(self, want: Ints, new_blocks: Ints) -> tuple[Ints, int, int]:
        """The same with too few free blocks: the request admitted last gives up its blocks, as often as needed."""
        preempted = 0
        granted = np.zeros_like(want)
        i = 0
        while i < len(self.running):
            if want[i] == 0:
                i += 1
                continue
            while new_blocks[i] > self.kv_cache.num_free and i < len(self.running):
                self._preempt_last()
                preempted += 1
            if i == len(self.running):
                break
            self.kv_cache.allocate(int(new_blocks[i]))
            self._state[_BLOCKS, i] += new_blocks[i]
            granted[i] = want[i]
            i += 1
        granted = granted[: len(self.running)]
        return granted, self._options.max_num_batched_tokens - int(granted.sum()), preempted

    def _prefill_threshold(self) -> int:
        """Most tokens of one request, or 0. It protects others, so that it binds only when there are others."""
        if len(self.running) + len(self.waiting) > 1:
            return self._options.long_prefill_token_threshold
        return 0

    def _preempt_last(self) -> None:
        """Take the blocks of the request admitted last; it starts over from the front of the waiting queue."""
        request = self.running.pop()
        column = self._state[:, len(self.running)]
        under_way = int(column[_LAST] > self._finished_step)
        request.num_tokens = int(column[_TOKENS]) - under_way
        request.num_in_flight = under_way
        if under_way:
            self._stale.append(request)
        if column[_SPAN] >= 0:
            request.token_spans.append((int(column[_SPAN]), int(column[_LAST])))
        # Its own full blocks stay findable, by itself at least: hashes nobody else has.
        first_token_under_way = under_way and column[_SPAN] == column[_LAST]
        cached = int(column[_COMPUTED]) - (0 if first_token_under_way else under_way)
        full = cached // self._options.block_size
        if self._options.enable_prefix_caching:
            for i in range(len(request.blocks), full):
                if i >= len(request.block_hashes):
                    request.block_hashes.append((request.index, i))
                request.blocks.append(self.kv_cache.cache(request.block_hashes[i]))
        self._free(request, int(column[_BLOCKS]), full)
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        self.waiting.appendleft(request)

    def _free(self, request: Request, num_blocks: int, full: int) -> None:
        private = max(full - len(request.blocks), 0)
        self.kv_cache.free(request.blocks, private, num_blocks - len(request.blocks) - private)
        request.blocks.clear()

    # -- waiting -----------------------------------------------------------------------------------------------

    def _schedule_waiting(self, tokens: Ints, budget: int, now_s: float) -> Ints:
        """Admit waiting requests while budget, seats and blocks last. Returns tokens for all running, old and new."""
        threshold = self._prefill_threshold()
        admitted: list[int] = []
        skipped: list[Request] = []
        while self.waiting and budget > 0 and len(self.running) < self._options.max_num_seqs:
            request = self.waiting[0]
            if request.num_in_flight:
                # Its last token before the preemption is still to come; it takes the next step at the earliest.
                skipped.append(self.waiting.popleft())
                continue
            granted = self._admit(request, budget, threshold, now_s)
            if granted == 0:
                break
            budget -= granted
            admitted.append(granted)
        self.waiting.extendleft(reversed(skipped))
        return np.concatenate([tokens, np.array(admitted, dtype=np.int64)]) if admitted else tokens

    def _admit(self, request: Request, budget: int, threshold: int, now_s: float) -> int:
        """Move the first waiting request to the running queue. Returns its tokens; 0 when it must wait on."""
        size = self._options.block_size
        # The last token is always computed, so that there are logits to sample from.
        found = self.kv_cache.find(request.block_hashes, (request.num_tokens - 1) // size)
        hit = len(found) * size
        tokens = request.num_tokens - hit
        if 0 < threshold < tokens:
            tokens = threshold
        if tokens > budget and not self._options.enable_chunked_prefill:
            return 0
        tokens = min(tokens, budget)
        free = self.kv_cache.num_free_without(found)
        if self._options.scheduler_reserve_full_isl and -(-request.num_tokens // size) - len(found) > free:
            return 0
        new_blocks = -(-(hit + tokens) // size) - len(found)
        if new_blocks > free:
            return 0
        self.kv_cache.hold(found)
        self.kv_cache.allocate(new_blocks)
        self.waiting.popleft()
        request.blocks = found
        request.status = RequestStatus.RUNNING
        if request.scheduled_s is None:
            request.scheduled_s = now_s
            request.cached_tokens = hit
        column = self._state[:, len(self.running)]
        column[_COMPUTED] = hit
        column[_TOKENS] = request.num_tokens
        column[_TARGET] = request.target_tokens
        column[_BLOCKS] = len(found) + new_blocks
        column[_SHARED] = len(found)
        column[_HASHED] = len(request.block_hashes) if self._options.enable_prefix_caching else 0
        column[_SPAN] = column[_LAST] = -1
        self.running.append(request)
        # A full block is findable as soon as it is scheduled, by the next request of the same step already.
        self._share_one(len(self.running) - 1, min(hit + tokens, request.num_tokens))
        return tokens

    # -- plan --------------------------------------------------------------------------------------------------

    def _planned(self, tokens: Ints, n_before: int, preempted: int) -> StepPlan:
        state = self._state[:, : len(self.running)]
        step = self._next_step
        self._next_step += 1
        before = state[_COMPUTED].copy()
        state[_COMPUTED] += tokens
        brings = (state[_COMPUTED] >= state[_TOKENS]) & (tokens > 0)
        state[_TOKENS] += brings
        state[_LAST][brings] = step
        starts = brings & (state[_SPAN] < 0)
        state[_SPAN][starts] = step
        all_in = bool((tokens == 1).all() and brings.all())
        if not all_in:
            self._close_spans(tokens, step)
        batch = np.flatnonzero(tokens)
        whole = len(batch) == len(self.running)
        return plan_of(
            list(self.running) if whole else [self.running[i] for i in batch],
            tokens if whole else tokens[batch],
            before if whole else before[batch],
            first_step=step,
            repeat=self._most_repeats(state) if all_in and n_before == len(self.running) and not preempted else 1,
            n_preempted=preempted,
            n_running=len(self.running),
            n_waiting=len(self.waiting),
            kv_blocks=self.kv_cache.in_use,
        )

    def _close_spans(self, tokens: Ints, step: int) -> None:
        """A request that was due a token and is not in this step: its run of token-bringing steps ends here."""
        state = self._state[:, : len(self.running)]
        broken = (tokens == 0) & (state[_SPAN] >= 0) & (state[_TOKENS] < state[_TARGET])
        for i in np.flatnonzero(broken):
            self.running[i].token_spans.append((int(state[_SPAN, i]), int(state[_LAST, i])))
            state[_SPAN, i] = -1

    def _most_repeats(self, state: Ints) -> int:
        """How often a step that all running requests decode in can be run before anything but lengths changes."""
        if self.waiting and len(self.running) < self._options.max_num_seqs:
            # The first waiting request lacks blocks, and those only get fewer while nobody finishes; but a block
            # that a running request completes may be one that it can share.
            if (state[_SHARED] < state[_HASHED]).any() or state.shape[1] >= self._options.max_num_batched_tokens:
                return 1
            if self.waiting[0].num_in_flight:
                return 1
        more = int((state[_TARGET] - state[_TOKENS]).min())
        most = min(more, _MOST_REPEATS - 1)
        if most <= 0:
            return 1
        return 1 + int(np.searchsorted(self._growth(state)[:most], self.kv_cache.num_free, side="right"))

    def _growth(self, state: Ints) -> Ints:
        """Blocks that repeats of a step in which all decode will take, summed up, [_MOST_REPEATS - 1]."""
        size = self._options.block_size
        at = np.bincount(-state[_COMPUTED] % size, minlength=size)
        rounds = -(-(_MOST_REPEATS - 1) // size)
        return np.cumsum(np.tile(at, rounds)[: _MOST_REPEATS - 1])

    # -- sharing and ending ------------------------------------------------------------------------------------

    def _share(self, state: Ints, tokens: Ints) -> None:
        """Make full blocks of known hash findable, up to `tokens` of each running request, [n_running]."""
        full = np.minimum(tokens // self._options.block_size, state[_HASHED])
        for i in np.flatnonzero(full > state[_SHARED]):
            self._share_one(int(i), int(tokens[i]))

    def _share_scheduled(self, tokens: Ints) -> None:
        """Make findable what running requests complete in the step being planned: waiting ones may find it already.

        Only tokens that are known can be hashed, not the one that a step under way will bring.
        """
        state = self._state[:, : len(self.running)]
        known = state[_TOKENS] - (state[_LAST] > self._finished_step)
        self._share(state, np.minimum(state[_COMPUTED] + tokens, known))

    def _share_one(self, i: int, tokens: int) -> None:
        request = self.running[i]
        full = min(tokens // self._options.block_size, int(self._state[_HASHED, i]))
        for j in range(len(request.blocks), full):
            request.blocks.append(self.kv_cache.cache(request.block_hashes[j]))
        self._state[_SHARED, i] = len(request.blocks)

    def _finish_stale(self, end_s: float) -> list[Request]:
        """Tokens that arrive for requests preempted meanwhile; one may have been the last."""
        done = []
        for request in self._stale:
            request.num_tokens += 1
            request.num_in_flight = 0
            if request.num_tokens >= request.target_tokens:
                self.waiting.remove(request)
                request.status = RequestStatus.FINISHED
                request.finish_s = end_s
                done.append(request)
        self._stale.clear()
        return done

    def _end(self, request: Request, i: int, end_s: float) -> Request:
        column = self._state[:, i]
        request.token_spans.append((int(column[_SPAN]), int(column[_LAST])))
        request.num_tokens = request.target_tokens
        full = int(column[_COMPUTED]) // self._options.block_size if self._options.enable_prefix_caching else 0
        self._free(request, int(column[_BLOCKS]), full)
        request.status = RequestStatus.FINISHED
        request.finish_s = end_s
        return request

    def _keep(self, kept: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        self._state[:, : int(kept.sum())] = self._state[:, : len(kept)][:, kept]
        self.running = [request for request, keep in zip(self.running, kept, strict=True) if keep]
