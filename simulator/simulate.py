"""From a trace to a simulated capture."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from simulator.cluster import Cluster
from simulator.engine import Engine, check_engine
from simulator.fleet import Earlier
from simulator.kv.tiers import Move, tier_series
from simulator.network.transfers import Network
from simulator.rank import Rank, token_times_s
from simulator.scheduling.oracle import Oracle
from simulator.scheduling.request import Request, RequestStatus
from simulator.scheduling.speculation import Speculation, together
from simulator.service import Service
from traces.capture import Capture, CaptureMeta
from traces.outcome import Outcome, Status
from traces.steps import Floats, Steps, merged_steps, steps_from_columns
from traces.trace import Trace, TraceRow
from traces.windows import grid_over


@dataclass(frozen=True, slots=True)
class Simulation:
    """A simulated capture, and what it took.

    Attributes:
        capture: the record, in the shape of a measured one.
        n_steps: steps that were simulated.
        n_sweeps: times the scheduler planned; each covers one step or more.
        network: links over which KV was sent, with the record of what they carried; None: none was.
        request_j: joules of each request, [n_requests]; None: not known.
        speculation: what was drafted and accepted; None: no engine drafts.
        moves: what moved to and from KV tiers.
        computed_s: when each prompt was computed, [n_requests], NaN where it was not; None unless another engine did.
    """

    capture: Capture
    n_steps: int
    n_sweeps: int
    network: Network | None = None
    request_j: Floats | None = None
    speculation: Speculation | None = None
    moves: tuple[Move, ...] = ()
    computed_s: Floats | None = None


@contextmanager
def _without_collector() -> Iterator[None]:
    """A run makes objects that live as long as it does; to look for cycles among them takes a fifth of its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_collector()
def simulate(
    trace: Trace, cluster: Cluster | Engine, *, fast_forward: bool = True, record_batches: bool = False
) -> Simulation:
    """Serve the trace. Deterministic: the same input gives the same capture, to the last bit.

    Args:
        trace: requests in order of arrival.
        cluster: what serves them; an engine stands for a cluster of it alone.
        fast_forward: run alike steps in one sweep; off, one by one, for the same result.
        record_batches: keep which requests were in each step.

    Raises:
        InputError: options that contradict each other, or hashes that cannot be brought to an engine's block size.
        EngineError: vLLM's scheduler is asked for, and vllm is not installed or refuses the options.
    """
    if isinstance(cluster, Engine):
        cluster = Cluster((cluster,))
    for engine in cluster.engines:
        check_engine(engine)
    service = Service(trace, cluster, fast_forward=fast_forward, names_batches=record_batches)
    if cluster.watch is not None:
        cluster.watch(service)
    service.run()
    steps = _steps(service, record_batches=record_batches)
    legs = _legs(service, len(trace))
    outcomes = tuple(
        outcome_of(row, arrival_s, own, service.earlier.get(index))
        for index, (row, arrival_s, own) in enumerate(zip(trace.rows, service.arrivals_s, legs, strict=True))
    )
    rejected = sum(outcome.status is Status.REJECTED for outcome in outcomes)
    capped = sum(is_capped(outcome, row) for outcome, row in zip(outcomes, trace.rows, strict=True))
    meta = meta_of(trace, cluster, service, n_rejected=rejected, n_capped=capped)
    transfers = computed_s = None
    if service.handover is not None:
        transfers, computed_s = service.handover.transfers(), _computed_s(legs)
    capture = Capture(meta, trace, outcomes, steps, transfers=transfers)
    if service.tiers:
        capture.series.update(tier_series(service.tiers, grid_over(capture).ends_s()))
    n_sweeps = sum(rank.record.n_sweeps for rank in service.ranks)
    network = service.handover.network if service.handover else None
    moves = tuple(move for tier in service.tiers for move in tier.moves)
    return Simulation(
        capture, len(steps), n_sweeps, network, speculation=speculation_of(service), moves=moves, computed_s=computed_s
    )


def _computed_s(legs: list[list[Leg]]) -> Floats:
    """When each request's prompt was computed by a rank that kept it for another, [n_requests]; NaN where none did."""
    ends_s = [own[0].request.finish_s if own[0].request.kept else None for own in legs]
    return np.array([np.nan if end_s is None else end_s for end_s in ends_s], dtype=np.float64)


def speculation_of(service: Service) -> Speculation | None:
    """What all engines drafted, and what of it was accepted; None where none of them drafts."""
    return together(rank.scheduler.speculation for rank in service.ranks)


@dataclass(frozen=True, slots=True)
class Leg:
    """A request on one of the ranks that it was sent to, and when that rank's steps ended, as far as it keeps them."""

    rank: Rank
    request: Request
    end_s: Floats


def _legs(service: Service, n_requests: int) -> list[list[Leg]]:
    """The ranks that each request was sent to, in order, [n_requests]."""
    legs: list[list[Leg]] = [[] for _ in range(n_requests)]
    for rank in service.ranks:
        end_s = rank.record.end_column_s()
        for request in rank.requests:
            legs[request.index].append(Leg(rank, request, end_s))
    for own in legs:
        own.sort(key=lambda leg: leg.request.kept, reverse=True)
    return legs


def _steps(service: Service, *, record_batches: bool) -> Steps:
    """The steps of all ranks, ordered by end and then by rank."""
    each = [
        steps_from_columns(rank.record.columns(rank.number), rank.record.batches() if record_batches else None)
        for rank in service.ranks
    ]
    return each[0] if len(each) == 1 else merged_steps(each)


def outcome_of(row: TraceRow, arrival_s: float, legs: list[Leg], earlier: Earlier | None = None) -> Outcome:
    """What became of a request: it began on its first rank and ended on its last, perhaps behind tokens of earlier."""
    first, last = legs[0].request, legs[-1].request
    began: Request | Earlier = earlier or first
    if last.status is RequestStatus.REJECTED and earlier is None:
        return Outcome(
            request_id=row.request_id,
            status=Status.REJECTED,
            reason=last.reason,
            prompt_tokens=row.prompt_tokens,
            output_tokens=0,
            arrival_s=arrival_s,
            instance=legs[-1].rank.number,
        )
    times_s = token_times_s(last, legs[-1].end_s, legs[-1].rank.record.n_dropped)
    preemptions = sum(leg.request.num_preemptions for leg in legs)
    if earlier is not None:
        times_s = np.concatenate([earlier.token_times_s, times_s])
        preemptions += earlier.num_preemptions
    # One that no engine takes that could make the rest of it has ended with what it has.
    aborted = last.status in (RequestStatus.ABORTED, RequestStatus.REJECTED)
    ended_s = last.finish_s if last.status is RequestStatus.ABORTED else float(times_s[-1])
    return Outcome(
        request_id=row.request_id,
        status=Status.ABORTED if aborted else Status.FINISHED,
        reason=last.reason if aborted else "length",
        prompt_tokens=row.prompt_tokens,
        output_tokens=len(times_s),
        arrival_s=arrival_s,
        instance=legs[-1].rank.number,
        queued_s=began.queued_s,
        scheduled_s=began.scheduled_s,
        first_token_s=float(times_s[0]) if len(times_s) else None,
        finish_s=ended_s,
        cached_tokens=began.cached_tokens,
        num_preemptions=preemptions,
        token_times_s=tuple(times_s.tolist()),
    )


def is_capped(outcome: Outcome, row: TraceRow) -> bool:
    """Whether a request ended before its length, where the engine's context did."""
    return outcome.status is Status.FINISHED and outcome.output_tokens < row.output_tokens


def meta_of(trace: Trace, cluster: Cluster, service: Service, *, n_rejected: int, n_capped: int) -> CaptureMeta:
    """What ran, and what a reader should know of it."""
    engines = cluster.engines
    notes = [*trace.notes, *service.notes(), *_scheduled_by(service, engines)]
    notes += [note for engine in engines for note in engine.step_time.notes()]
    if (speculation := speculation_of(service)) is not None:
        notes.append(speculation.note())
    if n_rejected:
        notes.append(f"{n_rejected} requests rejected; their outcomes carry the reason")
    if n_capped:
        limits = ", ".join(str(limit) for limit in sorted({engine.max_model_len for engine in engines}))
        notes.append(f"{n_capped} requests ended at max_model_len {limits}")
    capacities = {engine.num_gpu_blocks for engine in engines}
    return CaptureMeta(
        kind="simulated",
        engine="servetwin",
        model=", ".join(dict.fromkeys(engine.model for engine in engines)),
        device=", ".join(dict.fromkeys(engine.device for engine in engines)),
        engine_options=_shared([msgspec.to_builtins(engine.options) for engine in engines]),
        num_gpu_blocks=capacities.pop() if len(capacities) == 1 else None,
        weight_bytes=_alike([engine.weight_bytes for engine in engines]),
        kv_block_bytes=_alike([engine.kv_block_bytes for engine in engines]),
        clock="second 0 is the start of the trace",
        notes=tuple(dict.fromkeys(notes)),
        provenance={"trace": trace.sha256},
    )


def _scheduled_by(service: Service, engines: tuple[Engine, ...]) -> list[str]:
    ours = [f"scheduled by the rules of {engine.rules.name}" for engine in engines if engine.scheduler == "native"]
    theirs = [
        f"scheduled by vLLM {rank.scheduler.version}'s own scheduler"
        for rank in service.ranks
        if isinstance(rank.scheduler, Oracle)
    ]
    return ours + theirs


def _alike(values: list[int | None]) -> int | None:
    """The value that all have; None when they differ."""
    return values[0] if len(set(values)) == 1 else None


def _shared(options: list[dict[str, Any]]) -> dict[str, Any]:
    """What all engines have in common."""
    first, *others = options
    return {name: value for name, value in first.items() if all(other[name] == value for other in others)}
