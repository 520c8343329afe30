"""The page of a validation: how far off the twin is, how sure that is, and where the error comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.reports.capture_page import about
from harness.reports.chart import Chart, Intervals
from harness.reports.colours import ROLES
from harness.reports.latencies import Run, distributions, paired, scatters
from harness.reports.over_time import over_time
from harness.reports.page import (
    Page,
    Section,
    chart_places,
    chosen_chart,
    facts,
    folded,
    heading,
    log_times,
    notes,
    prose,
    table,
    tiles,
    verdict_line,
)
from harness.reports.stages import mean_stages, pair_rows, timelines, worst_pairs
from harness.reports.trust import trust
from harness.scoring.tables import figure_columns, figure_rows, paired_columns, paired_rows, verdict
from harness.terminal.words import LABELS, interval, percent, seconds
from traces.capture import Capture
from traces.metrics import LATENCIES, STAGES
from traces.statistics import STATISTICS


@dataclass(frozen=True, slots=True)
class Compared:
    """What is known of a validation.

    Attributes:
        result: what validation.json holds.
        measured: the real run; None where the folder does not hold it.
        simulated: the twin's run.
        attribution: what attribution.json holds; None where nobody asked for it.
    """

    result: dict[str, Any]
    measured: Capture | None
    simulated: Capture
    attribution: dict[str, Any] | None = None

    @property
    def runs(self) -> list[Run]:
        """Both sides, the measured one first."""
        twin = Run("simulated", "simulated", self.simulated)
        return [twin] if self.measured is None else [Run("measured", "measured", self.measured), twin]


def validation_page(compared: Compared) -> Page:
    """The page."""
    result = compared.result
    meta = compared.simulated.meta
    head = verdict_of(result) + tiles(_tiles(result))
    if compared.measured is None:
        head += prose("This folder does not hold the measured run: its curves and requests are left out.")
    sections = (
        trust(meta),
        _errors(result),
        latency_section(compared.runs),
        _requests(compared),
        over_time_section(compared.runs),
        _stages(compared),
        _worst(compared),
        Section("Figures", _figures(result)),
        Section("Notes", notes(result["notes"])),
        _configuration(compared),
    )
    return Page(f"{meta.model} on {meta.device}: measured and simulated", head, sections)


def verdict_of(result: dict[str, Any]) -> str:
    """VALID or INVALID, and what the figures say."""
    mark, _, sentence = verdict(result).partition(" ")
    return verdict_line(good=result["valid"], mark=mark.rstrip(","), sentence=sentence)


def _tiles(result: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """The error of each mean, its interval, and the error of each request beside the noise floor."""
    found = []
    floor = result.get("noise_floor", {}).get("paired") or result.get("second_recording", {}).get("noise_floor", {})
    for name, figures in result["metrics"].items():
        figure = figures["mean"] if figures and "mean" in figures else figures
        if not figure or figure["error"] is None:
            continue
        sure = [f"95 % {interval(figure['ci95'])}" if figure["ci95"] else "of the whole run"]
        if each := result["paired"].get(name):
            sure.append(f"per request {each['mape']:.1%}")
        if noise := floor.get(name):
            sure.append(f"noise floor {noise['mape']:.1%}")
        what = f"mean {LABELS[name]}" if "mean" in figures else LABELS[name]
        found.append((what, percent(figure["error"]), sure))
    return found


def _errors(result: dict[str, Any]) -> Section:
    chart = error_chart({"": result})
    said = prose("Simulated less measured, over measured. Where a bar crosses 0, the twin may be right.")
    return Section("Errors", said + chart_places([chart], "wide"), (chart,)) if chart else Section("Errors", "")


def error_chart(results: dict[str, dict[str, Any]]) -> Chart | None:
    """The error of every statistic with its interval, of one validation or of several by name."""
    found = {name: _figures_by_label(result) for name, result in results.items()}
    order = [f"{LABELS[metric]} {key}" for metric in (*LATENCIES, *STAGES) for key in STATISTICS]
    labels = tuple(label for label in order if any(label in figures for figures in found.values()))
    if not labels:
        return None
    marks = []
    for number, (name, figures) in enumerate(found.items()):
        rows = [(f["error"], *(f["ci95"] or NO_INTERVAL)) if (f := figures.get(label)) else UNKNOWN for label in labels]
        role = "simulated" if len(results) == 1 else f"run{number % ROLES}"
        marks.append(Intervals(name, role, labels, *np.array(rows, dtype=np.float64).T))
    caption = "Error of each statistic with its 95 % interval; a dot alone has too few samples for one."
    return Chart("errors", caption, "error", "", tuple(marks), percent=True)


NO_INTERVAL, UNKNOWN = (np.nan,) * 2, (np.nan,) * 3


def _figures_by_label(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures that have an error: of the stages the means alone."""
    named = {
        f"{LABELS[metric]} {key}": figures[key]
        for part, keys in (("metrics", STATISTICS), ("stages", ("mean",)))
        for metric, figures in result[part].items()
        if figures and "mean" in figures
        for key in keys
    }
    return {label: figure for label, figure in named.items() if figure and figure["error"] is not None}


def latency_section(runs: list[Run]) -> Section:
    """How latencies are distributed."""
    charts = tuple(distributions(runs))
    return Section("Latencies", log_times() + chart_places(charts) if charts else "", charts)


def over_time_section(runs: list[Run]) -> Section:
    """What went on when."""
    charts = tuple(over_time(runs))
    return Section("Over time", chart_places(charts), charts)


def _requests(compared: Compared) -> Section:
    if compared.measured is None:
        return Section("Requests", "")
    charts = scatters(compared.measured, compared.simulated)
    return Section("Requests", chosen_chart("Each request's", charts, "scattered"), tuple(charts.values()))


def _stages(compared: Compared) -> Section:
    """The stages of both sides; and what `--explain` found."""
    chart = mean_stages(compared.runs)
    body = chart_places([chart], "wide") if chart else ""
    if compared.attribution is not None:
        body += _attribution(compared.attribution)
    return Section("Where the error is", body, (chart,) if chart else ())


def _attribution(found: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [
        (LABELS[metric], LABELS[stage], seconds(error["error_s"]), percent(error["share"]))
        for metric, stages in found["stages"].items()
        for stage, error in stages.items()
    ]
    body = (
        table(["metric", "stage", "simulated less measured", "of it"], rows, "Error of the mean by stage")
        if rows
        else ""
    )
    rows = [
        (c["parameter"], f"{c['was']:.4g}", _change(c), percent(c["share"]), ", ".join(c["alike"]))
        for c in found["causes"]
    ]
    caption = f"What would explain it, from {found['causes_from']}"
    body += table(["parameter", "was", "change", "of the time", "or instead"], rows, caption) if rows else ""
    for kind, what in (("steps", "Steps"), ("decode", "Decode time of requests")):
        rows = [
            (
                by,
                group["label"],
                str(group["n"]),
                seconds(group["measured_s"]),
                percent(group["error"]),
                percent(group["share"]),
            )
            for by, groups in found[kind].items()
            for group in groups
        ]
        columns = ["by", "", "n", "measured", "error", "of all"]
        body += table(columns, rows, f"{what}: where the error is") if rows else ""
    return body


def _change(cause: dict[str, Any]) -> str:
    """A change with its standard error; only its sign where no more is known."""
    if cause["change"] is None:
        return "less"
    error = "" if cause["standard_error"] is None else f" ± {cause['standard_error']:.2g}"
    return f"{cause['change']:+.4g}{error}"


def _worst(compared: Compared) -> Section:
    if compared.measured is None:
        return Section("Worst requests", "")
    worst = worst_pairs(paired(compared.measured, compared.simulated))
    if not worst:
        return Section("Worst requests", "")
    labelled = [
        (f"{measured.request_id} {side}", outcome)
        for measured, simulated, _ in worst
        for side, outcome in (("measured", measured), ("simulated", simulated))
    ]
    chart = timelines(labelled, f"The {len(worst)} requests with the largest relative error of E2EL, stage by stage.")
    columns = ["request", "arrival", "prompt", "output", "E2EL", "scheduled after", "first token", "finish"]
    caption = "Measured > simulated, after the request's arrival"
    body = (chart_places([chart], "wide") if chart else "") + table(columns, pair_rows(worst), caption)
    return Section("Worst requests", body, (chart,) if chart else ())


def _figures(result: dict[str, Any]) -> str:
    if not result["n_requests"]:
        return ""
    second = result.get("second_recording")
    body = table(figure_columns(result), figure_rows(result), "Measured and simulated")
    body += table(paired_columns(result), paired_rows(result), "Paired by request")
    if second is not None:
        rows = [
            (LABELS[name], *(f"{side[name]['mape']:.1%}" if side[name] else "–" for side in (second["paired"], floor)))
            for floor in (second["noise_floor"],)
            for name in floor
        ]
        caption = "The load was recorded twice: the twin against the other recording, and one against the other"
        body += table(["per request", "twin's mean |error|", "noise floor"], rows, caption)
    return body


def _configuration(compared: Compared) -> Section:
    result = compared.result
    body = facts({name: value for name, value in result["provenance"].items() if value is not None})
    for run in compared.runs:
        body += heading(run.name) + about(run.capture)
    if "scenario" in result:
        body += folded("Scenario, as it was asked for", result["scenario"])
    took = {name: f"{value:.2f}" for name, value in result.get("wall_s", {}).items()}
    if took:
        body += prose("Seconds taken: " + ", ".join(f"{name} {value}" for name, value in took.items()) + ".")
    return Section("Configuration", body)
