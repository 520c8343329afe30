"""A study from its file to its folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.sweeps.capacity import Capacity, find_capacities, most_tried
from harness.sweeps.folder import StudyFolder
from harness.sweeps.local import LocalWorkers
from harness.sweeps.on_ray import RayWorkers
from harness.sweeps.points import Inputs, read_inputs
from harness.sweeps.record import study_files, study_record
from harness.sweeps.search import n_trials, search
from harness.sweeps.space import combinations, drawn
from harness.sweeps.study import Study, read_study
from harness.sweeps.trials import Progress, Trials, Workers
from traces.errors import InputError

Executor = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class Swept:
    """What a study has come to.

    Attributes:
        record: as study.json has it.
        progress: how many points there were, and how many of them were known from before.
    """

    record: dict[str, Any]
    progress: Progress


def sweep(
    study_path: Path,
    out: Path,
    *,
    executor: Executor = "local",
    workers: int | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Swept:
    """Run a study, or what is left of it, and write its folder.

    Args:
        study_path: the study.
        out: its folder: a new one, or one in which a study was begun.
        executor: where points are simulated.
        workers: how many at once; None: as many as there are processors.
        report: told how far it is after each point.

    Raises:
        InputError: the study or its scenario cannot be used, or no point has figures.
        EngineError: Ray cannot be started or reached.
    """
    study = read_study(study_path)
    inputs = read_inputs(study.scenario_path)
    inputs.scenario({})
    folder = StudyFolder(out)
    with _workers(executor, inputs, workers, out) as running:
        trials, capacities = _tried(study, inputs, folder, running, report)
    ended = list(trials)
    if not any(trial.figures for trial in ended):
        raise InputError(f"none of {len(ended)} points has figures; {ended[0].result.reason}", file=study_path)
    record = study_record(study, inputs, ended, capacities)
    folder.end(study_files(study, record, ended))
    return Swept(record, trials.progress)


def _workers(executor: Executor, inputs: Inputs, n: int | None, out: Path) -> AbstractContextManager[Workers]:
    match executor:
        case "local":
            return LocalWorkers(inputs, n or len(os.sched_getaffinity(0)))
        case "ray":
            return RayWorkers(inputs, n, out)


def _tried(
    study: Study,
    inputs: Inputs,
    folder: StudyFolder,
    workers: Workers,
    report: Callable[[Progress], None],
) -> tuple[Trials, list[Capacity] | None]:
    """All points of the study, run where they had to be, and the capacities that they tell; None: none are asked."""
    file = study.file

    def trials(n_total: int) -> Trials:
        return Trials(study, inputs, folder, workers, report, n_total)

    if file.search is not None:
        n_requests = len(inputs.requests(inputs.scenario({})))
        searched = trials(n_trials(file.search, n_requests))
        search(searched, file.search, n_requests)
        return searched, None
    if file.sample is not None:
        variants = drawn(file.sample.ranges, file.sample.n, file.sample.seed)
    else:
        variants = combinations(file.grid or {})
    if file.capacity is not None:
        divided = trials(len(variants) * most_tried(file.capacity))
        return divided, find_capacities(divided, variants, file.capacity)
    given = trials(len(variants))
    given.evaluate(variants)
    return given, None
