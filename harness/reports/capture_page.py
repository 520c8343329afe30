"""The page of one run, measured or simulated."""

from __future__ import annotations

from typing import Any

from harness.reports.latencies import Run, distributions
from harness.reports.over_time import over_time
from harness.reports.page import (
    Page,
    Section,
    chart_places,
    facts,
    folded,
    log_times,
    notes,
    prose,
    table,
    tiles,
    verdict_line,
)
from harness.reports.stages import mean_stages, slowest, stamps_of, timelines
from harness.reports.trust import trust
from harness.terminal.summary import arrival_lines, cost_lines, energy_lines, slo_lines
from harness.terminal.words import LABELS, seconds
from traces.capture import Capture
from traces.metrics import LATENCIES, STAGES
from traces.statistics import STATISTICS


def capture_page(capture: Capture, figures: dict[str, Any]) -> Page:
    """The whole file; `figures` are those of summary.json, or of `traces.metrics.summary`."""
    meta = capture.meta
    runs = [Run(meta.kind, meta.kind, capture)]
    latency, time = tuple(distributions(runs)), tuple(over_time(runs))
    stages = mean_stages(runs)
    sections = (
        trust(meta),
        Section("Latencies", log_times() + chart_places(latency) if latency else "", latency),
        Section("Over time", chart_places(time), time),
        Section("Stages", chart_places([stages], "wide") if stages else "", (stages,) if stages else ()),
        _slowest(capture),
        Section("Figures", latency_table(figures) + _sums(figures)),
        Section("Notes", notes([*meta.reasons, *meta.notes])),
        Section("Configuration", about(capture)),
    )
    head = _verdict(capture, figures) + _tiles(figures) + _arrivals(figures)
    return Page(f"{meta.model} on {meta.device}: {meta.kind} run", head, sections)


def _arrivals(figures: dict[str, Any]) -> str:
    """What was offered and served, and whether the engines kept up."""
    return "".join(prose(f"{line[0].upper()}{line[1:]}.") for line in arrival_lines(figures))


def about(capture: Capture) -> str:
    """What ran, where, and the digests of what went in."""
    meta = capture.meta
    known = {
        "engine": meta.engine,
        "model": meta.model,
        "device": meta.device,
        "KV blocks of each instance": meta.num_gpu_blocks,
        "recorded at": meta.recorded_at,
        "clock": meta.clock,
        **meta.provenance,
    }
    return facts(known) + folded("Engine options", meta.engine_options)


def latency_table(figures: dict[str, Any]) -> str:
    """Mean and percentiles of each latency and stage."""
    rows = [
        (LABELS[name], *(seconds(values[key]) for key in STATISTICS))
        for name in (*LATENCIES, *STAGES)
        if any((values := figures["metrics"][name])[key] is not None for key in STATISTICS)
    ]
    return table(["", *STATISTICS], rows, "Latencies of the requests that finished") if rows else ""


def _verdict(capture: Capture, figures: dict[str, Any]) -> str:
    if capture.meta.reasons:
        return verdict_line(good=False, mark="INVALID", sentence="not to be scored: " + "; ".join(capture.meta.reasons))
    counts = ", ".join(f"{count} {status}" for status, count in figures["requests"].items() if count)
    sentence = f"{figures['n_requests']} requests: {counts or 'none was recorded one by one'}."
    return verdict_line(good=True, mark="", sentence=sentence)


def _tiles(figures: dict[str, Any]) -> str:
    found = []
    for name in ("ttft_s", "tpot_s", "e2el_s"):
        values = figures["metrics"][name]
        if values["p50"] is not None:
            tail = [] if values["p99"] is None else [f"p99 {seconds(values['p99'])}"]
            found.append((f"median {LABELS[name]}", seconds(values["p50"]), tail))
    rates = {name: figures["metrics"][name] for name in ("output_tokens_per_s", "requests_per_s")}
    over = [f"over {seconds(figures['metrics']['duration_s'])}"]
    found += [(LABELS.get(name, "requests/s"), f"{rate:.4g}", over) for name, rate in rates.items() if rate is not None]
    return tiles(found)


def _slowest(capture: Capture) -> Section:
    slow = slowest(capture.outcomes)
    if not slow:
        return Section("Slowest requests", "")
    chart = timelines(
        [(o.request_id, o) for o in slow], f"The {len(slow)} requests with the longest E2EL, stage by stage."
    )
    columns = ["request", "arrival", "prompt", "output", "preemptions", "scheduled after", "first token", "finish"]
    rows = [
        (o.request_id, seconds(o.arrival_s), o.prompt_tokens, o.output_tokens, _count(o.num_preemptions), *stamps_of(o))
        for o in slow
    ]
    body = (chart_places([chart], "wide") if chart else "") + table(columns, rows, "After the request's arrival")
    return Section("Slowest requests", body, (chart,) if chart else ())


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def _sums(figures: dict[str, Any]) -> str:
    names = ("prompt_tokens", "output_tokens", "cached_tokens", "prefix_hit_rate", "num_preemptions", "steps")
    lines = [*energy_lines(figures.get("energy")), *slo_lines(figures.get("slo"), figures["n_requests"])]
    lines += cost_lines(figures.get("cost"))
    return facts({name: figures.get(name) for name in names}) + notes(lines)
