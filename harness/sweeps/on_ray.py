"""Points on a Ray cluster: the one that RAY_ADDRESS names, or one on this machine for the time of the study.

Each worker is an actor. It gets the scenario and the traces once, from Ray's object store, and reads profiles where it
runs: a point fails where they, or servetwin, are not what they are here. An actor that dies costs the point it was at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.sweeps.fingerprint import Fingerprints
from harness.sweeps.points import Inputs, Point, Result, simulate_point
from traces.errors import EngineError, InputError, ServetwinError, installs

ADDRESS = "RAY_ADDRESS"
"""Ray's own variable: `auto`, or host:port."""


class RayWorkers:
    """So many actors; None: as many as processors are free. Used as a context, which ends what it started."""

    def __init__(self, inputs: Inputs, n_workers: int | None, out: Path) -> None:
        self.inputs = inputs
        self.out = out
        self.n_workers = n_workers
        self._ray: Any = None
        self._is_ours = False
        self._stored: Any = None
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, int]] = {}

    def __enter__(self) -> RayWorkers:
        self._ray = _ray()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            self._ray.kill(actor)
        if self._is_ours:
            self._ray.shutdown()

    def results(self, points: Sequence[Point]) -> Iterator[tuple[int, Result]]:
        """The points' results as they come, each with the index of its point."""
        waiting = list(reversed(range(len(points))))
        if waiting and self._stored is None:
            self._start(points)
        while waiting or self._busy:
            while waiting and len(self._busy) < (self.n_workers or 1):
                actor = self._idle.pop() if self._idle else self._started()
                index = waiting.pop()
                self._busy[actor.result.remote(points[index])] = actor, index
            for done in self._ray.wait(list(self._busy))[0]:
                actor, index = self._busy.pop(done)
                yield index, self._received(actor, done)

    def _received(self, actor: Any, done: Any) -> Result:
        try:
            result = self._ray.get(done)
        except self._ray.exceptions.RayActorError as error:
            return Result(reason=f"its process died ({_first_line(error)})", is_lasting=False)
        except self._ray.exceptions.RayError as error:
            raise EngineError(f"Ray failed: {_first_line(error)}") from None
        self._idle.append(actor)
        assert isinstance(result, Result)
        return result

    def _start(self, points: Sequence[Point]) -> None:
        """Reach Ray, and store once what every worker reads."""
        if not self._ray.is_initialized():
            self._is_ours = True
            _connect(self._ray, self.n_workers)
        if self.n_workers is None:
            self.n_workers = max(int(self._ray.available_resources().get("CPU", 1)), 1)
        self.inputs.read_traces(points)
        self._stored = self._ray.put(self.inputs)

    def _started(self) -> Any:
        return self._ray.remote(num_cpus=1)(_Actor).remote(self._stored, Path.cwd(), self.out.absolute())


class _Actor:
    """A worker of the cluster, in the same folder as the study."""

    def __init__(self, inputs: Inputs, folder: Path, out: Path) -> None:
        os.chdir(folder)
        self.inputs = inputs
        self.fingerprints = Fingerprints(out)

    def result(self, point: Point) -> Result:
        """Simulate a point, if it is the same here as where it was asked for."""
        with suppress(ServetwinError):  # what cannot be read is said by the simulation
            if self.fingerprints.of(self.inputs.scenario(point.overrides), point.first_requests) != point.fingerprint:
                reason = f"on {os.uname().nodename} its files, or servetwin, are not what they are here"
                return Result(reason=reason, is_lasting=False)
        return simulate_point(self.inputs, point)


def _connect(ray: Any, n_workers: int | None) -> None:
    """Reach the cluster that RAY_ADDRESS names, else start one here. Raises EngineError."""
    quiet = {"logging_level": "error", "log_to_driver": False}
    try:
        if address := os.environ.get(ADDRESS):
            ray.init(address=address, **quiet)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report itself over the network
            ray.init(address="local", num_cpus=n_workers, include_dashboard=False, **quiet)
    except Exception as error:
        raise EngineError(f"Ray cannot be started or reached: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        accepted = f"{installs('ray')}; or local"
        raise InputError("Ray is not installed", field="--executor", found="ray", accepted=accepted) from None
    return ray
