"""A request inside an engine: what the scheduler and the KV cache remember of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from simulator.kv.kv_cache import BlockHash, Held
from traces.trace import TraceRow


class RequestStatus(enum.Enum):
    """Where a request stands; names as in vLLM's `RequestStatus`."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    PREEMPTED = enum.auto()
    FINISHED = enum.auto()
    ABORTED = enum.auto()
    REJECTED = enum.auto()


class PromptKV(enum.Enum):
    """How a request comes by the KV of its prompt."""

    COMPUTED_HERE = enum.auto()
    ELSEWHERE = enum.auto()
    """Another engine has computed it; no blocks are reserved here yet."""
    RECEIVING = enum.auto()
    """Its blocks are reserved and their content is on its way (vLLM: `WAITING_FOR_REMOTE_KVS`)."""
    RECEIVED = enum.auto()


@dataclass(slots=True, eq=False)
class Request:
    """One request in one engine.

    Attributes:
        row: the request as the trace has it.
        index: its place in the trace, which breaks ties.
        target_tokens: tokens it will have when it is finished, prompt and answer.
        block_hashes: identity of its full blocks, as far as it is known (grows with private ones on preemption); each
            stands for as many blocks as the engine's KV cache says.
        num_tokens: tokens that exist: prompt and the answer so far.
        status: where it stands.
        blocks: its blocks that other requests may share, from the first on.
        num_shared_blocks: how many these are.
        num_hashed_blocks: its blocks whose hash is known.
        num_in_flight: steps under way that will bring it a token.
        token_spans: steps that brought its tokens, as [first, last] pairs of the instance's step numbers; a step that
            brought several is there as often.
        scheduled_s: when it was first scheduled.
        queued_s: when it entered the waiting queue.
        finish_s: when its last token came, or when it was aborted.
        cached_tokens: tokens found in the prefix cache when it was first scheduled.
        num_preemptions: times it lost its blocks.
        reason: why it ended.
        kept: its KV blocks outlive it, until another engine has read them.
        kv: how it comes by the KV of its prompt.
        admission: its place in the order of all admissions to the running queue.

    While it runs, these too; of a request in lockstep they are what they were when it joined (`lockstep.py`).

        num_tokens: and those that steps under way will bring (vLLM: plus `num_output_placeholders`).
        num_computed_tokens: tokens whose KV exists or is being computed.
        num_blocks: KV blocks it holds; also while it waits for KV that comes into them.
        num_cached_tokens: tokens up to which its full blocks are in the prefix cache, whether or not others can know
            their hashes.
        span: first step of its present run of steps that each bring a token; -1 when there is none.
        last_step: last step that was planned to bring it a token; -1 when there is none.
        last_computed_step: last step in which it computes anything, where it is not in lockstep; -1 when there is none.
        next_decode_eligible_step: planning before which it computes nothing, in a pipeline that is planned ahead.

    Where its engine drafts tokens (`speculative_scheduler.py`) these too; `num_tokens` are what exists,
    and there is no `span`:

        num_drafts: drafted tokens behind its own, to be verified in its next step (vLLM: `spec_token_ids`).
        num_output_placeholders: tokens that steps under way will bring at most, with asynchronous scheduling.
        num_in_flight_tokens: tokens that steps under way compute for it.
        num_stale_tokens: those of them that were planned before it was last preempted.
        is_prefill_chunk: whether the last step planned for it leaves some of its tokens to be computed.
    """

    row: TraceRow
    index: int
    target_tokens: int
    block_hashes: list[BlockHash]
    num_tokens: int
    status: RequestStatus = RequestStatus.WAITING
    blocks: Held = field(default_factory=list)
    num_shared_blocks: int = 0
    num_hashed_blocks: int = 0
    num_in_flight: int = 0
    token_spans: list[tuple[int, int]] = field(default_factory=list)
    queued_s: float | None = None
    scheduled_s: float | None = None
    finish_s: float | None = None
    cached_tokens: int | None = None
    num_preemptions: int = 0
    reason: str | None = None
    kept: bool = False
    kv: PromptKV = PromptKV.COMPUTED_HERE
    admission: int = 0
    num_computed_tokens: int = 0
    num_blocks: int = 0
    num_cached_tokens: int = 0
    span: int = -1
    last_step: int = -1
    last_computed_step: int = -1
    next_decode_eligible_step: int = 0
    num_drafts: int = 0
    num_output_placeholders: int = 0
    num_in_flight_tokens: int = 0
    num_stale_tokens: int = 0
    is_prefill_chunk: bool = True

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.status in (RequestStatus.WAITING, RequestStatus.RUNNING, RequestStatus.PREEMPTED)

    def drop_tokens_after(self, step: int) -> None:
        """Forget tokens of steps after this one: they are under way and nobody will take them."""
        while self.token_spans and self.token_spans[-1][1] > step:
            first, _ = self.token_spans.pop()
            if first <= step:
                self.token_spans.append((first, step))
        self.num_tokens = self.row.prompt_tokens + sum(last - first + 1 for first, last in self.token_spans)

    def close_span(self) -> None:
        """Its present run of steps that each bring a token ends; nothing when there is none."""
        if self.span >= 0:
            self.token_spans.append((self.span, self.last_step))
            self.span = -1

    def add_tokens(self, step: int, count: int) -> None:
        """Note that a step brought so many tokens; steps in a row that each bring one are one span."""
        if count == 1 and self.token_spans and self.token_spans[-1][1] == step - 1:
            first, _ = self.token_spans.pop()
            self.token_spans.append((first, step))
        else:
            self.token_spans += [(step, step)] * count
