"""A request inside an engine: what the scheduler and the KV cache remember of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from simulator.kv_cache import Block, BlockHash
from traces.trace import TraceRow


class RequestStatus(enum.Enum):
    """Where a request stands; names as in vLLM's `RequestStatus`."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    PREEMPTED = enum.auto()
    FINISHED = enum.auto()
    REJECTED = enum.auto()


@dataclass(slots=True, eq=False)
class Request:
    """One request in one engine.

    Attributes:
        row: the request as the trace has it.
        index: its place in the trace, which breaks ties.
        target_tokens: tokens it will have when it is finished, prompt and answer.
        block_hashes: identity of its full blocks, as far as it is known (grows with private ones on preemption).
        num_tokens: tokens that exist: prompt and the answer so far.
        status: where it stands.
        blocks: its blocks that other requests may share, from the first on.
        num_blocks: all blocks it holds.
        num_in_flight: steps under way that will bring it a token.
        token_spans: steps that brought its tokens, as [first, last] pairs of the instance's step numbers.
        scheduled_s: when it was first scheduled.
        queued_s: when it entered the waiting queue.
        finish_s: when its last token came.
        cached_tokens: tokens found in the prefix cache when it was first scheduled.
        num_preemptions: times it lost its blocks.
        reason: why it ended.
    """

    row: TraceRow
    index: int
    target_tokens: int
    block_hashes: list[BlockHash]
    num_tokens: int
    status: RequestStatus = RequestStatus.WAITING
    blocks: list[Block] = field(default_factory=list)
    num_blocks: int = 0
    num_in_flight: int = 0
    token_spans: list[tuple[int, int]] = field(default_factory=list)
    queued_s: float | None = None
    scheduled_s: float | None = None
    finish_s: float | None = None
    cached_tokens: int | None = None
    num_preemptions: int = 0
    reason: str | None = None
