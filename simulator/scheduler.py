"""vLLM V1's scheduler: which requests compute how many tokens in the next step.

"There's no 'decoding phase' nor 'prefill phase' in the scheduler. Each request just has the num_computed_tokens and
num_tokens" (vLLM 0.32.0, v1/core/sched/scheduler.py): at each step requests catch up, under one token budget; the
running ones first, in order of admission, then the waiting ones, in the order of the policy. A request that finds no
block takes them from another, which starts over later.

The running queue is a table: one column per request in order of admission, one row per count (`_COMPUTED` and so on),
so that a step of many requests, or many steps of the same requests, is a few numpy operations. Only where blocks run
out are requests looked at one by one.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Collection, Sequence
from itertools import compress
from typing import Any

import numpy as np

from simulator.kv_cache import Block, BlockHash, KVCache
from simulator.options import EngineOptions
from simulator.plan import StepPlan, plan_of
from simulator.policies import Eviction, Order, RankedKVCache
from simulator.request import PromptKV, Request, RequestStatus, new_request
from simulator.rules import REFERENCE_RULES, Rules
from simulator.tiers import KVTiers
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
_CACHED = 4
"""Tokens up to which its full blocks are in the prefix cache, whether or not others can know their hashes."""
_SHARED = 5
"""Blocks that others can find, from the first on."""
_HASHED = 6
"""Blocks whose hash is known."""
_SPAN = 7
"""First step of its present run of steps that each bring a token; -1 when there is none."""
_LAST = 8
"""Last step that was planned to bring it a token; -1 when there is none."""
_ROWS = 9

_MOST_REPEATS = 512
"""Bounds the work that a plan's pricing can waste when something changes before all repeats are run."""


class Scheduler:
    """Queues and KV cache of one engine; `simulator.scheduling.RequestScheduler` says what its methods do.

    Attributes:
        waiting: requests not running, those to be admitted first in front.
        running: requests holding KV blocks, in order of admission.
        kv_cache: the blocks.
        holding: requests that hold blocks for KV that another engine computed, and are not running yet.
        reserved: those of them that are new since somebody last took this list.
        tiers: where more of a prompt's KV may be than on the GPU; None: nowhere.
        kv_cached: [times] of the plan that was last run, free blocks that hold content still.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        num_gpu_blocks: int,
        max_model_len: int,
        rules: Rules = REFERENCE_RULES,
        pipelined: bool = False,
        order: Order | None = None,
        eviction: Eviction | None = None,
    ) -> None:
        """An engine's queues, empty.

        Args:
            options: of the engine.
            num_gpu_blocks: its KV blocks, the null block included.
            max_model_len: most tokens of a request.
            rules: of the vLLM version to follow.
            pipelined: steps are planned while others pass through pipeline stages: without asynchronous scheduling a
                request that is due a token waits for it.
            order: a user's own, in place of the scheduling policy's.
            eviction: a user's own, in place of the least recently used.
        """
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.holding: list[Request] = []
        self.reserved: list[Request] = []
        self.kv_cached: Ints | None = None
        self.kv_cache = _new_cache(options, num_gpu_blocks, rules, eviction)
        self._options = options
        self._pipelined = pipelined
        self._rules = rules
        self._max_model_len = max_model_len
        self._seats = min(options.max_num_seqs, options.max_num_active_seqs or options.max_num_seqs)
        self._by_priority = options.scheduling_policy == "priority" or order is not None
        self._order = order
        self._key = _urgency if order is None else order.key
        # vLLM 0.32.0 v1/core/kv_cache_manager.py: of all blocks, the null block included.
        self._watermark_blocks = int(options.watermark * num_gpu_blocks)
        self._state: Ints = np.zeros((_ROWS, options.max_num_seqs), dtype=np.int64)
        self._next_step = 0
        self._finished_step = -1
        # Preempted while a step was still to bring them a token.
        self._stale: list[Request] = []
        # Preempted by schedulings that planned nothing: they count for the next plan.
        self._n_preempted = 0
        # Ended requests whose blocks another engine is still to read: findable, private and unfinished ones.
        self._kept: dict[Request, tuple[list[Block], int, int]] = {}
        # Blocks reserved for KV that is on its way.
        self._reserved_blocks: dict[Request, int] = {}
        self.tiers: KVTiers | None = None
        # Loads under way: when each is there, a number that keeps the order of equal times, and whose it is.
        self._loads: list[tuple[float, int, Request]] = []
        self._n_loads = 0
        # Tokens whose KV is there once a load is; the whole prompt but its last token where another engine computed it.
        self._loaded_tokens: dict[Request, int] = {}
        self._now_s = 0.0

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return self.kv_cache.num_free

    def cached_blocks(self, hashes: Sequence[BlockHash]) -> int:
        """How many of these blocks, from the first on, are in the prefix cache."""
        return len(self.kv_cache.find(hashes, len(hashes)))

    def add_request(self, row: TraceRow, index: int, hashes: tuple[BlockHash, ...], now_s: float) -> Request:
        """Queue a request; one that can never be served comes back REJECTED, with the reason."""
        request = new_request(
            row,
            index,
            hashes,
            now_s,
            block_size=self._options.block_size,
            num_blocks=self.kv_cache.num_blocks,
            max_model_len=self._max_model_len,
        )
        if request.status is RequestStatus.WAITING:
            self._queue(request)
        return request

    def schedule(self, now_s: float) -> StepPlan | None:
        """Plan the next step and take the blocks it needs; None when no request can compute anything now."""
        self._now_s = now_s
        while self._loads and self._loads[0][0] <= now_s:
            _, _, request = heapq.heappop(self._loads)
            if request in self._loaded_tokens:
                self.receive(request)
        while True:
            threshold = self._prefill_threshold()
            tokens, budget, preempted = self._schedule_running(threshold)
            n_before = len(self.running)
            if not preempted:
                tokens = self._schedule_waiting(tokens, budget, threshold, now_s)
            self._n_preempted += preempted
            if tokens.any():
                return self._planned(tokens, alike=n_before == len(self.running) and not self._n_preempted)
            # A step of no tokens takes no time: the engine plans again at once, unless an output is to come first.
            if not preempted or self._finished_step < self._next_step - 1:
                return None

    def repeat(self, plan: StepPlan, times: int) -> Ints:
        """Run a plan `times` times instead of once, in one go. Returns the KV blocks in use at each, [times]."""
        blocks = np.full(times, plan.kv_blocks, dtype=np.int64)
        self.kv_cached = np.full(times, self.kv_cache.num_cached_free, dtype=np.int64)
        if times == 1:
            return blocks
        state = self._columns()
        blocks[1:] += self._growth(state)[: times - 1]
        self.kv_cached[1:] = self.kv_cache.allocate_each(np.diff(blocks).tolist())
        state[_COMPUTED] += times - 1
        state[_TOKENS] += times - 1
        state[_LAST] += times - 1
        state[_BLOCKS] = -(-state[_COMPUTED] // self._options.block_size)
        state[_CACHED] = state[_COMPUTED] - self._options.async_scheduling
        self._share(state)
        self._next_step += times - 1
        return blocks

    def finish(self, last_step: int, end_s: float, stopped: Collection[Request] = ()) -> list[Request]:
        """Take in the output of all steps up to `last_step`. Returns the requests that are finished.

        A request ends with its last token, or earlier when it is one of `stopped`: its token of this output says so.
        """
        self._finished_step = last_step
        done = self._finish_stale(end_s, stopped)
        state = self._columns()
        if self._options.async_scheduling or self._pipelined:
            # The output makes tokens known, and blocks that end with them can be found (`cache_blocks`).
            np.maximum(state[_CACHED], state[_COMPUTED] - (state[_LAST] > last_step), out=state[_CACHED])
            self._share(state)
        ended = (state[_TOKENS] >= state[_TARGET]) & (state[_LAST] <= last_step)
        for request in stopped:
            if request.status is RequestStatus.RUNNING:
                ended[self.running.index(request)] = True
        if ended.any():
            for i in ended.nonzero()[0].tolist():
                done.append(self._end(self.running[i], state[:, i], RequestStatus.FINISHED, end_s))
            self._keep(~ended)
        return done

    def abort(self, request: Request, now_s: float) -> None:
        """End a request from outside: its client went away. What steps under way compute for it is dropped."""
        if request.status is RequestStatus.RUNNING:
            i = self.running.index(request)
            self._end(request, self._state[:, i], RequestStatus.ABORTED, now_s)
            self._remove(i)
        elif request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED):
            if request in self._reserved_blocks:
                self.lose(request)
            self.waiting.remove(request)
            if request in self._stale:
                self._stale.remove(request)
            self._close(request, RequestStatus.ABORTED, now_s)

    def forget(self) -> None:
        """Lose what is cached; no request may hold blocks."""
        self.kv_cache.forget()
        if self.tiers is not None:
            self.tiers.forget()

    @property
    def next_load_s(self) -> float:
        """When KV from a tier is next there; infinite when none is on its way."""
        return self._loads[0][0] if self._loads else np.inf

    def keeps(self, request: Request) -> bool:
        """Whether the blocks of an ended request are kept for another engine."""
        return request in self._kept

    def release(self, request: Request) -> None:
        """Free the blocks of an ended request that were kept for another engine, which has read them now."""
        self.kv_cache.free(*self._kept.pop(request))

    def receive(self, request: Request) -> None:
        """The KV of a request's prompt has arrived in the blocks that were reserved for it."""
        request.kv = PromptKV.RECEIVED

    def lose(self, request: Request) -> None:
        """The KV of a request's prompt will not arrive: it is computed here."""
        self.kv_cache.free(request.blocks, 0, self._reserved_blocks.pop(request) - len(request.blocks))
        request.blocks.clear()
        request.kv = PromptKV.COMPUTED_HERE
        self._loaded_tokens.pop(request, None)
        self.holding.remove(request)
        self._requeue(request)

    # -- running -----------------------------------------------------------------------------------------------

    def _columns(self) -> Ints:
        """The table's columns in use, [_ROWS, n_running]; a view."""
        return self._state[:, : len(self.running)]

    def _prefill_threshold(self) -> int:
        """Most tokens of one request, or 0. It protects others, so that it binds only when there are others."""
        threshold = self._options.long_prefill_token_threshold
        eligible = len(self.running) + len(self.holding) + len(self.waiting)
        if not threshold or not eligible or (eligible == 1 and self._rules.lone_request_unlimited):
            return 0
        if self._options.long_prefill_token_threshold_adaptive:
            return max(threshold, self._options.max_num_batched_tokens // eligible)
        return threshold

    def _schedule_running(self, threshold: int) -> tuple[Ints, int, int]:
        """Tokens for each running request, [n_running]; the budget that is left; how many were preempted."""
        tokens, budget = self._grant(0, len(self.running), self._options.max_num_batched_tokens, threshold)
        if len(tokens) == len(self.running):
            return tokens, budget, 0
        return self._schedule_running_short(tokens, budget, threshold)

    def _grant(self, first: int, end: int, budget: int, threshold: int) -> tuple[Ints, int]:
        """Give running requests what they compute next, and blocks for it, up to the first that lacks blocks.

        Full blocks can be found from now on. Returns tokens by request, from `first` on, and the budget that is left.
        """
        state = self._state[:, first:end]
        want = state[_TOKENS] - state[_COMPUTED]
        if self._options.async_scheduling:
            # A request whose last token is under way has nothing more to compute (vLLM: no step past max_tokens).
            want[state[_TOKENS] >= state[_TARGET]] = 0
        elif self._pipelined:
            want[state[_LAST] > self._finished_step] = 0
        if threshold:
            np.minimum(want, threshold, out=want)
        if (total := int(want.sum())) > budget:
            want = np.clip(budget - (np.cumsum(want) - want), 0, want)
            total = budget
        new_blocks = np.maximum(-(-(state[_COMPUTED] + want) // self._options.block_size) - state[_BLOCKS], 0)
        if (needed := int(new_blocks.sum())) > self.kv_cache.num_free:
            granted = int(np.searchsorted(np.cumsum(new_blocks), self.kv_cache.num_free, side="right"))
            state, want, new_blocks = state[:, :granted], want[:granted], new_blocks[:granted]
            total, needed = int(want.sum()), int(new_blocks.sum())
        self.kv_cache.allocate(needed)
        state[_BLOCKS] += new_blocks
        if self._options.enable_prefix_caching:
            cached = np.minimum(state[_COMPUTED] + want, self._known(state))
            np.copyto(state[_CACHED], cached, where=want > 0)
            self._share(state, first)
        return want, budget - total

    def _schedule_running_short(self, tokens: Ints, budget: int, threshold: int) -> tuple[Ints, int, int]:
        """Go on behind the first requests, which have their `tokens`: the next takes another's blocks, if need be."""
        granted: dict[Request, int] = {}
        preempted = i = 0
        while True:
            granted.update(zip(self.running[i:], tokens.tolist(), strict=False))
            i += len(tokens)
            if i >= len(self.running):
                break
            request = self.running[i]
            wanted = min(self._wanted(i, threshold), budget)
            while self._new_blocks(request, wanted) > self.kv_cache.num_free:
                at = self._victim()
                victim = self.running[at]
                returned = granted.pop(victim, 0)
                budget += returned
                if at < self.running.index(request) and (returned or not self._rules.skips_after_idle_victim):
                    i -= 1
                self._preempt(at)
                preempted += 1
                if victim is request:
                    break
            if request.status is RequestStatus.RUNNING:
                at = self.running.index(request)
                self._grant(at, at + 1, wanted, threshold)
                granted[request] = wanted
                budget -= wanted
                i += 1
            elif not self._by_priority or self._rules.step_ends_with_own_preemption:
                break
            tokens, budget = self._grant(i, len(self.running), budget, threshold)
        tokens_of = [granted.get(request, 0) for request in self.running]
        return np.array(tokens_of, dtype=np.int64), budget, preempted

    def _wanted(self, i: int, threshold: int) -> int:
        column = self._state[:, i]
        if column[_TOKENS] >= column[_TARGET] or (self._pipelined and column[_LAST] > self._finished_step):
            return 0
        want = int(column[_TOKENS] - column[_COMPUTED])
        return min(want, threshold) if threshold else want

    def _new_blocks(self, request: Request, tokens: int) -> int:
        """Blocks that a running request lacks for so many more tokens."""
        column = self._state[:, self.running.index(request)]
        return -(-(int(column[_COMPUTED]) + tokens) // self._options.block_size) - int(column[_BLOCKS])

    def _victim(self) -> int:
        """Place of the request to preempt: the one admitted last, or the one that the policy serves last."""
        if not self._by_priority:
            return len(self.running) - 1
        if self._order is not None:
            return max(range(len(self.running)), key=lambda i: self._key(self.running[i]))
        rows = [request.row for request in self.running]
        return max(range(len(rows)), key=lambda i: (rows[i].priority, rows[i].arrival_s))

    def _preempt(self, i: int) -> None:
        """Take the blocks of a running request; it starts over from the waiting queue."""
        request, column = self.running[i], self._state[:, i]
        request.num_in_flight = int(column[_LAST] > self._finished_step)
        request.num_tokens = int(column[_TOKENS]) - request.num_in_flight
        if request.num_in_flight:
            self._stale.append(request)
        self._close_span(request, column)
        # Its own full blocks stay findable, by itself at least: hashes nobody else has.
        for j in range(len(request.blocks), int(column[_CACHED]) // self._options.block_size):
            if j >= len(request.block_hashes):
                request.block_hashes.append((request.index, j))
            request.blocks.append(self.kv_cache.cache(request.block_hashes[j]))
        self._free(request, column)
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        self._remove(i)
        self._requeue(request)

    def _free(self, request: Request, column: Ints) -> None:
        """Give back a request's blocks; the full ones beyond those that others can find are its own."""
        private = max(int(column[_CACHED]) // self._options.block_size - len(request.blocks), 0)
        unfinished = int(column[_BLOCKS]) - len(request.blocks) - private
        if request.kept and request.status is RequestStatus.RUNNING and column[_TOKENS] >= column[_TARGET]:
            self._kept[request] = (request.blocks.copy(), private, unfinished)
        else:
            self.kv_cache.free(request.blocks, private, unfinished)
        request.blocks.clear()

    # -- waiting -----------------------------------------------------------------------------------------------

    def _queue(self, request: Request) -> None:
        """Behind all that came before, or where the policy puts it."""
        if self._by_priority:
            insort(self.waiting, request, key=self._key)
        else:
            self.waiting.append(request)

    def _requeue(self, request: Request) -> None:
        """A preempted request goes to the front, or where the policy puts it."""
        if self._by_priority:
            insort(self.waiting, request, key=self._key)
        else:
            self.waiting.appendleft(request)

    def _schedule_waiting(self, tokens: Ints, budget: int, threshold: int, now_s: float) -> Ints:
        """Admit waiting requests while budget, seats and blocks last. Returns tokens for all running, old and new."""
        admitted: list[int] = []
        # Those that hold blocks already come first (vLLM 0.32.0: `kv_holding_waiting`): what they hold may be what
        # others wait for.
        for request in [one for one in self.holding if one.kv is PromptKV.RECEIVED]:
            if budget > 0 and len(self.running) < self._seats:
                granted = self._admit_received(request, budget, threshold, now_s)
                budget -= granted
                admitted.append(granted)
        skipped: list[Request] = []
        while self.waiting and budget > 0 and len(self.running) < self._seats:
            first = self.waiting[0]
            if first.kv is PromptKV.ELSEWHERE:
                if not self._reserve(first):
                    break
                continue
            if first.num_in_flight:
                # Its last token before the preemption is still to come; it takes the next step at the earliest.
                skipped.append(self.waiting.popleft())
                continue
            if self.tiers is not None and self._load(first, self.tiers, now_s):
                continue
            granted = self._admit(first, budget, threshold, now_s)
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
        free = self.kv_cache.num_free_without(found) - (self._watermark_blocks if self.running else 0)
        if self._options.scheduler_reserve_full_isl and -(-request.num_tokens // size) - len(found) > free:
            return 0
        new_blocks = -(-(hit + tokens) // size) - len(found)
        if new_blocks > free:
            return 0
        self.kv_cache.hold(found)
        self.kv_cache.allocate(new_blocks)
        self.waiting.popleft()
        self._run(request, found, len(found) + new_blocks, hit, tokens, now_s)
        return tokens

    def _reserve(self, request: Request) -> bool:
        """Take the blocks into which another engine's KV of the first waiting prompt will come; False: too few.

        vLLM 0.32.0 v1/core/sched/scheduler.py, a connector that loads asynchronously: blocks for the whole prompt but
        what is cached here, beside what prompts under way will still need (`_inflight_prefill_reserved_blocks`).
        """
        size = self._options.block_size
        found = self.kv_cache.find(request.block_hashes, request.num_tokens // size)
        new_blocks = -(-request.num_tokens // size) - len(found)
        state = self._columns()
        needed = -(-state[_TOKENS] // size) - state[_BLOCKS]
        free = self.kv_cache.num_free_without(found) - int(needed[state[_COMPUTED] < state[_TOKENS] - 1].sum())
        if new_blocks > free - (self._watermark_blocks if self.running else 0):
            return False
        self.kv_cache.hold(found)
        self.kv_cache.allocate(new_blocks)
        self.waiting.popleft()
        request.blocks = found
        request.cached_tokens = len(found) * size
        request.kv = PromptKV.RECEIVING
        self._reserved_blocks[request] = len(found) + new_blocks
        self.holding.append(request)
        self.reserved.append(request)
        return True

    def _load(self, request: Request, tiers: KVTiers, now_s: float) -> bool:
        """Have more of the first waiting request's prompt loaded than is cached here, where a tier has more.

        Blocks for the whole prompt are taken at once, so that what has been loaded can always be used.
        """
        size = self._options.block_size
        most = (request.num_tokens - 1) // size
        found = self.kv_cache.find(request.block_hashes, most)
        most = min(most, len(request.block_hashes))
        end = tiers.reach(request.block_hashes, len(found), most)
        new_blocks = -(-request.num_tokens // size) - len(found)
        free = self.kv_cache.num_free_without(found) - (self._watermark_blocks if self.running else 0)
        if end == len(found) or new_blocks > free:
            return False
        done_s = tiers.load(request.block_hashes, len(found), most, now_s)
        self.kv_cache.hold(found)
        self.kv_cache.allocate(new_blocks)
        self.waiting.popleft()
        request.blocks = found
        request.kv = PromptKV.RECEIVING
        self._reserved_blocks[request] = len(found) + new_blocks
        self._loaded_tokens[request] = end * size
        self.holding.append(request)
        self._n_loads += 1
        heapq.heappush(self._loads, (done_s, self._n_loads, request))
        return True

    def _admit_received(self, request: Request, budget: int, threshold: int, now_s: float) -> int:
        """Move a request whose KV has arrived to the running queue, to compute the rest here. Returns its tokens."""
        request.kv = PromptKV.COMPUTED_HERE
        self.holding.remove(request)
        hit = self._loaded_tokens.pop(request, request.num_tokens - 1)
        tokens = min(request.num_tokens - hit, budget, threshold or budget)
        self._run(request, request.blocks, self._reserved_blocks.pop(request), hit, tokens, now_s)
        return tokens

    def _run(self, request: Request, found: list[Block], blocks: int, hit: int, tokens: int, now_s: float) -> None:
        """Put a request into the running queue, with `hit` tokens computed and `tokens` to compute."""
        request.blocks = found
        request.status = RequestStatus.RUNNING
        if request.scheduled_s is None:
            request.scheduled_s = now_s
        if request.cached_tokens is None:
            request.cached_tokens = hit
        column = self._state[:, len(self.running)]
        column[_COMPUTED] = hit
        column[_TOKENS] = request.num_tokens
        column[_TARGET] = request.target_tokens
        column[_BLOCKS] = blocks
        column[_CACHED] = min(hit + tokens, request.num_tokens) if self._options.enable_prefix_caching else 0
        column[_SHARED] = len(found)
        column[_HASHED] = len(request.block_hashes) if self._options.enable_prefix_caching else 0
        column[_SPAN] = column[_LAST] = -1
        self.running.append(request)
        if self.tiers is not None:
            self.tiers.touch(request.block_hashes)
        # A full block is findable as soon as it is scheduled, by the next request of the same step already.
        self._share_one(len(self.running) - 1)

    # -- plan --------------------------------------------------------------------------------------------------

    def _planned(self, tokens: Ints, *, alike: bool) -> StepPlan:
        """The plan, and the table after it; `alike`: the same requests ran before, and none lost its blocks."""
        state = self._columns()
        step = self._next_step
        self._next_step += 1
        before = state[_COMPUTED].copy()
        state[_COMPUTED] += tokens
        brings = state[_COMPUTED] >= state[_TOKENS]
        state[_TOKENS] += brings
        np.copyto(state[_LAST], step, where=brings)
        np.copyto(state[_SPAN], step, where=brings & (state[_SPAN] < 0))
        decodes = len(tokens) == int(tokens.sum()) and bool(brings.all())
        if not decodes:
            self._close_spans(tokens, state)
        requests = self.running.copy()
        if not decodes and not tokens.all():
            batch = tokens > 0
            requests = list(compress(self.running, batch.tolist()))
            tokens, before = tokens[batch], before[batch]
        preempted, self._n_preempted = self._n_preempted, 0
        return plan_of(
            requests,
            tokens,
            before,
            first_step=step,
            repeat=self._most_repeats(state) if decodes and alike and not self._pipelined else 1,
            n_preempted=preempted,
            n_running=len(self.running),
            n_waiting=len(self.holding) + len(self.waiting),
            kv_blocks=self.kv_cache.in_use,
        )

    def _close_spans(self, tokens: Ints, state: Ints) -> None:
        """A request that was due a token and is not in this step: its run of token-bringing steps ends here."""
        broken = (tokens == 0) & (state[_SPAN] >= 0) & (state[_TOKENS] < state[_TARGET])
        for i in broken.nonzero()[0].tolist():
            self._close_span(self.running[i], state[:, i])

    def _close_span(self, request: Request, column: Ints) -> None:
        if column[_SPAN] >= 0:
            request.token_spans.append((int(column[_SPAN]), int(column[_LAST])))
            column[_SPAN] = -1

    def _most_repeats(self, state: Ints) -> int:
        """How often a step that all running requests decode in can be run before anything but lengths changes."""
        if self.tiers is not None and (state[_SHARED] < state[_HASHED]).any():
            return 1  # in which order tiers get blocks decides what they evict
        if self.waiting and len(self.running) < self._seats:
            # The first waiting request lacks blocks, and those only get fewer while nobody finishes; but a block
            # that a running request completes may be one that it can share.
            if (state[_SHARED] < state[_HASHED]).any() or state.shape[1] >= self._options.max_num_batched_tokens:
                return 1
            if self.waiting[0].num_in_flight:
                return 1
        most = min(int((state[_TARGET] - state[_TOKENS]).min()), _MOST_REPEATS - 1)
        if most <= 0:
            return 1
        if state.shape[1] * -(-most // self._options.block_size) <= self.kv_cache.num_free:
            return 1 + most
        return 1 + int(np.searchsorted(self._growth(state)[:most], self.kv_cache.num_free, side="right"))

    def _growth(self, state: Ints) -> Ints:
        """Blocks that repeats of a step in which all decode will take, summed up, [_MOST_REPEATS - 1]."""
        size = self._options.block_size
        at = np.bincount(-state[_COMPUTED] % size, minlength=size)
        rounds = -(-(_MOST_REPEATS - 1) // size)
        return np.cumsum(np.tile(at, rounds)[: _MOST_REPEATS - 1])

    # -- sharing and ending ------------------------------------------------------------------------------------

    def _known(self, state: Ints) -> Ints:
        """Tokens that exist: only these can be hashed, not one that a step under way will bring."""
        known: Ints = state[_TOKENS] - (state[_LAST] > self._finished_step)
        return known

    def _share(self, state: Ints, first: int = 0) -> None:
        """Make the cached blocks of known hash findable, of the running requests from `first` on that `state` holds."""
        fewer = state[_SHARED] < state[_HASHED]
        if not fewer.any():
            return
        full = np.minimum(state[_CACHED] // self._options.block_size, state[_HASHED])
        for i in (full > state[_SHARED]).nonzero()[0].tolist():
            self._share_one(first + i)

    def _share_one(self, i: int) -> None:
        request = self.running[i]
        full = min(int(self._state[_CACHED, i]) // self._options.block_size, int(self._state[_HASHED, i]))
        for j in range(len(request.blocks), full):
            request.blocks.append(self.kv_cache.cache(request.block_hashes[j]))
            if self.tiers is not None:
                self.tiers.store(request.block_hashes, j, self._now_s)
        self._state[_SHARED, i] = len(request.blocks)

    def _finish_stale(self, end_s: float, stopped: Collection[Request]) -> list[Request]:
        """Tokens that arrive for requests preempted meanwhile; one may have been the last."""
        done = []
        for request in self._stale:
            request.num_tokens += 1
            request.num_in_flight = 0
            if request.num_tokens >= request.target_tokens or request in stopped:
                self.waiting.remove(request)
                done.append(self._close(request, RequestStatus.FINISHED, end_s))
        self._stale.clear()
        return done

    def _end(self, request: Request, column: Ints, status: RequestStatus, end_s: float) -> Request:
        """End a running request and free its blocks; its column is the caller's to remove."""
        self._close_span(request, column)
        self._free(request, column)
        return self._close(request, status, end_s)

    def _close(self, request: Request, status: RequestStatus, end_s: float) -> Request:
        request.drop_tokens_after(self._finished_step)
        request.status = status
        request.finish_s = end_s
        return request

    def _remove(self, i: int) -> None:
        """Take one request out of the running queue."""
        n_running = len(self.running)
        del self.running[i]
        self._state[:, i : n_running - 1] = self._state[:, i + 1 : n_running]

    def _keep(self, kept: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        columns = self._columns().compress(kept, axis=1)
        self._state[:, : columns.shape[1]] = columns
        self.running = list(compress(self.running, kept.tolist()))


def _new_cache(options: EngineOptions, num_gpu_blocks: int, rules: Rules, eviction: Eviction | None) -> KVCache:
    caching, unfinished_first = options.enable_prefix_caching, rules.unfinished_blocks_first
    if eviction is None:
        return KVCache(num_gpu_blocks, prefix_caching=caching, unfinished_first=unfinished_first)
    return RankedKVCache(num_gpu_blocks, prefix_caching=caching, unfinished_first=unfinished_first, eviction=eviction)


def _urgency(request: Request) -> tuple[Any, ...]:
    """Order of the priority policy: vLLM 0.32.0 v1/request.py, `Request.__lt__`."""
    return request.row.priority, request.row.arrival_s, request.row.request_id
