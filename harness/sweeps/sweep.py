"""A study from its file to its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec

from harness.sweeps.folder import StudyFolder, csv_bytes
from harness.sweeps.local import LocalWorkers
from harness.sweeps.on_ray import RayWorkers
from harness.sweeps.pareto import front
from harness.sweeps.picture import Dot, pareto_svg
from harness.sweeps.points import Inputs, read_inputs, text_of
from harness.sweeps.search import n_trials, search
from harness.sweeps.space import combinations, drawn
from harness.sweeps.study import Study, read_study
from harness.sweeps.trials import Progress, Trial, Trials, Workers
from traces.errors import InputError

STUDY_SCHEMA = "servetwin.study/1"

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
        InputError: the study or its scenario cannot be used, or no point could be simulated.
        EngineError: Ray cannot be started or reached.
    """
    study = read_study(study_path)
    inputs = read_inputs(study.scenario_path)
    inputs.scenario({})
    folder = StudyFolder(out)
    with _workers(executor, inputs, workers, out) as running:
        trials = _tried(study, inputs, folder, running, report)
    ended = list(trials)
    if not any(trial.figures for trial in ended):
        raise InputError(f"none of {len(ended)} points could be simulated; {ended[0].result.reason}", file=study_path)
    record = _record(study, inputs, ended)
    folder.end(_files(study, record, ended))
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
) -> Trials:
    """All points of the study, run where they had to be."""
    file = study.file
    if file.search is not None:
        n_requests = len(inputs.trace(inputs.scenario({}).trace_path))
        trials = Trials(study, inputs, folder, workers, report, n_trials(file.search, n_requests))
        search(trials, file.search, n_requests)
        return trials
    if file.sample is not None:
        points = drawn(file.sample.ranges, file.sample.n, file.sample.seed)
    else:
        points = combinations(file.grid or {})
    trials = Trials(study, inputs, folder, workers, report, len(points))
    trials.evaluate(points)
    return trials


def on_front(trials: Sequence[Trial]) -> list[int]:
    """Indices of the trials that no other beats, of those that serve all requests within the constraints."""
    known = [(i, trial.losses) for i, trial in enumerate(trials) if _is_final(trial) and trial.losses is not None]
    return [known[i][0] for i in front([losses for _, losses in known])]


def _is_final(trial: Trial) -> bool:
    return trial.is_feasible and trial.point.first_requests is None


def _record(study: Study, inputs: Inputs, trials: Sequence[Trial]) -> dict[str, Any]:
    best = set(on_front(trials))
    points = [
        {
            "point": i,
            "fingerprint": trial.point.fingerprint,
            "overrides": trial.point.overrides,
            "first_requests": trial.point.first_requests,
            "reason": trial.result.reason,
            "is_feasible": trial.is_feasible if trial.figures else None,
            "is_front": i in best,
            "figures": trial.result.figures,
        }
        for i, trial in enumerate(trials)
    ]
    return {
        "schema_version": STUDY_SCHEMA,
        "version": version("servetwin"),
        "study": study.requested,
        "scenario": inputs.document.value,
        "objectives": study.file.objectives,
        "constraints": msgspec.to_builtins(study.file.constraints),
        "n_points": len(trials),
        "n_failed": sum(not trial.figures for trial in trials),
        "front": sorted(best),
        "notes": _notes(study, trials),
        "points": points,
    }


def _notes(study: Study, trials: Sequence[Trial]) -> list[str]:
    """What a reader of the front should know."""
    known = [trial.figures for trial in trials if trial.figures]
    missing = {name: sum(figures[name] is None for figures in known) for name in _names(study)}
    notes = [
        f"{n} points have no value of {name} and are on no front: too few requests, or not measured"
        for name, n in missing.items()
        if n
    ]
    if study.file.sample is not None and (n := study.file.sample.n - len(trials)):
        notes.append(f"{n} of {study.file.sample.n} drawn points were drawn before")
    if n := sum(figures["n_left_out"] > 0 for figures in known):
        notes.append(f"{n} points did not finish all requests: see n_finished and n_left_out")
    return notes


def _names(study: Study) -> list[str]:
    """Figures that decide about the front."""
    return list(dict.fromkeys([*study.file.objectives, *study.file.constraints]))


def _files(study: Study, record: dict[str, Any], trials: Sequence[Trial]) -> dict[str, bytes]:
    """Every file of the folder, by name."""
    objectives = list(study.file.objectives)
    rows = [_row(point, trial) for point, trial in zip(record["points"], trials, strict=True)]
    best = sorted(record["front"], key=lambda i: (trials[i].losses, i))
    dots = [
        Dot(
            tuple(trial.figures[name] for name in objectives),
            f"{i}: {trial.point.label}",
            trial.is_feasible,
            i in record["front"],
        )
        for i, trial in enumerate(trials)
        if trial.losses is not None and trial.point.first_requests is None
    ]
    return {
        "results.csv": csv_bytes(rows),
        "pareto.csv": csv_bytes([rows[i] for i in best]),
        "pareto.svg": pareto_svg(objectives, dots).encode(),
        "study.json": msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n",
    }


def _row(point: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """A line of results.csv: what was set stands as it would after `--set`."""
    asked = {name: point[name] for name in ("point", "reason", "is_feasible", "is_front", "first_requests")}
    return {**asked, **{key: text_of(value) for key, value in point["overrides"].items()}, **trial.figures}
