"""vLLM's own scheduler with no model behind it, in virtual time: the judge of ours, and its stand-in.

Needs vllm installed, in the environment that runs it; it imports nothing of it before it is asked to. It was run on
vLLM 0.19 to 0.33 (`simulator.scheduling.rules`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator.kv.kv_cache import BlockHash
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan, plan_of
from simulator.scheduling.request import Request, RequestStatus
from simulator.scheduling.spec import SchedulerSpec
from simulator.scheduling.speculation import (
    Acceptance,
    Speculation,
    SpeculativeConfig,
    acceptance_of,
    no_speculation,
    together,
)
from traces.errors import EngineError, installs
from traces.steps import Ints
from traces.trace import TraceRow

ANY_TOKEN = 7
STOP_TOKEN = 8

MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
"""A model that is never loaded: vLLM reads its config.json to know the kind of its layers."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A plan of vLLM's, and of its requests, by id: whom it brings a token, and who runs anew.

    Drafts of those who run anew only pad them to the length of the others: none is accepted.
    """

    plan: Any
    brings: dict[str, Request]
    padded: frozenset[str]


class Oracle:
    """The installed vLLM's Scheduler, or AsyncScheduler, behind the methods of `RequestScheduler`.

    Attributes:
        scheduler: vLLM's own object.
        version: vLLM's version.
        speculation: what was drafted and accepted so far, by vLLM's own count; None where nothing is drafted.
    """

    def __init__(self, spec: SchedulerSpec) -> None:
        """Build it. Raises EngineError when vllm is not installed or refuses the options."""
        if importlib.util.find_spec("vllm") is None:
            raise EngineError(
                "scheduler 'vllm' needs vllm in the environment that runs servetwin, and it is not installed there; "
                f"{installs('vllm')}, or servetwin into the environment that has vllm, or use scheduler 'native'"
            )
        for name, value in (("VLLM_NO_USAGE_STATS", "1"), ("HF_HUB_OFFLINE", "1"), ("VLLM_LOGGING_LEVEL", "ERROR")):
            os.environ.setdefault(name, value)
        import vllm

        self.version = str(vllm.__version__)
        self._spec = spec
        self._options = options = spec.options
        self.scheduler: Any = _vllm_scheduler(options, spec.num_gpu_blocks, spec.max_model_len)
        self._block_pool: Any = self.scheduler.kv_cache_manager.block_pool
        self._requests: dict[str, Request] = {}
        self.speculation: Speculation | None = None
        self._acceptance: Acceptance | None = None
        if (config := options.speculative_config) is not None:
            self.speculation = no_speculation(config.num_speculative_tokens)
            self._acceptance = acceptance_of(config, spec.seed)
        self._next_step = 0
        self._finished_step = -1
        # Plans whose output is still to come.
        self._under_way: list[_UnderWay] = []
        self._preempted: list[Request] = []
        self._preempt = self.scheduler._preempt_request
        self.scheduler._preempt_request = self._note_preemption

    @property
    def waiting(self) -> list[Request]:
        """Requests in the waiting queue, the next one first."""
        return [self._requests[request.request_id] for request in self.scheduler.waiting]

    @property
    def running(self) -> list[Request]:
        """Requests in the running queue."""
        return [self._requests[request.request_id] for request in self.scheduler.running]

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return int(self._block_pool.get_num_free_blocks())

    def cached_blocks(self, hashes: Sequence[BlockHash], most: int | None = None) -> int:
        """How many of these blocks, from the first on, are in the prefix cache; of the first `most` only."""
        hashes = hashes[:most]
        missing = (i for i, hash_ in enumerate(hashes) if not self._block_pool.get_cached_block(_digest(hash_), [0]))
        return next(missing, len(hashes))

    def add_request(self, row: TraceRow, index: int, hashes: tuple[BlockHash, ...], now_s: float) -> Request:
        """Queue a request whose full blocks have these hashes, and others that nobody shares."""
        request = self._spec.new_request(row, index, hashes, now_s)
        if request.status is RequestStatus.WAITING:
            self._requests[row.request_id] = request
            self.scheduler.add_request(_vllm_request(request, self._options))
        return request

    def schedule(self, now_s: float) -> StepPlan | None:
        """Plan the next step; None when no request can compute anything now."""
        while True:
            n_before = len(self._preempted)
            plan = self.scheduler.schedule()
            if plan.num_scheduled_tokens:
                return self._planned(plan, now_s)
            # An engine plans again at once when a step of no tokens made room, unless an output is to come first.
            if len(self._preempted) == n_before or self._under_way:
                return None

    num_cached_free: int | None = None
    """What vLLM keeps of free blocks is not asked."""

    def repeat(self, plan: StepPlan, times: int) -> tuple[Ints, Ints]:
        """Raises EngineError: a plan of vLLM's own scheduler is of one step."""
        raise EngineError("vLLM's own scheduler plans one step at a time")

    def finish(self, last_step: int, end_s: float, stopped: Collection[Request] = ()) -> list[Request]:
        """Hand the oldest plan its output. Returns the requests that are finished."""
        from vllm.v1.outputs import ModelRunnerOutput

        done = []
        while self._finished_step < last_step:
            self._finished_step += 1
            under_way = self._under_way.pop(0)
            ids = list(under_way.plan.num_scheduled_tokens)
            sampled = [self._sampled(rid, under_way, stopped) for rid in ids]
            order = {rid: i for i, rid in enumerate(ids)}
            output = ModelRunnerOutput(req_ids=ids, req_id_to_index=order, sampled_token_ids=sampled)
            outputs = self.scheduler.update_from_output(under_way.plan, output)
            for one in (one for of_client in outputs.values() for one in of_client.outputs):
                request = self._requests[one.request_id]
                request.num_tokens += len(one.new_token_ids)
                request.add_tokens(self._finished_step, len(one.new_token_ids))
                if one.finish_reason is not None:
                    done.append(self._close(request, RequestStatus.FINISHED, end_s))
            if self._acceptance is not None:
                self._count(outputs)
                if not self._options.async_scheduling:
                    self._draft(ids, self._acceptance)
        return done

    def _sampled(self, rid: str, under_way: _UnderWay, stopped: Collection[Request]) -> list[int]:
        """What a step brings a request: accepted drafts and a token of the model's own; the first one may be a stop."""
        request = under_way.brings.get(rid)
        if request is None:
            return []
        n_drafts, accepted = len(under_way.plan.scheduled_spec_decode_tokens.get(rid, ())), 0
        theirs = self.scheduler.requests.get(rid)
        if n_drafts and rid not in under_way.padded and theirs is not None:
            assert self._acceptance is not None
            accepted = min(self._acceptance.accepted(request.index, theirs.num_output_tokens), n_drafts)
        return [STOP_TOKEN if request in stopped else ANY_TOKEN, *[ANY_TOKEN] * accepted]

    def _draft(self, ids: list[str], acceptance: Acceptance) -> None:
        """Without asynchronous scheduling, an engine hands over the drafter's tokens when a step has ended."""
        from vllm.v1.outputs import DraftTokenIds

        open_ids = [rid for rid in ids if rid in self._requests]
        theirs = self.scheduler.requests
        drafts = [acceptance.drafts(self._requests[rid].index, theirs[rid].num_output_tokens) for rid in open_ids]
        self.scheduler.update_draft_token_ids(DraftTokenIds(open_ids, [[ANY_TOKEN] * n for n in drafts]))

    def _count(self, outputs: Any) -> None:
        """Add what vLLM counted of one step."""
        assert self.speculation is not None
        for of_client in outputs.values():
            stats = getattr(of_client.scheduler_stats, "spec_decoding_stats", None)
            if stats is not None:
                counted = Speculation(
                    stats.num_drafts,
                    stats.num_draft_tokens,
                    stats.num_accepted_tokens,
                    list(stats.num_accepted_tokens_per_pos),
                )
                self.speculation = together((self.speculation, counted))

    def abort(self, request: Request, now_s: float) -> None:
        """End a request from outside, as vLLM's front end does when a client goes away."""
        from vllm.v1.request import RequestStatus as Status

        if self._requests.get(request.row.request_id) is request:
            self.scheduler.finish_requests(request.row.request_id, Status.FINISHED_ABORTED)
            self._close(request, RequestStatus.ABORTED, now_s)

    def forget(self) -> None:
        """Lose what is cached; no request may hold blocks."""
        self.scheduler.reset_prefix_cache()

    def _planned(self, plan: Any, now_s: float) -> StepPlan:
        computed = {new.req_id: new.num_computed_tokens for new in plan.scheduled_new_reqs}
        cached = plan.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        requests = [self._requests[rid] for rid in plan.num_scheduled_tokens]
        for request in requests:
            request.status = RequestStatus.RUNNING
            if request.scheduled_s is None:
                request.scheduled_s = now_s
                request.cached_tokens = computed[request.row.request_id]
        theirs = self.scheduler.requests
        ids = [rid for rid in plan.num_scheduled_tokens if not theirs[rid].is_prefill_chunk]
        resumed = {new.req_id for new in plan.scheduled_new_reqs} | set(cached.resumed_req_ids)
        self._under_way.append(_UnderWay(plan, {rid: self._requests[rid] for rid in ids}, frozenset(resumed)))
        self._next_step += 1
        preempted, self._preempted = self._preempted, []
        return plan_of(
            requests,
            np.array(list(plan.num_scheduled_tokens.values()), dtype=np.int64),
            np.array([computed[rid] for rid in plan.num_scheduled_tokens], dtype=np.int64),
            first_step=self._next_step - 1,
            repeat=1,
            n_preempted=len(preempted),
            n_running=len(self.scheduler.running),
            n_waiting=len(self.scheduler.waiting),
            kv_blocks=self._spec.num_blocks - self.num_free_blocks,
            drafts=np.array(
                [len(plan.scheduled_spec_decode_tokens.get(rid, ())) for rid in plan.num_scheduled_tokens],
                dtype=np.int64,
            ),
        )

    def _note_preemption(self, theirs: Any, *args: Any, **kwargs: Any) -> None:
        """In place of vLLM's method of this name, which is called for each request that loses its blocks."""
        self._preempt(theirs, *args, **kwargs)
        request = self._requests[theirs.request_id]
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        self._preempted.append(request)

    def _close(self, request: Request, status: RequestStatus, end_s: float) -> Request:
        request.status = status
        request.finish_s = end_s
        del self._requests[request.row.request_id]
        return request


def _vllm_scheduler(options: EngineOptions, num_gpu_blocks: int, max_model_len: int) -> Any:
    import torch
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = _vllm_config(options, max_model_len)
    config.cache_config.num_gpu_blocks = num_gpu_blocks
    config.scheduler_config.scheduler_reserve_full_isl = options.scheduler_reserve_full_isl
    if options.speculative_config is not None:
        _take_drafter(config, options, options.speculative_config)
    spec = FullAttentionSpec(block_size=options.block_size, num_kv_heads=1, head_size=64, dtype=torch.bfloat16)
    kind = AsyncScheduler if options.async_scheduling else Scheduler
    return kind(
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


def _vllm_config(options: EngineOptions, max_model_len: int) -> Any:
    """vLLM's own view of the options. Raises EngineError with vLLM's words when it refuses them."""
    from vllm.engine.arg_utils import EngineArgs

    arguments: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "max_model_len": max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "enable_prefix_caching": options.enable_prefix_caching,
        "enable_chunked_prefill": options.enable_chunked_prefill,
        "long_prefill_token_threshold": options.long_prefill_token_threshold,
        "scheduling_policy": options.scheduling_policy,
        "async_scheduling": options.async_scheduling and options.speculative_config is None,
        "block_size": options.block_size,
        "enforce_eager": True,
    }
    defaults = EngineOptions()
    for name in ("watermark", "max_num_active_seqs", "long_prefill_token_threshold_adaptive"):
        # Not every version has them, so that they are only named where they are asked for.
        if getattr(options, name) != getattr(defaults, name):
            arguments[name] = getattr(options, name)
    if options.speculative_config is not None:
        drafted = options.speculative_config.num_speculative_tokens
        arguments["speculative_config"] = {"method": "ngram", "num_speculative_tokens": drafted, "prompt_lookup_max": 2}
    with tempfile.TemporaryDirectory() as folder:
        config = {**MODEL_CONFIG, "max_position_embeddings": max_model_len}
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            return EngineArgs(model=folder, **arguments).create_engine_config()
        except (TypeError, ValueError) as error:
            raise EngineError(f"vLLM refuses the engine's options: {error}") from None


def _take_drafter(config: Any, options: EngineOptions, drafter: SpeculativeConfig) -> None:
    """Put the drafter's method in place of `ngram`, which alone needs no files of a drafter.

    The scheduler asks the configuration for the method and not for its model.
    """
    config.speculative_config.method = drafter.method
    config.speculative_config.disable_eagle_block_drop = drafter.disable_eagle_block_drop
    config.scheduler_config.async_scheduling = options.async_scheduling


def _vllm_request(request: Request, options: EngineOptions) -> Any:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request as VLLMRequest

    hashes, index, size = request.block_hashes, request.index, options.block_size

    def hash_blocks(theirs: Any) -> list[bytes]:
        known: Sequence[int] = range(len(theirs.block_hashes), theirs.num_tokens // size)
        return [_digest(hashes[j] if j < len(hashes) else (index, j)) for j in known]

    row = request.row
    return VLLMRequest(
        request_id=row.request_id,
        prompt_token_ids=[ANY_TOKEN] * row.prompt_tokens,
        sampling_params=SamplingParams(
            max_tokens=row.output_tokens, ignore_eos=True, stop_token_ids=[STOP_TOKEN], temperature=0
        ),
        pooling_params=None,
        arrival_time=row.arrival_s,
        priority=row.priority,
        block_hasher=hash_blocks if options.enable_prefix_caching else None,
    )


def _digest(hash_: BlockHash) -> bytes:
    """32 bytes, as vLLM's sha256 would be, for one of our hashes."""
    return repr(hash_).encode().ljust(32, b".")
