"""The page of several runs side by side: what is different in them first, then what that did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.descriptions.written import UNSAID, by_key, differing
from harness.reports.capture_page import about
from harness.reports.colours import ROLES
from harness.reports.differences import compared_table
from harness.reports.latencies import Run
from harness.reports.page import (
    Page,
    Section,
    chart_places,
    heading,
    notes,
    prose,
    table,
    unfolded,
    verdict_line,
)
from harness.reports.run_figures import (
    Figures,
    cost_rows,
    counts_rows,
    drains,
    energy_rows,
    latency_rows,
    load_of,
    served_rows,
    slo_rows,
)
from harness.reports.stages import mean_stages
from harness.reports.trust import trust_each
from harness.reports.validation_page import latency_section, over_time_section
from harness.running.arrivals import is_untold
from traces.capture import Capture
from traces.statistics import STATISTICS
from traces.trace import NO_FILE

MOST_NAMED = 3
"""Keys that the sentence above everything names."""
NOBODY = {"halfway": None, "is_steady": None}
"""Of a run that says nothing of who was in the system."""
FOLDED = ("p90", "p95")
"""Statistics that a reader unfolds."""
DIGEST_DIGITS = 12


def captures_page(captures: Mapping[str, Capture], summaries: Mapping[str, Figures]) -> Page:
    """Captures by name, each on its own clock from its own second 0, with what each said of itself."""
    runs = [Run(name, f"run{i % ROLES}", capture) for i, (name, capture) in enumerate(captures.items())]
    figures = [summaries[run.name] for run in runs]
    other = different_keys([run.capture for run in runs], figures)
    distributions, stages = latency_section(runs), mean_stages(runs)
    sections = (
        trust_each({run.name: run.capture.meta for run in runs}),
        Section("What differs", _keys_table(runs, other, figures)),
        Section("What it did", _decisive(runs, figures)),
        Section("Latencies", _latencies(runs, figures)),
        Section("Distributions", distributions.body, distributions.charts),
        over_time_section(runs),
        Section("Stages", chart_places([stages], "wide") if stages else "", (stages,) if stages else ()),
        Section("Notes", _notes(runs)),
        Section("Configuration", "".join(heading(run.name) + about(run.capture) for run in runs)),
    )
    return Page("Runs side by side", _verdict(runs, other) + _named(runs), sections)


def _verdict(runs: Sequence[Run], other: Mapping[str, Sequence[str]]) -> str:
    """What is different, in a sentence, and which runs must not be scored."""
    invalid = [run.name for run in runs if run.capture.meta.reasons]
    named = ", ".join(f"{key}: {' -> '.join(values)}" for key, values in list(other.items())[:MOST_NAMED])
    more = f", and {len(other) - MOST_NAMED} more" if len(other) > MOST_NAMED else ""
    sentence = f"{len(runs)} runs side by side; "
    sentence += f"they differ in {named}{more}." if other else "nothing that they record of their inputs differs."
    sentence += f" Not to be scored: {', '.join(invalid)}." if invalid else ""
    return verdict_line(good=not invalid, mark="", sentence=sentence)


def _named(runs: Sequence[Run]) -> str:
    """What each run is of."""
    metas = [(run.name, run.capture.meta) for run in runs]
    rows = [(name, meta.kind, meta.model or "–", meta.device or "–") for name, meta in metas]
    return table(["", "kind", "model", "device"], rows, "Runs")


def different_keys(captures: Sequence[Capture], figures: Sequence[Figures]) -> dict[str, list[str]]:
    """Inputs that are not the same in all runs, by key, and what each run has.

    Of runs that kept their scenarios that is every key of theirs, engine options with the values that they came to;
    where one did not, what all of them recorded. Files that hold the same are the same, whatever they are called.
    """
    kept = all(said.get("scenario") for said in figures)
    digests = _digests(captures)
    every = zip(captures, figures, digests, strict=True)
    known = [_inputs(one, said if kept else {}, own) for one, said, own in every]
    if not kept:
        common = set.intersection(*(set(one) for one in known))
        known = [{key: value for key, value in one.items() if key in common} for one in known]
    same = {name for name, digest in digests[0].items() if digest and all(own.get(name) == digest for own in digests)}
    return {key: values for key, values in differing(known).items() if key not in same}


def _inputs(capture: Capture, figures: Figures, digests: Mapping[str, str | None]) -> dict[str, Any]:
    meta = capture.meta
    named = {"model": meta.model, "device": meta.device, "recorded of": meta.engine}
    found = by_key(figures["scenario"]) if figures.get("scenario") else named
    found |= by_key(meta.engine_options, "engine.") if meta.engine_options else {}
    for name, digest in digests.items():
        if digest is not None:
            short = digest[: len("sha256:") + DIGEST_DIGITS]
            found[name] = f"{found[name]} ({short})" if name in found else short
    return {name: value for name, value in found.items() if value is not None}


def _digests(captures: Sequence[Capture]) -> list[dict[str, str | None]]:
    """What went into each run, by name; where one's requests are from no file, those of all as they are kept."""
    digests = [dict(one.meta.provenance) for one in captures]
    if any(own.get("trace") in (None, NO_FILE) for own in digests):
        return [own | {"trace": one.trace.sha256} for own, one in zip(digests, captures, strict=True)]
    return digests


def _keys_table(runs: Sequence[Run], other: Mapping[str, Sequence[str]], figures: Sequence[Figures]) -> str:
    """A line per key that differs, and how far that can be told."""
    silent = [run.name for run, said in zip(runs, figures, strict=True) if not said.get("scenario")]
    said = []
    if any(UNSAID in values for values in other.values()):
        said.append(f"“{UNSAID}” is a key that a scenario leaves to its default.")
    if silent:
        said.append(f"No scenario is kept with {', '.join(silent)}: what all runs recorded is compared.")
    body = table(["", *(run.name for run in runs)], [(key, *values) for key, values in other.items()]) if other else ""
    return body + (prose(" ".join(said)) if said else "")


def _decisive(runs: Sequence[Run], figures: Sequence[Figures]) -> str:
    """What people decide by: who was served, how fast, within which limits, for how much."""
    names = [run.name for run in runs]
    alike = len({run.capture.trace.sha256 for run in runs}) == 1
    said = _loads(runs, figures) if alike else ["The runs did not serve the same requests."]
    said += [*_left_out(runs, figures), *_steadiness(runs, figures)]
    return (
        (prose(" ".join(said)) if said else "")
        + compared_table(names, served_rows(figures, alike=alike), "Requests and rates")
        + compared_table(names, slo_rows(figures), "Service-level objective")
        + compared_table(names, cost_rows(figures), "Cost and carbon")
        + compared_table(names, energy_rows(figures), "Energy")
        + compared_table(names, counts_rows(figures), "Counts")
    )


def _loads(runs: Sequence[Run], figures: Sequence[Figures]) -> list[str]:
    """Why rates of what was served are called neither better nor worse, where it is the load that keeps from it."""
    loads = [load_of(said) for said in figures]
    why = None
    if None in loads:
        unknown = ", ".join(run.name for run, load in zip(runs, loads, strict=True) if load is None)
        why = f"it is not known at what rate, or by how many seats, {unknown} got them"
    elif len(set(loads)) > 1:
        why = "the runs did not get them at the same rate, or by the same seats"
    return [] if why is None else [f"Of the same requests, {why}: no rate of what was served is better or worse."]


def _left_out(runs: Sequence[Run], figures: Sequence[Figures]) -> list[str]:
    """Latencies of the requests that finished flatter the run in which fewer did."""
    if not any(said["n_left_out"] for said in figures):
        return []
    both = zip(runs, figures, strict=True)
    counts = ", ".join(f"{run.name} {said['n_finished']} of {said['n_requests']}" for run, said in both)
    return [f"Latencies are of the requests that finished: {counts}."]


def _steadiness(runs: Sequence[Run], figures: Sequence[Figures]) -> list[str]:
    """Whether the engines kept up with the arrivals, as far as that is known."""
    there = [said.get("in_system") or NOBODY for said in figures]
    behind = [run.name for run, one in zip(runs, there, strict=True) if one["is_steady"] is False]
    untold = [run.name for run, one in zip(runs, there, strict=True) if is_untold(one)]
    said = [f"Not steady, so that a longer trace may wait longer: {', '.join(behind)}."] if behind else []
    said += [f"Of too few requests to tell whether a queue grows: {', '.join(untold)}."] if untold else []
    if all(one["is_steady"] for one in there):
        drained = "Rates of what was served count the time after the last arrival too."
        said += ["All runs are steady.", *([drained] if any(map(drains, figures)) else [])]
    return said


def _latencies(runs: Sequence[Run], figures: Sequence[Figures]) -> str:
    """A table for each statistic that a run has: a line per metric."""
    names, body, folded = [run.name for run in runs], "", ""
    left_out = [said["n_left_out"] / max(said["n_requests"], 1) for said in figures]
    unlike = [share != left_out[0] for share in left_out]
    for statistic in STATISTICS:
        rows = latency_rows(figures, statistic)
        if statistic in FOLDED:
            folded += compared_table(names, rows, statistic, unlike)
        else:
            body += compared_table(names, rows, statistic, unlike)
    return body + (unfolded(" and ".join(FOLDED), folded) if folded else "")


def _notes(runs: Sequence[Run]) -> str:
    """What only some runs say first, then what all do."""
    said = [[*run.capture.meta.reasons, *run.capture.meta.notes] for run in runs]
    common = [note for note in said[0] if all(note in own for own in said)]
    body = ""
    for run, own in zip(runs, said, strict=True):
        if alone := [note for note in own if note not in common]:
            body += heading(f"{run.name}, not all") + notes(alone)
    return body + (heading("all") + notes(common) if common else "")
