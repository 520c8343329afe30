"""The balancer between the data-parallel ranks of one vLLM engine, and the coordinator that it hears.

A rank reports how many requests wait and run whenever that has changed by the end of its loop. A coordinator publishes
the reports at most every 100 ms, and of ranks that step together only whole steps, so that its word is a step or two
old. The front end adds to it what it has sent since; a new word replaces that sum, also where it does not yet hold a
request that is on its way. So neighbours in time often go to the same rank, and the counts even out later.

Sources, read in vLLM 0.19.0 to 0.33.0: `v1/engine/core_client.py` (`DPLBAsyncMPClient.get_core_engine_for_request`),
`v1/engine/coordinator.py` (`DPCoordinatorProc.process_input_socket`), `v1/engine/core.py`
(`_maybe_publish_request_counts`), with one API server. Messages take no time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from traces.trace import TraceRow

ANY_ENGINE_REPORTS = (0, 27)
"""From this version on also engines whose ranks do not step together report; before it their balancer hears nothing."""

ROTATES = (0, 25)
"""From this version on equals are taken in turn; before it always the lowest rank."""

REPORTS_ARRIVALS = (0, 22)
"""From this version on a rank also reports before a step, with the requests that have just come."""

COUNTS_OWN = (0, 27)
"""From this version on the front end's own count of requests under way bounds the load from below."""

_IDLE_INTERVAL_S = 5.0
_SETTLE_S = 0.05


class Report(NamedTuple):
    """What a rank can say of itself, as its loop comes round.

    Attributes:
        time_s: when.
        with_arrivals: whether it has just taken what had come, or has yet to.
        n_waiting: requests in its waiting queue.
        n_running: requests that hold KV blocks.
        kv_usage: share of its KV blocks in use.
    """

    time_s: float
    with_arrivals: bool
    n_waiting: int
    n_running: int
    kv_usage: float


class ReportingInstance(Protocol):
    """What the balancer needs of a rank."""

    @property
    def n_waiting(self) -> int:
        """Requests that were sent to it and are not running."""
        ...

    @property
    def n_running(self) -> int:
        """Requests that hold KV blocks."""
        ...

    def take_reports(self) -> list[Report]:
        """What it can say of itself since this was last asked, in order of time."""
        ...


_Counts = list[tuple[int, int, float]]
"""Of each rank: waiting, running, share of the KV blocks in use."""


class Coordinator:
    """The process that publishes the ranks' reports."""

    def __init__(self, n_ranks: int, *, steps_together: bool, interval_s: float) -> None:
        self._now_s = 0.0
        self._published_s = -math.inf
        self._steps_together = steps_together
        self._interval_s = interval_s
        self._counts: _Counts = [(0, 0, 0.0)] * n_ranks
        # The counts of the last whole step, when a later one has begun to report.
        self._whole_step: _Counts | None = None
        self._changed = False
        self._step_s = -math.inf
        self._word: _Counts | None = None

    def hear(self, rank: int, report: Report) -> None:
        """A rank's report arrives; times must not go back. Of ranks that step together equal times are one step."""
        self._go_on(report.time_s)
        self._now_s = max(self._now_s, report.time_s)
        if self._steps_together and report.time_s > self._step_s:
            if self._changed:
                self._whole_step = list(self._counts)
            self._step_s = report.time_s
        self._counts[rank] = (report.n_waiting, report.n_running, report.kv_usage)
        self._changed = True

    def word(self, now_s: float) -> _Counts | None:
        """What was published last by now; None when there is nothing since this was last asked."""
        self._go_on(now_s)
        word, self._word = self._word, None
        return word

    def _go_on(self, now_s: float) -> None:
        """Publish what is due before this moment: when nothing has come in for as long as the process waits."""
        while True:
            interval_s = self._interval_s if self._changed else _IDLE_INTERVAL_S
            settle_s = _SETTLE_S if self._steps_together and self._whole_step is None else 0.0
            due_s = max(self._now_s + settle_s, self._published_s + interval_s)
            if due_s > now_s:
                return
            if self._whole_step is None:
                self._word, self._changed = list(self._counts), False
            else:
                self._word, self._whole_step = self._whole_step, None
            self._now_s = self._published_s = due_s


class VllmBalancer:
    """The front end's choice, by the rules of a version.

    Before 0.27: the least of 4 * waiting + running. From then on: of the larger of the requests that it has under way
    there itself and of the coordinator's waiting + running, plus 6 * waiting * max(0, KV usage - 0.5).
    """

    reads_state = True

    def __init__(self, version: tuple[int, int], *, steps_together: bool, interval_s: float = 0.1) -> None:
        """Nothing was sent and nothing heard.

        Args:
            version: of vLLM.
            steps_together: whether the ranks do, as those of a mixture of experts.
            interval_s: between two words of the coordinator, at least (`min_stats_update_interval_ms`).
        """
        self._version = version
        self._steps_together = steps_together
        self._interval_s = interval_s
        self._hears = steps_together or version >= ANY_ENGINE_REPORTS
        self._coordinator: Coordinator | None = None
        self._told: list[tuple[float, float, float]] = []
        self._reported: list[tuple[int, int]] = []
        self._start = 0

    def choose(self, row: TraceRow, hashes: Sequence[int], instances: Sequence[ReportingInstance], now_s: float) -> int:
        """The place of the rank with the least score, by what was told last and sent since."""
        del row, hashes
        n = len(instances)
        if self._coordinator is None or len(self._told) != n:
            # Ranks that come or go: a front end that knows nothing yet.
            self._coordinator = Coordinator(n, steps_together=self._steps_together, interval_s=self._interval_s)
            self._told, self._reported = [(0, 0, 0.0)] * n, [(0, 0)] * n
        if (word := self._heard(self._coordinator, instances, now_s)) is not None:
            self._told = [*word]
        chosen = min(range(n), key=lambda i: (self._score(i, instances[i]), (i - self._start) % n))
        waiting, running, kv_usage = self._told[chosen]
        self._told[chosen] = (waiting + 1, running, kv_usage)
        if self._version >= ROTATES:
            self._start = (self._start + 1) % n
        return chosen

    def _heard(self, coordinator: Coordinator, instances: Sequence[ReportingInstance], now_s: float) -> _Counts | None:
        """The coordinator's last word, once it has heard what the ranks have reported by now."""
        reports: list[tuple[float, int, Report]] = []
        for rank, instance in enumerate(instances):
            for report in instance.take_reports():
                counts = report.n_waiting, report.n_running
                if not self._hears or (report.with_arrivals and self._version < REPORTS_ARRIVALS):
                    continue
                if counts != self._reported[rank]:
                    self._reported[rank] = counts
                    reports.append((report.time_s, rank, report))
        for _, rank, report in sorted(reports):
            coordinator.hear(rank, report)
        return coordinator.word(now_s)

    def _score(self, rank: int, instance: ReportingInstance) -> float:
        waiting, running, kv_usage = self._told[rank]
        if self._version < COUNTS_OWN:
            return 4 * waiting + running
        own = instance.n_waiting + instance.n_running
        return max(own, waiting + running) + 6 * waiting * max(0.0, kv_usage - 0.5)
