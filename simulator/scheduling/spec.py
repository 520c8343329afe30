"""What a scheduler is built from, ours or vLLM's, and a request as it enters one that is built so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.kv.kv_cache import BlockHash
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.policies import Eviction, Order
from simulator.scheduling.request import Request, RequestStatus
from simulator.scheduling.rules import REFERENCE_RULES, Rules
from simulator.scheduling.speculation import slots_ahead
from traces.trace import TraceRow


@dataclass(frozen=True, slots=True)
class SchedulerSpec:
    """What a scheduler is built from.

    Attributes:
        options: of the engine.
        num_gpu_blocks: its KV blocks, the null block included.
        max_model_len: most tokens of a request.
        rules: of the vLLM version to follow; vLLM's own scheduler has its own.
        stages: of a pipeline; steps are planned while others pass through them. A request that is due a token waits
            for it, or with asynchronous scheduling for as many plannings as there are stages.
        order: a user's own, in place of the scheduling policy's.
        eviction: a user's own, in place of the least recently used.
        blocks_per_hash: KV blocks that each hash of a request stands for; 1 with an eviction rule or with tiers.
        names_batches: whether plans say which requests are in them, and not only what they amount to; where tokens are
            drafted, and with vLLM's own scheduler, they always do.
        seed: decides which drafted tokens are accepted, where any are.
    """

    options: EngineOptions
    num_gpu_blocks: int
    max_model_len: int
    rules: Rules = REFERENCE_RULES
    stages: int = 1
    order: Order | None = None
    eviction: Eviction | None = None
    blocks_per_hash: int = 1
    names_batches: bool = True
    seed: int = 0

    @property
    def num_blocks(self) -> int:
        """Blocks that requests can hold."""
        return self.num_gpu_blocks - 1

    def new_request(self, row: TraceRow, index: int, hashes: Sequence[BlockHash], now_s: float) -> Request:
        """A request as it enters the engine; REJECTED, with the reason, when the engine can never serve it."""
        target = min(row.prompt_tokens + row.output_tokens, self.max_model_len)
        request = Request(row, index, target, list(hashes), row.prompt_tokens)
        request.num_hashed_blocks = len(hashes) * self.blocks_per_hash
        ahead = slots_ahead(self.options.speculative_config, asynchronous=self.options.async_scheduling)
        blocks = -(-min(target - 1 + ahead, self.max_model_len) // self.options.block_size)
        if row.prompt_tokens >= self.max_model_len:
            request.reason = f"prompt of {row.prompt_tokens} tokens, max_model_len is {self.max_model_len}"
        elif blocks > self.num_blocks:
            request.reason = f"needs {blocks} KV blocks, the engine has {self.num_blocks}"
        if request.reason is not None:
            request.status = RequestStatus.REJECTED
        else:
            request.queued_s = now_s
        return request
