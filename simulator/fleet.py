"""Instances that come and go: failures, and pools that grow and shrink with their load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
import numpy as np

from simulator.engine import Role
from simulator.rank import Rank
from simulator.scheduling.request import Request
from simulator.scheduling.scheduler import Scheduler
from traces.errors import InputError
from traces.steps import Floats
from traces.trace import TraceRow

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Above0 = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]

AfterFailure = Literal["start_over", "go_on"]
"""What becomes of an answer whose instance fails.

`start_over`: the request is sent again as it was, as a client's retry; the tokens that came are made again. `go_on`: it
is sent with the tokens that came as part of its prompt, and the rest is computed, as Dynamo migrates requests
(docs.nvidia.com/dynamo, "Request Migration"; off there by default, `--migration-limit 0`).
"""


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An instance fails: it loses its cache and its requests, which are sent again.

    A step under way ends first when scheduling is synchronous.

    Attributes:
        instance: which one, counted from 0.
        at_s: when.
        for_s: until it takes requests again, its start included.
    """

    instance: Count
    at_s: Seconds
    for_s: Above0


class Scaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pool that grows and shrinks, one instance at a time, as a horizontal autoscaler does by a mean of its metric.

    Load is the requests of all instances in use, waiting and running, over their seats (`max_num_seqs`). An instance
    that is taken out serves what it has; the last one in the description goes first.

    Attributes:
        min_instances: in use from the start, and never fewer.
        up_above: load above which one more is started.
        down_below: load below which one is taken out.
        start_s: from the decision until it takes requests, a day at most.
        interval_s: between decisions, a millisecond at least.
    """

    min_instances: Annotated[int, msgspec.Meta(ge=1)] = 1
    up_above: Above0 = 0.8
    down_below: Seconds = 0.3
    start_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 60.0
    interval_s: Annotated[float, msgspec.Meta(ge=1e-3)] = 15.0


class Autoscaling(Scaling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How pools grow and shrink: the one of all instances, or those of prefill and of decode instances apart.

    Attributes:
        prefill, decode: of the instances of that role, where they are apart; None: all of them are in use all the time.
    """

    prefill: Scaling | None = None
    decode: Scaling | None = None


def scalings(autoscaling: Autoscaling | None, roles: Sequence[Role]) -> dict[Role, Scaling]:
    """How the pool of each role grows and shrinks; none of those that do not.

    Raises InputError for a pool that is not there, or that is smaller than its least.
    """
    if autoscaling is None:
        return {}
    found: dict[Role, Scaling] = {}
    if autoscaling.prefill is not None:
        found["prefill"] = autoscaling.prefill
    if autoscaling.decode is not None:
        found["decode"] = autoscaling.decode
    own = any(getattr(autoscaling, name) != getattr(Scaling(), name) for name in Scaling.__struct_fields__)
    if "both" in roles:
        if found:
            message = "has no effect where prefill and decode are not apart"
            raise InputError(message, field=f"autoscaling.{next(iter(found))}")
        found = {"both": autoscaling}
    elif own or not found:
        accepted = "prefill and decode, each with keys of its own, where they are apart"
        raise InputError("is not said of which pool", field="autoscaling", accepted=accepted)
    for role, scaling in found.items():
        size = roles.count(role)
        if scaling.min_instances > size:
            field = "autoscaling." + ("" if role == "both" else f"{role}.") + "min_instances"
            raise InputError(field=field, found=scaling.min_instances, accepted=f"at most {size} instances")
    return found


def load_of(ranks: Sequence[Rank], *, apart: bool) -> float:
    """Requests of these ranks, waiting and running, over their seats; infinite when there are none.

    Where prefill and decode are apart, requests whose KV is on its way are of the decode instance that waits for it.
    """
    if not ranks:
        return np.inf
    n_requests = sum(rank.n_waiting + rank.n_running for rank in ranks)
    if apart:
        schedulers = [rank.scheduler for rank in ranks]
        n_requests += sum(len(one.incoming.holding) for one in schedulers if isinstance(one, Scheduler))
    return n_requests / sum(rank.max_num_seqs for rank in ranks)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a request had when its instance failed, where it goes on from there.

    Attributes:
        queued_s, scheduled_s, cached_tokens, num_preemptions: as of a `Request`, of its first sending.
        token_times_s: of the tokens that came, [n_tokens].
    """

    queued_s: float | None
    scheduled_s: float | None
    cached_tokens: int | None
    num_preemptions: int
    token_times_s: Floats = field(default_factory=lambda: np.zeros(0))

    def then(self, legs: Sequence[Request], times_s: Floats) -> Earlier:
        """This, and what one more sending brought."""
        return Earlier(
            self.queued_s,
            self.scheduled_s,
            self.cached_tokens,
            self.num_preemptions + sum(leg.num_preemptions for leg in legs),
            np.concatenate([self.token_times_s, times_s]),
        )

    def rest_of(self, row: TraceRow) -> TraceRow:
        """What is sent again: a prompt with the tokens that came, and the answer without them."""
        n_tokens = len(self.token_times_s)
        return msgspec.structs.replace(
            row, prompt_tokens=row.prompt_tokens + n_tokens, output_tokens=row.output_tokens - n_tokens
        )


def earlier_of(legs: Sequence[Request], times_s: Floats) -> Earlier:
    """What a first sending brought: its request on one instance, or on a prefill and then on a decode instance."""
    first = legs[0]
    preemptions = sum(leg.num_preemptions for leg in legs)
    return Earlier(first.queued_s, first.scheduled_s, first.cached_tokens, preemptions, times_s)
