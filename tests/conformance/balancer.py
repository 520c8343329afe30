"""vLLM's own coordinator and data-parallel balancer under a clock of our own; runs with an engine's interpreter.

    python balancer.py < case.json > choices.json

A case has `n_ranks`, `steps_together`, and events in order of time, each `[time_ms, kind, ...]`: a `report` of a rank
with its waiting, running, KV usage and step, and a `send`, of a request that is to be dealt.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import msgspec
from vllm.v1.engine import EngineCoreOutputs, coordinator, core_client
from vllm.v1.metrics.stats import SchedulerStats

BOOTED_MS = 10**9
"""What the clock shows when the coordinator starts: it takes its last word to be as old as time itself."""


class OverError(Exception):
    """All events have been heard."""


class Clock:
    """Virtual time; stands in for the module `time`. Whole milliseconds, since the coordinator counts in them."""

    def __init__(self) -> None:
        self.now_ms = 0

    def time(self) -> Fraction:
        return Fraction(BOOTED_MS + self.now_ms, 1000)


class Sockets:
    """Stands in for ZeroMQ: what ranks report comes in at its time, what is published is kept with its own."""

    POLLIN, XPUB, PULL = 1, 2, 3

    def __init__(self, clock: Clock, reports: list[list[Any]], until_ms: int) -> None:
        self._clock, self._reports, self._until_ms = clock, reports, until_ms
        self.words: list[tuple[int, Any]] = []

    def Context(self) -> Sockets:  # noqa: N802
        return self

    Poller = Context

    def register(self, socket: Any, flag: int) -> None:
        """Every socket is looked at."""

    def poll(self, timeout: int) -> dict[Any, int]:
        due_ms = self._clock.now_ms + timeout
        if self._reports and self._reports[0][0] <= due_ms:
            self._clock.now_ms = max(self._clock.now_ms, self._reports[0][0])
            return {self.output_back: 1}
        if due_ms > self._until_ms:
            raise OverError
        self._clock.now_ms = due_ms
        return {}

    def socket(self, *, path: str, **_: Any) -> Any:
        made = Socket(self, path)
        setattr(self, {"front": "publish_front", "output": "output_back", "back": "publish_back"}[path], made)
        return made

    def receive(self) -> bytes:
        _, _, rank, waiting, running, kv_usage, step = self._reports.pop(0)
        counts = {"num_waiting_reqs": waiting, "num_running_reqs": running, "step_counter": step, "current_wave": 0}
        stats = SchedulerStats(**counts, kv_cache_usage=kv_usage)
        return msgspec.msgpack.encode(EngineCoreOutputs(engine_index=rank, scheduler_stats=stats))


class Socket:
    """One of the coordinator's three."""

    def __init__(self, sockets: Sockets, path: str) -> None:
        self._sockets, self._path = sockets, path

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def recv(self) -> bytes:
        return b"\x01" if self._path == "back" else self._sockets.receive()

    def send(self, data: bytes) -> None:
        if self._path == "front":
            self._sockets.words.append((self._sockets._clock.now_ms, msgspec.msgpack.decode(data)[0]))


def words(case: dict[str, Any]) -> list[tuple[int, Any]]:
    """What vLLM's coordinator publishes, and when."""
    clock = Clock()
    reports = [event for event in case["events"] if event[1] == "report"]
    sockets = Sockets(clock, reports, case["events"][-1][0])
    coordinator.time, coordinator.zmq, coordinator.make_zmq_socket = clock, sockets, sockets.socket
    coordinator.set_process_title = lambda *_: None
    known = inspect.signature(coordinator.DPCoordinatorProc).parameters
    waves = {"enable_wave_coordination": case["steps_together"]}
    process = coordinator.DPCoordinatorProc(case["n_ranks"], **{k: v for k, v in waves.items() if k in known})
    try:
        process.process_input_socket("front", "output", "back")
    except OverError:
        return sockets.words
    raise AssertionError("the coordinator has stopped by itself")


def choices(case: dict[str, Any]) -> list[int]:
    """Which rank vLLM's front end deals each request to."""
    published, n = words(case), case["n_ranks"]
    client = SimpleNamespace(
        reqs_in_flight={},
        lb_engines=[list(coordinator.EngineState().request_counts) for _ in range(n)],
        core_engines=list(range(n)),
        eng_start_index=0,
        client_count=1,
        engine_inflight=Counter(),
        streaming_reqs=set(),
    )
    chosen = []
    for number, (time_ms, kind, *_) in enumerate(case["events"]):
        while published and published[0][0] <= time_ms:
            client.lb_engines = [list(counts) for counts in published.pop(0)[1]]
        if kind == "send":
            request = SimpleNamespace(
                request_id=str(number), data_parallel_rank=None, pooling_params=None, resumable=False
            )
            chosen.append(core_client.DPLBAsyncMPClient.get_core_engine_for_request(client, request))
    return chosen


if __name__ == "__main__":
    json.dump([choices(case) for case in json.load(sys.stdin)], sys.stdout)
