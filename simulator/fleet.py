"""Instances that come and go: failures, and pools that grow and shrink with their load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import msgspec
import numpy as np

from simulator.agenda import Act, Agenda
from simulator.engine import Role
from simulator.handover import Handover
from simulator.instance import Instance
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


class Fleet:
    """Which instances are in use: not those that have failed, nor those that their pool's load does not need."""

    def __init__(
        self,
        instances: Sequence[Instance],
        roles: Sequence[Role],
        scalings: Mapping[Role, Scaling],
        agenda: Agenda,
        handover: Handover | None,
    ) -> None:
        """All are in use, until `begin`.

        Args:
            instances: all there are.
            roles: of each.
            scalings: how the pool of a role grows and shrinks; the others are in use all the time.
            agenda: what is to happen, and when.
            handover: KV on its way; None where prefill and decode are not apart.
        """
        self._instances = instances
        self._roles = roles
        self._scalings = scalings
        self._agenda = agenda
        self._handover = handover
        self._starting: set[int] = set()
        self._failed: set[int] = set()
        self._n_started: Counter[Role] = Counter()
        # Decisions on pools that are still to come: they go on only while something else does.
        self._n_looks = 0
        # What waits for an instance to come into use.
        self._homeless: list[Act] = []

    def begin(self) -> None:
        """Take out of use what the pools begin without, and look at their load from second 0 on."""
        for role, scaling in self._scalings.items():
            for number in self._pool(role)[scaling.min_instances :]:
                self._instances[number].alive = False
            self._look_at(role, 0.0)

    def wait(self, act: Act) -> None:
        """Have something happen as soon as one more instance is in use."""
        self._homeless.append(act)

    def fail(self, number: int) -> bool:
        """An instance is down until it comes back. Returns whether it was in use, or about to be."""
        was_used = self._instances[number].alive or number in self._starting
        self._instances[number].alive = False
        self._failed.add(number)
        return was_used

    def come_back(self, number: int, time_s: float, *, was_used: bool) -> None:
        """A failed instance is up again, and in use if it was."""
        self._failed.discard(number)
        if was_used:
            self._come_up(number, time_s)

    def notes(self) -> list[str]:
        """How often pools grew."""
        notes = []
        for role, scaling in self._scalings.items():
            of = f"{self._roles.count(role)}{'' if role == 'both' else f' {role}'}"
            least, started = scaling.min_instances, self._n_started[role]
            notes.append(f"autoscaling from {least} instances of {of}: {started} started")
        return notes

    def _pool(self, role: Role) -> list[int]:
        """Numbers of the instances of a role."""
        return [number for number, own in enumerate(self._roles) if own == role]

    def _look_at(self, role: Role, time_s: float) -> None:
        """Look at the load of a role's instances at that time."""
        self._n_looks += 1
        self._agenda.at(time_s, partial(self._scale, role))

    def _scale(self, role: Role, time_s: float) -> None:
        """Look at the load, and start an instance or take one out of use."""
        self._n_looks -= 1
        scaling, pool = self._scalings[role], self._pool(role)
        used = [number for number in pool if self._instances[number].alive]
        load = load_of([rank for i in used for rank in self._instances[i].ranks], apart=self._handover is not None)
        unused = [i for i in pool if i not in used and i not in self._starting and i not in self._failed]
        if load > scaling.up_above and unused:
            self._n_started[role] += 1
            self._starting.add(unused[0])
            self._agenda.at(time_s + scaling.start_s, partial(self._started_up, unused[0]))
        elif load < scaling.down_below and len(used) > scaling.min_instances:
            self._instances[used[-1]].alive = False
        is_sent = self._handover is not None and self._handover.next_event_s() < np.inf
        if self._agenda.n_events > self._n_looks or self._agenda.awake or is_sent:
            self._look_at(role, time_s + scaling.interval_s)

    def _started_up(self, number: int, time_s: float) -> None:
        self._starting.remove(number)
        if number not in self._failed:
            self._come_up(number, time_s)

    def _come_up(self, number: int, time_s: float) -> None:
        """An instance takes requests from now on."""
        self._instances[number].alive = True
        homeless, self._homeless = self._homeless, []
        for act in homeless:
            act(time_s)


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
