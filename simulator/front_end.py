"""The way of a request to its engine: HTTP, tokenizer and the message between processes, as one delay.

A delay and not a queue: front ends of vLLM serve many requests at a time, and take milliseconds. The engine sees a
request that much after it arrived; its outcome keeps the true arrival.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np

from simulator.cluster import Cluster
from simulator.engine import Engine
from simulator.simulate import Simulation, simulate
from traces.outcome import Outcome
from traces.steps import Batches, Ints, Steps
from traces.trace import Trace, TraceRow


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """How long a request takes from its arrival to the engine's input queue; nothing unless measured or fitted.

    The mean and no draw: a draw of its own cannot match the measured one of the same request, so that drawing would
    add its variance to the error of every request. Intervals take the spread from the calibration.

    Attributes:
        request_s: each request.
        prompt_token_s: and each token of its prompt.
    """

    request_s: float = 0.0
    prompt_token_s: float = 0.0

    def delay_s(self, row: TraceRow) -> float:
        """Seconds from the request's arrival until the engine can see it."""
        return self.request_s + self.prompt_token_s * row.prompt_tokens


DIRECT = FrontEnd()
"""Nothing between a request and its engine."""


def simulate_behind(
    front_end: FrontEnd,
    trace: Trace,
    cluster: Cluster | Engine,
    *,
    fast_forward: bool = True,
    record_batches: bool = False,
) -> Simulation:
    """As `simulate`, with the engines behind a front end. Raises what `simulate` raises.

    A request that waits for another's end is seen later by its way. So is one that a seat of a closed loop sends, by
    the mean way, but for the seat's first: the engine sees that at second 0.
    """
    if front_end == DIRECT:
        return simulate(trace, cluster, fast_forward=fast_forward, record_batches=record_batches)
    ways_s = [front_end.delay_s(row) for row in trace.rows]
    if isinstance(cluster, Cluster) and cluster.concurrency is not None:
        ways_s = [float(np.mean(ways_s))] * len(ways_s)
        cluster = replace(cluster, think_s=cluster.think_s + ways_s[0])
    seen = [_seen(row, way_s) for row, way_s in zip(trace.rows, ways_s, strict=True)]
    order = np.argsort([row.arrival_s for row in seen], kind="stable")
    behind = replace(trace, rows=tuple(seen[i] for i in order))
    run = simulate(behind, cluster, fast_forward=fast_forward, record_batches=record_batches)
    found = [run.capture.outcomes[i] for i in np.argsort(order)]
    outcomes = tuple(
        _sent(outcome, row, before, way_s)
        for outcome, row, before, way_s in zip(found, trace.rows, seen, ways_s, strict=True)
    )
    steps = None if run.capture.steps is None else _renumbered(run.capture.steps, order)
    transfers = run.capture.transfers
    if transfers is not None:
        transfers = replace(transfers, request=order[transfers.request])
    capture = replace(run.capture, trace=trace, outcomes=outcomes, steps=steps, transfers=transfers)
    computed_s = None if run.computed_s is None else run.computed_s[np.argsort(order)]
    return replace(run, capture=capture, computed_s=computed_s)


def _seen(row: TraceRow, way_s: float) -> TraceRow:
    """The row as the engine sees it."""
    delay_s = None if row.delay_s is None else row.delay_s + way_s
    return msgspec.structs.replace(row, arrival_s=row.arrival_s + way_s, delay_s=delay_s)


def _sent(outcome: Outcome, row: TraceRow, seen: TraceRow, way_s: float) -> Outcome:
    """The outcome with the time at which its request was sent: to the bit the row's where that says it."""
    if outcome.arrival_s == seen.arrival_s:
        return msgspec.structs.replace(outcome, arrival_s=row.arrival_s)
    return msgspec.structs.replace(outcome, arrival_s=max(outcome.arrival_s - way_s, 0.0))


def _renumbered(steps: Steps, order: Ints) -> Steps:
    """Batches whose requests are numbered in the trace's order again."""
    if (batches := steps.batches) is None:
        return steps
    request = order[batches.request]
    return replace(steps, batches=Batches(batches.offsets, request, batches.new_tokens, batches.computed_tokens))
