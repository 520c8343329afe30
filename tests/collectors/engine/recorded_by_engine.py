"""The recorder around vLLM's own schedulers, with no model behind them. Runs in the engine's environment:

    PYTHONPATH=collectors/engine SERVETWIN_STEPS=steps.jsonl \\
        .venv-engine/bin/python tests/collectors/engine/recorded_by_engine.py MODEL_FOLDER {sync,async} N_REQUESTS

Prompts of 64 tokens share their first 32, and do not all fit into the KV cache with their answers. One request is
aborted; with the synchronous scheduler one is pooled, and one has two drafts, which are rejected. The asynchronous one
has two steps in flight. It prints, as JSON, what the recorder must have seen.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from typing import Any

os.environ |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

import recorder
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

BLOCK_SIZE, N_TOKENS = 16, 40


def make_scheduler(model: str, n_requests: int, *, asynchronous: bool) -> Any:
    """What vLLM's engine makes of --scheduler-cls recorder.RecordingScheduler."""
    config = EngineArgs(
        model=model,
        max_model_len=256,
        max_num_seqs=n_requests,
        max_num_batched_tokens=256,
        block_size=BLOCK_SIZE,
        enforce_eager=True,
        scheduler_cls="recorder.RecordingScheduler",
    ).create_engine_config()
    config.scheduler_config.async_scheduling = asynchronous  # vLLM has none on CPUs
    n_blocks = config.cache_config.num_gpu_blocks = 3 * n_requests
    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=64, dtype=torch.bfloat16)
    return config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=n_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_SIZE,
        log_stats=True,
    )


def make_request(index: int, *, pooled: bool = False) -> Request:
    hash_function = get_hash_fn_by_name("sha256")
    init_none_hash(hash_function)
    sampling = SamplingParams(max_tokens=N_TOKENS, ignore_eos=True, temperature=0)
    return Request(
        request_id=f"cmpl-r{index}-0-{index:08x}",
        prompt_token_ids=[*range(100, 132), *range(200 + 50 * index, 232 + 50 * index)],
        sampling_params=None if pooled else sampling,
        pooling_params=PoolingParams(task="embed") if pooled else None,
        arrival_time=float(index),
        priority=index,
        block_hasher=get_request_block_hasher(BLOCK_SIZE, hash_function),
    )


def answer(scheduler: Any, plan: Any, brings: dict[str, bool]) -> Any:
    """The model's output: a token for each request whose prompt is computed, and a vector for one that is pooled."""
    ids = list(plan.num_scheduled_tokens)
    pooled = [scheduler.requests[rid].pooling_params is not None if rid in scheduler.requests else False for rid in ids]
    return ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={rid: i for i, rid in enumerate(ids)},
        sampled_token_ids=[[7] if brings[rid] and not pool else [] for rid, pool in zip(ids, pooled, strict=True)],
        pooler_output=[torch.zeros(1) if brings[rid] and pool else None for rid, pool in zip(ids, pooled, strict=True)],
    )


def main(model: str, kind: str, n_requests: int) -> None:
    scheduler = make_scheduler(model, n_requests, asynchronous=kind == "async")
    for index in range(n_requests):
        scheduler.add_request(make_request(index, pooled=index == 1 and kind == "sync"))
    in_flight: list[tuple[Any, dict[str, bool]]] = []
    tokens: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    preempted = n_steps = 0
    while True:
        plan = scheduler.schedule()
        preempted += len(plan.preempted_req_ids or ())
        if plan.num_scheduled_tokens:
            n_steps += 1
            computed.update(plan.num_scheduled_tokens)
            brings = {rid: not scheduler.requests[rid].is_prefill_chunk for rid in plan.num_scheduled_tokens}
            in_flight.append((plan, brings))
        elif not in_flight:
            break
        if len(in_flight) == (2 if kind == "async" else 1) or not plan.num_scheduled_tokens:
            plan, brings = in_flight.pop(0)
            outputs = scheduler.update_from_output(plan, answer(scheduler, plan, brings))
            for output in (output for of_client in outputs.values() for output in of_client.outputs):
                tokens[output.request_id] += len(output.new_token_ids)
        if n_steps == 5 and kind == "sync":
            scheduler.num_spec_tokens = 2
            scheduler.requests["cmpl-r0-0-00000000"].spec_token_ids = [7, 7]
        if n_steps == 10:
            scheduler.finish_requests("cmpl-r2-0-00000002", RequestStatus.FINISHED_ABORTED)
    recorder_calls = sorted(scheduler.__dict__.keys() & set(recorder.CALLS))
    scheduler.shutdown()
    seen = {"scheduler": type(scheduler).__name__, "calls": recorder_calls, "n_steps": n_steps, "preempted": preempted}
    print(json.dumps({**seen, "tokens": +tokens, "computed": computed}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
