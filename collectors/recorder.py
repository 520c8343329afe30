"""Step recorder for a live vLLM server: one file, loaded with --scheduler-cls, no patch.

    PYTHONPATH=<folder of this file> SERVETWIN_STEPS=steps.jsonl \\
        python -m vllm.entrypoints.openai.api_server ... --scheduler-cls recorder.RecordingScheduler

RecordingAsyncScheduler is for engines with asynchronous scheduling (GPUs); it refuses to start on others, and the
other way round. This file imports the standard library and vLLM alone, because it runs in the server's environment.

It writes JSON Lines: a `header`, a `step` per engine step and a `request` per request that ended. Times are
nanoseconds of the engine process's monotonic clock; the header pairs it with the wall clock. No token ids and no text
are written; a prompt is identified by the first 8 bytes of the hashes that vLLM's prefix cache gives its full blocks.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import threading
import time
from typing import Any

import vllm
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

FIRST_VERSION, LAST_VERSION = (0, 26), (0, 32)
"""vLLM versions between which the names used here are known to be stable; tested on 0.32.0."""

now_ns = time.monotonic_ns


class Writer:
    """Appends records to a file from a thread of its own, and flushes whenever it has caught up.

    A server that is stopped may end its engine process at once, without any exit handler.
    """

    def __init__(self, path: str) -> None:
        self._records: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._stream = open(path, "a", buffering=1 << 16)  # noqa: SIM115, PTH123
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, record: dict[str, Any]) -> None:
        """Hand over a record; returns at once."""
        self._records.put(record)

    def close(self) -> None:
        """Write what is left and stop."""
        self._records.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (record := self._records.get()) is not None:
            self._stream.write(json.dumps(record, separators=(",", ":")) + "\n")
            if self._records.empty():
                self._stream.flush()
        self._stream.flush()


class Recording:
    """What both schedulers add to vLLM's own."""

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        check_version(vllm.__version__)
        check_kind(type(self), vllm_config)
        super().__init__(vllm_config, *args, **kwargs)
        rank = vllm_config.parallel_config.data_parallel_index
        path = os.environ.get("SERVETWIN_STEPS", "servetwin-steps.jsonl")
        self._writer = Writer(f"{path}.{rank}" if rank else path)
        self._step_index = 0
        # Plans whose output is still to come, by identity: two are in flight with asynchronous scheduling.
        self._planned: dict[int, dict[str, Any]] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._writer.put(header(vllm_config, self))

    def add_request(self, request: Any) -> None:
        queued = now_ns()
        super().add_request(request)
        self._known[request.request_id] = {
            "kind": "request",
            "id": request.request_id,
            "arrival_wall_s": request.arrival_time,
            "queued_ns": queued,
            "prompt_tokens": request.num_prompt_tokens,
            "max_tokens": request.max_tokens,
            "block_hashes": [int.from_bytes(h[:8], "big") for h in request.block_hashes],
            "scheduled_ns": None,
            "first_token_ns": None,
            "last_token_ns": None,
            "cached_tokens": None,
        }

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        begun = now_ns()
        plan = super().schedule(*args, **kwargs)
        ended = now_ns()
        if not plan.num_scheduled_tokens:
            return plan
        computed = {new.req_id: new.num_computed_tokens for new in plan.scheduled_new_reqs}
        cached = plan.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for request_id in plan.num_scheduled_tokens:
            known = self._known.get(request_id)
            if known is not None and known["scheduled_ns"] is None:
                known["scheduled_ns"] = begun
                known["cached_tokens"] = computed[request_id]
        pool = self.kv_cache_manager.block_pool
        self._planned[id(plan)] = {
            "kind": "step",
            "index": self._step_index,
            "schedule_begin_ns": begun,
            "schedule_end_ns": ended,
            "requests": [[rid, n, computed[rid]] for rid, n in plan.num_scheduled_tokens.items()],
            "preempted": sorted(plan.preempted_req_ids or ()),
            "n_running": len(self.running),
            "n_waiting": len(self.waiting),
            "kv_blocks": pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
        }
        self._step_index += 1
        return plan

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        output = now_ns()
        step = self._planned.pop(id(scheduler_output), None)
        before = {}
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(request_id)
            if request is not None:
                before[request_id] = (request, request.num_output_tokens)
        result = super().update_from_output(scheduler_output, model_runner_output)
        brought = []
        for request_id, (request, n_before) in before.items():
            n_new = request.num_output_tokens - n_before
            if n_new:
                brought.append([request_id, n_new])
                known = self._known.get(request_id)
                if known is not None:
                    if known["first_token_ns"] is None:
                        known["first_token_ns"] = output
                    known["last_token_ns"] = output
        if step is not None:
            step.update(output_ns=output, update_end_ns=now_ns(), tokens=brought)
            self._writer.put(step)
        for request, _ in before.values():
            if request.is_finished():
                self._end(request)
        return result

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """Requests that end from outside, when a client goes away."""
        if request_ids is None:  # vLLM's word for all of them
            request_ids = list(self.requests)
        ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        ending = [self.requests[rid] for rid in ids if rid in self.requests]
        result = super().finish_requests(ids, finished_status)
        for request in ending:
            self._end(request)
        return result

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        self._writer.close()
        return super().shutdown(*args, **kwargs)

    def _end(self, request: Any) -> None:
        known = self._known.pop(request.request_id, None)
        if known is None:
            return
        known["end_ns"] = now_ns()
        known["output_tokens"] = request.num_output_tokens
        known["num_preemptions"] = request.num_preemptions
        known["reason"] = str(request.get_finished_reason())
        self._writer.put(known)


class RecordingScheduler(Recording, Scheduler):
    """vLLM's scheduler, recorded."""


class RecordingAsyncScheduler(Recording, AsyncScheduler):
    """vLLM's asynchronous scheduler, recorded."""


def check_version(version: str) -> None:
    """Refuse a vLLM version that this recorder was not tried on, before the server starts to serve."""
    major_minor = tuple(int(part) for part in version.split(".")[:2])
    if not FIRST_VERSION <= major_minor <= LAST_VERSION:
        first, last = (".".join(map(str, bound)) for bound in (FIRST_VERSION, LAST_VERSION))
        raise RuntimeError(f"servetwin's step recorder knows vLLM {first} to {last}; this is {version}")


def check_kind(kind: type, vllm_config: Any) -> None:
    """Refuse a scheduler class of the other kind: it would change how the server schedules."""
    asynchronous = bool(vllm_config.scheduler_config.async_scheduling)
    if asynchronous != issubclass(kind, AsyncScheduler):
        right = "RecordingAsyncScheduler" if asynchronous else "RecordingScheduler"
        raise RuntimeError(f"this server schedules {'a' if asynchronous else ''}synchronously: load recorder.{right}")


def header(config: Any, scheduler: Any) -> dict[str, Any]:
    """What the engine was started with, by vLLM's names, and the pair of clocks."""
    sched, cache, model = config.scheduler_config, config.cache_config, config.model_config
    sizes = config.compilation_config.cudagraph_capture_sizes
    return {
        "kind": "header",
        "schema": "servetwin.steps/1",
        "vllm_version": vllm.__version__,
        "wall_ns": time.time_ns(),
        "monotonic_ns": now_ns(),
        "model": config.model_config.served_model_name or model.model,
        "num_gpu_blocks": scheduler.kv_cache_manager.block_pool.num_gpu_blocks,
        "options": {
            "max_num_seqs": sched.max_num_seqs,
            "max_num_batched_tokens": sched.max_num_batched_tokens,
            "max_model_len": model.max_model_len,
            "block_size": scheduler.block_size,
            "gpu_memory_utilization": cache.gpu_memory_utilization,
            "enable_prefix_caching": bool(cache.enable_prefix_caching),
            "enable_chunked_prefill": bool(sched.enable_chunked_prefill),
            "long_prefill_token_threshold": sched.long_prefill_token_threshold,
            "scheduler_reserve_full_isl": bool(getattr(sched, "scheduler_reserve_full_isl", False)),
            "async_scheduling": bool(sched.async_scheduling),
            "enforce_eager": bool(model.enforce_eager),
            "cudagraph_capture_sizes": None if model.enforce_eager else sizes,
            "dtype": str(model.dtype).removeprefix("torch."),
            "kv_cache_dtype": str(cache.cache_dtype),
        },
    }
