"""Step recorder for a live vLLM server: one file, loaded with --scheduler-cls, no patch.

    PYTHONPATH=<folder of this file> SERVETWIN_STEPS=steps.jsonl \\
        python -m vllm.entrypoints.openai.api_server ... --scheduler-cls recorder.RecordingScheduler

The server gets the scheduler that vLLM would have made itself; five of its methods are called through a `Recorder`,
which notes what goes in and out. The rule above all others: recording never hurts the server. A vLLM that this file
does not know, a file that cannot be written, or an error in here ends the recording and leaves vLLM's scheduler alone.

It writes JSON Lines, described in docs/recorder.md of servetwin. Times are nanoseconds of the engine process's
monotonic clock; the header pairs it with the wall clock. No token ids and no text are written; a prompt is identified
by the first 8 bytes of the hashes that vLLM's prefix cache gives its full blocks.

This file imports the standard library, vLLM, and msgspec, which vLLM itself talks to its engine with.
"""

from __future__ import annotations

import atexit
import copy
import fcntl
import logging
import os
import re
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import vllm

FIRST_VERSION, LAST_VERSION = (0, 19), (0, 33)
"""vLLM versions whose schedulers this file was tried on (`tests/conformance/recorder.py` of servetwin)."""

CALLS = ("add_request", "schedule", "update_from_output", "finish_requests", "shutdown")
"""Methods of vLLM's SchedulerInterface that go through the recorder."""

FLUSH_EVERY_S = 0.25
KEPT_BYTES = 64 << 20
"""Most bytes of lines kept in memory while the file cannot be written."""

CLOSE_S = 5.0
"""How long the end of the server may wait for the last lines."""

STRICT = "SERVETWIN_STRICT"
"""Environment variable: 1 makes a server that would not be recorded refuse to start."""

now_ns = time.monotonic_ns
server_log = logging.getLogger("vllm.servetwin")


class RecordingScheduler:
    """The name for --scheduler-cls. What it makes is vLLM's own scheduler, synchronous or not as the server is."""

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        scheduler = own_class(vllm_config)(vllm_config, *args, **kwargs)
        log = None
        try:
            rank = vllm_config.parallel_config.data_parallel_index
            log = Log(rank_path(os.environ.get("SERVETWIN_STEPS", "servetwin-steps.jsonl"), rank))
            check_version()
            Recorder(scheduler, log, header(vllm_config, scheduler))
        except Exception as error:
            refuse(log, "recorder", error)
        return scheduler


RecordingAsyncScheduler = RecordingScheduler
"""The same under the name that asynchronous servers had to give before."""


class Recorder:
    """Stands between an engine and its scheduler: passes calls on, and notes what went in and what came out.

    vLLM's exceptions pass through untouched. One of the recorder's own ends the recording: from then on the calls are
    vLLM's again.
    """

    def __init__(self, scheduler: Any, log: Log, first: dict[str, Any]) -> None:
        """Attach to a scheduler. Raises AttributeError when it lacks a method that is recorded."""
        self._scheduler = scheduler
        self._log = log
        self._own = {name: getattr(scheduler, name) for name in CALLS}
        self._blocks_in_use()
        scheduler.get_request_counts()
        self._cost = Cost("recorder", "step")
        self._counts = {"n_requests": 0, "n_prompt_updates": 0, "n_spec_tokens": 0, "n_encoder_inputs": 0}
        self._reasons: Counter[str] = Counter()
        self._features: Counter[str] = Counter()
        self._step_index = 0
        self._preempted: set[str] = set()
        # Plans whose output is still to come, by identity: two are in flight with asynchronous scheduling.
        self._planned: dict[int, dict[str, Any]] = {}
        # Requests that have not ended, each with vLLM's object and the record that it will leave.
        self._known: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._busy_ns = self._busy_until_ns = 0
        self._summarized: tuple[int, int] | None = None
        self._ended = False
        log.put(first)
        for name in CALLS:
            setattr(scheduler, name, getattr(self, name))
        atexit.register(self._close)

    # The calls, by vLLM's names.

    def add_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        queued_ns = now_ns()
        result = self._own["add_request"](request, *args, **kwargs)
        self._guarded(now_ns(), self._added, request, queued_ns)
        return result

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        begin_ns = now_ns()
        plan = self._own["schedule"](*args, **kwargs)
        end_ns = now_ns()
        self._guarded(end_ns, self._scheduled, plan, begin_ns, end_ns)
        return plan

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        output_ns = now_ns()
        result = self._own["update_from_output"](scheduler_output, *args, **kwargs)
        end_ns = now_ns()
        self._guarded(end_ns, self._updated, scheduler_output, result, output_ns, end_ns)
        return result

    def finish_requests(self, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Requests that end from outside, when a client goes away or a stop string was seen; None names all."""
        result = self._own["finish_requests"](request_ids, *args, **kwargs)
        self._guarded(now_ns(), self._finished, result, request_ids is None)
        return result

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        self._close()
        return self._own["shutdown"](*args, **kwargs)

    # What is noted of them.

    def _guarded(self, since_ns: int, note: Callable[..., None], *args: Any) -> None:
        """Note something that happened until `since_ns`; the time it takes from then on is the recorder's."""
        if self._ended:
            return
        try:
            note(*args)
        except Exception as error:
            self._stop(f"in {note.__name__.lstrip('_')}: {reason_of(error)}")
        self._cost.since(since_ns)

    def _added(self, request: Any, queued_ns: int) -> None:
        if request.request_id in self._known:  # a further piece of a streamed prompt
            self._counts["n_prompt_updates"] += 1
            return
        features = features_of(request)
        self._features.update(features)
        record = {
            "kind": "request",
            "id": request.request_id,
            "arrival_wall_s": request.arrival_time,
            "queued_ns": queued_ns,
            "prompt_tokens": request.num_prompt_tokens,
            "max_tokens": request.max_tokens,
            "priority": request.priority,
            "features": features,
            "block_hashes": list(request.block_hashes),  # those of the answer's blocks are added to vLLM's list
            "scheduled_ns": None,
            "first_token_ns": None,
            "last_token_ns": None,
            "cached_tokens": None,
        }
        self._known[request.request_id] = (request, record)

    def _scheduled(self, plan: Any, begin_ns: int, end_ns: int) -> None:
        self._preempted.update(plan.preempted_req_ids or ())
        self._planned.pop(id(plan), None)  # of a plan whose output never came, and whose place in memory this one took
        if not plan.num_scheduled_tokens:
            return
        cached = plan.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for new in plan.scheduled_new_reqs:
            computed[new.req_id] = new.num_computed_tokens
            known = self._known.get(new.req_id)
            if known is not None and known[1]["scheduled_ns"] is None:
                known[1]["scheduled_ns"] = begin_ns
                known[1]["cached_tokens"] = new.num_computed_tokens
        n_running, n_waiting = self._scheduler.get_request_counts()
        n_spec = n_encoder = 0
        if plan.scheduled_spec_decode_tokens:
            n_spec = sum(map(len, plan.scheduled_spec_decode_tokens.values()))
            self._counts["n_spec_tokens"] += n_spec
        if plan.scheduled_encoder_inputs:
            n_encoder = sum(map(len, plan.scheduled_encoder_inputs.values()))
            self._counts["n_encoder_inputs"] += n_encoder
        self._planned[id(plan)] = {
            "kind": "step",
            "index": self._step_index,
            "schedule_begin_ns": begin_ns,
            "schedule_end_ns": end_ns,
            "requests": [(rid, n, computed[rid]) for rid, n in plan.num_scheduled_tokens.items()],
            "preempted": sorted(self._preempted),
            "n_running": n_running,
            "n_waiting": n_waiting,
            "kv_blocks": self._blocks_in_use(),
            "n_spec_tokens": n_spec,
            "n_encoder_inputs": n_encoder,
        }
        self._preempted.clear()
        self._step_index += 1

    def _updated(self, plan: Any, outputs: Any, output_ns: int, end_ns: int) -> None:
        step = self._planned.pop(id(plan), None)
        tokens = []
        for of_client in outputs.values():
            for output in of_client.outputs:
                request_id, count = output.request_id, len(output.new_token_ids)
                known = self._known.get(request_id)
                if count:
                    tokens.append((request_id, count))
                if known is None:
                    continue
                if count:
                    if known[1]["first_token_ns"] is None:
                        known[1]["first_token_ns"] = output_ns
                    known[1]["last_token_ns"] = output_ns
                if output.finish_reason is not None and known[0].is_finished():
                    self._end(request_id)
        if step is not None:
            step.update(output_ns=output_ns, update_end_ns=end_ns, tokens=tokens)
            step["recorder_ns"] = self._cost.close_unit(end_ns)
            self._busy_ns += end_ns - max(step["schedule_begin_ns"], self._busy_until_ns)
            self._busy_until_ns = end_ns
            self._log.put(step, urgent=not self._known)

    def _finished(self, requests: Any, all_of_them: bool) -> None:
        for one in requests:  # pairs of an id and its client up to vLLM 0.25, then the requests themselves
            self._end(one[0] if isinstance(one, tuple) else one.request_id)
        if all_of_them:  # so an engine begins to shut down, and vLLM may leave it no time for more
            self._summarize()

    def _end(self, request_id: str) -> None:
        """Write the record of a request that ended; vLLM may name it twice when its blocks outlive it."""
        known = self._known.pop(request_id, None)
        if known is None:
            return
        request, record = known
        record["end_ns"] = now_ns()
        record["output_tokens"] = request.num_output_tokens
        record["num_preemptions"] = request.num_preemptions
        record["reason"] = str(request.get_finished_reason())
        record["block_hashes"] = [int.from_bytes(digest[:8], "big") for digest in record["block_hashes"]]
        self._counts["n_requests"] += 1
        self._reasons[record["reason"]] += 1
        self._log.put(record, urgent=not self._known)

    def _blocks_in_use(self) -> int:
        """KV blocks held by requests or waiting to be freed; vLLM keeps one, the null block, for itself."""
        pool = self._scheduler.kv_cache_manager.block_pool
        return int(pool.num_gpu_blocks) - 1 - int(pool.get_num_free_blocks())

    # How it ends.

    def _detach(self) -> None:
        """Make the calls vLLM's own again."""
        self._ended = True
        for name in CALLS:
            self._scheduler.__dict__.pop(name, None)

    def _stop(self, reason: str) -> None:
        """End the recording, and say so, while the server goes on."""
        self._detach()
        with suppress(Exception):
            self._log.put({"kind": "stopped", **clocks(), "reason": reason, "n_steps": self._step_index}, urgent=True)
            server_log.warning("servetwin recorder: stopped: %s; the server goes on without it", reason)
        self._known.clear()
        self._planned.clear()

    def _close(self) -> None:
        """Write the summary, unless the recording has ended before, and what is left."""
        if not self._ended:
            self._detach()
            with suppress(Exception):
                self._summarize()
        self._log.close()

    def _summarize(self) -> None:
        """Write what was recorded up to now, if there is anything new."""
        if self._summarized == (self._cost.n_units, self._counts["n_requests"]):
            return
        self._summarized = self._cost.n_units, self._counts["n_requests"]
        counts = {"n_steps": self._cost.n_units, **self._counts, "n_unfinished": len(self._known)}
        kinds = {"reasons": dict(self._reasons), "features": dict(self._features)}
        cost = {"n_lost": self._log.n_lost, "busy_ns": self._busy_ns, **self._cost.summary()}
        self._log.put({"kind": "summary", **clocks(), **counts, **kinds, **cost}, urgent=True)
        share = self._cost.total_ns / self._busy_ns if self._busy_ns else 0.0
        server_log.info("servetwin recorder: %s, %.1f %% of step time", self._cost, 100 * share)


class Cost:
    """What the recording itself takes of the server's thread, unit by unit: of steps, or of iterations."""

    def __init__(self, name: str, unit: str) -> None:
        self._name, self._unit = name, unit
        self.n_units = 0
        self.total_ns = 0
        self._open_ns = 0
        # By whole microseconds, so that it stays small however long the server runs.
        self._units_by_us: Counter[int] = Counter()

    def since(self, since_ns: int) -> None:
        """Add the time from `since_ns` until now."""
        self._open_ns += now_ns() - since_ns

    def close_unit(self, since_ns: int) -> int:
        """A unit is over: nanoseconds since the one before was.

        The time that is being spent began at `since_ns`. What has passed of it counts here; `since` will add all of it
        when it ends, so that much is taken off beforehand.
        """
        passed_ns = now_ns() - since_ns
        spent_ns, self._open_ns = self._open_ns + passed_ns, -passed_ns
        self.total_ns += spent_ns
        self._units_by_us[round(spent_ns / 1000)] += 1
        self.n_units += 1
        return spent_ns

    def quantile_us(self, share: float) -> int | None:
        """Microseconds per unit that `share` of the units stay within; None before the first."""
        seen = 0
        for us in sorted(self._units_by_us):
            seen += self._units_by_us[us]
            if seen >= share * self.n_units:
                return us
        return None

    def summary(self) -> dict[str, int | None]:
        """What a `summary` record says of it."""
        return {
            f"{self._name}_ns": self.total_ns + self._open_ns,
            f"{self._name}_p50_us": self.quantile_us(0.5),
            f"{self._name}_p99_us": self.quantile_us(0.99),
        }

    def __str__(self) -> str:
        return f"{self.n_units} {self._unit}s, {self.quantile_us(0.5) or 0} us per {self._unit} (p50)"


class Log:
    """Lines appended to a file by a thread, four times a second and when the engine has nothing left to do.

    A server that is killed has written all but its last moments, and whole lines but for the last. When the file
    cannot be written, because the disk is full, lines are kept in memory up to KEPT_BYTES and tried again; what goes
    beyond is counted, and a `lost` record says so once the file can be written again.
    """

    def __init__(self, path: str) -> None:
        """Open the file, new or not: what is there stays, but for a last line that was cut off.

        Raises OSError when it cannot be written, RuntimeError when it is another's.
        """
        from msgspec.json import encode

        self.n_lost = 0
        self._path = path
        self._encode = encode
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._kept_bytes = 0
        self._unwritten = bytearray()  # the writing thread's alone
        self._lost: dict[str, Any] | None = None
        self._failing = False
        self._file = open_to_append(path)
        self._closing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="servetwin", daemon=True)
        self._thread.start()

    def put(self, record: dict[str, Any], urgent: bool = False) -> None:
        """Add a record; returns at once. Raises TypeError when it cannot be written as JSON.

        Args:
            record: a mapping that says its kind.
            urgent: write it now, because the server may be killed next.
        """
        line = self._encode(record) + b"\n"
        self._keep(line, record["kind"])
        if urgent:
            self._wake.set()

    def _keep(self, line: bytes, kind: str) -> None:
        """Keep a line until it is written; count it when there is no room, or when one before it had none."""
        with self._lock:
            if self._lost is None and self._kept_bytes + len(line) <= KEPT_BYTES:
                self._lines.append(line)
                self._kept_bytes += len(line)
                return
            if self._lost is None:
                self._lost = {"kind": "lost", "from_ns": now_ns(), "to_ns": 0, "records": {}}
            self._lost["to_ns"] = now_ns()
            self._lost["records"][kind] = self._lost["records"].get(kind, 0) + 1
            self.n_lost += 1

    def close(self) -> None:
        """Write what is left, within CLOSE_S, and stop. Says on stderr when that cannot be done."""
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=CLOSE_S)
        if not self._thread.is_alive():
            os.close(self._file)
        if self._kept_bytes or self._lost:
            say(f"{self._path}: {self._kept_bytes} bytes could not be written, {self.n_lost} records were lost")

    def _run(self) -> None:
        closing = False
        while not closing:
            self._wake.wait(FLUSH_EVERY_S)
            self._wake.clear()
            closing = self._closing
            try:
                self._flush()
            except OSError as error:
                if not self._failing:
                    say(f"{self._path}: cannot be written ({error.strerror}); the server goes on, lines are kept")
                self._failing = True
            else:
                if self._failing:
                    say(f"{self._path}: written again; {self.n_lost} records were lost")
                self._failing = False

    def _flush(self) -> None:
        """Write out the lines, and then the note about those that were lost. Raises OSError."""
        self._write_out()
        with self._lock:
            if self._lost is None:
                return
            self._lines.append(self._encode(self._lost) + b"\n")
            self._kept_bytes += len(self._lines[-1])
            self._lost = None
        self._write_out()

    def _write_out(self) -> None:
        with self._lock:
            self._unwritten += b"".join(self._lines)
            self._lines.clear()
        while self._unwritten:
            n_written = os.write(self._file, self._unwritten)
            del self._unwritten[:n_written]
            with self._lock:
                self._kept_bytes -= n_written


def open_to_append(path: str) -> int:
    """A file descriptor behind the last whole line of a file that this process alone writes.

    Raises OSError when it cannot be opened, RuntimeError when another process writes it or something else is in it.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        lock(file)
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            if not os.pread(file, 9, 0).startswith(b'{"kind":"'):
                raise RuntimeError("the file holds something else; name a new one")
            drop_cut_line(file, status.st_size)
    except BaseException:
        os.close(file)
        raise
    return file


def lock(file: int) -> None:
    """Keep other processes off a file, where the file system can. Raises RuntimeError when one is on it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RuntimeError("another process is recording into this file") from None
    except OSError:
        return


def drop_cut_line(file: int, size: int) -> None:
    """Shorten a file to its whole lines."""
    end = size
    while end:
        begin = max(0, end - 65536)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end < size:
        os.ftruncate(file, end)


def rank_path(path: str, rank: int) -> str:
    """Each data-parallel rank but the first has a number behind its file's name."""
    return f"{path}.{rank}" if rank else path


def own_class(vllm_config: Any) -> type:
    """The scheduler class that vLLM takes when none is named.

    vLLM 0.32 `vllm/config/scheduler.py::get_scheduler_cls`, and for diffusion models `vllm/config/vllm.py`.
    """
    config = copy.copy(vllm_config.scheduler_config)
    config.scheduler_cls = None
    if getattr(vllm_config, "diffusion_config", None) is not None:
        with suppress(ImportError, AttributeError):  # vLLM up to 0.30 has no scheduler of their own for these models
            from vllm.v1.core.sched import diffusion_scheduler

            return getattr(diffusion_scheduler, f"Diffusion{'Async' if config.async_scheduling else ''}Scheduler")
    return config.get_scheduler_cls()


def check_version(first: tuple[int, int] = FIRST_VERSION) -> None:
    """Raises RuntimeError when this vLLM is before `first`, or after the last that was tried."""
    version = vllm.__version__
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or not first <= (int(match[1]), int(match[2])) <= LAST_VERSION:
        known = " to ".join(".".join(map(str, bound)) for bound in (first, LAST_VERSION))
        raise RuntimeError(f"servetwin knows vLLM {known}; this is {version}")


def refuse(log: Log | None, name: str, error: Exception) -> None:
    """Say why nothing is recorded, in the server's log and in the file. Raises RuntimeError when strict."""
    reason = reason_of(error)
    if log is not None:
        with suppress(Exception):
            log.put({"kind": "refused", **clocks(), "vllm_version": vllm.__version__, "reason": reason})
            log.close()
    if os.environ.get(STRICT) == "1":
        raise RuntimeError(f"servetwin {name}: {reason}; {STRICT}=1 asks for no start without it") from None
    server_log.warning("servetwin %s: off, nothing is recorded: %s; the server runs without it", name, reason)


def reason_of(error: Exception) -> str:
    """One line about an error. Only messages that are known to hold no user's data are repeated."""
    if type(error) is RuntimeError:
        return str(error)
    text = f": {error}" if isinstance(error, OSError | AttributeError | ImportError) else ""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = "" if at is None else f" at {os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}"  # noqa: PTH119
    return f"{type(error).__name__}{text}{where}"


def clocks() -> dict[str, int]:
    """The host's two clocks at one moment."""
    return {"wall_ns": time.time_ns(), "monotonic_ns": now_ns()}


def say(text: str) -> None:
    """Print a line to stderr, if there is one."""
    with suppress(Exception):
        print(f"servetwin: {text}", file=sys.stderr, flush=True)


def features_of(request: Any) -> list[str]:
    """What a request has beyond a plain prompt and sampling; such requests may not behave as a replay assumes."""
    found = {
        "pooling": getattr(request, "pooling_params", None) is not None,
        "structured_output": getattr(request, "structured_output_request", None) is not None,
        "multimodal": bool(getattr(request, "mm_features", None)),
        "prompt_embeds": getattr(request, "prompt_embeds", None) is not None,
        "lora": getattr(request, "lora_request", None) is not None,
        "streamed_prompt": bool(getattr(request, "resumable", False)),
        "kv_transfer": getattr(request, "kv_transfer_params", None) is not None,
    }
    return [name for name, has in found.items() if has]


def header(config: Any, scheduler: Any) -> dict[str, Any]:
    """What the engine was started with, and the pair of clocks."""
    return {
        "kind": "header",
        "schema": "servetwin.steps/1",
        "vllm_version": vllm.__version__,
        **clocks(),
        "pid": os.getpid(),
        "model": config.model_config.served_model_name or config.model_config.model,
        "num_gpu_blocks": scheduler.kv_cache_manager.block_pool.num_gpu_blocks,
        "options": engine_options(config, scheduler.block_size),
        "engine": engine_facts(config, scheduler),
    }


def engine_options(config: Any, block_size: int | None) -> dict[str, Any]:
    """The options that servetwin's engines have too, by vLLM's names."""
    sched, cache, model = config.scheduler_config, config.cache_config, config.model_config
    sizes = config.compilation_config.cudagraph_capture_sizes
    return {
        "max_num_seqs": sched.max_num_seqs,
        "max_num_batched_tokens": sched.max_num_batched_tokens,
        "max_model_len": model.max_model_len,
        "block_size": block_size,
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
        **parallel_options(config),
        **({"num_speculative_tokens": drafts} if (drafts := getattr(config, "num_speculative_tokens", 0)) else {}),
    }


def parallel_options(config: Any) -> dict[str, Any]:
    """How the engine is spread over devices, where it is; and that NCCL alone sums, on GPUs, which have another way."""
    parallel = config.parallel_config
    sizes = {name: getattr(parallel, name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size")}
    found: dict[str, Any] = {name: size for name, size in sizes.items() if size > 1}
    if getattr(parallel, "enable_expert_parallel", False):
        found["enable_expert_parallel"] = True
    on_gpus = getattr(getattr(config, "device_config", None), "device_type", None) == "cuda"
    if sizes["tensor_parallel_size"] > 1 and on_gpus and getattr(parallel, "disable_custom_all_reduce", False):
        found["disable_custom_all_reduce"] = True
    return found


def engine_facts(config: Any, scheduler: Any) -> dict[str, Any]:
    """What else decides how the engine behaves; None where this vLLM has no such thing."""
    sched, parallel = config.scheduler_config, config.parallel_config
    return {
        "scheduler": type(scheduler).__name__,
        "policy": str(getattr(sched, "policy", None)),
        "runner_type": getattr(config.model_config, "runner_type", None),
        "hash_block_size": getattr(scheduler, "hash_block_size", None),
        "max_num_active_seqs": getattr(sched, "max_num_active_seqs", None),
        "watermark": getattr(sched, "watermark", None),
        "num_speculative_tokens": getattr(config, "num_speculative_tokens", None),
        "kv_connector": getattr(getattr(config, "kv_transfer_config", None), "kv_connector", None),
        "data_parallel_index": parallel.data_parallel_index,
        "tensor_parallel_size": getattr(parallel, "tensor_parallel_size", None),
        "pipeline_parallel_size": getattr(parallel, "pipeline_parallel_size", None),
    }
