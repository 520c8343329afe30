"""vLLM V1's scheduler where tokens are drafted: requests grow by one token or several in a step, each as it is lucky.

The rules are vLLM 0.32's (v1/core/sched/scheduler.py and async_scheduler.py), and so are the names. A running request
computes its last token and the drafts behind it, as far as the token budget and max_model_len allow. The output takes
back what was rejected. With asynchronous scheduling the next step is planned as if nothing were: placeholders stand
for the tokens that are under way, and requests are planned on although they may have ended.

Requests do not go in lockstep here, and no step is like the one before: each is planned by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from simulator.kv.kv_cache import Found, n_blocks
from simulator.scheduling.budget import Budget, Grant, Limits
from simulator.scheduling.plan import StepPlan, plan_of
from simulator.scheduling.request import PromptKV, Request, RequestStatus
from simulator.scheduling.scheduler import Scheduler
from simulator.scheduling.spec import SchedulerSpec
from simulator.scheduling.speculation import acceptance_of, no_speculation
from traces.errors import EngineError
from traces.steps import Ints


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A planned step: its number, what each request computes in it, and whom it brings a token."""

    step: int
    granted: dict[Request, Grant]
    brings: frozenset[Request]


class SpeculativeScheduler(Scheduler):
    """Queues and KV cache of an engine that drafts; as `Scheduler`, but one step at a time.

    Attributes:
        speculation: what was drafted and accepted so far.
    """

    def __init__(self, spec: SchedulerSpec) -> None:
        """An engine's queues, empty; its options say what is drafted."""
        super().__init__(spec)
        config = spec.options.speculative_config
        assert config is not None
        self.speculation = self._counts = no_speculation(config.num_speculative_tokens)
        self._config = config
        self._acceptance = acceptance_of(config, spec.seed)
        self._under_way: deque[_UnderWay] = deque()

    def repeat(self, plan: StepPlan, times: int) -> tuple[Ints, Ints]:
        """Raises EngineError: where tokens are drafted, a plan is of one step."""
        raise EngineError("steps with drafted tokens are planned one at a time")

    def finish(self, last_step: int, end_s: float, stopped: Collection[Request] = ()) -> list[Request]:
        """Take in the output of all steps up to `last_step`. Returns the requests that are finished.

        One of `stopped` ends with the first token of this output.
        """
        done = []
        while self._under_way and self._under_way[0].step <= last_step:
            output = self._under_way.popleft()
            self._finished_step = output.step
            for request, grant in output.granted.items():
                if self._take_output(request, grant, output, stops=request in stopped):
                    done.append(self._end_of(request, end_s))
                elif not self._options.async_scheduling and request.status is RequestStatus.RUNNING:
                    self._draft(request)
        return done

    # -- running -----------------------------------------------------------------------------------------------

    def _grant_running(self, granted: dict[Request, Grant], budget: Budget, threshold: int) -> None:
        """Grant running requests what they compute next; who lacks blocks takes another's."""
        i = 0
        while i < len(self.running) and budget.most > 0:
            request = self.running[i]
            tokens = self._wanted_of(request, budget, threshold)
            while tokens and self._new_blocks(request, tokens) > self.kv_cache.num_free:
                at = self._precedence.victim(self.running)
                victim = self.running[at]
                returned = granted.pop(victim, None)
                if returned is not None:
                    budget.give_back(returned.tokens)
                if at < i and (returned or not self._spec.rules.skips_after_idle_victim):
                    i -= 1
                self._preempt(at)
                if victim is request:
                    break
            if request.status is not RequestStatus.RUNNING:
                if not self._precedence.has_key or self._spec.rules.step_ends_with_own_preemption:
                    break
                continue
            if tokens:
                self._take_blocks(request, tokens)
                granted[request] = Grant(tokens, self._drafts_within(request, tokens))
                budget.take(tokens)
            i += 1

    def _wanted_of(self, request: Request, budget: Budget, threshold: int) -> int:
        """Tokens that a running request computes next."""
        placeholders, computed = request.num_output_placeholders, request.num_computed_tokens
        if placeholders and computed + 2 - placeholders >= request.row.prompt_tokens + request.row.output_tokens:
            return 0  # its last token is under way, even if all drafts of that step are rejected
        if self._stages.hold(request, self._finished_step):
            return 0
        tokens = request.num_tokens + request.num_drafts + placeholders - computed
        if 0 < threshold < tokens:
            tokens = threshold
        # The position after the last token that is computed must exist too.
        return min(tokens, budget.most, self._spec.max_model_len - computed - 1)

    def _drafts_within(self, request: Request, tokens: int) -> int:
        """Of the tokens that a request is given, those that were drafted; the others of its drafts are dropped."""
        own = request.num_tokens + request.num_output_placeholders - request.num_computed_tokens
        drafts = min(request.num_drafts, max(tokens - own, 0))
        request.num_drafts = 0
        return drafts

    def _new_blocks(self, request: Request, tokens: int) -> int:
        """Blocks that a running request lacks for so many more tokens and what its drafter writes behind them."""
        return max(self._blocks_for(request.num_computed_tokens + tokens) - request.num_blocks, 0)

    def _blocks_for(self, tokens: int) -> int:
        slots = min(tokens + self._config.num_lookahead_tokens, self._spec.max_model_len)
        return -(-slots // self._options.block_size)

    def _take_blocks(self, request: Request, tokens: int) -> None:
        """A running request gets its blocks; of its tokens those that are known are in the prefix cache now."""
        new_blocks = self._new_blocks(request, tokens)
        self.kv_cache.allocate(new_blocks)
        request.num_blocks += new_blocks
        self._put_in_cache(request, min(request.num_computed_tokens + tokens, request.num_tokens))

    def _put_in_cache(self, request: Request, tokens: int) -> None:
        """A running request's first tokens are in the prefix cache, as far as they fill blocks."""
        if self._options.enable_prefix_caching:
            request.num_cached_tokens = max(request.num_cached_tokens, tokens)
            if request in self.kv_cache_manager.sharing:
                self.kv_cache_manager.share_one(request, request.num_cached_tokens)

    def _preempt(self, i: int) -> None:
        """Take the blocks and the drafts of a running request; what is under way for it will still be delivered."""
        request = self.running.pop(i)
        request.num_stale_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = request.num_drafts = 0
        self._start_over(request)

    # -- waiting -----------------------------------------------------------------------------------------------

    def _grant_waiting(self, granted: dict[Request, Grant], budget: Budget, threshold: int, now_s: float) -> None:
        """Admit waiting requests while budget, seats and blocks last, and grant them their tokens.

        Those that hold blocks come first, and nobody passes them.
        """
        pads = not any(request.is_prefill_chunk for request in granted)
        limits = Limits(budget, threshold, pads=pads, others_run=bool(granted))
        tiers = self.kv_cache_manager.tiers
        skipped: list[Request] = []
        while (request := self._next_to_admit()) is not None and budget.most > 0 and len(self.running) < self._seats:
            if request.num_stale_tokens:
                # A token that was on its way when it lost its blocks is still to come.
                skipped.append(self.waiting.popleft())
                continue
            if request.kv is PromptKV.ELSEWHERE:
                if not self._reserve(request):
                    break
                continue
            if request.kv is PromptKV.RECEIVED:
                grant = self._admit_with_kv(request, limits, now_s)
            elif tiers is not None and self._load(request, tiers, now_s):
                continue
            else:
                grant = self._admit_first(request, limits, now_s)
            if grant is None:
                break
            granted[request] = grant
            budget.take(grant.tokens)
        self.waiting.extendleft(reversed(skipped))

    def _next_to_admit(self) -> Request | None:
        """The first of those whose KV has come, or else of the waiting ones; None when there is none."""
        if arrived := self.incoming.arrived:
            return self._precedence.sorted(arrived)[0]
        return self.waiting[0] if self.waiting else None

    def _first_grant(self, request: Request, hit: int, limits: Limits) -> Grant | None:
        """What a waiting request computes in its first step, `hit` tokens being there.

        None when it must wait for a larger budget. One that lacks a single token is padded to the length of a draft
        where no prompt goes on in the step, so that a step of decodes stays uniform.
        """
        k, budget = self._config.num_speculative_tokens, limits.budget
        tokens = request.num_tokens - hit
        if tokens == 1 and limits.pads and (limits.others_run or hit) and hit + k + 2 <= self._spec.max_model_len:
            return None if 1 + k > budget.most else Grant(1 + k, k, padded=True)
        if 0 < limits.threshold < tokens:
            tokens = limits.threshold
        if tokens > budget.most and not self._options.enable_chunked_prefill:
            return None
        return Grant(min(tokens, budget.most))

    def _admit_first(self, request: Request, limits: Limits, now_s: float) -> Grant | None:
        """Move the first waiting request to the running queue; None when budget or blocks are too few."""
        found = self.kv_cache_manager.find(request)
        hit = n_blocks(found) * self._options.block_size
        grant = self._first_grant(request, hit, limits)
        if grant is None or not self._take_blocks_of_first(request, found, self._blocks_for(hit + grant.tokens)):
            return None
        request.is_prefill_chunk = hit + grant.tokens < request.num_tokens
        self._run(request, hit, grant.tokens, now_s)
        return grant

    def _admit_with_kv(self, request: Request, limits: Limits, now_s: float) -> Grant | None:
        """Move a request whose KV has come to the running queue; None when budget or blocks are too few.

        What its drafts and its drafter write needs more blocks than were taken for its prompt.
        """
        hit = self.incoming.hit_of(request)
        grant = self._first_grant(request, hit, limits)
        new_blocks = 0 if grant is None else max(self._blocks_for(hit + grant.tokens) - request.num_blocks, 0)
        if grant is None or new_blocks > self._free_to_admit(()):
            self._share_received(request)
            return None
        self.kv_cache.allocate(new_blocks)
        request.num_blocks += new_blocks
        self.incoming.admit(request)
        request.is_prefill_chunk = True  # vLLM counts it among those under way until the step is planned
        self._run(request, hit, grant.tokens, now_s)
        return grant

    # -- KV from elsewhere -------------------------------------------------------------------------------------

    def _free_to_reserve(self, found: Found) -> int:
        """As for a load: vLLM asks the same of both."""
        return self._free_to_load(found)

    def _free_to_load(self, found: Found) -> int:
        """Free blocks that a load may take, beside what it has found.

        Those stay free that prompts under way still need, and the first steps behind them, and its own first step
        (vLLM: `_inflight_prefill_reserved_blocks`, `_spec_decode_step_blocks`).
        """
        step_tokens, blocks_of = self._config.step_tokens, self.kv_cache_manager.blocks_of
        prompts = [*self.incoming.holding, *(request for request in self.running if request.is_prefill_chunk)]
        promised = sum(
            max(blocks_of(min(request.num_tokens, self._spec.max_model_len) + step_tokens) - request.num_blocks, 0)
            for request in prompts
        )
        return super()._free_to_load(found) - promised - blocks_of(step_tokens)

    # -- plan --------------------------------------------------------------------------------------------------

    def _plan(self, now_s: float) -> StepPlan | None:
        """Running requests first, then waiting ones, unless some have just lost their blocks."""
        threshold = self._prefill_threshold()
        granted: dict[Request, Grant] = {}
        most = self._options.max_num_batched_tokens
        budget = Budget(most, most, self._config.draft_slots)
        n_before = self._n_preempted
        self._grant_running(granted, budget, threshold)
        if self._n_preempted == n_before:
            self._grant_waiting(granted, budget, threshold, now_s)
        return self._step_of(granted) if granted else None

    def _step_of(self, granted: dict[Request, Grant]) -> StepPlan:
        """The plan, and the counts after it."""
        step, grants = self._next_step, list(granted.values())
        self._next_step += 1
        before = [request.num_computed_tokens for request in granted]
        brings = frozenset(request for request, grant in granted.items() if self._advance(request, grant))
        self._under_way.append(_UnderWay(step, granted, brings))
        preempted, self._n_preempted = self._n_preempted, 0
        return plan_of(
            list(granted),
            np.array([grant.tokens for grant in grants], dtype=np.int64),
            np.array(before, dtype=np.int64),
            first_step=step,
            repeat=1,
            n_preempted=preempted,
            n_running=len(self.running),
            n_waiting=len(self.incoming.holding) + len(self.waiting),
            kv_blocks=self.kv_cache.in_use,
            drafts=np.array([grant.drafts for grant in grants], dtype=np.int64),
        )

    def _advance(self, request: Request, grant: Grant) -> bool:
        """A request's counts after a step is planned. Returns whether the step brings it a token."""
        request.num_computed_tokens += grant.tokens
        request.num_in_flight_tokens += grant.tokens
        known = request.num_tokens + request.num_output_placeholders
        request.is_prefill_chunk = request.num_computed_tokens < known
        if request.is_prefill_chunk:
            return False
        if self._options.async_scheduling:
            request.num_output_placeholders += 1 + grant.drafts
            self._stages.note_token(request)
            request.num_drafts = self._config.num_speculative_tokens
        return True

    # -- output ------------------------------------------------------------------------------------------------

    def _take_output(self, request: Request, grant: Grant, output: _UnderWay, *, stops: bool) -> bool:
        """Take in what a step brings a request. Returns whether it ends with that."""
        is_stale = request.num_stale_tokens > 0
        request.num_in_flight_tokens -= grant.tokens
        if is_stale:
            request.num_stale_tokens -= grant.tokens
        if not request.is_open or request not in output.brings:
            return False
        accepted = self._accepted(request, grant)
        if not is_stale:
            request.num_computed_tokens -= grant.drafts - accepted
            if self._options.async_scheduling:
                request.num_output_placeholders -= grant.drafts - accepted
        new = 1 if stops else min(1 + accepted, request.target_tokens - request.num_tokens)
        request.num_tokens += new
        request.add_tokens(output.step, new)
        if not is_stale and self._options.async_scheduling:
            request.num_output_placeholders -= new
        if request.status is RequestStatus.RUNNING and self._options.async_scheduling:
            self._put_in_cache(request, request.num_computed_tokens - request.num_output_placeholders)
        return stops or request.num_tokens >= request.target_tokens

    def _accepted(self, request: Request, grant: Grant) -> int:
        """Tokens of the request's drafts that the model would have said itself."""
        if not grant.drafts:
            return 0
        accepted = 0
        if not grant.padded:
            position = request.num_tokens - request.row.prompt_tokens
            accepted = min(self._acceptance.accepted(request.index, position), grant.drafts)
        self._counts.observe(grant.drafts, accepted)
        return accepted

    def _draft(self, request: Request) -> None:
        """Without asynchronous scheduling, the drafter's tokens come with the output."""
        position = request.num_tokens - request.row.prompt_tokens
        request.num_drafts = 0 if request.is_prefill_chunk else self._acceptance.drafts(request.index, position)

    def _end_of(self, request: Request, end_s: float) -> Request:
        """End a request with its last token."""
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
            return self._end(request, RequestStatus.FINISHED, end_s)
        self.waiting.remove(request)
        return self._close(request, RequestStatus.FINISHED, end_s)
