"""vLLM's own scheduler with no model behind it, in virtual time: the judge of ours.

Needs vllm installed, in the environment that runs it; it imports nothing of it before it is asked to.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulator.kv_cache import BlockHash
from simulator.options import EngineOptions
from traces.trace import TraceRow

ANY_TOKEN = 7


class Oracle:
    """The installed vLLM's Scheduler, or AsyncScheduler, and its KV cache manager.

    Attributes:
        scheduler: vLLM's own object.
    """

    def __init__(self, model: Path, options: EngineOptions, *, num_gpu_blocks: int, max_model_len: int) -> None:
        """Build it for a model folder, of which only config.json is read."""
        for name, value in (("VLLM_NO_USAGE_STATS", "1"), ("HF_HUB_OFFLINE", "1"), ("VLLM_LOGGING_LEVEL", "ERROR")):
            os.environ.setdefault(name, value)
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        config = EngineArgs(
            model=str(model),
            skip_tokenizer_init=True,
            max_model_len=max_model_len,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            enable_prefix_caching=options.enable_prefix_caching,
            enable_chunked_prefill=options.enable_chunked_prefill,
            long_prefill_token_threshold=options.long_prefill_token_threshold,
            async_scheduling=options.async_scheduling,
            block_size=options.block_size,
            enforce_eager=True,
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = num_gpu_blocks
        config.scheduler_config.scheduler_reserve_full_isl = options.scheduler_reserve_full_isl
        spec = FullAttentionSpec(block_size=options.block_size, num_kv_heads=1, head_size=64, dtype=torch.bfloat16)
        kind = AsyncScheduler if options.async_scheduling else Scheduler
        self.scheduler: Any = kind(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=num_gpu_blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=options.block_size,
            log_stats=True,
        )
        self._options = options
        # Plans whose output is still to come, and which of their requests it brings a token.
        self._planned: list[tuple[Any, dict[str, bool]]] = []

    def add_request(self, row: TraceRow, index: int, hashes: Sequence[BlockHash]) -> None:
        """Queue a request whose full blocks have these hashes, and others that nobody shares."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        def hash_blocks(request: Any) -> list[bytes]:
            known = range(len(request.block_hashes), request.num_tokens // self._options.block_size)
            return [_digest(hashes[j] if j < len(hashes) else (index, j)) for j in known]

        self.scheduler.add_request(
            Request(
                request_id=row.request_id,
                prompt_token_ids=[ANY_TOKEN] * row.prompt_tokens,
                sampling_params=SamplingParams(max_tokens=row.output_tokens, ignore_eos=True, temperature=0),
                pooling_params=None,
                arrival_time=float(index),
                block_hasher=hash_blocks if self._options.enable_prefix_caching else None,
            )
        )

    def schedule(self) -> list[tuple[str, int, int]]:
        """Plan a step: request, new tokens, tokens computed before, in order; empty when nothing can be computed."""
        plan = self.scheduler.schedule()
        computed = {new.req_id: new.num_computed_tokens for new in plan.scheduled_new_reqs}
        cached = plan.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        if plan.num_scheduled_tokens:
            brings = {rid: not self.scheduler.requests[rid].is_prefill_chunk for rid in plan.num_scheduled_tokens}
            self._planned.append((plan, brings))
        return [(rid, count, computed[rid]) for rid, count in plan.num_scheduled_tokens.items()]

    def finish(self) -> None:
        """Hand the oldest plan its output."""
        from vllm.v1.outputs import ModelRunnerOutput

        plan, brings = self._planned.pop(0)
        ids = list(plan.num_scheduled_tokens)
        sampled = [[ANY_TOKEN] if brings[rid] else [] for rid in ids]
        order = {rid: i for i, rid in enumerate(ids)}
        output = ModelRunnerOutput(req_ids=ids, req_id_to_index=order, sampled_token_ids=sampled)
        self.scheduler.update_from_output(plan, output)

    @property
    def waiting(self) -> list[str]:
        """Requests in the waiting queue."""
        return [request.request_id for request in self.scheduler.waiting]

    @property
    def running(self) -> list[str]:
        """Requests in the running queue."""
        return [request.request_id for request in self.scheduler.running]

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def _digest(hash_: BlockHash) -> bytes:
    """32 bytes, as vLLM's sha256 would be, for one of our hashes."""
    return repr(hash_).encode().ljust(32, b".")
