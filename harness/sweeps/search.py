"""Which points to try next, from what became of those before.

What is tried depends on the study alone: never on how many workers there are, or which of them is faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from harness.sweeps.pareto import ranked
from harness.sweeps.space import Overrides, Range, Ranges, distinct, drawn
from harness.sweeps.study import SearchFile, StudyFile
from harness.sweeps.trials import Trial, Trials
from traces.errors import InputError, installs

AT_ONCE = 4
"""Points that `tpe` chooses together: enough for a few workers, few enough to learn from."""
ETA = 3
"""Successive halving keeps one of so many, as its authors do (Li et al., JMLR 18, 2018, section 2)."""


def search(trials: Trials, asked: SearchFile, n_requests: int) -> None:
    """Try what the search asks for, of a trace of `n_requests`. Raises InputError."""
    match asked.method:
        case "tpe":
            _tpe(trials, asked)
        case "successive_halving":
            if (asked.min_requests or 0) >= n_requests:
                accepted = f"fewer than the trace's {n_requests}"
                raise trials.study.document.error(["search", "min_requests"], accepted=accepted)
            _successive_halving(trials, asked, n_requests)


def n_trials(asked: SearchFile, n_requests: int) -> int:
    """How many points a search tries, at most."""
    if asked.method == "tpe":
        return asked.n_trials
    return sum(n for n, _ in _rounds(asked, n_requests))


def _rounds(asked: SearchFile, n_requests: int) -> Iterator[tuple[int, int | None]]:
    """Points of each round of successive halving, and the requests that they serve; None: all."""
    eta, n, served = asked.eta or ETA, asked.n_trials, asked.min_requests or n_requests
    while served < n_requests and n > 1:
        yield n, served
        n, served = math.ceil(n / eta), served * eta
    yield n, None


def _successive_halving(trials: Trials, asked: SearchFile, n_requests: int) -> None:
    """Many points serve a few requests; the best of them serve more (Jamieson and Talwalkar, AISTATS 2016)."""
    candidates = drawn(asked.ranges, asked.n_trials, asked.seed)
    for n, served in _rounds(asked, n_requests):
        candidates = candidates[:n]
        found = trials.evaluate(candidates, served)
        if not any(trial.losses is not None for trial in found):
            _raise_unknown(trials, found, served)
        candidates = [candidates[i] for i in best_first(found)]


def _raise_unknown(trials: Trials, found: Sequence[Trial], served: int | None) -> None:
    """Raise InputError unless all points have failed, which is for the study to say."""
    study = trials.study
    for name in study.file.objectives:
        if any(trial.figures and trial.figures[name] is None for trial in found):
            message = f"has no value with {served or 'all'} requests"
            raise study.document.error(["objectives", name], message, accepted="more requests, or a lower percentile")


def best_first(trials: Sequence[Trial]) -> list[int]:
    """Indices of trials: those within the constraints front by front, then the others, then those not known."""
    feasible = [i for i, trial in enumerate(trials) if trial.is_feasible and trial.losses is not None]
    order = [feasible[i] for i in ranked([trials[i].losses or () for i in feasible])]
    outside = [i for i, trial in enumerate(trials) if trial.excess]
    order += sorted(outside, key=lambda i: (trials[i].excess, i))
    return order + [i for i in range(len(trials)) if i not in order]


def _tpe(trials: Trials, asked: SearchFile) -> None:
    """A tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), as Optuna has it."""
    optuna = _optuna()
    file = trials.study.file
    sampler = optuna.samplers.TPESampler(seed=asked.seed, constant_liar=True)
    study = optuna.create_study(sampler=sampler, directions=["minimize"] * len(file.objectives))
    left = asked.n_trials
    while left:
        proposals = [study.ask() for _ in range(min(asked.at_once or AT_ONCE, left))]
        left -= len(proposals)
        points = [_suggested(proposal, asked.ranges) for proposal in proposals]
        new = distinct(points)
        found = dict(zip(map(str, new), trials.evaluate(new), strict=True))
        for proposal, point in zip(proposals, points, strict=True):
            _tell(study, proposal, found[str(point)], file)


def _suggested(proposal: Any, ranges: Ranges) -> Overrides:
    point: Overrides = {}
    for key, values in ranges.items():
        if isinstance(values, Range):
            suggest = proposal.suggest_int if values.is_whole else proposal.suggest_float
            point[key] = suggest(key, values.low, values.high, log=values.log)
        else:
            point[key] = values[proposal.suggest_categorical(key, list(range(len(values))))]
    return point


def _tell(study: Any, proposal: Any, trial: Trial, file: StudyFile) -> None:
    if trial.losses is None or trial.excess is None:
        study.tell(proposal, state=_optuna().trial.TrialState.FAIL)
        return
    if file.constraints:
        proposal.set_constraint("excess", trial.excess)
    study.tell(proposal, list(trial.losses))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        message = "method tpe needs Optuna 5 or later, which is not installed"
        accepted = f"{installs('search')}; or successive_halving"
        raise InputError(message, field="search.method", accepted=accepted) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it writes a line per trial to the terminal
    return optuna
