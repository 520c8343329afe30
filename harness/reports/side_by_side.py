"""Several validations on one page."""

from __future__ import annotations

from collections.abc import Mapping

from harness.reports.page import Page, Section, chart_places, facts, heading, notes, prose, table, verdict_line
from harness.reports.trust import trust_each
from harness.reports.validation_page import Compared, error_chart
from harness.scoring.tables import verdict
from harness.terminal.words import LABELS, interval, percent


def validations_page(validations: Mapping[str, Compared]) -> Page:
    """Validations by name: which are valid, and how far off each twin is."""
    chart = error_chart({name: compared.result for name, compared in validations.items()})
    invalid = [name for name, compared in validations.items() if not compared.result["valid"]]
    sentence = f"{len(validations) - len(invalid)} of {len(validations)} validations are valid."
    said = prose("Simulated less measured, over measured. Where a bar crosses 0, the twin may be right.")
    sections = (
        trust_each({name: compared.simulated.meta for name, compared in validations.items()}),
        Section("Verdicts", _verdicts(validations)),
        Section("Errors", said + chart_places([chart], "wide") if chart else "", (chart,) if chart else ()),
        Section("Paired by request", _paired(validations)),
        Section("Notes", "".join(heading(name) + notes(v.result["notes"]) for name, v in validations.items())),
        Section("Configuration", "".join(heading(n) + facts(v.result["provenance"]) for n, v in validations.items())),
    )
    return Page("Validations side by side", verdict_line(good=not invalid, mark="", sentence=sentence), sections)


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
