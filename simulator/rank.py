"""Where a request can be sent: one scheduler with its queues, and the record of its steps.

vLLM calls it a data-parallel rank; an engine without data parallelism is one.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.kv.prefixes import BlockHashes
from simulator.record import Record
from simulator.scheduling.choice import RequestScheduler
from simulator.scheduling.request import PromptKV, Request, RequestStatus
from simulator.scheduling.scheduler import Scheduler
from simulator.vllm_dp import Report
from traces.steps import Floats
from traces.trace import TraceRow


class Part(enum.Enum):
    """What an engine is asked to do of a request."""

    WHOLE = enum.auto()
    PROMPT = enum.auto()
    """Compute its prompt and keep the KV until another engine has read it."""
    ANSWER = enum.auto()
    """Read the KV of its prompt from another engine, and go on from there."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request under way to a rank.

    Attributes:
        time_s: when it arrives.
        row: the request.
        index: its place in the trace.
        hashes: of its full blocks, at the rank's block size.
        part: what is to be done of it.
        until_s: when its client gives it up.
    """

    time_s: float
    row: TraceRow
    index: int
    hashes: tuple[int, ...]
    part: Part = Part.WHOLE
    until_s: float = np.inf


class Rank:
    """One scheduler, the requests under way to it, and its record.

    Attributes:
        number: its place among all ranks of the cluster.
        scheduler: its queues and KV cache.
        max_num_seqs: most requests that it runs at once.
        num_blocks: KV blocks that requests can hold.
        block_size: tokens of each.
        record: its steps so far.
        requests: those that it has taken, in order.
        arrivals: those that were sent and not yet taken, in order of time.
        alive: whether requests may be sent here.
    """

    def __init__(
        self,
        scheduler: RequestScheduler,
        number: int,
        *,
        max_num_seqs: int,
        num_blocks: int,
        block_size: int,
        keeps_batches: bool = True,
    ) -> None:
        self.number = number
        self.scheduler = scheduler
        self._incoming = scheduler.incoming if isinstance(scheduler, Scheduler) else None
        self.max_num_seqs = max_num_seqs
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.record = Record(keeps_batches=keeps_batches)
        self.requests: list[Request] = []
        self.arrivals: deque[Arrival] = deque()
        self.alive = True
        # What it can say of itself; nothing is kept before somebody has asked.
        self._reports: list[Report] | None = None
        # Requests that their clients give up at a set time.
        self._deadlines: list[tuple[float, int, Request]] = []

    @property
    def n_waiting(self) -> int:
        """Requests that were sent here and are not running."""
        return len(self.arrivals) + len(self.scheduler.waiting)

    @property
    def n_running(self) -> int:
        """Requests that hold KV blocks."""
        return len(self.scheduler.running)

    @property
    def kv_usage(self) -> float:
        """Share of its KV blocks that requests hold."""
        return 1 - self.scheduler.num_free_blocks / self.num_blocks

    def cached_blocks(self, hashes: Sequence[int]) -> int:
        """How many of these blocks, from the first on, are in its prefix cache."""
        if isinstance(hashes, BlockHashes):
            return self.scheduler.cached_blocks(hashes.whole, len(hashes))
        return self.scheduler.cached_blocks(hashes)

    def submit(self, arrival: Arrival) -> None:
        """Send a request; times must ascend."""
        self.arrivals.append(arrival)

    def take_arrivals(self, now_s: float) -> list[Request]:
        """Queue what has arrived by now. Returns the requests that can never be served here."""
        rejected = []
        self.come_round(now_s)
        while self.arrivals and self.arrivals[0].time_s <= now_s:
            arrival = self.arrivals.popleft()
            request = self.scheduler.add_request(arrival.row, arrival.index, arrival.hashes, now_s)
            self.requests.append(request)
            if request.status is RequestStatus.REJECTED:
                rejected.append(request)
                continue
            request.kept = arrival.part is Part.PROMPT
            if arrival.part is Part.ANSWER:
                request.kv = PromptKV.ELSEWHERE
            if arrival.until_s < np.inf:
                heapq.heappush(self._deadlines, (arrival.until_s, arrival.index, request))
        self.come_round(now_s, with_arrivals=True)
        return rejected

    def come_round(self, now_s: float, *, with_arrivals: bool = False) -> None:
        """The engine's loop is at its start again, or has just taken what had come: it could say how it is."""
        if self._reports is not None:
            n_waiting = len(self.scheduler.waiting)
            self._reports.append(Report(now_s, with_arrivals, n_waiting, self.n_running, self.kv_usage))

    def take_reports(self) -> list[Report]:
        """What it can say of itself since this was last asked, each round of its loop; nothing the first time."""
        reports, self._reports = self._reports or [], []
        return reports

    def give_up(self, now_s: float) -> list[Request]:
        """End the requests that their clients have given up by now. Returns them."""
        given_up: list[Request] = []
        while self._deadlines and self._next_deadline_s() <= now_s:
            _, _, request = heapq.heappop(self._deadlines)
            self.scheduler.abort(request, now_s)
            request.reason = "deadline"
            given_up.append(request)
        return given_up

    def lose_all(self, now_s: float) -> list[int]:
        """The engine fails: nothing of its requests or its cache is left. Returns the requests' indices, in order."""
        lost = [request for request in self.requests if request.is_open]
        self.requests = [request for request in self.requests if not request.is_open]
        for request in lost:
            self.scheduler.abort(request, now_s)
        self.scheduler.forget()
        indices = [request.index for request in lost] + [arrival.index for arrival in self.arrivals]
        self.arrivals.clear()
        self._deadlines.clear()
        return indices

    def withdraw(self, indices: Collection[int], now_s: float) -> bool:
        """Take back requests that were sent here; nothing of them is left. Returns whether there were any."""
        ours = [request for request in self.requests if request.index in indices]
        n_arrivals = len(self.arrivals)
        self.arrivals = deque(arrival for arrival in self.arrivals if arrival.index not in indices)
        for request in ours:
            if request.is_open:
                self.scheduler.abort(request, now_s)
            if isinstance(self.scheduler, Scheduler) and self.scheduler.keeps(request):
                self.scheduler.release(request)
        if ours:
            self.requests = [request for request in self.requests if request.index not in indices]
            self._deadlines = [one for one in self._deadlines if one[1] not in indices]
            heapq.heapify(self._deadlines)
        return bool(ours) or len(self.arrivals) < n_arrivals

    def take_reserved(self) -> list[Request]:
        """Requests for whose KV blocks were reserved since this was last asked."""
        return [] if self._incoming is None else self._incoming.take_reserved()

    @property
    def next_change_s(self) -> float:
        """When a request or its KV next arrives here, or one is given up; infinite when none is."""
        arrival_s = self.arrivals[0].time_s if self.arrivals else np.inf
        if self._incoming is not None:
            arrival_s = min(arrival_s, self._incoming.next_load_s)
        return min(arrival_s, self._next_deadline_s()) if self._deadlines else arrival_s

    def _next_deadline_s(self) -> float:
        while self._deadlines and not self._deadlines[0][2].is_open:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else np.inf


def token_times_s(request: Request, end_s: Floats, first_step: int = 0) -> Floats:
    """When each token of a request came, [n_tokens], from the ends of its rank's steps from `first_step` on."""
    if not request.token_spans:
        return np.zeros(0)
    return np.concatenate([end_s[first - first_step : last + 1 - first_step] for first, last in request.token_spans])
