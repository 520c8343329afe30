"""What a study has come to: study.json, the tables and the picture, from its trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from harness.descriptions.written import text_of
from harness.running.arrivals import is_untold
from harness.sweeps.below_table import times_record
from harness.sweeps.capacity import Capacity, Tried
from harness.sweeps.devices import COLUMN, devices_text
from harness.sweeps.folder import csv_bytes
from harness.sweeps.pareto import front
from harness.sweeps.picture import Dot, pareto_svg
from harness.sweeps.points import Inputs
from harness.sweeps.space import Overrides
from harness.sweeps.study import CapacityFile, Study
from harness.sweeps.trials import Trial
from traces.errors import InputError

STUDY_SCHEMA = "servetwin.study/1"

SHORT = 20
"""Mean E2ELs that a run should last. Ours: filling and emptying, about one each, are a tenth of it then; and the first
requests of a closed loop, whose seats all begin at once, are a 20th: they do not decide a 95th percentile."""


def study_record(
    study: Study, inputs: Inputs, trials: Sequence[Trial], capacities: Sequence[Capacity] | None
) -> dict[str, Any]:
    """study.json; `capacities` of its variants, None where it asks for none."""
    numbers = {trial.point.fingerprint: i for i, trial in enumerate(trials)}
    roles = _roles(capacities or ())
    best = set(on_front(trials, None if capacities is None else [i for i in roles if roles[i] == "highest"]))
    points = [
        {
            "point": i,
            "fingerprint": trial.point.fingerprint,
            "overrides": trial.point.overrides,
            "first_requests": trial.point.first_requests,
            "reason": trial.result.reason,
            "is_feasible": trial.is_feasible if trial.figures else None,
            "is_front": i in best,
            **({} if capacities is None else {"capacity": roles[trial.point.fingerprint]}),
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
        "capacities": None if capacities is None else [_capacity(one, numbers) for one in capacities],
        "times": times_record([trial.result.times for trial in trials]),
        "notes": _notes(study, inputs, trials, capacities, sorted(best)),
        "points": points,
    }


def on_front(trials: Sequence[Trial], among: Sequence[str] | None) -> list[int]:
    """Indices of the trials that no other beats, of those that serve all requests within the constraints.

    Args:
        trials: all of them.
        among: fingerprints of those that count; None: all.
    """
    known = [
        (i, trial.losses)
        for i, trial in enumerate(trials)
        if _is_final(trial) and trial.losses is not None and (among is None or trial.point.fingerprint in among)
    ]
    return [known[i][0] for i in front([losses for _, losses in known])]


def _is_final(trial: Trial) -> bool:
    return trial.is_feasible and trial.point.first_requests is None


def _roles(capacities: Sequence[Capacity]) -> dict[str, str]:
    """What every tried value was, by fingerprint: `highest`, `held` or `did not hold`."""
    roles = {
        one.trial.point.fingerprint: "held" if one.held else "did not hold"
        for capacity in capacities
        for one in capacity.tried
    }
    found = [capacity.highest for capacity in capacities if capacity.highest is not None]
    return roles | {one.trial.point.fingerprint: "highest" for one in found}


def _capacity(capacity: Capacity, numbers: dict[str, int]) -> dict[str, Any]:
    """A variant as study.json has it."""

    def told(one: Tried | None) -> dict[str, Any] | None:
        if one is None:
            return None
        return {"value": one.value, "point": numbers[one.trial.point.fingerprint], "shortfalls": one.shortfalls}

    return {
        "overrides": capacity.overrides,
        "highest": told(capacity.highest),
        "next_above": told(capacity.next_above),
        "n_held_above": len(capacity.held_above),
        "tried": [told(one) for one in capacity.tried],
    }


def _notes(
    study: Study,
    inputs: Inputs,
    trials: Sequence[Trial],
    capacities: Sequence[Capacity] | None,
    front: Sequence[int],
) -> list[str]:
    """What a reader of the front should know."""
    known = [trial.figures for trial in trials if trial.figures]
    missing = {name: sum(figures[name] is None for figures in known) for name in _names(study)}
    notes = [
        f"{n} points have no value of {name} and are on no front: too few requests, or not measured"
        for name, n in missing.items()
        if n
    ]
    n_points = len(trials if capacities is None else capacities)
    if study.file.sample is not None and (n := study.file.sample.n - n_points):
        notes.append(f"{n} of {study.file.sample.n} drawn points were drawn before")
    if capacities is not None:
        return [*notes, *_capacity_notes(study, inputs, capacities)]
    if n := sum(figures["n_left_out"] > 0 for figures in known):
        notes.append(f"{n} points did not finish all requests: see n_finished and n_left_out")
    if growing := [i for i, trial in enumerate(trials) if trial.figures.get("in_system.is_steady") is False]:
        what = f"{len(growing)} points are not steady{_on_it(growing, front)}"
        notes.append(f"{what}: the queue grows, and figures depend on the trace's length")
    if untold := [i for i, trial in enumerate(trials) if _is_untold(trial)]:
        what = f"{len(untold)} points have too few requests to tell whether their queue grows{_on_it(untold, front)}"
        notes.append(f"{what}: a longer trace may wait longer")
    return notes


def _on_it(points: Sequence[int], front: Sequence[int]) -> str:
    """Those of the points that are on the front, in words."""
    there = [str(i) for i in points if i in front]
    return f", {', '.join(there)} on the front" if there else ""


def _is_untold(trial: Trial) -> bool:
    """Whether a point of all requests has too few of them to tell if its queue grows."""
    figures = trial.result.figures
    return trial.point.first_requests is None and figures is not None and is_untold(figures["in_system"])


def _capacity_notes(study: Study, inputs: Inputs, capacities: Sequence[Capacity]) -> Iterator[str]:
    """What a reader of capacities should know: counts of variants, and of values that were tried."""
    asked, n = study.file.capacity, len(capacities)
    assert asked is not None
    low, high = text_of(asked.low), text_of(asked.high)
    if none := sum(one.highest is None for one in capacities):
        yield f"{none} of {n} variants do not hold at {low}, the least that is tried: they have no capacity"
    if most := sum(one.next_above is None for one in capacities):
        yield f"{most} of {n} variants hold at {high}, the most that is tried: their capacity is that or more"
    if above := sum(len(one.held_above) for one in capacities):
        yield f"{above} values held above one that did not: holding is not monotone, and the lower one counts"
    if asked.is_whole and _takes_fractions(inputs, asked, capacities[0].overrides):
        yield f"only whole numbers were tried, as low and high are: low: {float(asked.low)} tries those between too"
    if failed := sum(not tried.trial.figures for one in capacities for tried in one.tried):
        yield f"{failed} values failed and count as not held"
    found = [one.highest.trial for one in capacities if one.highest is not None]
    if short := sum(is_short(trial.figures) for trial in found):
        yield (
            f"{short} of {len(found)} capacities are of runs that last less than {SHORT} times their mean E2EL: "
            "a longer trace may have lower ones"
        )
    if untold := sum(_is_untold(trial) for trial in found):
        yield (
            f"{untold} of {len(found)} capacities are of too few requests to tell whether their queue grows: "
            "a longer trace may have lower ones"
        )


def _takes_fractions(inputs: Inputs, asked: CapacityFile, variant: Overrides) -> bool:
    """Whether the key takes numbers that are not whole."""
    try:
        inputs.scenario({**variant, asked.key: asked.low + 0.5})
    except InputError:
        return False
    return True


def is_short(figures: dict[str, Any]) -> bool:
    """Whether a run is so short that filling and emptying weigh in its figures."""
    duration_s, e2el_s = figures["duration_s"], figures["e2el_s.mean"]
    return duration_s is not None and e2el_s is not None and duration_s < SHORT * e2el_s


def _names(study: Study) -> list[str]:
    """Figures that decide about the front."""
    return list(dict.fromkeys([*study.file.objectives, *study.file.constraints]))


def study_files(study: Study, record: dict[str, Any], trials: Sequence[Trial]) -> dict[str, bytes]:
    """Every file of the folder, by name."""
    objectives = list(study.file.objectives)
    rows = [_row(point, trial) for point, trial in zip(record["points"], trials, strict=True)]
    best = sorted(record["front"], key=lambda i: (trials[i].losses, i))
    dots = [
        Dot(
            tuple(trial.figures[name] for name in objectives),
            f"{i}: {trial.point.label}",
            trial.is_feasible and point.get("capacity") != "did not hold",
            i in record["front"],
        )
        for i, (point, trial) in enumerate(zip(record["points"], trials, strict=True))
        if trial.losses is not None and trial.point.first_requests is None
    ]
    return {
        "results.csv": csv_bytes(rows),
        "pareto.csv": csv_bytes([rows[i] for i in best]),
        "pareto.svg": pareto_svg(objectives, dots).encode(),
        "study.json": msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n",
    }


def _row(point: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """A line of results.csv: what was set stands as it would after `--set`, devices in words."""
    said = ("point", "reason", "is_feasible", "is_front", "capacity", "first_requests")
    asked = {name: point[name] for name in said if name in point}
    set_to = {key: text_of(value) for key, value in point["overrides"].items()}
    devices = {} if trial.result.figures is None else {COLUMN: devices_text(trial.result.figures)}
    return {**asked, **set_to, **devices, **trial.figures}
