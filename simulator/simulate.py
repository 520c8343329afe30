"""From a trace to a simulated capture."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from simulator.instance import Instance, token_times_s
from simulator.options import EngineOptions
from simulator.oracle import Oracle
from simulator.request import Request, RequestStatus
from simulator.rules import OPTIONS_SINCE, REFERENCE_RULES, Rules
from simulator.scheduling import RequestScheduler, SchedulerKind, new_scheduler
from simulator.step_time import StepTimeModel
from traces.capture import Capture, CaptureMeta
from traces.errors import InputError
from traces.outcome import Outcome, Status
from traces.steps import Floats, steps_from_columns
from traces.trace import Trace, TraceRow


@dataclass(frozen=True, slots=True)
class Engine:
    """What one simulated engine is made of.

    Attributes:
        model: name of the model, for the record.
        device: name of the device, for the record.
        options: the engine's options.
        num_gpu_blocks: its KV blocks, the null block included.
        max_model_len: most tokens of a request.
        step_time: how long its steps take.
        scheduler: our own scheduler, or the installed vLLM's.
        rules: of the vLLM version that our own scheduler follows.
    """

    model: str
    device: str
    options: EngineOptions
    num_gpu_blocks: int
    max_model_len: int
    step_time: StepTimeModel
    scheduler: SchedulerKind = "native"
    rules: Rules = REFERENCE_RULES


@dataclass(frozen=True, slots=True)
class Simulation:
    """A simulated capture, and what it took.

    Attributes:
        capture: the record, in the shape of a measured one.
        n_steps: steps that were simulated.
        n_sweeps: times the scheduler planned; each covers one step or more.
    """

    capture: Capture
    n_steps: int
    n_sweeps: int


def simulate(trace: Trace, engine: Engine, *, fast_forward: bool = True, record_batches: bool = False) -> Simulation:
    """Serve the trace on one engine. Deterministic: the same input gives the same capture, to the last bit.

    Args:
        trace: requests in order of arrival.
        engine: what serves them.
        fast_forward: run alike steps in one sweep; off, one by one, for the same result.
        record_batches: keep which requests were in each step.

    Raises:
        InputError: options that contradict each other, or hashes that cannot be brought to the engine's block size.
        EngineError: vLLM's scheduler is asked for, and vllm is not installed or refuses the options.
    """
    check_options(engine.options, engine.max_model_len, engine.rules)
    if (waits := next((row for row in trace.rows if row.delay_s is not None), None)) is not None:
        accepted = "requests that wait for no other's end; a capture of this trace has their true arrivals"
        raise InputError(file=trace.source, field="delay_s", found=f"request {waits.request_id!r}", accepted=accepted)
    scheduler = new_scheduler(
        engine.scheduler,
        engine.options,
        num_gpu_blocks=engine.num_gpu_blocks,
        max_model_len=engine.max_model_len,
        rules=engine.rules,
    )
    instance = Instance(
        scheduler, engine.step_time, async_scheduling=engine.options.async_scheduling, fast_forward=fast_forward
    )
    for index, row in enumerate(trace.rows):
        instance.submit(row, index, engine_hashes(row, trace, engine.options.block_size))
    instance.run()
    columns = instance.record.columns(0)
    steps = steps_from_columns(columns, instance.record.batches() if record_batches else None)
    requests = sorted(instance.requests, key=lambda request: request.index)
    outcomes = tuple(_outcome(request, steps.end_s) for request in requests)
    capture = Capture(_meta(trace, engine, outcomes, scheduler), trace, outcomes, steps)
    return Simulation(capture, len(steps), len(instance.record.plans))


def engine_hashes(row: TraceRow, trace: Trace, block_size: int) -> tuple[int, ...]:
    """A row's hashes for blocks of the engine's size; () when it has none.

    A hash covers all before its block, so that every k-th hash of small blocks is the hash of a block k times as
    large. Raises InputError when the engine's block size is no multiple of the trace's.
    """
    if row.block_hashes is None or trace.hash_block_size is None:
        return ()
    if block_size % trace.hash_block_size:
        raise InputError(
            "prefix hashes cannot be brought to this block size",
            file=trace.source,
            field="hash_block_size",
            found=trace.hash_block_size,
            accepted=f"a divisor of block_size {block_size}",
        )
    every = block_size // trace.hash_block_size
    return row.block_hashes[every - 1 :: every]


def check_options(options: EngineOptions, max_model_len: int, rules: Rules) -> None:
    """Refuse what vLLM refuses at start (vLLM 0.32 `config/scheduler.py::SchedulerConfig.verify_max_model_len`).

    Raises InputError with the field, and for options that the version whose rules are followed does not have.
    """
    if not options.enable_chunked_prefill and options.max_num_batched_tokens < max_model_len:
        raise InputError(
            field="engine.max_num_batched_tokens",
            found=options.max_num_batched_tokens,
            accepted=f"at least max_model_len {max_model_len} when enable_chunked_prefill is false",
        )
    if options.max_num_active_seqs is not None and options.max_num_active_seqs > options.max_num_seqs:
        raise InputError(
            field="engine.max_num_active_seqs",
            found=options.max_num_active_seqs,
            accepted=f"at most max_num_seqs {options.max_num_seqs}",
        )
    if options.long_prefill_token_threshold > max_model_len:
        raise InputError(
            field="engine.long_prefill_token_threshold",
            found=options.long_prefill_token_threshold,
            accepted=f"at most max_model_len {max_model_len}",
        )
    if options.max_num_batched_tokens < options.max_num_seqs:
        raise InputError(
            field="engine.max_num_batched_tokens",
            found=options.max_num_batched_tokens,
            accepted=f"at least max_num_seqs {options.max_num_seqs}",
        )
    for name, since in OPTIONS_SINCE.items():
        if rules.version < since and getattr(options, name) != getattr(EngineOptions(), name):
            raise InputError(
                f"needs vLLM {since[0]}.{since[1]}, and the rules followed are those of {rules.name}",
                field=f"engine.{name}",
                found=getattr(options, name),
            )


def _outcome(request: Request, end_s: Floats) -> Outcome:
    row = request.row
    if request.status is RequestStatus.REJECTED:
        return Outcome(
            request_id=row.request_id,
            status=Status.REJECTED,
            reason=request.reason,
            prompt_tokens=row.prompt_tokens,
            output_tokens=0,
            arrival_s=row.arrival_s,
            instance=0,
        )
    times_s = token_times_s(request, end_s)
    return Outcome(
        request_id=row.request_id,
        status=Status.FINISHED,
        reason="length",
        prompt_tokens=row.prompt_tokens,
        output_tokens=len(times_s),
        arrival_s=row.arrival_s,
        instance=0,
        queued_s=request.queued_s,
        scheduled_s=request.scheduled_s,
        first_token_s=float(times_s[0]),
        finish_s=float(times_s[-1]),
        cached_tokens=request.cached_tokens,
        num_preemptions=request.num_preemptions,
        token_times_s=tuple(times_s.tolist()),
    )


def _meta(trace: Trace, engine: Engine, outcomes: tuple[Outcome, ...], scheduler: RequestScheduler) -> CaptureMeta:
    rejected = sum(outcome.status is Status.REJECTED for outcome in outcomes)
    capped = sum(
        outcome.status is Status.FINISHED and outcome.output_tokens < row.output_tokens
        for outcome, row in zip(outcomes, trace.rows, strict=True)
    )
    ours = f"scheduled by the rules of {engine.rules.name}"
    theirs = f"scheduled by vLLM {scheduler.version}'s own scheduler" if isinstance(scheduler, Oracle) else ours
    notes = [*trace.notes, theirs, *engine.step_time.notes()]
    if rejected:
        notes.append(f"{rejected} requests rejected; their outcomes carry the reason")
    if capped:
        notes.append(f"{capped} requests ended at max_model_len {engine.max_model_len}")
    return CaptureMeta(
        kind="simulated",
        engine="servetwin",
        model=engine.model,
        device=engine.device,
        engine_options=msgspec.to_builtins(engine.options),
        num_gpu_blocks=engine.num_gpu_blocks,
        clock="second 0 is the start of the trace",
        notes=tuple(notes),
        provenance={"trace": trace.sha256},
    )
