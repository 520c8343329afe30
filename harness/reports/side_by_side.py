"""Several captures, or several validations, on one page."""

from __future__ import annotations

from collections.abc import Mapping

from harness.reports.capture_page import about
from harness.reports.colours import ROLES
from harness.reports.latencies import Run
from harness.reports.page import Page, Section, chart_places, facts, heading, notes, prose, table, verdict_line
from harness.reports.stages import mean_stages
from harness.reports.validation_page import Compared, error_chart, latency_section, over_time_section
from harness.scoring.tables import verdict
from harness.terminal.words import LABELS, interval, percent, seconds
from traces.capture import Capture
from traces.metrics import LATENCIES, STAGES, summary
from traces.statistics import STATISTICS


def captures_page(captures: Mapping[str, Capture]) -> Page:
    """Captures by name, each on its own clock from its own second 0."""
    runs = [Run(name, f"run{i % ROLES}", capture) for i, (name, capture) in enumerate(captures.items())]
    stages = mean_stages(runs)
    invalid = [run.name for run in runs if run.capture.meta.reasons]
    sentence = f"{len(runs)} runs side by side." + (f" Not to be scored: {', '.join(invalid)}." if invalid else "")
    sections = (
        Section("Figures", _figures(runs)),
        latency_section(runs),
        over_time_section(runs),
        Section("Stages", chart_places([stages], "wide") if stages else "", (stages,) if stages else ()),
        Section(
            "Notes", "".join(heading(run.name) + notes(_notes(run.capture)) for run in runs if _notes(run.capture))
        ),
        Section("Configuration", "".join(heading(run.name) + about(run.capture) for run in runs)),
    )
    return Page("Runs side by side", verdict_line(good=not invalid, mark="", sentence=sentence), sections)


def validations_page(validations: Mapping[str, Compared]) -> Page:
    """Validations by name: which are valid, and how far off each twin is."""
    chart = error_chart({name: compared.result for name, compared in validations.items()})
    invalid = [name for name, compared in validations.items() if not compared.result["valid"]]
    sentence = f"{len(validations) - len(invalid)} of {len(validations)} validations are valid."
    said = prose("Simulated less measured, over measured. Where a bar crosses 0, the twin may be right.")
    sections = (
        Section("Verdicts", _verdicts(validations)),
        Section("Errors", said + chart_places([chart], "wide") if chart else "", (chart,) if chart else ()),
        Section("Paired by request", _paired(validations)),
        Section("Notes", "".join(heading(name) + notes(v.result["notes"]) for name, v in validations.items())),
        Section("Configuration", "".join(heading(n) + facts(v.result["provenance"]) for n, v in validations.items())),
    )
    return Page("Validations side by side", verdict_line(good=not invalid, mark="", sentence=sentence), sections)


def _figures(runs: list[Run]) -> str:
    """A table for each statistic that a run has: a line per metric, a column per run."""
    all_figures = [summary(run.capture) for run in runs]
    columns = ["", *(run.name for run in runs)]
    body = ""
    for statistic in STATISTICS:
        rows = []
        for name in (*LATENCIES, *STAGES):
            values = [figures["metrics"][name][statistic] for figures in all_figures]
            if any(value is not None for value in values):
                rows.append((LABELS[name], *map(seconds, values)))
        body += table(columns, rows, statistic) if rows else ""
    names = ("n_requests", "n_finished", "prompt_tokens", "output_tokens", "cached_tokens", "num_preemptions")
    rows = [(name, *("–" if f[name] is None else str(f[name]) for f in all_figures)) for name in names]
    rates = ("duration_s", "requests_per_s", "output_tokens_per_s")
    rows += [
        (name, *("–" if f["metrics"][name] is None else f"{f['metrics'][name]:.4g}" for f in all_figures))
        for name in rates
    ]
    return body + table(columns, rows, "Counts and rates")


def _notes(capture: Capture) -> list[str]:
    return [*capture.meta.reasons, *capture.meta.notes]


def _verdicts(validations: Mapping[str, Compared]) -> str:
    metrics = ("ttft_s", "tpot_s", "e2el_s")
    rows = []
    for name, compared in validations.items():
        means = [(compared.result["metrics"][metric] or {}).get("mean") for metric in metrics]
        errors = [f"{percent(mean['error'])} {interval(mean['ci95'])}" if mean else "–" for mean in means]
        rows.append((name, str(compared.result["n_scored"]), *errors, verdict(compared.result).split(" over ")[0]))
    return table(
        ["", "requests", *(f"mean {LABELS[metric]}" for metric in metrics), "verdict"],
        rows,
        "Errors with 95 % intervals",
    )


def _paired(validations: Mapping[str, Compared]) -> str:
    metrics = ("ttft_s", "tpot_s", "e2el_s")
    rows = []
    for name, compared in validations.items():
        paired, floor = compared.result["paired"], compared.result.get("noise_floor", {}).get("paired", {})
        cells = []
        for metric in metrics:
            noise = f" (floor {floor[metric]['mape']:.1%})" if floor.get(metric) else ""
            cells.append(f"{paired[metric]['mape']:.1%}{noise}" if paired[metric] else "–")
        rows.append((name, *cells))
    return table(["", *(LABELS[metric] for metric in metrics)], rows, "Mean |error| per request")
