"""A trace that is served piece by piece: memory holds the requests in flight, and not the trace.

Rows come in order of arrival. Once all rows up to some moment are dealt, every engine can go on to that moment, and
what has ended by then is handed out, in the trace's order. Steps are not kept: their ends only as long as a request
that is under way may still ask for them. What is handed out is what `simulator.simulate.simulate` gives, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from simulator.cluster import Cluster
from simulator.engine import check_engine
from simulator.rank import Rank
from simulator.scheduling.request import Request, RequestStatus
from simulator.scheduling.speculation import Speculation
from simulator.service import Service
from simulator.simulate import Leg, is_capped, meta_of, outcome_of, speculation_of
from traces.capture import CaptureMeta
from traces.errors import InputError
from traces.outcome import Outcome, Status
from traces.trace import Trace, TraceRow

PIECE = 4096
"""Rows that are dealt before engines go on."""


class Stream:
    """A cluster that serves rows as they come.

    Attributes:
        n_served: requests whose outcome was handed out.
        most_in_flight: the most requests whose outcome was not yet handed out, counted after each piece.
    """

    def __init__(self, trace: Trace, cluster: Cluster, *, fast_forward: bool = True) -> None:
        """Nothing has happened yet.

        Args:
            trace: what is known of the trace beside its rows; it has none.
            cluster: what serves it.
            fast_forward: run alike steps in one sweep.

        Raises:
            InputError: options that contradict each other, or what needs more than the requests in flight.
        """
        for engine in cluster.engines:
            check_engine(engine)
        _check(cluster)
        self.n_served = self.most_in_flight = 0
        self._trace = trace
        self._cluster = cluster
        self._service = Service(trace, cluster, fast_forward=fast_forward, names_batches=False)
        if self._service.shares_links:
            message = "cannot be streamed: links of one engine's collectives are another's too"
            raise InputError(message, field="fabric", accepted="links of their own, such as a full_mesh")
        # Requests that are under way or whose outcome waits for those before it, by their place in the trace.
        self._rows: dict[int, TraceRow] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._n_rejected = self._n_capped = 0

    def serve(self, rows: Iterable[TraceRow]) -> Iterator[list[Outcome]]:
        """Serve all rows. Yields outcomes in the trace's order, piece by piece.

        Raises InputError for a row that waits for another's end, EngineError when a request can never go on.
        """
        left, n_sent = iter(rows), 0
        service = self._service
        turns = service.turns() if service.reads_state else None
        go_on = service.advance if turns is None else turns.go_on
        while piece := list(islice(left, PIECE)):
            for index, row in enumerate(piece, start=n_sent):
                if row.delay_s is not None or row.after is not None:
                    message = f"request {row.request_id!r} waits for another's end, which cannot be streamed"
                    raise InputError(message, file=self._trace.source, field="delay_s", accepted="arrival times alone")
                if turns is not None:
                    turns.go_on(row.arrival_s)
                rank = service.send(index, row, row.arrival_s)
                if turns is not None:
                    turns.sent(rank, row.arrival_s)
                self._rows[index] = row
            n_sent += len(piece)
            go_on(piece[-1].arrival_s)
            yield self._ended()
        go_on(np.inf)
        service.check_done()
        yield self._ended()

    @property
    def n_in_flight(self) -> int:
        """Requests that were sent, and whose outcome was not handed out."""
        return len(self._rows)

    @property
    def now_s(self) -> float:
        """How far the engine is that is furthest."""
        return max(instance.now_s for instance in self._service.instances)

    @property
    def n_steps(self) -> int:
        """Steps that were simulated so far."""
        return sum(rank.record.n_steps for rank in self._service.ranks)

    @property
    def n_sweeps(self) -> int:
        """Times the schedulers planned; each covers one step or more."""
        return sum(rank.record.n_sweeps for rank in self._service.ranks)

    @property
    def speculation(self) -> Speculation | None:
        """What was drafted and accepted so far; None: no engine drafts."""
        return speculation_of(self._service)

    def meta(self, trace: Trace) -> CaptureMeta:
        """Of the capture that the outcomes make; `trace` as the constructor's, once all rows are read."""
        return meta_of(trace, self._cluster, self._service, n_rejected=self._n_rejected, n_capped=self._n_capped)

    def _ended(self) -> list[Outcome]:
        """Outcomes of requests that have ended, and all before them."""
        self.most_in_flight = max(self.most_in_flight, len(self._rows))
        for rank in self._service.ranks:
            self._take_ended(rank)
        ended = []
        while (outcome := self._outcomes.pop(self.n_served, None)) is not None:
            row = self._rows.pop(self.n_served)
            self._n_rejected += outcome.status is Status.REJECTED
            self._n_capped += is_capped(outcome, row)
            self.n_served += 1
            ended.append(outcome)
        return ended

    def _take_ended(self, rank: Rank) -> None:
        """Take outcomes from a rank, and let it forget what only they needed."""
        record, still_open = rank.record, []
        end_s = record.end_column_s()
        for request in rank.requests:
            if request.is_open:
                still_open.append(request)
                continue
            leg = Leg(rank, request, end_s)
            row = self._rows[request.index]
            self._outcomes[request.index] = outcome_of(row, row.arrival_s, [leg])
        rank.requests = still_open
        needed = min((_first_token_step(request, record.n_steps) for request in still_open), default=record.n_steps)
        record.drop_before(needed)


def _first_token_step(request: Request, default: int) -> int:
    """The step that brought a request's first token; `default` when none has."""
    if request.token_spans:
        return request.token_spans[0][0]
    return request.span if request.status is RequestStatus.RUNNING and request.span >= 0 else default


def _check(cluster: Cluster) -> None:
    """Raise InputError for what cannot be streamed."""
    refused = {
        "instances.role": cluster.is_disaggregated,
        "failures": cluster.failures,
        "autoscaling": cluster.autoscaling,
        "concurrency": cluster.concurrency,
        "kv_tiers": cluster.kv_tiers,
    }
    for field, is_there in refused.items():
        if is_there:
            raise InputError(
                "cannot be streamed in this version", field=field, accepted="a simulation without --stream"
            )
