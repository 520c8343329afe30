"""The queues and KV blocks of one engine, and what happens to a request there: it waits, runs, loses its blocks, ends.

How many tokens each computes in the next step is planned by one of two kinds of scheduler: by the one that has requests
go in lockstep where each grows by a token a step (`lockstep_scheduler.py`), by the other where tokens are drafted
(`speculative_scheduler.py`). The rules are vLLM V1's (0.32.0, v1/core/sched/scheduler.py), and so are the names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence

from simulator.kv.kv_cache import BlockHash, Found, n_blocks
from simulator.kv.tiers import KVTiers
from simulator.scheduling.incoming import IncomingKV
from simulator.scheduling.kv_cache_manager import KVCacheManager
from simulator.scheduling.plan import StepPlan
from simulator.scheduling.policies import Precedence
from simulator.scheduling.request import PromptKV, Request, RequestStatus
from simulator.scheduling.spec import SchedulerSpec
from simulator.scheduling.speculation import Speculation
from simulator.scheduling.stages import Stages
from traces.steps import Ints
from traces.trace import TraceRow


class Scheduler(ABC):
    """Queues and KV cache of one engine; `simulator.scheduling.choice.RequestScheduler` says what its methods do.

    Attributes:
        waiting: requests not running, those to be admitted first in front.
        running: requests holding KV blocks, in order of admission.
        kv_cache_manager: which requests hold which blocks.
        kv_cache: the blocks.
        incoming: requests that hold blocks for KV on its way here, and are not running yet.
        plans_again: whether the last planning, which planned nothing, is to be repeated though nothing has happened.
        speculation: what was drafted and accepted; None: nothing is drafted.
    """

    def __init__(self, spec: SchedulerSpec) -> None:
        """An engine's queues, empty."""
        options = spec.options
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.kv_cache_manager = KVCacheManager(spec)
        self.kv_cache = self.kv_cache_manager.kv_cache
        self.incoming = IncomingKV(self.kv_cache_manager)
        self.plans_again = False
        self.speculation: Speculation | None = None
        self._spec = spec
        self._options = options
        self._precedence = Precedence(options.scheduling_policy, spec.order)
        self._stages = Stages(spec.stages, asynchronous=options.async_scheduling)
        self._seats = min(options.max_num_seqs, options.max_num_active_seqs or options.max_num_seqs)
        # vLLM 0.32.0 v1/core/kv_cache_manager.py: of all blocks, the null block included.
        self._watermark_blocks = int(options.watermark * spec.num_gpu_blocks)
        self._n_admitted = 0
        self._next_step = 0
        self._finished_step = -1
        # Preempted since the last plan, also by schedulings that planned nothing.
        self._n_preempted = 0

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
        request = self._spec.new_request(row, index, hashes, now_s)
        if request.status is RequestStatus.WAITING:
            self._precedence.queue(self.waiting, request)
        return request

    def schedule(self, now_s: float) -> StepPlan | None:
        """Plan the next step and take the blocks it needs; None when no request can compute anything now."""
        self.kv_cache_manager.now_s = now_s
        self.incoming.advance(now_s)
        while True:
            if self._stages.plans_ahead:
                self._stages.begin_planning()
            before = self._n_preempted
            plan = self._plan(now_s)
            if plan is not None:
                return plan
            # A step of no tokens takes no time: the engine plans again at once, unless an output is to come first.
            preempted = self._n_preempted > before
            self.plans_again = preempted or self._stages.come_nearer(self.running)
            if not preempted or self._finished_step < self._next_step - 1 or self._stages.plans_ahead:
                return None

    @abstractmethod
    def _plan(self, now_s: float) -> StepPlan | None:
        """Plan a step; None when nobody computes anything in it, though some may have lost their blocks."""

    @abstractmethod
    def repeat(self, plan: StepPlan, times: int) -> tuple[Ints, Ints]:
        """Run a plan so often, in one go."""

    @abstractmethod
    def finish(self, last_step: int, end_s: float, stopped: Collection[Request] = ()) -> list[Request]:
        """Take in the output of all steps up to `last_step`. Returns the requests that are finished."""

    def abort(self, request: Request, now_s: float) -> None:
        """End a request from outside: its client went away. What steps under way compute for it is dropped."""
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
            self._end(request, RequestStatus.ABORTED, now_s)
        elif request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED):
            if request in self.incoming:
                self.lose(request)
            self.waiting.remove(request)
            self._close(request, RequestStatus.ABORTED, now_s)

    def forget(self) -> None:
        """Lose what is cached, and what is kept for another engine; no request may hold blocks."""
        self.kv_cache_manager.forget()

    # -- KV that goes to another engine, and KV that comes -------------------------------------------------------

    def keeps(self, request: Request) -> bool:
        """Whether the blocks of an ended request are kept for another engine."""
        return self.kv_cache_manager.keeps(request)

    def release(self, request: Request) -> None:
        """Free the blocks of an ended request that were kept for another engine, which has read them now."""
        self.kv_cache_manager.release(request)

    def receive(self, request: Request) -> None:
        """The KV of a request's prompt has arrived in the blocks that were reserved for it."""
        request.kv = PromptKV.RECEIVED

    def lose(self, request: Request) -> None:
        """The KV of a request's prompt will not arrive: it is computed here."""
        self.incoming.lose(request)
        self._precedence.requeue(self.waiting, request)

    def _reserve(self, request: Request) -> bool:
        """Take the blocks into which another engine's KV of the first waiting prompt will come; False: too few.

        vLLM 0.32.0 v1/core/sched/scheduler.py, a connector that loads asynchronously: blocks for the whole prompt but
        what is cached here, beside what prompts under way will still need (`_inflight_prefill_reserved_blocks`).
        """
        found = self.kv_cache_manager.find(request)
        new_blocks = self.kv_cache_manager.blocks_of(request.num_tokens) - n_blocks(found)
        if new_blocks > self._free_to_reserve(found):
            return False
        self.waiting.popleft()
        self.incoming.expect(request, found, new_blocks, self._options.block_size)
        return True

    def _load(self, request: Request, tiers: KVTiers, now_s: float) -> bool:
        """Have more of the first waiting request's prompt loaded than is cached here, where a tier has more.

        Blocks for the whole prompt are taken at once, so that what has been loaded can always be used.
        """
        found = self.kv_cache_manager.find(request)
        n_found = n_blocks(found)
        end = self.kv_cache_manager.reach(request, tiers, n_found)
        new_blocks = self.kv_cache_manager.blocks_of(request.num_tokens) - n_found
        if end == n_found or new_blocks > self._free_to_load(found):
            return False
        done_s = tiers.load(request.block_hashes, n_found, end, now_s)
        self.waiting.popleft()
        self.incoming.load(request, found, new_blocks, end * self._options.block_size, done_s)
        return True

    def _free_to_reserve(self, found: Found) -> int:
        """Free blocks that a prompt from another engine may take, beside what it has found."""
        needed_by_prefills = sum(
            self.kv_cache_manager.blocks_of(request.num_tokens) - request.num_blocks
            for request in self.running
            if request.num_computed_tokens < request.num_tokens - 1
        )
        return self._free_to_admit(found) - needed_by_prefills

    def _free_to_load(self, found: Found) -> int:
        """Free blocks that a load may take, beside what it has found."""
        return self._free_to_admit(found)

    def _share_received(self, request: Request) -> None:
        """KV that has come can be found, though its request cannot run yet (vLLM: `_update_waiting_for_remote_kv`)."""
        if self._options.enable_prefix_caching:
            self.kv_cache_manager.make_findable(request, self.incoming.loaded_of(request))

    # -- admission ---------------------------------------------------------------------------------------------

    def _prefill_threshold(self) -> int:
        """Most tokens of one request, or 0. It protects others, so that it binds only when there are others."""
        threshold = self._options.long_prefill_token_threshold
        if not threshold:
            return 0
        eligible = len(self.running) + len(self.incoming.holding) + len(self.waiting)
        if not eligible or (eligible == 1 and self._spec.rules.lone_request_unlimited):
            return 0
        if self._options.long_prefill_token_threshold_adaptive:
            return max(threshold, self._options.max_num_batched_tokens // eligible)
        return threshold

    def _free_to_admit(self, found: Found) -> int:
        """Free blocks that a waiting request may take beside what it has found; others keep the watermark."""
        return self.kv_cache.num_free_without(found) - (self._watermark_blocks if self.running else 0)

    def _take_blocks_of_first(self, request: Request, found: Found, blocks: int) -> bool:
        """Give the first waiting request so many blocks, with those it has found; False, and nothing: too few."""
        free, n_found = self._free_to_admit(found), n_blocks(found)
        if self._options.scheduler_reserve_full_isl:
            whole = self.kv_cache_manager.blocks_of(request.num_tokens)
            if whole - n_found > free:
                return False
        if blocks - n_found > free:
            return False
        self.kv_cache_manager.hold(request, found, blocks - n_found)
        self.waiting.popleft()
        return True

    def _run(self, request: Request, hit: int, tokens: int, now_s: float) -> None:
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
        request.num_cached_tokens = min(hit + tokens, request.num_tokens) if caching else 0
        request.span = request.last_step = -1
        self.running.append(request)
        self.kv_cache_manager.touch(request)
        if caching:
            self.kv_cache_manager.begin_sharing(request)

    # -- preemption and end ------------------------------------------------------------------------------------

    def _start_over(self, request: Request) -> None:
        """Give back the blocks of a request that no longer runs, and queue it again."""
        self.kv_cache_manager.make_own_findable(request)
        self.kv_cache_manager.free(request)
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        self._n_preempted += 1
        self._precedence.requeue(self.waiting, request)

    def _end(self, request: Request, status: RequestStatus, end_s: float) -> Request:
        """End a running request and free its blocks; its place in the running queue is the caller's to take away."""
        request.close_span()
        self.kv_cache_manager.free(request)
        return self._close(request, status, end_s)

    def _close(self, request: Request, status: RequestStatus, end_s: float) -> Request:
        request.drop_tokens_after(self._finished_step)
        request.status = status
        request.finish_s = end_s
        return request
