"""Results in the terminal: tables of measured, simulated, error and interval, and one honest sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from harness.compare import Repeat

WIDTH = 160
"""Columns where there is no terminal to ask: enough that no table is cut."""

LABELS = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "e2el_s": "E2EL",
    "queue_s": "queue time",
    "prefill_s": "prefill time",
    "decode_s": "decode time",
    "output_tokens_per_s": "output tokens/s",
    "power_w": "power",
    "kv_usage": "KV use",
    "prefix_hit_rate": "prefix hit rate",
    "duration_s": "duration",
}
"""How metrics are called in tables and reports."""


def console(*, stderr: bool = False) -> Console:
    """The terminal; plain text of a fixed width when it is none."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=WIDTH)


def seconds(value: float | None) -> str:
    """A duration with the unit that suits it."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if abs(value) * scale >= 1:
            return f"{value * scale:.4g} {unit}"
    return f"{value:.3g} s"


def percent(value: float | None) -> str:
    """A signed relative error in percent."""
    return "–" if value is None else f"{value:+.1%}"


def interval(ci95: list[float] | None) -> str:
    """A 95 % interval of a relative error."""
    return "–" if ci95 is None else f"[{ci95[0]:+.1%}, {ci95[1]:+.1%}]"


def figure_columns(result: dict[str, Any]) -> list[str]:
    """The columns of the table of metrics; with a calibration, also where the measured value was to be expected."""
    columns = ["metric", "measured", "simulated", "error", "95 % interval"]
    return [*columns, "90 % prediction"] if "prediction" in result else columns


def figure_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the table of metrics, by `figure_columns`."""
    rows: list[tuple[str, ...]] = []
    for name, figures in {**result["metrics"], **result["stages"]}.items():
        if figures is None:
            rows.append((LABELS[name], "not measured", "", "", ""))
        elif "measured" in figures:
            show = seconds if name.endswith("_s") and not name.endswith("per_s") else "{:.1f}".format
            rows.append(_row(LABELS[name], figures, show))
        else:
            statistics = ("mean",) if name in result["stages"] else tuple(figures)
            rows += [_row(f"{LABELS[name]} {key}", figures[key], seconds) for key in statistics if figures[key]]
    width = len(figure_columns(result))
    return [(*row, *[""] * width)[:width] for row in rows]


def _row(label: str, figure: dict[str, Any], show: Any) -> tuple[str, ...]:
    measured, simulated = show(figure["measured"]), show(figure["simulated"])
    row = label, measured, simulated, percent(figure["error"]), interval(figure["ci95"])
    expected = figure.get("pi90")
    return (*row, " to ".join(show(bound) for bound in expected)) if expected else row


def table(title: str, columns: list[str], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table whose columns but the first are right-aligned."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        made.add_row(*row)
    return made


def paired_columns(result: dict[str, Any], repeat: Repeat | None = None) -> list[str]:
    """The columns of the table of paired errors."""
    columns = ["per request", "mean |error|", "median |error|", "mean |difference|"]
    columns += ["2nd recording", "noise floor"] if repeat is not None else []
    columns += ["noise floor", "error / floor"] if "noise_floor" in result else []
    columns += ["within 90 % prediction"] if "prediction" in result else []
    return [*columns, "requests"]


def paired_rows(result: dict[str, Any], repeat: Repeat | None = None) -> list[tuple[str, ...]]:
    """The rows of the table of paired errors, by `paired_columns`."""
    rows = []
    for name, figures in result["paired"].items():
        if figures is None:
            continue
        row = [LABELS[name], f"{figures['mape']:.1%}", f"{figures['median_ape']:.1%}", seconds(figures["mae"])]
        others = () if repeat is None else (repeat.again["paired"][name], repeat.floor["paired"][name])
        row += [f"{other['mape']:.1%}" if other else "–" for other in others]
        if "noise_floor" in result:
            floor, ratio = result["noise_floor"]["paired"][name], result["error_over_floor"][name]
            row += [f"{floor['mape']:.1%}" if floor else "–", "–" if ratio is None else f"{ratio:.2f}"]
        if "prediction" in result:
            covered = result["prediction"]["coverage"][name]
            row.append(f"{covered['share']:.0%}" if covered else "–")
        rows.append((*row, str(figures["n"])))
    return rows


def verdict(result: dict[str, Any]) -> str:
    """What the figures say, in one sentence."""
    if not result["valid"]:
        return "INVALID, not to be relied on: " + "; ".join(result["reasons"])
    if not result["n_requests"]:
        scored = {name: error for name, error in result["series"].items() if error is not None}
        parts = [f"{name} {error['mape']:.1%} over {error['n']} windows" for name, error in scored.items()]
        return f"VALID over series alone, mean |error| by the window: {', '.join(parts)}."
    parts = []
    for name in ("ttft_s", "tpot_s", "e2el_s"):
        figures = result["metrics"][name]
        if figures is None or figures["mean"]["error"] is None:
            continue
        error = figures["mean"]["error"]
        side = "above" if error > 0 else "below"
        ci95 = interval(figures["mean"]["ci95"])
        parts.append(f"mean {LABELS[name]} is {abs(error):.1%} {side} the measured one (95 % interval {ci95})")
    return f"VALID over {result['n_scored']} requests: the simulated " + ", ".join(parts) + "."


def print_validation(result: dict[str, Any], repeat: Repeat | None = None) -> None:
    """Print a validation: metrics, paired errors, notes, verdict."""
    out = console()
    if result["n_requests"]:
        out.print(table("Measured and simulated", figure_columns(result), figure_rows(result)))
        out.print(table("Paired by request", paired_columns(result, repeat), paired_rows(result, repeat)))
    if repeat is not None:
        out.print("The load was recorded twice. 2nd recording: the twin's mean |error| against the other recording;")
        out.print("noise floor: the mean |error| between the two recordings.\n")
    for note in result["notes"]:
        out.print(f"note: {note}", style="dim")
    out.print(f"\n{verdict(result)}")


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
    out.print(", ".join([*shown, *rates]))
    for line in (
        *speculation_lines(figures.get("speculation")),
        *energy_lines(figures.get("energy")),
        *slo_lines(figures.get("slo")),
        *cost_lines(figures.get("cost")),
    ):
        out.print(line)


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


_PER = (("j_per_token", "token"), ("j_per_output_token", "output token"), ("j_per_request", "request"))


def slo_lines(slo: dict[str, Any] | None) -> list[str]:
    """How many requests met the objective."""
    if slo is None or slo["n_meeting"] is None:
        return [] if slo is None else ["slo: not known, a limited duration was not measured"]
    return [f"slo met by {slo['n_meeting']} requests, {slo['goodput_per_s']:.4g} per second"]


def cost_lines(cost: dict[str, Any] | None) -> list[str]:
    """What a run cost; nothing where the scenario has no prices."""
    if cost is None:
        return []
    money, lines = cost["currency"], []
    if cost["total"] is not None:
        units = ("per_million_tokens", "per_million_output_tokens", "per_request", "per_slo_request")
        per = [f"{cost[unit]:.4g} {money} {unit.replace('_', ' ')}" for unit in units if cost[unit] is not None]
        lines.append(f"cost {cost['total']:.4g} {money}: {', '.join(per)}")
    else:
        lines.append("cost not known: no price of devices or energy, or energy that is not known")
    if cost["carbon_kg"] is not None:
        per_million = cost["carbon_kg_per_million_tokens"]
        lines.append(
            f"carbon {cost['carbon_kg']:.4g} kg CO2"
            + (f", {per_million:.4g} per million tokens" if per_million else "")
        )
    return lines


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def print_facts(facts: dict[str, Any]) -> None:
    """Print a mapping, a fact a line; a list, an entry a line."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        values = value if isinstance(value, list) else [value]
        for i, one in enumerate(values or ["–"]):
            sys.stdout.write(f"{name if i == 0 else '':<{width}}  {'–' if one is None else one}\n")
