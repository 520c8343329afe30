"""A capture as a timeline that Perfetto and chrome://tracing open (Chrome's Trace Event Format, JSON).

A process per instance. In it: its steps, with their batch; below them its requests, each with its queue, prefill and
decode time, on as few lanes as they fit into; where the requests of each step were recorded, requests that came from
another instance; running and waiting requests and KV blocks as counters. What was recorded over time is a process of
its own.

Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU; `ts` and `dur` are
microseconds, slices of one thread must nest.
"""

from __future__ import annotations

import gzip
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness.files import new_file
from traces.capture import Capture
from traces.errors import InputError
from traces.outcome import Outcome, as_the_client_saw
from traces.steps import Batches, Steps

Event = dict[str, Any]

STEPS, ARRIVING, REQUESTS = 0, 1, 10_000
"""Threads of a process: its steps; the first lane of requests that come from elsewhere; of its requests."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Something with a name that lasts."""

    name: str
    start_s: float
    end_s: float
    args: dict[str, Any]
    inside: tuple[Slice, ...] = ()

    def events(self, pid: int, tid: int) -> Iterator[Event]:
        """Itself and what is inside it."""
        times = {"ts": _us(self.start_s), "dur": _us(self.end_s) - _us(self.start_s)}
        yield {"ph": "X", "name": self.name, "pid": pid, "tid": tid, **times, "args": self.args}
        for each in self.inside:
            yield from each.events(pid, tid)


@dataclass(frozen=True, slots=True)
class Cut:
    """What happens wholly outside is left out."""

    from_s: float = 0.0
    to_s: float = np.inf

    def holds(self, start_s: float, end_s: float) -> bool:
        """Whether some of it is inside."""
        return start_s <= self.to_s and end_s >= self.from_s


WHOLE = Cut()


def write_timeline(capture: Capture, out: Path, cut: Cut = WHOLE) -> int:
    """Write the timeline as a new file, packed where its name ends in `.gz`. Returns how many events it holds.

    Args:
        capture: the run.
        out: the file; the same capture gives the same bytes.
        cut: the part that is wanted.

    Raises:
        InputError: `out` exists or cannot be written, or nothing happens in that time.
    """
    events = timeline(capture, cut)
    meta = capture.meta
    about = {"model": meta.model, "device": meta.device, "kind": meta.kind, "engine": meta.engine, "clock": meta.clock}
    data = msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about})
    with new_file(out) as file:
        file.write_bytes(gzip.compress(data, mtime=0) if out.suffix == ".gz" else data)
    return len(events)


def timeline(capture: Capture, cut: Cut = WHOLE) -> list[Event]:
    """All events. Raises InputError when there is none."""
    own = [outcome.instance for outcome in capture.outcomes if outcome.instance is not None]
    steps = capture.steps
    n_instances = max([*own, -1 if steps is None or not len(steps) else int(steps.instance.max())], default=-1) + 1
    events: list[Event] = []
    for pid in range(n_instances):
        events += [_named("process_name", f"instance {pid}", pid), _named("thread_name", "steps", pid, STEPS)]
        events += _in_lanes("requests", pid, REQUESTS, _requests(capture, pid, cut))
        if steps is not None:
            events += _steps(capture, steps, pid, cut)
    if steps is not None and steps.batches is not None:
        events += _moves(capture, steps, steps.batches, cut)
    if any(outcome.instance is None for outcome in capture.outcomes):
        events.append(_named("process_name", "requests of no known instance", n_instances))
        events += _in_lanes("requests", n_instances, REQUESTS, _requests(capture, None, cut))
    events += _series(capture, n_instances + 1, cut)
    if all(event["ph"] == "M" for event in events):
        raise InputError("nothing happens in this time", found=f"{cut.from_s:g} to {cut.to_s:g} s")
    return events


def _steps(capture: Capture, steps: Steps, pid: int, cut: Cut) -> Iterator[Event]:
    """Steps of an instance, each from when it began to run, and its queues as counters."""
    duration_s = steps.duration_s()
    ids = [outcome.request_id for outcome in capture.outcomes]
    inside = (steps.instance == pid) & (steps.end_s >= cut.from_s) & (steps.scheduled_s <= cut.to_s)
    for i in np.flatnonzero(inside).tolist():
        step = steps[i]
        args: dict[str, Any] = {name: getattr(step, name) for name in _SHOWN}
        if steps.batches is not None:
            args["batch"] = _batch(steps.batches, i, ids)
        name, start_s = _step_name(step.n_prefill_tokens, step.n_decode_tokens), step.end_s - float(duration_s[i])
        yield from Slice(name, start_s, step.end_s, args).events(pid, STEPS)
        queues = {"running": step.n_running, "waiting": step.n_waiting}
        yield _counter("requests", pid, step.scheduled_s, queues)
        yield _counter("KV blocks", pid, step.scheduled_s, {"in use": step.kv_blocks})


_SHOWN = ("n_requests", "n_prefill_tokens", "n_decode_tokens", "n_preempted", "n_running", "n_waiting", "kv_blocks")


def _step_name(n_prefill_tokens: int, n_decode_tokens: int) -> str:
    """`prefill 512`, `decode 12`, or both: tokens by kind."""
    parts = (("prefill", n_prefill_tokens), ("decode", n_decode_tokens))
    return " + ".join(f"{kind} {n}" for kind, n in parts if n) or "empty"


def _batch(batches: Batches, step: int, ids: Sequence[str]) -> str:
    """`17: 512, 18: 1`: new tokens of each request."""
    own = slice(batches.offsets[step], batches.offsets[step + 1])
    entries = zip(batches.request[own].tolist(), batches.new_tokens[own].tolist(), strict=True)
    return ", ".join(f"{ids[request]}: {tokens}" for request, tokens in entries)


def _requests(capture: Capture, instance: int | None, cut: Cut) -> list[Slice]:
    slices = [_request(outcome) for outcome in capture.outcomes if outcome.instance == instance]
    return [each for each in slices if cut.holds(each.start_s, each.end_s)]


def _request(outcome: Outcome) -> Slice:
    """A request from its arrival until the last that is known of it; by the client's clock where no other is."""
    if outcome.first_token_s is None and outcome.finish_s is None:
        outcome = as_the_client_saw(outcome)
    stamps_s = (outcome.arrival_s, outcome.scheduled_s, outcome.first_token_s, outcome.finish_s)
    known_s = [stamp_s for stamp_s in stamps_s if stamp_s is not None]
    args = {
        "status": outcome.status.value,
        "reason": outcome.reason,
        "prompt_tokens": outcome.prompt_tokens,
        "output_tokens": outcome.output_tokens,
        "cached_tokens": outcome.cached_tokens,
        "num_preemptions": outcome.num_preemptions,
    }
    stages = tuple(
        Slice(name, start_s, end_s, {})
        for name, start_s, end_s in zip(("queue", "prefill", "decode"), stamps_s, stamps_s[1:], strict=False)
        if start_s is not None and end_s is not None
    )
    return Slice(f"request {outcome.request_id}", outcome.arrival_s, max(known_s), args, stages)


def _moves(capture: Capture, steps: Steps, batches: Batches, cut: Cut) -> Iterator[Event]:
    """Requests on their way to another instance: from the end of their last step there to the first one here.

    KV that is sent, and the wait for a step; or the way of a request whose instance failed.
    """
    step = np.repeat(np.arange(len(steps)), np.diff(batches.offsets))
    order = np.lexsort((steps.end_s[step], batches.request))
    request, step = batches.request[order], step[order]
    moved = np.flatnonzero((request[1:] == request[:-1]) & (steps.instance[step[1:]] != steps.instance[step[:-1]]))
    by_target: dict[int, list[Slice]] = {}
    for i in moved.tolist():
        before, after = steps[int(step[i])], steps[int(step[i + 1])]
        if cut.holds(before.end_s, after.scheduled_s):
            name = f"request {capture.outcomes[request[i]].request_id} from instance {before.instance}"
            by_target.setdefault(after.instance, []).append(Slice(name, before.end_s, after.scheduled_s, {}))
    for pid, slices in sorted(by_target.items()):
        yield from _in_lanes("on their way here", pid, ARRIVING, slices)


def _in_lanes(name: str, pid: int, first_tid: int, slices: list[Slice]) -> Iterator[Event]:
    """Slices on as few threads as they fit into without overlapping: each on the one that has been free longest."""
    free: list[tuple[float, int]] = []
    n_lanes = 0
    for each in sorted(slices, key=lambda each: each.start_s):
        if free and free[0][0] <= each.start_s:
            tid = heapq.heappop(free)[1]
        else:
            tid = first_tid + n_lanes
            n_lanes += 1
            yield _named("thread_name", name, pid, tid)
        heapq.heappush(free, (each.end_s, tid))
        yield from each.events(pid, tid)


def _series(capture: Capture, pid: int, cut: Cut) -> Iterator[Event]:
    """What was recorded over time, as counters."""
    if capture.series:
        yield _named("process_name", "recorded over time", pid)
    for name, series in sorted(capture.series.items()):
        inside = (series.time_s >= cut.from_s) & (series.time_s <= cut.to_s)
        for time_s, value in zip(series.time_s[inside].tolist(), series.value[inside].tolist(), strict=True):
            yield _counter(name, pid, time_s, {name: value})


def _counter(name: str, pid: int, time_s: float, values: Mapping[str, float]) -> Event:
    return {"ph": "C", "name": name, "pid": pid, "ts": _us(time_s), "args": values}


def _named(what: str, name: str, pid: int, tid: int = 0) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _us(seconds: float) -> int:
    """Whole microseconds: with fractions, slices that touch might overlap by a rounding, and Perfetto drops such."""
    return round(seconds * 1e6)
