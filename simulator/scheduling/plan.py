"""What a scheduler decides: one step's batch, and how often that step can be repeated before anything changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from profiles.attention import Chunk
from simulator.scheduling.request import Request
from traces.steps import Batches, Ints


class StepPlan(msgspec.Struct, frozen=True, eq=False):
    """One step's batch, as the step-time model and the record need it.

    A request that computes more than one token is a prefill chunk; one that computes a single token is a decode,
    also when that token is the last of its prompt: attention kernels see it so (vLLM splits batches by query length).
    One that computes a token and drafted ones behind it is a decode too.

    Attributes:
        first_step: number of the step in its instance, counted from 0.
        repeat: most times this step can be run in a row with nothing changing but that every decode grows by a token.
        requests: the batch, in the order it was scheduled.
        new_tokens: [n_requests] tokens to compute.
        computed_tokens: [n_requests] tokens whose KV existed before.
        n_requests: how many they are.
        chunks: the prefill chunks among them.
        n_prefill_tokens: their tokens.
        n_decode: the decodes among them.
        decode_kv_sum: sum of the decodes' computed tokens.
        decode_kv_max: largest of them.
        drafts: [n_requests] those of the new tokens that were drafted, and are to be verified; None: nobody drafts.
        n_draft_tokens: all of them.
        n_preempted: requests that lost their blocks while this was planned.
        n_running: requests in the running queue afterwards.
        n_waiting: requests in the waiting queue afterwards.
        kv_blocks: KV blocks in use afterwards.
        alongside: what other ranks compute in the same step, where ranks step together.
    """

    first_step: int
    repeat: int
    requests: list[Request]
    new_tokens: Ints
    computed_tokens: Ints
    n_requests: int
    chunks: list[Chunk]
    n_prefill_tokens: int
    n_decode: int
    decode_kv_sum: int
    decode_kv_max: int
    n_preempted: int = 0
    n_running: int = 0
    n_waiting: int = 0
    kv_blocks: int = 0
    alongside: tuple[StepPlan, ...] = ()
    drafts: Ints | None = None
    n_draft_tokens: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens of the step."""
        return self.n_prefill_tokens + self.n_decode + self.n_draft_tokens


def without_drafts(plan: StepPlan) -> StepPlan:
    """The plan with those of its tokens alone that exist: what was drafted is not known to stay."""
    return plan if plan.drafts is None else msgspec.structs.replace(plan, new_tokens=plan.new_tokens - plan.drafts)


def plan_of(
    requests: list[Request],
    new_tokens: Ints,
    computed_tokens: Ints,
    *,
    first_step: int,
    repeat: int,
    n_preempted: int = 0,
    n_running: int = 0,
    n_waiting: int = 0,
    kv_blocks: int = 0,
    drafts: Ints | None = None,
) -> StepPlan:
    """A plan from the batch itself: counts and sums are taken here, once; `drafts` [n_requests] of the new tokens.

    `requests` may be empty where nobody asks who they are; what queues hold matters only of plans that are run.
    """
    n_drafts = np.zeros_like(new_tokens) if drafts is None else drafts
    n_draft_tokens = int(n_drafts.sum())
    chunked = (new_tokens > 1) & (n_drafts == 0)
    histories = computed_tokens[~chunked]
    return StepPlan(
        first_step=first_step,
        repeat=repeat,
        requests=requests,
        new_tokens=new_tokens,
        computed_tokens=computed_tokens,
        n_requests=len(new_tokens),
        chunks=[Chunk(int(new_tokens[i]), int(computed_tokens[i])) for i in chunked.nonzero()[0]],
        n_prefill_tokens=int(new_tokens.sum()) - len(histories) - n_draft_tokens,
        n_decode=len(histories),
        decode_kv_sum=int(histories.sum()),
        decode_kv_max=int(histories.max(initial=0)),
        n_preempted=n_preempted,
        n_running=n_running,
        n_waiting=n_waiting,
        kv_blocks=kv_blocks,
        drafts=drafts,
        n_draft_tokens=n_draft_tokens,
    )


def recorded_plans(batches: Batches, own: Ints, requests: Sequence[Request] = ()) -> Iterator[StepPlan]:
    """Recorded steps as plans; steps that only grow by a token per request are repeats of one.

    Args:
        batches: of all steps of a record.
        own: the wanted ones, of one instance in order of time; a plan's `first_step` is its place among them.
        requests: those that the batches' numbers stand for; none: plans do not say who is in them.
    """
    entries = [slice(int(batches.offsets[step]), int(batches.offsets[step + 1])) for step in own.tolist()]
    first = 0
    for after in range(1, len(entries) + 1):
        if after < len(entries) and _goes_on(batches, entries[after - 1], entries[after]):
            continue
        at = entries[first]
        yield plan_of(
            [requests[i] for i in batches.request[at].tolist()] if requests else [],
            batches.new_tokens[at],
            batches.computed_tokens[at],
            first_step=first,
            repeat=after - first,
        )
        first = after


def _goes_on(batches: Batches, before: slice, after: slice) -> bool:
    """Whether a step is the one before it once more, every request a token further."""
    return (
        after.stop - after.start == before.stop - before.start
        and bool((batches.new_tokens[before] == 1).all() and (batches.new_tokens[after] == 1).all())
        and np.array_equal(batches.request[before], batches.request[after])
        and np.array_equal(batches.computed_tokens[before] + 1, batches.computed_tokens[after])
    )
