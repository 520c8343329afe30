"""Points on processes of this machine.

The processes are forked once everything is loaded, so that none of them loads it again, and arrays are in memory once.
A worker that dies (out of memory, killed) costs the point that it was at.
"""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType

from harness.sweeps.points import Inputs, Point, Result, simulate_point

_FORK = multiprocessing.get_context("fork")


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection


class LocalWorkers:
    """So many processes. Used as a context, which ends them; `results` starts them when there is something to do."""

    def __init__(self, inputs: Inputs, n_workers: int) -> None:
        self.inputs = inputs
        self.n_workers = n_workers
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, int]] = {}

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            worker.process.kill()
            self._reap(worker)
        self._idle, self._busy = [], {}

    def results(self, points: Sequence[Point]) -> Iterator[tuple[int, Result]]:
        """The points' results as they come, each with the index of its point."""
        waiting = list(reversed(range(len(points))))
        if waiting and not self._idle:
            self.inputs.read_traces(points)
            simulate_point(self.inputs, replace(points[0], first_requests=0))  # no requests: this loads what it reads
        while waiting or self._busy:
            while waiting and len(self._busy) < self.n_workers:
                if (worker := self._given(points[waiting[-1]])) is not None:
                    self._busy[worker.connection] = worker, waiting.pop()
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                worker, index = self._busy.pop(connection)
                yield index, self._received(worker)

    def _given(self, point: Point) -> _Worker | None:
        """The worker that has got the point; None where it has died while it was idle."""
        worker = self._idle.pop() if self._idle else self._started()
        try:
            worker.connection.send(point)
        except ConnectionError:
            self._reap(worker)
            return None
        return worker

    def _received(self, worker: _Worker) -> Result:
        """The result that a worker has sent; it is idle then, or dead."""
        try:
            result = worker.connection.recv()
        except (EOFError, ConnectionError):
            return Result(reason=f"its process died ({_ending(self._reap(worker))})", is_lasting=False)
        self._idle.append(worker)
        assert isinstance(result, Result)
        return result

    def _started(self) -> _Worker:
        ours, theirs = _FORK.Pipe()
        others = [worker.connection for worker in self._idle] + list(self._busy)
        process = _FORK.Process(target=_serve, args=(theirs, [ours, *others], self.inputs), daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 and later warn where there are other threads: rich's, which draws, and those of numpy's BLAS,
            # which comes through a fork by handlers of its own. The child uses neither lock.
            warnings.filterwarnings("ignore", ".*use of fork\\(\\) may lead to deadlocks", DeprecationWarning)
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _reap(self, worker: _Worker) -> int | None:
        worker.connection.close()
        worker.process.join()
        code = worker.process.exitcode
        worker.process.close()
        return code


def _serve(connection: Connection, parents: list[Connection], inputs: Inputs) -> None:
    """Simulate points until there are no more, or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt of the terminal reaches all; the parent decides
    for end in parents:
        end.close()  # else the parent's end of the pipe would stay open here after it
    try:
        while True:
            connection.send(simulate_point(inputs, connection.recv()))
    except (EOFError, ConnectionError):
        return


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
