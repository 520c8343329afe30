"""Progress on a terminal: how far, how fast, and how long it still takes. Where stderr is none, nothing is shown."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from harness.terminal.console import console
from simulator.cluster import Serving

if TYPE_CHECKING:
    from collectors.client.log import ClientLog  # asyncio, which a simulation does not need


class Tell(Protocol):
    """Told how far something is."""

    def __call__(self, done: float, said: str, total: float | None = None) -> None:
        """How much is done, what else there is to say, and of how much, where that was not known or has changed."""
        ...


Watch = Callable[[Serving], None]
"""Told of a simulation before it runs."""
StreamWatch = Callable[[int, int, float, float], None]
"""Told of one that is streamed: requests served, those in flight, seconds simulated, share of the trace that was read.
"""

LOOK_EVERY_S = 0.2


@contextmanager
def progress(what: str, total: float | None) -> Iterator[Tell]:
    """A line with a bar, the time taken and the time left, for as long as the block runs.

    It is drawn anew whenever it is told something and at no other time: a millisecond, in the thread that tells.
    """
    out = console(stderr=True)
    if not out.is_terminal:
        yield lambda done, said, total=None: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("left"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[said]}"),
    )
    bar = Progress(
        *columns, console=out, transient=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
    )
    with bar:
        task = bar.add_task(what, total=total, said="")

        def tell(done: float, said: str, total: float | None = None) -> None:
            bar.update(task, total=total, completed=done, said=said)  # a total of None leaves it as it is
            bar.refresh()

        yield tell


def replay_progress(tell: Tell) -> Callable[[ClientLog], None]:
    """What shows a replay: requests that ended, those under way, and tokens of ended ones per second."""
    begun_s = time.monotonic()

    def show(log: ClientLog) -> None:
        rate = log.output_tokens / (time.monotonic() - begun_s)
        said = f"{log.n_sent - log.n_ended} under way, {rate:.0f} tokens/s"
        tell(log.n_ended, said + (f", {log.n_failed} failed" if log.n_failed else ""))

    return show


@contextmanager
def stream_progress() -> Iterator[StreamWatch]:
    """What watches a simulation that is streamed: as `simulation_progress`, told after each piece.

    How many requests there are is guessed from the share of the file that was read.
    """
    begun_s = time.monotonic()
    with progress("requests", None) as tell:

        def watch(n_served: int, n_in_flight: int, simulated_s: float, share_read: float) -> None:
            speed = simulated_s / (time.monotonic() - begun_s)
            said = f"{n_in_flight} in flight, {simulated_s:.1f} s simulated, {speed:.0f} times as fast as the clock"
            n_sent = n_served + n_in_flight
            tell(n_served, said, max(n_sent, round(n_sent / share_read)) if share_read else None)

        yield watch


@contextmanager
def simulation_progress() -> Iterator[Watch | None]:
    """What watches a simulation: requests that ended, simulated time, and how much faster that is than the clock.

    A thread looks at the service a few times a second. The simulation is not asked to stop for it and calls nothing.
    None where stderr is no terminal.
    """
    if not console(stderr=True).is_terminal:
        yield None
        return
    over = threading.Event()
    threads: list[threading.Thread] = []

    def watch(service: Serving) -> None:
        threads.append(threading.Thread(target=_look, args=(service, over), daemon=True))
        threads[-1].start()

    try:
        yield watch
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _look(service: Serving, over: threading.Event) -> None:
    """Show how far the service is until it is over, and once more then."""
    begun_s, ended = time.monotonic(), False
    with progress("requests", len(service.arrivals_s)) as tell:
        while not ended:
            ended = over.wait(LOOK_EVERY_S)
            simulated_s = max(instance.now_s for instance in service.instances)
            speed = simulated_s / (time.monotonic() - begun_s)
            with suppress(RuntimeError, KeyError):  # vLLM's own queues are copied, and may change meanwhile: look again
                tell(n_ended(service), f"{simulated_s:.1f} s simulated, {speed:.0f} times as fast as the clock")


def n_ended(service: Serving) -> float:
    """Requests that have ended; one whose prompt and answer are computed by two engines is half done after the first.

    It may be asked while the service runs in another thread: it reads lengths and changes nothing.
    """
    schedulers = [rank.scheduler for rank in service.ranks]
    taken = sum(len(rank.requests) for rank in service.ranks)
    open_ = sum(len(scheduler.waiting) + len(scheduler.running) for scheduler in schedulers)
    return (taken - open_) / (1 if service.handover is None else 2)
