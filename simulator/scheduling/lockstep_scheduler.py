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

from collections.abc import Collection

import numpy as np

from profiles.attention import Chunk
from simulator.kv.kv_cache import n_blocks
from simulator.scheduling.lockstep import Lockstep
from simulator.scheduling.plan import StepPlan
from simulator.scheduling.request import PromptKV, Request, RequestStatus
from simulator.scheduling.scheduler import Scheduler
from simulator.scheduling.spec import SchedulerSpec
from traces.steps import Ints

_MOST_REPEATS = 512
"""Bounds the work that a plan's pricing can waste when something changes before all repeats are run."""

_NOBODY: tuple[list[Request], Ints, Ints] = [], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
"""What plans say of their requests where nobody asks."""


class LockstepScheduler(Scheduler):
    """Queues and KV cache of an engine whose requests each grow by a token in a step; steps alike are run in one go."""

    def __init__(self, spec: SchedulerSpec) -> None:
        """An engine's queues, empty."""
        super().__init__(spec)
        # Running requests are together when each decodes in lockstep, or waits for its last token (`_ending`), or
        # catches up (`_prefilling`); with pipeline stages none decodes in every step.
        self._together = spec.stages == 1
        self._lockstep = Lockstep(spec.options.block_size)
        self._ending: list[Request] = []
        self._prefilling: list[Request] = []
        # Of those in lockstep, the step before which everything computed is in the prefix cache.
        self._cached_step = 0
        # Preempted while a step was still to bring them a token.
        self._stale: list[Request] = []

    def repeat(self, plan: StepPlan, times: int) -> tuple[Ints, Ints]:
        """Run a plan `times` times instead of once, in one go.

        Returns the KV blocks in use, and the free ones that hold content still, at each, [times].
        """
        taken = np.zeros(times, dtype=np.int64)
        taken[1:] = self._lockstep.growth(self._next_step, times - 1)
        cached = self.kv_cache.allocate_in_turn(taken)
        self._next_step += times - 1
        self._cached_step = self._next_step - self._options.async_scheduling
        if self.kv_cache_manager.sharing:
            self._share()
        return plan.kv_blocks + taken, cached

    def cache_stays(self, times: int) -> bool:
        """Whether so many steps of the last plan, in a row, leave what can be found in the prefix cache as it is.

        The first of them has its blocks already.
        """
        blocks = int(self._lockstep.growth(self._next_step, times - 1)[-1]) if times > 1 else 0
        return not self.kv_cache_manager.sharing and self.kv_cache.evicts_none(blocks)

    def finish(self, last_step: int, end_s: float, stopped: Collection[Request] = ()) -> list[Request]:
        """Take in the output of all steps up to `last_step`. Returns the requests that are finished.

        A request ends with its last token, or earlier when it is one of `stopped`: its token of this output says so.
        """
        self._finished_step = last_step
        done = self._finish_stale(last_step, end_s, stopped) if self._stale else []
        if stopped:
            stopped = [request for request in stopped if request.status is RequestStatus.RUNNING]
            if stopped:
                self._part()
        looked_at = self.running
        if self._together:
            self._ending += self._lockstep.retire(last_step + 1, self._cached_step)
            looked_at = self._ending
        if self._options.async_scheduling or self._stages.is_pipeline:
            # The output makes tokens known, and blocks that end with them can be found (`cache_blocks`).
            under_way = self._next_step - 1 > last_step
            self._cached_step = max(self._cached_step, self._next_step - under_way)
            if self._options.enable_prefix_caching:
                for request in looked_at:
                    known = request.num_computed_tokens - (request.last_step > last_step)
                    request.num_cached_tokens = max(request.num_cached_tokens, known)
            if self.kv_cache_manager.sharing:
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

    def abort(self, request: Request, now_s: float) -> None:
        """End a request from outside: its client went away. What steps under way compute for it is dropped."""
        if request.status is RequestStatus.RUNNING:
            self._part()
        elif request in self._stale:
            self._stale.remove(request)
        super().abort(request, now_s)

    # -- running, together ---------------------------------------------------------------------------------------

    def _schedule_together(self, granted: dict[Request, int], threshold: int) -> int | None:
        """Let those in lockstep compute a token each, and the others as much as they lack.

        `granted` gets the tokens of those others. Returns the budget that is left; None when requests must be looked
        at one by one, and nothing has changed then.
        """
        if not self._together:
            return None
        step, lockstep = self._next_step, self._lockstep
        self._ending += lockstep.retire(step, self._cached_step)
        budget = self._options.max_num_batched_tokens - len(lockstep.offsets)
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
        if self.kv_cache_manager.sharing:
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

    # -- running, one by one -------------------------------------------------------------------------------------

    def _schedule_running(self, granted: dict[Request, int], threshold: int) -> int:
        """Grant running requests what they compute next, one by one: who lacks blocks takes another's.

        Returns the budget that is left.
        """
        budget, i = self._options.max_num_batched_tokens, 0
        while i < len(self.running):
            request = self.running[i]
            wanted = min(self._wanted(request, threshold), budget)
            while self._new_blocks(request, wanted) > self.kv_cache.num_free:
                at = self._precedence.victim(self.running)
                victim = self.running[at]
                returned = granted.pop(victim, 0)
                budget += returned
                if at < i and (returned or not self._spec.rules.skips_after_idle_victim):
                    i -= 1
                self._preempt(at)
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
                    if request in self.kv_cache_manager.sharing:
                        self.kv_cache_manager.share_one(request, request.num_cached_tokens)
                i += 1
            elif not self._precedence.has_key or self._spec.rules.step_ends_with_own_preemption:
                break
        return budget

    def _wanted(self, request: Request, threshold: int) -> int:
        """Tokens that a running request has to compute."""
        if request.num_tokens >= request.target_tokens or self._stages.hold(request, self._finished_step):
            return 0  # its last token is under way (vLLM: no step past max_tokens), or one that it waits for
        want = request.num_tokens - request.num_computed_tokens
        return min(want, threshold) if threshold else want

    def _new_blocks(self, request: Request, tokens: int) -> int:
        """Blocks that a running request lacks for so many more tokens."""
        return max(-(-(request.num_computed_tokens + tokens) // self._options.block_size) - request.num_blocks, 0)

    def _preempt(self, i: int) -> None:
        """Take the blocks of a running request; it starts over from the waiting queue."""
        request = self.running.pop(i)
        request.num_in_flight = int(request.last_step > self._finished_step)
        request.num_tokens -= request.num_in_flight
        if request.num_in_flight:
            self._stale.append(request)
        request.close_span()
        self._start_over(request)

    # -- waiting -----------------------------------------------------------------------------------------------

    def _schedule_waiting(self, granted: dict[Request, int], budget: int, threshold: int, now_s: float) -> None:
        """Admit waiting requests while budget, seats and blocks last, and grant them their tokens."""
        if not self.waiting and not self.incoming.holding:
            return
        # Those that hold blocks already come first (vLLM 0.32.0: `kv_holding_waiting`): what they hold may be what
        # others wait for.
        for request in self._precedence.sorted(self.incoming.arrived):
            if budget <= 0 or len(self.running) >= self._seats:
                break
            if self.running and self._watermark_blocks > self.kv_cache.num_free:
                self._share_received(request)
                return
            granted[request] = self._admit_received(request, budget, threshold, now_s)
            budget -= granted[request]
        tiers = self.kv_cache_manager.tiers
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
            if tiers is not None and self._load(first, tiers, now_s):
                continue
            tokens = self._admit(first, budget, threshold, now_s)
            if tokens == 0:
                break
            granted[first] = tokens
            budget -= tokens
        self.waiting.extendleft(reversed(skipped))

    def _admit(self, request: Request, budget: int, threshold: int, now_s: float) -> int:
        """Move the first waiting request to the running queue. Returns its tokens; 0 when it must wait on."""
        found = self.kv_cache_manager.find(request)
        hit = n_blocks(found) * self._options.block_size
        tokens = request.num_tokens - hit
        if 0 < threshold < tokens:
            tokens = threshold
        if tokens > budget and not self._options.enable_chunked_prefill:
            return 0
        tokens = min(tokens, budget)
        if not self._take_blocks_of_first(request, found, self.kv_cache_manager.blocks_of(hit + tokens)):
            return 0
        self._run(request, hit, tokens, now_s)
        return tokens

    def _admit_received(self, request: Request, budget: int, threshold: int, now_s: float) -> int:
        """Move a request whose KV has arrived to the running queue, to compute the rest here. Returns its tokens."""
        hit = self.incoming.admit(request)
        tokens = min(request.num_tokens - hit, budget, threshold or budget)
        self._run(request, hit, tokens, now_s)
        return tokens

    # -- plan --------------------------------------------------------------------------------------------------

    def _plan(self, now_s: float) -> StepPlan | None:
        """Running requests first, then waiting ones, unless some have just lost their blocks."""
        threshold = self._prefill_threshold()
        granted: dict[Request, int] = {}
        budget = self._schedule_together(granted, threshold)
        preempted = False
        if budget is None:
            self._part()
            n_before = self._n_preempted
            budget = self._schedule_running(granted, threshold)
            preempted = self._n_preempted > n_before
        n_running = len(self.running)
        if not preempted:
            self._schedule_waiting(granted, budget, threshold, now_s)
        if not self._lockstep.offsets and not any(granted.values()):
            return None
        return self._planned(granted, alike=n_running == len(self.running) and not self._n_preempted)

    def _planned(self, granted: dict[Request, int], *, alike: bool) -> StepPlan:
        """The plan, and the counts after it; `alike`: the same requests ran before, and none lost its blocks."""
        step, lockstep = self._next_step, self._lockstep
        requests, tokens, before = _NOBODY
        if self._spec.names_batches:
            requests, tokens, before = lockstep.batch(step, {request: new for request, new in granted.items() if new})
        self._next_step += 1
        n_decode, n_prefill = len(lockstep.offsets), 0
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
        decodes = n_decode == len(lockstep.offsets) == len(self.running)
        return StepPlan(
            first_step=step,
            repeat=self._most_repeats() if decodes and alike else 1,
            requests=requests,
            new_tokens=tokens,
            computed_tokens=before,
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
                request.close_span()

    def _most_repeats(self) -> int:
        """How often a step that all running requests decode in can be run before anything but lengths changes."""
        n_running, step, sharing = len(self.running), self._next_step, self.kv_cache_manager.sharing
        if sharing and self.kv_cache_manager.tiers is not None:
            return 1  # in which order tiers get blocks decides what they evict
        # The first waiting request lacks blocks, and those only get fewer while nobody finishes; but a block that a
        # running request completes may be one that it can share.
        can_admit = sharing or n_running >= self._options.max_num_batched_tokens
        if self.waiting and n_running < self._seats and (can_admit or self.waiting[0].num_in_flight):
            return 1
        most = min(self._lockstep.first_end - step + 1, _MOST_REPEATS - 1)
        if n_running * -(-most // self._options.block_size) <= self.kv_cache.num_free:
            return 1 + most
        growth = self._lockstep.growth(step, most)
        return 1 + int(np.searchsorted(growth, self.kv_cache.num_free, side="right"))

    # -- prefix cache --------------------------------------------------------------------------------------------

    def _cache(self, request: Request, tokens: int) -> None:
        """What a request is about to compute is in the prefix cache from now on, as far as its tokens are known.

        Only tokens that exist can be hashed, not one that a step under way will bring.
        """
        if self._options.enable_prefix_caching:
            known = request.num_tokens - (request.last_step > self._finished_step)
            request.num_cached_tokens = min(request.num_computed_tokens + tokens, known)

    def _share(self) -> None:
        """Make the blocks that are in the prefix cache now findable."""
        self.kv_cache_manager.share(self._lockstep.offsets, self._cached_step)


def _admission(request: Request) -> int:
    return request.admission
