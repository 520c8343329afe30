"""Where a plan parts from the recorded step, and which rule of the engine that points to, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from simulator.scheduling.choice import RequestScheduler
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.request import Request, RequestStatus

Entry = tuple[str, int, int]
"""A request in a step: id, new tokens, tokens computed before."""

Batch = tuple[Entry, ...]
"""Requests of a step, in order."""

Rule = Literal[
    "prefix hit",
    "token budget",
    "seats",
    "block shortage",
    "preemption",
    "order",
    "length",
    "unknown request",
    "planned nothing",
]
"""What a divergence is likely to come from."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a scheduler decided for one step.

    Attributes:
        batch: the requests.
        n_preempted: how many lost their blocks for it.
        n_running: requests in the running queue afterwards.
        kv_blocks: KV blocks in use afterwards.
    """

    batch: Batch
    n_preempted: int
    n_running: int
    kv_blocks: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first step at which plan and record differ.

    Attributes:
        step: its place in the capture's steps.
        instance: index of the engine instance.
        time_s: when it was planned.
        request_id: the request at which they part; None when it is not one of them.
        rule: the likely cause, as a name.
        cause: the same in a sentence.
        recorded: what the engine did.
        planned: what was planned in its place.
    """

    step: int
    instance: int
    time_s: float
    request_id: str | None
    rule: Rule
    cause: str
    recorded: Decision
    planned: Decision


@dataclass(frozen=True, slots=True)
class Context:
    """How the replayed scheduler stands after it planned the step.

    Attributes:
        scheduler: itself.
        options: its options.
        requests: those that were queued so far, by id.
        now_s: when the step was planned.
        engine_blocks: KV blocks of the engine that was recorded, the null block included; None: not recorded.
    """

    scheduler: RequestScheduler
    options: EngineOptions
    requests: Mapping[str, Request]
    now_s: float
    engine_blocks: int | None


Explanation = tuple[str | None, Rule, str]
"""Request, rule and sentence."""


def explain(recorded: Decision, planned: Decision, context: Context) -> Explanation | None:
    """Why the two decisions differ; None when they do not."""
    for i in range(max(len(recorded.batch), len(planned.batch))):
        theirs = recorded.batch[i] if i < len(recorded.batch) else None
        ours = planned.batch[i] if i < len(planned.batch) else None
        if theirs != ours:
            return _explain_entry(theirs, ours, recorded, planned, context)
    if recorded.n_preempted != planned.n_preempted:
        return (
            None,
            "preemption",
            f"the engine preempted {recorded.n_preempted} requests for this step, the plan {planned.n_preempted}",
        )
    if recorded.kv_blocks != planned.kv_blocks:
        return (
            None,
            "block shortage",
            f"the batches agree, but the engine holds {recorded.kv_blocks} KV blocks and the plan "
            f"{planned.kv_blocks}: requests that are not in the capture, or another block_size",
        )
    return None


def _explain_entry(
    theirs: Entry | None, ours: Entry | None, recorded: Decision, planned: Decision, context: Context
) -> Explanation:
    if theirs is not None and ours is not None and theirs[0] == ours[0]:
        return _explain_tokens(theirs, ours, recorded, planned, context)
    missing = theirs is not None and theirs[0] not in {entry[0] for entry in planned.batch}
    extra = ours is not None and ours[0] not in {entry[0] for entry in recorded.batch}
    if theirs is not None and missing and not (extra and _waits(theirs[0], context)):
        return _explain_missing(theirs, planned, context)
    if ours is not None and extra and not missing:
        return _explain_extra(ours, recorded, planned, context)
    assert theirs is not None
    assert ours is not None
    return (
        theirs[0],
        "order",
        f"where the record has request '{theirs[0]}' the plan has request '{ours[0]}': they were queued or admitted in "
        f"another order, or the scheduling_policy is not {context.options.scheduling_policy}",
    )


def _waits(request_id: str, context: Context) -> bool:
    request = context.requests.get(request_id)
    return request is not None and request.status is RequestStatus.WAITING


def _explain_tokens(theirs: Entry, ours: Entry, recorded: Decision, planned: Decision, context: Context) -> Explanation:
    request_id = theirs[0]
    if theirs[2] != ours[2]:
        return (
            request_id,
            "prefix hit",
            f"request '{request_id}' starts with {theirs[2]} tokens computed in the record and {ours[2]} in the plan: "
            "the prefix cache holds other blocks (block hashes, what ran before the capture, or the order of eviction)",
        )
    options = context.options
    return (
        request_id,
        "token budget",
        f"request '{request_id}' computes {theirs[1]} tokens in the record and {ours[1]} in the plan; all requests "
        f"compute {_tokens(recorded)} and {_tokens(planned)}: max_num_batched_tokens is not "
        f"{options.max_num_batched_tokens}, or long_prefill_token_threshold not {options.long_prefill_token_threshold}",
    )


def _explain_missing(theirs: Entry, planned: Decision, context: Context) -> Explanation:
    """The record's step holds a request that the plan's does not."""
    request_id = theirs[0]
    request = context.requests.get(request_id)
    if request is None:
        return (
            request_id,
            "unknown request",
            f"the engine computes request '{request_id}', which by its queued_s had not been queued yet, or never was",
        )
    match request.status:
        case RequestStatus.REJECTED:
            return request_id, "unknown request", f"request '{request_id}' can never be served here: {request.reason}"
        case RequestStatus.FINISHED | RequestStatus.ABORTED:
            return (
                request_id,
                "length",
                f"request '{request_id}' goes on in the record; in the plan it has ended after "
                f"{request.num_tokens - request.row.prompt_tokens} tokens of its answer",
            )
        case RequestStatus.PREEMPTED:
            return (
                request_id,
                "preemption",
                f"request '{request_id}' has lost its blocks in the plan, for the {request.num_preemptions}. time, and "
                f"runs on in the record: {_blocks(context)}, or another request was to give up its blocks",
            )
        case RequestStatus.WAITING:
            return request_id, *_explain_waiting(request, planned, context)
    return (
        request_id,
        "token budget",
        f"request '{request_id}' runs, and the plan has no tokens left for it: max_num_batched_tokens is not "
        f"{context.options.max_num_batched_tokens}, or those before it compute more than in the record",
    )


def _explain_waiting(request: Request, planned: Decision, context: Context) -> tuple[Rule, str]:
    """Why the plan did not admit a request that the engine did."""
    who = f"request '{request.row.request_id}' is admitted in the record and waits in the plan: "
    options, first = context.options, context.scheduler.waiting[0]
    seats = min(options.max_num_seqs, options.max_num_active_seqs or options.max_num_seqs)
    if planned.n_preempted:
        return "preemption", who + "nobody is admitted into a step for which others lost their blocks"
    if planned.n_running >= seats:
        return "seats", f"{who}all {seats} seats are taken (max_num_seqs), or somebody else should have left one"
    if first is not request:
        return "order", f"{who}it stands behind request '{first.row.request_id}' there"
    left = options.max_num_batched_tokens - _tokens(planned)
    if left == 0 or (not options.enable_chunked_prefill and left < request.num_tokens):
        return "token budget", f"{who}the step has {left} tokens left for its {request.num_tokens}"
    blocks = -(-request.num_tokens // options.block_size)
    return (
        "block shortage",
        f"{who}its {request.num_tokens} tokens take {blocks} KV blocks, less what the prefix cache holds of them, and "
        f"{_blocks(context)}",
    )


def _explain_extra(ours: Entry, recorded: Decision, planned: Decision, context: Context) -> Explanation:
    """The plan's step holds a request that the record's does not."""
    request_id = ours[0]
    request = context.requests[request_id]
    if recorded.n_preempted > planned.n_preempted:
        return (
            request_id,
            "preemption",
            f"request '{request_id}' is in the plan; the engine preempted {recorded.n_preempted} requests for this "
            f"step, the plan {planned.n_preempted}: {_blocks(context)}",
        )
    if request.scheduled_s != context.now_s and request.num_preemptions == 0:
        return (
            request_id,
            "length",
            f"request '{request_id}' goes on in the plan, and is not in the record's step: it ended there, or no "
            "tokens were left for it",
        )
    who = f"request '{request_id}' is admitted in the plan and not in the record: "
    options = context.options
    blocks = -(-request.num_tokens // options.block_size)
    free = None if context.engine_blocks is None else context.engine_blocks - 1 - recorded.kv_blocks
    if free is not None and blocks > free:
        return request_id, "block shortage", f"{who}it takes {blocks} KV blocks or less, the engine had {free} free"
    if _tokens(recorded) >= options.max_num_batched_tokens:
        return request_id, "token budget", f"{who}the engine's step is full at {_tokens(recorded)} tokens"
    return (
        request_id,
        "seats",
        f"{who}the engine runs {recorded.n_running} requests and the plan {planned.n_running}; it had fewer seats "
        "(max_num_seqs) or a smaller token budget, or the request came later or had left",
    )


def _tokens(decision: Decision) -> int:
    return sum(new for _, new, _ in decision.batch)


def _blocks(context: Context) -> str:
    free = f"{context.scheduler.num_free_blocks} KV blocks are free"
    return f"{free}, of which the watermark keeps some" if context.options.watermark else free
