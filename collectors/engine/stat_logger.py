"""Stat logger for a live vLLM server whose scheduler class cannot be set: loaded by an entry point, no patch.

vLLM loads it in the API server's process from the entry point group `vllm.stat_logger_plugins`. It stands in a folder
with the recorder's file, which has the code that writes, and with a `.dist-info` folder that names the entry point:
that folder on PYTHONPATH is enough, and SERVETWIN_STATS names the output.

It writes JSON Lines, described in docs/recorder.md of servetwin: an `iteration` for each batch of outputs that reached
the front end, and a `request` for each request that ended. vLLM hands it durations, not the times of steps. No token
ids and no text are written, and, as with the recorder, recording never hurts the server.
"""
# ruff: noqa: D102
# mypy: ignore-errors
# The methods are overrides of vLLM's, and are described there.

from __future__ import annotations

import atexit
import os
from collections import Counter
from contextlib import suppress
from typing import Any

import vllm
from servetwin_recorder import (
    Cost,
    Log,
    check_version,
    clocks,
    engine_options,
    now_ns,
    rank_path,
    reason_of,
    refuse,
    server_log,
)
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

FIRST_VERSION = (0, 20)
"""vLLM's version from which on what it says of a request that ended names the request."""


class StatLogger(AggregateStatLoggerBase):
    """Writes what vLLM's front end counts: one file for all data-parallel engines behind an API server."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        self._cost = Cost("logger", "iteration")
        self._reasons: Counter[str] = Counter()
        self._log: Log | None = None
        log = None
        try:
            rank = max(getattr(vllm_config.parallel_config, "_api_process_rank", 0), 0)
            log = Log(rank_path(os.environ.get("SERVETWIN_STATS", "servetwin-stats.jsonl"), rank))
            check_version(FIRST_VERSION)
            log.put(header(vllm_config, list(engine_indexes), rank))
        except Exception as error:
            refuse(log, "stat logger", error)
            return
        self._log = log
        atexit.register(self._close, log)

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
        **kwargs: Any,
    ) -> None:
        since_ns = now_ns()
        self._guarded(self._iteration, since_ns, scheduler_stats, iteration_stats, engine_idx)
        self._cost.since(since_ns)

    def record_admission_rejection(self, reason: str) -> None:
        self._guarded(self._rejection, reason)

    def log_engine_initialized(self) -> None:
        """The header was written before."""

    def _guarded(self, note: Any, *args: Any) -> None:
        """Note something; an error of ours ends the recording and never reaches the server."""
        if self._log is None:
            return
        try:
            note(self._log, *args)
        except Exception as error:
            self._stop(self._log, reason_of(error))

    def _iteration(self, log: Log, since_ns: int, scheduler: Any, iteration: Any, engine: int) -> None:
        record: dict[str, Any] = {"kind": "iteration", "engine": engine, **clocks()}
        if scheduler is not None:
            record["n_running"] = scheduler.num_running_reqs
            record["n_waiting"] = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
            record["kv_cache_usage"] = scheduler.kv_cache_usage
            record["prefix_cache_queries"] = scheduler.prefix_cache_stats.queries
            record["prefix_cache_hits"] = scheduler.prefix_cache_stats.hits
        if iteration is not None:
            record["prompt_tokens"] = iteration.num_prompt_tokens
            record["generation_tokens"] = iteration.num_generation_tokens
            record["n_preempted"] = iteration.num_preempted_reqs
            record["ttft_s"] = list(iteration.time_to_first_tokens_iter)
            for finished in iteration.finished_requests:
                self._reasons[str(finished.finish_reason)] += 1
                log.put(finished_request(finished, engine, iteration.iteration_timestamp))
        record["logger_ns"] = self._cost.close_unit(since_ns)
        log.put(record)

    def _rejection(self, log: Log, reason: str) -> None:
        log.put({"kind": "rejection", **clocks(), "reason": str(reason)})

    def _stop(self, log: Log, reason: str) -> None:
        """End the recording, and say so, while the server goes on."""
        self._log = None
        with suppress(Exception):
            log.put({"kind": "stopped", **clocks(), "reason": reason, "n_iterations": self._cost.n_units})
            server_log.warning("servetwin stat logger: stopped: %s; the server goes on without it", reason)

    def _close(self, log: Log) -> None:
        """Write the summary, unless the recording has ended before, and what is left."""
        if self._log is not None:
            self._log = None
            with suppress(Exception):
                counts = {"n_iterations": self._cost.n_units, "n_requests": self._reasons.total(), "n_lost": log.n_lost}
                reasons = {"reasons": dict(self._reasons)}
                log.put({"kind": "summary", **clocks(), **counts, **reasons, **self._cost.summary()})
                server_log.info("servetwin stat logger: %s", self._cost)
        log.close()


def finished_request(finished: Any, engine: int, now_wall_s: float) -> dict[str, Any]:
    """The record of a request that ended.

    vLLM 0.32 `vllm/v1/metrics/stats.py::update_from_finished_request`: durations are differences of times that are 0
    as long as nothing happened, so that a negative one means that its end was never reached.
    """
    scheduled = finished.queued_time >= 0
    has_token = scheduled and finished.prefill_time >= 0
    return {
        "kind": "request",
        "id": finished.request_id,
        "engine": engine,
        "arrival_wall_s": now_wall_s - finished.e2e_latency,
        "end_wall_s": now_wall_s,
        "e2e_s": finished.e2e_latency,
        "queued_s": finished.queued_time if scheduled else None,
        "prefill_s": finished.prefill_time if has_token else None,
        "decode_s": finished.decode_time if has_token else None,
        "inference_s": finished.inference_time if has_token else None,
        "prompt_tokens": finished.num_prompt_tokens,
        "output_tokens": finished.num_generation_tokens,
        "max_tokens": finished.max_tokens_param,
        "cached_tokens": finished.num_cached_tokens,
        "num_preemptions": getattr(finished, "num_preemptions", None),  # not in vLLM 0.26
        "reason": str(finished.finish_reason),
    }


def header(config: Any, engines: list[int], api_server: int) -> dict[str, Any]:
    """What the server was started with, and the pair of clocks."""
    return {
        "kind": "header",
        "schema": "servetwin.stats/1",
        "vllm_version": vllm.__version__,
        **clocks(),
        "pid": os.getpid(),
        "model": config.model_config.served_model_name or config.model_config.model,
        "num_gpu_blocks": config.cache_config.num_gpu_blocks,
        "api_server": api_server,
        "engines": engines,
        "options": engine_options(config, config.cache_config.block_size),
    }
