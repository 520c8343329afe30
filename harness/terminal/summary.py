"""One run's figures in the terminal: latencies, who did not finish, rates, what was drafted, drawn and paid."""

from __future__ import annotations

from typing import Any

from harness.terminal.console import console, table
from harness.terminal.words import LABELS, seconds
from traces.outcome import Status

_PER = (("j_per_token", "token"), ("j_per_output_token", "output token"), ("j_per_request", "request"))


def print_summary(figures: dict[str, Any]) -> None:
    """Print one run's figures."""
    rows = []
    for name, values in figures["metrics"].items():
        if isinstance(values, dict):
            rows.append((LABELS[name], *(seconds(values[key]) for key in ("mean", "p50", "p90", "p95", "p99"))))
    out = console()
    out.print(table("Latencies", ["", "mean", "p50", "p90", "p95", "p99"], rows))
    counts = ("n_requests", "n_finished", "prompt_tokens", "output_tokens", "cached_tokens", "num_preemptions", "steps")
    shown = [f"{name} {figures[name]}" for name in counts if figures.get(name) is not None]
    rates = [
        f"{name} {figures['metrics'][name]:.4g}"
        for name in ("output_tokens_per_s", "duration_s")
        if figures["metrics"][name]
    ]
    for line in unfinished_lines(figures):
        out.print(line)
    out.print(", ".join([*shown, *rates]))
    for line in (
        *arrival_lines(figures),
        *speculation_lines(figures.get("speculation")),
        *energy_lines(figures.get("energy")),
        *slo_lines(figures.get("slo"), figures["n_requests"]),
        *cost_lines(figures.get("cost")),
    ):
        out.print(line)


def unfinished_lines(figures: dict[str, Any]) -> list[str]:
    """How many requests ended otherwise than with all their tokens, by how; nothing where none did."""
    n_finished, n_requests = figures["n_finished"], figures["n_requests"]
    others = {name: n for name, n in figures["requests"].items() if name != Status.FINISHED.value and n}
    if not others:
        return []
    (first, n), *rest = others.items()
    parts = [f"{n} of {n_requests} requests {first}", *(f"{n} {name}" for name, n in rest)]
    return [f"{', '.join(parts)}: the figures are of the {n_finished} that finished"]


def arrival_lines(figures: dict[str, Any]) -> list[str]:
    """The offered rate beside the served one, and whether the engines kept up; nothing where arrivals follow them.

    A served rate below the offered one looks as if they had not. Where they did, it counts the drain.
    """
    offered = figures.get("requests_offered_per_s")
    if offered is None:
        return []
    served, there = figures["metrics"]["requests_per_s"], figures["in_system"]
    of_served = "none served" if served is None else f"{served:.4g} served to the last finish"
    lines = [f"requests per second: {offered:.4g} offered to the last arrival, {of_served}"]
    if there["is_steady"] is False:
        lines.append(
            f"not steady: {there['at_last_arrival']} requests in the system at the last arrival, {there['halfway']} "
            "halfway through the arrivals; a longer trace may wait longer"
        )
    elif there["is_steady"] is None:
        lines.append(
            f"too few requests to tell whether the engines kept up: {there['at_last_arrival']} in the system at the "
            f"last arrival, {there['halfway']} halfway through the arrivals; a longer trace may wait longer"
        )
    elif served is not None and served < offered and (drain_s := _drain_s(figures)) > 0:
        lines.append(
            f"steady: the engines kept up, {there['at_last_arrival']} requests in the system at the last arrival, "
            f"{there['halfway']} halfway; served counts the {seconds(drain_s)} after the last arrival too"
        )
    return lines


def _drain_s(figures: dict[str, Any]) -> float:
    """From the last arrival to the last finish of a request that finished."""
    span_s = (figures["n_requests"] - 1) / figures["requests_offered_per_s"]
    return float(figures["metrics"]["duration_s"] - span_s)


def speculation_lines(speculation: dict[str, Any] | None) -> list[str]:
    """What was drafted and accepted, in a line; none where nobody drafts."""
    if speculation is None or speculation["mean_acceptance_length"] is None:
        return []
    accepted, drafted = speculation["num_accepted_tokens"], speculation["num_draft_tokens"]
    length = speculation["mean_acceptance_length"]
    return [f"speculative decoding: {accepted} of {drafted} drafted tokens accepted, acceptance length {length:.2f}"]


def energy_lines(energy: dict[str, Any] | None) -> list[str]:
    """What a run drew, in a line or two; nothing where nothing is said of power."""
    if energy is None:
        return []
    lines = [f"power not known, and in no sum: {', '.join(energy['unknown'])}"] if energy["unknown"] else []
    if energy["total_j"] is None:
        return lines
    parts = ", ".join(f"{name} {part['total_j']:.4g} J" for name, part in energy["components"].items())
    per = [f"{energy[key]:.4g} J per {what}" for key, what in _PER if energy[key] is not None]
    mean = "" if energy["mean_w"] is None else f", mean {energy['mean_w']:.4g} W"
    return [f"energy {energy['total_j']:.4g} J{mean}: {parts}", *([", ".join(per)] if per else []), *lines]


def slo_lines(slo: dict[str, Any] | None, n_requests: int) -> list[str]:
    """How many of all requests met the objective."""
    if slo is None or slo["n_meeting"] is None:
        return [] if slo is None else ["slo: not known, a limited duration was not measured"]
    goodput = slo["goodput_per_s"]  # null where no time passed, as when no request finished
    met = f"slo met by {slo['n_meeting']} of {n_requests} requests"
    return [met + ("" if goodput is None else f", {goodput:.4g} per second")]


def cost_lines(cost: dict[str, Any] | None) -> list[str]:
    """What a run cost; nothing where the scenario has no prices."""
    if cost is None:
        return []
    money, lines = cost["currency"], []
    if cost["total"] is not None:
        units = ("per_million_tokens", "per_million_output_tokens", "per_request", "per_slo_request")
        per = [f"{cost[unit]:.4g} {money} {unit.replace('_', ' ')}" for unit in units if cost[unit] is not None]
        lines.append(f"cost {cost['total']:.4g} {money}" + (f": {', '.join(per)}" if per else ""))
    else:
        lines.append("cost not known: no price of devices or energy, or energy that is not known")
    if cost["carbon_kg"] is not None:
        per_million = cost["carbon_kg_per_million_tokens"]
        lines.append(
            f"carbon {cost['carbon_kg']:.4g} kg CO2"
            + (f", {per_million:.4g} per million tokens" if per_million else "")
        )
    return lines
