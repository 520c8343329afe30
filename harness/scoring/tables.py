"""A validation as tables of measured, simulated, error and interval, and in one honest sentence."""

from __future__ import annotations

from typing import Any

from harness.scoring.compare import Repeat
from harness.terminal.console import console, table
from harness.terminal.words import LABELS, interval, percent, seconds


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
        parts = [_series_part(name, error) for name, error in scored.items()]
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


def _series_part(name: str, error: dict[str, Any]) -> str:
    """The error of one series, and in its log's phase where its clock is not known."""
    part = f"{name} {error['mape']:.1%} over {error['n']} windows"
    if "weighted_s" in error:
        return f"{part}, weighted by the {error['weighted_s']:.1f} s that they stand for"
    phase = error.get("in_phase")
    if phase is None or not phase["early_s"]:
        return part
    first = "if they end {early_s:.2f} s before their times, as the first third tells".format(**phase)
    return f"{part} ({phase['mape']:.1%} over the last {phase['n']} {first})"


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
