"""Points and what became of them: run where that is not known yet, kept as soon as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from harness.sweeps.fingerprint import Fingerprints
from harness.sweeps.folder import StudyFolder
from harness.sweeps.pareto import Losses, excess, flat, losses
from harness.sweeps.points import Inputs, Point, Result
from harness.sweeps.space import Overrides
from harness.sweeps.study import Study, StudyFile
from traces.errors import InputError, nearest


class Workers(Protocol):
    """Whatever simulates points: processes of this machine, or a Ray cluster."""

    def results(self, points: Sequence[Point]) -> Iterator[tuple[int, Result]]:
        """The points' results as they come, each with the index of its point."""
        ...


@dataclass(frozen=True, slots=True)
class Trial:
    """A point and what became of it.

    Attributes:
        point: the point.
        result: figures, or why there are none.
        figures: by dotted name; empty where there are none.
        losses: by the study's objectives; None: not known.
        excess: over its constraints, 0 within them all; None: not known.
    """

    point: Point
    result: Result
    figures: dict[str, Any]
    losses: Losses | None
    excess: float | None

    @property
    def is_feasible(self) -> bool:
        """Whether it is known to be within all constraints."""
        return self.excess == 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a study is, in points: all, those done, of these those known from before, and those that failed."""

    n_total: int
    n_done: int = 0
    n_known: int = 0
    n_failed: int = 0


class Trials:
    """All trials of a study so far, in the order in which they were asked for, whatever the order they ended in."""

    def __init__(
        self,
        study: Study,
        inputs: Inputs,
        folder: StudyFolder,
        workers: Workers,
        report: Callable[[Progress], None],
        n_total: int,
    ) -> None:
        self.study = study
        self.inputs = inputs
        self.folder = folder
        self.workers = workers
        self.fingerprints = Fingerprints(folder.path)
        self.progress = Progress(n_total)
        self._report = report
        self._by_fingerprint: dict[str, Trial] = {}

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._by_fingerprint.values())

    def evaluate(self, asked: Sequence[Overrides], first_requests: int | None = None) -> list[Trial]:
        """What becomes of these points; those that are known are not run again.

        Raises InputError for overrides that make no scenario, or an objective that is no figure.
        """
        points = [self._point(overrides, first_requests) for overrides in asked]
        new = {point.fingerprint: point for point in points if point.fingerprint not in self._by_fingerprint}
        found = {fingerprint: self.folder.known(point) for fingerprint, point in new.items()}
        unknown = [point for point in new.values() if found[point.fingerprint] is None]
        for fingerprint, result in found.items():
            if result is not None:
                found[fingerprint] = self._done(new[fingerprint], result, is_known=True)
        for i, result in self.workers.results(unknown):
            if result.is_lasting:
                self.folder.keep(unknown[i], result)
            found[unknown[i].fingerprint] = self._done(unknown[i], result, is_known=False)
        for fingerprint, point in new.items():
            if (result := found[fingerprint]) is not None:
                self._by_fingerprint[fingerprint] = self._trial(point, result)
        return [self._by_fingerprint[point.fingerprint] for point in points]

    def _point(self, overrides: Overrides, first_requests: int | None) -> Point:
        try:
            scenario = self.inputs.scenario(overrides)
        except InputError as error:
            label = Point(overrides, "").label
            raise self.study.document.error([self.study.way], f"makes no scenario of {label}: {error}") from None
        return Point(overrides, self.fingerprints.of(scenario, first_requests), first_requests)

    def _done(self, point: Point, result: Result, *, is_known: bool) -> Result:
        """Count and report a point. Returns its result, in which the key of a capacity is a figure too."""
        if result.figures is not None:
            figures = result.figures
            if (capacity := self.study.file.capacity) is not None:
                figures = {**figures, capacity.key: point.overrides[capacity.key]}
            check_names(self.study, flat(figures))
            result = msgspec.structs.replace(result, figures=figures)
        now = self.progress
        self.progress = replace(
            now,
            n_done=now.n_done + 1,
            n_known=now.n_known + is_known,
            n_failed=now.n_failed + (result.figures is None),
        )
        self._report(self.progress)
        return result

    def _trial(self, point: Point, result: Result) -> Trial:
        file: StudyFile = self.study.file
        if result.figures is None:
            return Trial(point, result, {}, None, None)
        figures = flat(result.figures)
        return Trial(point, result, figures, losses(figures, file.objectives), excess(figures, file.constraints))


def check_names(study: Study, figures: dict[str, Any]) -> None:
    """Raise InputError for an objective or a constraint that is none of the figures."""
    numbers = [name for name, value in figures.items() if value is None or isinstance(value, int | float)]
    for part in ("objectives", "constraints"):
        for name in getattr(study.file, part):
            above = next((key for key, value in figures.items() if value is None and name.startswith(f"{key}.")), None)
            if above is not None:
                raise study.document.error([part, name], f"has no value: the scenario does not ask for {above}")
            if name not in numbers:
                raise study.document.error([part, name], "is no figure", accepted=nearest(name, numbers))
