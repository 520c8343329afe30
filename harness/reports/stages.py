"""Where time goes, and where an error comes from: the stages of all requests, and the worst requests one by one."""

from __future__ import annotations

import numpy as np

from harness.reports.chart import Bars, Chart
from harness.reports.latencies import Run
from harness.terminal.words import LABELS, percent, seconds
from traces.metrics import STAGES, requests
from traces.outcome import Outcome, Status
from traces.steps import Floats

WORST = 10


def mean_stages(runs: list[Run]) -> Chart | None:
    """The mean of each stage in each run, one after the other; None where no run recorded them."""
    known = [(run, _known_stages(run.capture.outcomes)) for run in runs]
    measured = [(run, stages) for run, stages in known if len(stages)]
    if not measured:
        return None
    means = np.array([stages.mean(axis=0) for _, stages in measured])
    labels = tuple(run.name for run, _ in measured)
    caption = "Mean time of a request in each stage; together they are its E2EL."
    return Chart("stages", caption, "time (s)", "", _stage_bars(labels, means))


def _known_stages(outcomes: tuple[Outcome, ...]) -> Floats:
    """Queue, prefill and decode time of the requests that have all three, [n, 3] seconds."""
    columns = requests(outcomes)
    stages: Floats = np.column_stack([getattr(columns, name) for name in STAGES])
    return np.compress(~np.isnan(stages).any(axis=1), stages, axis=0)


def _stage_bars(labels: tuple[str, ...], stages: Floats) -> tuple[Bars, ...]:
    """Bars of the stages behind each other, from [n_labels, 3] seconds."""
    start = np.cumsum(stages, axis=1) - stages
    return tuple(
        Bars(LABELS[name], name.removesuffix("_s"), labels, start[:, i], stages[:, i]) for i, name in enumerate(STAGES)
    )


def worst_pairs(pairs: list[tuple[Outcome, Outcome]]) -> list[tuple[Outcome, Outcome, float]]:
    """The pairs with the largest relative error of E2EL, and the error."""
    before, after = requests([pair[0] for pair in pairs]).e2el_s, requests([pair[1] for pair in pairs]).e2el_s
    error = np.divide(after, before, out=np.full(len(pairs), np.nan), where=before > 0) - 1
    order = [int(i) for i in np.argsort(-np.abs(error), kind="stable") if np.isfinite(error[i])]
    return [(*pairs[i], float(error[i])) for i in order[:WORST]]


def slowest(outcomes: tuple[Outcome, ...]) -> list[Outcome]:
    """The requests with the longest E2EL."""
    finished = [outcome for outcome in outcomes if outcome.status is Status.FINISHED]
    e2el_s = requests(finished).e2el_s
    order = [int(i) for i in np.argsort(-e2el_s, kind="stable") if np.isfinite(e2el_s[i])]
    return [finished[i] for i in order[:WORST]]


def timelines(outcomes: list[tuple[str, Outcome]], caption: str) -> Chart | None:
    """Each labelled request's stages from its arrival on; None where no stage was recorded."""
    columns = requests([outcome for _, outcome in outcomes])
    stages = np.column_stack([getattr(columns, name) for name in STAGES])
    if np.isnan(stages).all():
        return None
    labels = tuple(label for label, _ in outcomes)
    return Chart("worst", caption, "seconds after its arrival", "", _stage_bars(labels, stages))


def pair_rows(worst: list[tuple[Outcome, Outcome, float]]) -> list[tuple[str, ...]]:
    """A line per pair: what it asked for, and when its stages were over on both sides."""
    rows = []
    for measured, simulated, error in worst:
        stamps = [f"{a} > {b}" for a, b in zip(stamps_of(measured), stamps_of(simulated), strict=True)]
        counts = (str(measured.prompt_tokens), str(measured.output_tokens))
        rows.append((measured.request_id, seconds(measured.arrival_s), *counts, percent(error), *stamps))
    return rows


def stamps_of(outcome: Outcome) -> list[str]:
    """When it was scheduled, had its first token and was over, after its arrival."""
    stamps_s = (outcome.scheduled_s, outcome.first_token_s, outcome.finish_s)
    return [seconds(None if stamp_s is None else stamp_s - outcome.arrival_s) for stamp_s in stamps_s]
