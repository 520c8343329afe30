"""vLLM V1's scheduler: which requests compute how many tokens in the next step.

"There's no 'decoding phase' nor 'prefill phase' in the scheduler. Each request just has the num_computed_tokens and
num_tokens" (vLLM 0.32.0, v1/core/sched/scheduler.py): at each step requests catch up, under one token budget; the
running ones first, in order of admission, then the waiting ones, in the order of the policy. A request that finds no
block takes them from another, which starts over later.

Requests that decode go in lockstep (`lockstep.py`), so that a step in which nobody lacks blocks costs what its prefill
chunks and its arrivals cost, however many others decode. Only where blocks run out, or an option holds requests back,
are they looked at one by one.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from profiles.attention import Chunk
from simulator.kv.kv_cache import BlockHash, Found, Held, n_blocks
from simulator.kv.tiers import KVTiers
from simulator.scheduling.incoming import IncomingKV
from simulator.scheduling.lockstep import Lockstep
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan
from simulator.scheduling.policies import Eviction, Order, new_cache
from simulator.scheduling.request import PromptKV, Request, RequestStatus, new_request
from simulator.scheduling.rules import REFERENCE_RULES, Rules
from simulator.scheduling.speculation import Speculation, slots_ahead
from simulator.scheduling.stages import Stages
from traces.steps import Ints
from traces.trace import TraceRow

_MOST_REPEATS = 512
"""Bounds the work that a plan's pricing can waste when something changes before all repeats are run."""


class Scheduler:
    """Queues and KV cache of one engine; `simulator.scheduling.choice.RequestScheduler` says what its methods do.

    Attributes:
        waiting: requests not running, those to be admitted first in front.
        running: requests holding KV blocks, in order of admission.
        kv_cache: the blocks.
        incoming: requests that hold blocks for KV on its way here, and are not running yet.
        tiers: where more of a prompt's KV may be than on the GPU; None: nowhere.
        plans_again: whether the last planning, which planned nothing, is to be repeated though nothing has happened.
        speculation: what was drafted and accepted; None: nothing is drafted (`speculative_scheduler.py`).
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        num_gpu_blocks: int,
        max_model_len: int,
        rules: Rules = REFERENCE_RULES,
        stages: int = 1,
        order: Order | None = None,
        eviction: Eviction | None = None,
        blocks_per_hash: int = 1,
        names_batches: bool = True,
    ) -> None:
        """An engine's queues, empty.

        Args:
            options: of the engine.
            num_gpu_blocks: its KV blocks, the null block included.
            max_model_len: most tokens of a request.
            rules: of the vLLM version to follow.
            stages: of a pipeline; steps are planned while others pass through them. A request that is due a token
                waits for it, or with asynchronous scheduling for as many plannings as there are stages.
            order: a user's own, in place of the scheduling policy's.
            eviction: a user's own, in place of the least recently used.
            blocks_per_hash: KV blocks that each hash of a request stands for; 1 with an eviction rule or with tiers.
            names_batches: whether plans say which requests are in them, and not only what they amount to.
        """
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.kv_cache = new_cache(options, num_gpu_blocks, rules, eviction, blocks_per_hash)
        self.incoming = IncomingKV(self.kv_cache)
        self._options = options
        self._stages = Stages(stages, asynchronous=options.async_scheduling)
        self._names_batches = names_batches
        self._rules = rules
        self._max_model_len = max_model_len
        self._seats = min(options.max_num_seqs, options.max_num_active_seqs or options.max_num_seqs)
        self._by_priority = options.scheduling_policy == "priority" or order is not None
        self._order = order
        self._key = _urgency if order is None else order.key
        # vLLM 0.32.0 v1/core/kv_cache_manager.py: of all blocks, the null block included.
        self._watermark_blocks = int(options.watermark * num_gpu_blocks)
        # Running requests are together when each decodes in lockstep, or waits for its last token (`_ending`), or
        # catches up (`_prefilling`); with pipeline stages none decodes in every step.
        self._together = stages == 1
        self._lockstep = Lockstep(options.block_size)
        self._ending: list[Request] = []
        self._prefilling: list[Request] = []
        # Of those in lockstep, the step before which everything computed is in the prefix cache.
        self._cached_step = 0
        # Running requests with blocks that others could find once they are computed.
        self._sharing: list[Request] = []
        self._n_admitted = 0
        self._next_step = 0
        self._finished_step = -1
        # Preempted while a step was still to bring them a token.
        self._stale: list[Request] = []
        # Preempted by schedulings that planned nothing: they count for the next plan.
        self._n_preempted = 0
        # Ended requests whose blocks another engine is still to read: findable, private and unfinished ones.
        self._kept: dict[Request, tuple[Held, int, int]] = {}
        self.tiers: KVTiers | None = None
        self.speculation: Speculation | None = None
        self.plans_again = False
        self._now_s = 0.0

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return self.kv_cache.num_free

    @property
    def num_cached_free(self) -> int:
        """Free blocks that hold content still."""
        return self.kv_cache.num_cached_free

    def cached_blocks(self, hashes: Sequence[BlockHash], most: int | None = None) -> int:
        """How many blocks of these hashes, from the first on, are in the prefix cache; of the first `most` only."""
        return self.kv_cache.n_found(hashes, len(hashes) * self.kv_cache.blocks_per_hash if most is None else most)

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
            slots_ahead=slots_ahead(self._options.speculative_config, asynchronous=self._options.async_scheduling),
        )
        request.num_hashed_blocks = len(hashes) * self.kv_cache.blocks_per_hash
        if request.status is RequestStatus.WAITING:
            self._queue(request)
        return request

    def schedule(self, now_s: float) -> StepPlan | None:
        """Plan the next step and take the blocks it needs; None when no request can compute anything now."""
        self._now_s = now_s
        self.incoming.advance(now_s)
        while True:
            if self._stages.plans_ahead:
                self._stages.begin_planning()
            threshold = self._prefill_threshold()
            granted: dict[Request, int] = {}
            budget = self._schedule_together(granted, threshold)
            preempted = 0
            if budget is None:
                self._part()
                budget, preempted = self._schedule_running(granted, threshold)
            n_before = len(self.running)
            if not preempted:
                self._schedule_waiting(granted, budget, threshold, now_s)
            self._n_preempted += preempted
            if self._lockstep or any(granted.values()):
                return self._planned(granted, alike=n_before == len(self.running) and not self._n_preempted)
            # A step of no tokens takes no time: the engine plans again at once, unless an output is to come first.
            self.plans_again = preempted > 0 or self._stages.come_nearer(self.running)
            if not preempted or self._finished_step < self._next_step - 1 or self._stages.plans_ahead:
                return None

    def repeat(self, plan: StepPlan, times: int) -> tuple[Ints, Ints]:
        """Run a plan `times` times instead of once, in one go.

        Returns the KV blocks in use, and the free ones that hold content still, at each, [times].
        """
        taken = np.zeros(times, dtype=np.int64)
        taken[1:] = self._lockstep.growth(self._next_step, times - 1)
        cached = self.kv_cache.allocate_in_turn(taken)
        self._next_step += times - 1
        self._cached_step = self._next_step - self._options.async_scheduling
        if self._sharing:
            self._share()
        return plan.kv_blocks + taken, cached

    def cache_stays(self, times: int) -> bool:
        """Whether so many steps of the last plan, in a row, leave what can be found in the prefix cache as it is.

        The first of them has its blocks already.
        """
        blocks = int(self._lockstep.growth(self._next_step, times - 1)[-1]) if times > 1 else 0
        return not self._sharing and self.kv_cache.evicts_none(blocks)

    def finish(self, last_step: int, end_s: float, stopped: Collection[Request] = ()) -> list[Request]:
        """Take in the output of all steps up to `last_step`. Returns the requests that are finished.

        A request ends with its last token, or earlier when it is one of `stopped`: its token of this output says so.
        """
        self._finished_step = last_step
        done = self._finish_stale(last_step, end_s, stopped)
        stopped = [request for request in stopped if request.status is RequestStatus.RUNNING]
        if stopped:
            self._part()
        if self._together:
            self._ending += self._lockstep.retire(last_step + 1, self._cached_step)
            looked_at: Sequence[Request] = self._ending
        else:
            looked_at = self.running
        if self._options.async_scheduling or self._stages.is_pipeline:
            # The output makes tokens known, and blocks that end with them can be found (`cache_blocks`).
            under_way = self._next_step - 1 > last_step
            self._cached_step = max(self._cached_step, self._next_step - under_way)
            if self._options.enable_prefix_caching:
                for request in looked_at:
                    known = request.num_computed_tokens - (request.last_step > last_step)
                    request.num_cached_tokens = max(request.num_cached_tokens, known)
            self._share()
        ended = [
            request
            for request in looked_at
            if (request.num_tokens >= request.target_tokens and request.last_step <= last_step) or request in stopped
        ]
        if ended:
            ended.sort(key=_admission)
            for request in ended:
                done.append(self._end(request, RequestStatus.FINISHED, end_s))
                self.running.remove(request)
            if self._together:
                self._ending = [request for request in self._ending if request.status is RequestStatus.RUNNING]
        return done

    def abort(self, request: Request, now_s: float) -> None:
        """End a request from outside: its client went away. What steps under way compute for it is dropped."""
        if request.status is RequestStatus.RUNNING:
            self._part()
            self._end(request, RequestStatus.ABORTED, now_s)
            self.running.remove(request)
        elif request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED):
            if request in self.incoming:
                self.lose(request)
            self.waiting.remove(request)
            if request in self._stale:
                self._stale.remove(request)
            self._close(request, RequestStatus.ABORTED, now_s)

    def forget(self) -> None:
        """Lose what is cached, and what is kept for another engine; no request may hold blocks."""
        for request in list(self._kept):
            self.release(request)
        self.kv_cache.forget()
        if self.tiers is not None:
            self.tiers.forget()

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
        self.incoming.lose(request)
        self._requeue(request)

    # -- running -----------------------------------------------------------------------------------------------

    def _prefill_threshold(self) -> int:
        """Most tokens of one request, or 0. It protects others, so that it binds only when there are others."""
        threshold = self._options.long_prefill_token_threshold
        eligible = len(self.running) + len(self.incoming.holding) + len(self.waiting)
        if not threshold or not eligible or (eligible == 1 and self._rules.lone_request_unlimited):
            return 0
        if self._options.long_prefill_token_threshold_adaptive:
            return max(threshold, self._options.max_num_batched_tokens // eligible)
        return threshold

    def _schedule_together(self, granted: dict[Request, int], threshold: int) -> int | None:
        """Let those in lockstep compute a token each, and the others as much as they lack.

        `granted` gets the tokens of those others. Returns the budget that is left; None when requests must be looked
        at one by one, and nothing has changed then.
        """
        if not self._together:
            return None
        step, lockstep = self._next_step, self._lockstep
        if lockstep:
            self._ending += lockstep.retire(step, self._cached_step)
        budget = self._options.max_num_batched_tokens - len(lockstep)
        new_blocks = lockstep.new_blocks(step)
        catching_up = []
        for request in self._prefilling:
            wanted = self._wanted(request, threshold)
            if wanted > budget and self.running[-len(self._prefilling) :] != self._prefilling:
                return None  # whose tokens the budget cuts depends on who stands where
            tokens = min(wanted, budget)
            catching_up.append((request, tokens))
            new_blocks += self._new_blocks(request, tokens)
            budget -= tokens
        if budget < 0 or new_blocks > self.kv_cache.num_free:
            return None
        self.kv_cache.allocate(new_blocks)
        self._cached_step = step + (self._finished_step >= step - 1)
        for request, tokens in catching_up:
            if tokens:
                request.num_blocks += self._new_blocks(request, tokens)
                granted[request] = tokens
                self._cache(request, tokens)
        if self._sharing:
            self._share()
        return budget

    def _part(self) -> None:
        """Bring the counts of all running requests up to date: each is looked at by itself until the next step."""
        if self._together:
            self._lockstep.disband(self._next_step, self._cached_step)
            self._ending.clear()
            self._prefilling.clear()
            self._together = False

    def _join(self, step: int) -> None:
        """Put running requests together again behind this step."""
        if self._stages.is_pipeline:
            return
        self._together = True
        self._cached_step = step + (self._finished_step >= step - 1)
        for request in self.running:
            if request.num_tokens >= request.target_tokens:
                self._ending.append(request)
            elif request.last_step == step:
                self._lockstep.join(request, step + 1)
            else:
                self._prefilling.append(request)

    def _schedule_running(self, granted: dict[Request, int], threshold: int) -> tuple[int, int]:
        """Grant running requests what they compute next, one by one: who lacks blocks takes another's.

        Returns the budget that is left, and how many were preempted.
        """
        budget, preempted, i = self._options.max_num_batched_tokens, 0, 0
        while i < len(self.running):
            request = self.running[i]
            wanted = min(self._wanted(request, threshold), budget)
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
                new_blocks = self._new_blocks(request, wanted)
                self.kv_cache.allocate(new_blocks)
                request.num_blocks += new_blocks
                if wanted:
                    granted[request] = wanted
                    budget -= wanted
                    self._cache(request, wanted)
                    if request in self._sharing:
                        self._share_one(request, request.num_cached_tokens)
                i += 1
            elif not self._by_priority or self._rules.step_ends_with_own_preemption:
                break
        return budget, preempted

    def _wanted(self, request: Request, threshold: int) -> int:
        """Tokens that a running request has to compute."""
        if request.num_tokens >= request.target_tokens or self._stages.hold(request, self._finished_step):
            return 0  # its last token is under way (vLLM: no step past max_tokens), or one that it waits for
        want = request.num_tokens - request.num_computed_tokens
        return min(want, threshold) if threshold else want

    def _new_blocks(self, request: Request, tokens: int) -> int:
        """Blocks that a running request lacks for so many more tokens."""
        return max(-(-(request.num_computed_tokens + tokens) // self._options.block_size) - request.num_blocks, 0)

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
        request = self.running.pop(i)
        request.num_in_flight = int(request.last_step > self._finished_step)
        request.num_tokens -= request.num_in_flight
        if request.num_in_flight:
            self._stale.append(request)
        self._close_span(request)
        self._start_over(request)

    def _start_over(self, request: Request) -> None:
        """Give back the blocks of a request that no longer runs, and queue it again."""
        # Its own full blocks stay findable, by itself at least: hashes nobody else has.
        full = request.num_cached_tokens // self._options.block_size
        for j in range(len(request.block_hashes), -(-full // self.kv_cache.blocks_per_hash)):
            request.block_hashes.append((request.index, j))
        request.num_hashed_blocks = max(request.num_hashed_blocks, full)
        self._cache_blocks(request, full)
        self._free(request)
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        self._requeue(request)

    def _free(self, request: Request) -> None:
        """Give back a request's blocks; the full ones beyond those that others can find are its own."""
        private = max(request.num_cached_tokens // self._options.block_size - request.num_shared_blocks, 0)
        unfinished = request.num_blocks - request.num_shared_blocks - private
        if request.kept and request.status is RequestStatus.RUNNING and request.num_tokens >= request.target_tokens:
            self._kept[request] = (request.blocks.copy(), private, unfinished)
        else:
            self.kv_cache.free(request.blocks, private, unfinished)
        request.blocks.clear()
        request.num_shared_blocks = 0
        if request in self._sharing:
            self._sharing.remove(request)

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

    def _schedule_waiting(self, granted: dict[Request, int], budget: int, threshold: int, now_s: float) -> None:
        """Admit waiting requests while budget, seats and blocks last, and grant them their tokens."""
        # Those that hold blocks already come first (vLLM 0.32.0: `kv_holding_waiting`): what they hold may be what
        # others wait for.
        arrived = self.incoming.arrived
        for request in sorted(arrived, key=self._key) if self._by_priority else arrived:
            if budget <= 0 or len(self.running) >= self._seats:
                break
            if self.running and self._watermark_blocks > self.kv_cache.num_free:
                self._share_received(request)
                return
            granted[request] = self._admit_received(request, budget, threshold, now_s)
            budget -= granted[request]
        skipped: list[Request] = []
        while self.waiting and budget > 0 and len(self.running) < self._seats:
            first = self.waiting[0]
            if first.kv is PromptKV.ELSEWHERE:
                if not self._reserve(first):
                    break
                continue
            if first.num_in_flight or (self._stages.is_pipeline and first.last_computed_step > self._finished_step):
                # What it computed before the preemption is still to come; it takes the next step at the earliest.
                skipped.append(self.waiting.popleft())
                continue
            if self.tiers is not None and self._load(first, self.tiers, now_s):
                continue
            tokens = self._admit(first, budget, threshold, now_s)
            if tokens == 0:
                break
            granted[first] = tokens
            budget -= tokens
        self.waiting.extendleft(reversed(skipped))

    def _admit(self, request: Request, budget: int, threshold: int, now_s: float) -> int:
        """Move the first waiting request to the running queue. Returns its tokens; 0 when it must wait on."""
        size = self._options.block_size
        found = self._found(request)
        n_found = n_blocks(found)
        hit = n_found * size
        tokens = request.num_tokens - hit
        if 0 < threshold < tokens:
            tokens = threshold
        if tokens > budget and not self._options.enable_chunked_prefill:
            return 0
        tokens = min(tokens, budget)
        free = self.kv_cache.num_free_without(found) - (self._watermark_blocks if self.running else 0)
        if self._options.scheduler_reserve_full_isl and -(-request.num_tokens // size) - n_found > free:
            return 0
        new_blocks = -(-(hit + tokens) // size) - n_found
        if new_blocks > free:
            return 0
        request.blocks, request.num_shared_blocks = self.kv_cache.hold(found), n_found
        self.kv_cache.allocate(new_blocks)
        self.waiting.popleft()
        self._run(request, n_found + new_blocks, hit, tokens, now_s)
        return tokens

    def _reserve(self, request: Request) -> bool:
        """Take the blocks into which another engine's KV of the first waiting prompt will come; False: too few.

        vLLM 0.32.0 v1/core/sched/scheduler.py, a connector that loads asynchronously: blocks for the whole prompt but
        what is cached here, beside what prompts under way will still need (`_inflight_prefill_reserved_blocks`).
        """
        size = self._options.block_size
        found = self._found(request)
        new_blocks = -(-request.num_tokens // size) - n_blocks(found)
        free = self.kv_cache.num_free_without(found) - self._needed_by_prefills()
        if new_blocks > free - (self._watermark_blocks if self.running else 0):
            return False
        self.waiting.popleft()
        self.incoming.expect(request, found, new_blocks, size)
        return True

    def _needed_by_prefills(self) -> int:
        """Blocks that running requests still need for their prompts."""
        return sum(
            -(-request.num_tokens // self._options.block_size) - request.num_blocks
            for request in self.running
            if request.num_computed_tokens < request.num_tokens - 1
        )

    def _load(self, request: Request, tiers: KVTiers, now_s: float) -> bool:
        """Have more of the first waiting request's prompt loaded than is cached here, where a tier has more.

        Blocks for the whole prompt are taken at once, so that what has been loaded can always be used.
        """
        size = self._options.block_size
        found = self._found(request)
        n_found = n_blocks(found)
        end = self._reach(request, tiers, n_found)
        new_blocks = -(-request.num_tokens // size) - n_found
        if end == n_found or new_blocks > self._free_for_load(found):
            return False
        done_s = tiers.load(request.block_hashes, n_found, end, now_s)
        self.waiting.popleft()
        self.incoming.load(request, found, new_blocks, end * size, done_s)
        return True

    def _reach(self, request: Request, tiers: KVTiers, n_found: int) -> int:
        """Blocks of a prompt that tiers have, the first `n_found` being here; its last token is always computed."""
        most = (request.num_tokens - 1) // self._options.block_size
        return tiers.reach(request.block_hashes, n_found, min(most, len(request.block_hashes)))

    def _free_for_load(self, found: Found) -> int:
        """Free blocks that a load may take, beside what it has found."""
        return self.kv_cache.num_free_without(found) - (self._watermark_blocks if self.running else 0)

    def _found(self, request: Request) -> Found:
        """The cached prefix of a waiting request.

        The last token is always computed, so that there are logits to sample from.
        """
        return self.kv_cache.find(request.block_hashes, (request.num_tokens - 1) // self._options.block_size)

    def _admit_received(self, request: Request, budget: int, threshold: int, now_s: float) -> int:
        """Move a request whose KV has arrived to the running queue, to compute the rest here. Returns its tokens."""
        blocks, hit = self.incoming.admit(request)
        tokens = min(request.num_tokens - hit, budget, threshold or budget)
        self._run(request, blocks, hit, tokens, now_s)
        return tokens

    def _share_received(self, request: Request) -> None:
        """KV that has come can be found, though its request cannot run yet (vLLM: `_update_waiting_for_remote_kv`)."""
        if self._options.enable_prefix_caching:
            self._make_findable(request, self.incoming.loaded_of(request))

    def _run(self, request: Request, blocks: int, hit: int, tokens: int, now_s: float) -> None:
        """Put a request into the running queue, with `hit` tokens computed and `tokens` to compute."""
        request.status = RequestStatus.RUNNING
        if request.scheduled_s is None:
            request.scheduled_s = now_s
        if request.cached_tokens is None:
            request.cached_tokens = hit
        caching = self._options.enable_prefix_caching
        request.admission = self._n_admitted
        self._n_admitted += 1
        request.num_computed_tokens = hit
        request.num_blocks = blocks
        request.num_cached_tokens = min(hit + tokens, request.num_tokens) if caching else 0
        request.span = request.last_step = -1
        self.running.append(request)
        if self.tiers is not None:
            self.tiers.touch(request.block_hashes)
        # A full block is findable as soon as it is scheduled, by the next request of the same step already.
        if caching and request.num_shared_blocks < request.num_hashed_blocks:
            self._sharing.append(request)
            self._share_one(request, request.num_cached_tokens)

    # -- plan --------------------------------------------------------------------------------------------------

    def _planned(self, granted: dict[Request, int], *, alike: bool) -> StepPlan:
        """The plan, and the counts after it; `alike`: the same requests ran before, and none lost its blocks."""
        step, lockstep = self._next_step, self._lockstep
        requests, tokens, before = self._named(granted) if self._names_batches else ([], [], [])
        self._next_step += 1
        n_decode, n_prefill = len(lockstep), 0
        kv_sum, kv_max = lockstep.kv_sum(step), lockstep.kv_max(step)
        chunks = []
        for request, new in granted.items():
            computed = request.num_computed_tokens
            if new > 1:
                chunks.append(Chunk(new, computed))
                n_prefill += new
            elif new:
                n_decode += 1
                kv_sum += computed
                kv_max = max(kv_max, computed)
            self._compute(request, new, step)
        if not self._together:
            self._close_spans(granted)
            self._join(step)
        preempted, self._n_preempted = self._n_preempted, 0
        decodes = n_decode == len(lockstep) == len(self.running)
        return StepPlan(
            first_step=step,
            repeat=self._most_repeats() if decodes and alike else 1,
            requests=requests,
            new_tokens=np.array(tokens, dtype=np.int64),
            computed_tokens=np.array(before, dtype=np.int64),
            n_requests=n_decode + len(chunks),
            chunks=chunks,
            n_prefill_tokens=n_prefill,
            n_decode=n_decode,
            decode_kv_sum=kv_sum,
            decode_kv_max=kv_max,
            n_preempted=preempted,
            n_running=len(self.running),
            n_waiting=len(self.incoming.holding) + len(self.waiting),
            kv_blocks=self.kv_cache.in_use,
        )

    def _named(self, granted: dict[Request, int]) -> tuple[list[Request], list[int], list[int]]:
        """The batch in the order of the running queue: requests, their tokens of this step, those before it."""
        offsets, step = self._lockstep.offsets, self._next_step
        batch = [request for request in self.running if request in offsets or granted.get(request)]
        tokens = [granted.get(request, 1) for request in batch]
        return batch, tokens, [offsets[r] + step if r in offsets else r.num_computed_tokens for r in batch]

    def _compute(self, request: Request, tokens: int, step: int) -> None:
        """A request that is not in lockstep computes so many tokens; with all of them there, it gets one more."""
        request.num_computed_tokens += tokens
        if request.num_computed_tokens >= request.num_tokens and tokens:
            request.num_tokens += 1
            request.last_step = step
            if request.span < 0:
                request.span = step
        if not self._together:
            if self._stages.is_pipeline and tokens:
                self._stages.note(request, step)
            return
        if request.last_step != step:
            if request not in self._prefilling:
                self._prefilling.append(request)
            return
        if request in self._prefilling:
            self._prefilling.remove(request)
        if request.num_tokens >= request.target_tokens:
            self._ending.append(request)
        else:
            self._lockstep.join(request, step + 1)

    def _close_spans(self, granted: dict[Request, int]) -> None:
        """A request that was due a token and is not in this step: its run of token-bringing steps ends here."""
        for request in self.running:
            if request.span >= 0 and not granted.get(request) and request.num_tokens < request.target_tokens:
                self._close_span(request)

    def _close_span(self, request: Request) -> None:
        if request.span >= 0:
            request.token_spans.append((request.span, request.last_step))
            request.span = -1

    def _most_repeats(self) -> int:
        """How often a step that all running requests decode in can be run before anything but lengths changes."""
        n_running, step = len(self.running), self._next_step
        if self._sharing and self.tiers is not None:
            return 1  # in which order tiers get blocks decides what they evict
        # The first waiting request lacks blocks, and those only get fewer while nobody finishes; but a block that a
        # running request completes may be one that it can share.
        can_admit = self._sharing or n_running >= self._options.max_num_batched_tokens
        if self.waiting and n_running < self._seats and (can_admit or self.waiting[0].num_in_flight):
            return 1
        most = min(self._lockstep.first_end - step + 1, _MOST_REPEATS - 1)
        if n_running * -(-most // self._options.block_size) <= self.kv_cache.num_free:
            return 1 + most
        growth = self._lockstep.growth(step, most)
        return 1 + int(np.searchsorted(growth, self.kv_cache.num_free, side="right"))

    # -- sharing and ending ------------------------------------------------------------------------------------

    def _cache(self, request: Request, tokens: int) -> None:
        """What a request is about to compute is in the prefix cache from now on, as far as its tokens are known.

        Only tokens that exist can be hashed, not one that a step under way will bring.
        """
        if self._options.enable_prefix_caching:
            known = request.num_tokens - (request.last_step > self._finished_step)
            request.num_cached_tokens = min(request.num_computed_tokens + tokens, known)

    def _share(self) -> None:
        """Make the cached blocks of known hash findable."""
        offsets = self._lockstep.offsets
        for request in self._sharing.copy():
            cached = request.num_cached_tokens
            if request in offsets:
                cached = max(cached, offsets[request] + self._cached_step)
            self._share_one(request, cached)

    def _share_one(self, request: Request, cached_tokens: int) -> None:
        """Make a request's blocks findable that are in the prefix cache now; with the last of them it is done."""
        self._make_findable(request, cached_tokens)
        if request.num_shared_blocks == request.num_hashed_blocks:
            self._sharing.remove(request)

    def _make_findable(self, request: Request, cached_tokens: int) -> None:
        """Make the blocks of known hash findable that a request's first so many tokens fill, here and in tiers."""
        before = request.num_shared_blocks
        self._cache_blocks(request, min(cached_tokens // self._options.block_size, request.num_hashed_blocks))
        if self.tiers is not None:
            for j in range(before, request.num_shared_blocks):
                self.tiers.store(request.block_hashes, j, self._now_s)

    def _cache_blocks(self, request: Request, full: int) -> None:
        """Make a request's first `full` blocks findable."""
        per_hash = self.kv_cache.blocks_per_hash
        while (at := request.num_shared_blocks) < full:
            number, first = divmod(at, per_hash)
            end = min(per_hash, first + full - at)
            self.kv_cache.cache(request.blocks, request.block_hashes[number], first, end)
            request.num_shared_blocks += end - first

    def _finish_stale(self, last_step: int, end_s: float, stopped: Collection[Request]) -> list[Request]:
        """Tokens that arrive for requests preempted meanwhile; one may have been the last."""
        done, still = [], []
        for request in self._stale:
            if request.last_step > last_step:
                still.append(request)
                continue
            request.num_tokens += 1
            request.num_in_flight = 0
            if request.num_tokens >= request.target_tokens or request in stopped:
                self.waiting.remove(request)
                done.append(self._close(request, RequestStatus.FINISHED, end_s))
        self._stale = still
        return done

    def _end(self, request: Request, status: RequestStatus, end_s: float) -> Request:
        """End a running request and free its blocks; its place in the running queue is the caller's to take away."""
        self._close_span(request)
        self._free(request)
        return self._close(request, status, end_s)

    def _close(self, request: Request, status: RequestStatus, end_s: float) -> Request:
        request.drop_tokens_after(self._finished_step)
        request.status = status
        request.finish_s = end_s
        return request


def _urgency(request: Request) -> tuple[Any, ...]:
    """Order of the priority policy: vLLM 0.32.0 v1/request.py, `Request.__lt__`."""
    return request.row.priority, request.row.arrival_s, request.row.request_id


def _admission(request: Request) -> int:
    return request.admission
