"""`servetwin capture`: runs of other tools imported, and captures as facts, tables, timelines and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.reports.cli import capture_openmetrics, capture_serve, capture_table, capture_timeline
from harness.terminal.options import Format, Json, Out

Times = Literal["begin", "end"]

capture_app = typer.Typer(help="Captures: what a run did, real or simulated.", no_args_is_help=True)


@capture_app.command("import")
def capture_import(
    source: Path,
    out: Out,
    trace: Annotated[Path | None, typer.Option(help="The workload it served, where the run does not hold it.")] = None,
    format: Format = None,
    part: Annotated[int | None, typer.Option(help="Which benchmark (guidellm) or stage (inference-perf).")] = None,
    times: Annotated[
        Times, typer.Option(help="series, power logs: rows are of windows that end, or begin, at their times.")
    ] = "end",
    zero: Annotated[str | None, typer.Option(help="series, power logs: the time that is second 0.")] = None,
    device: Annotated[str | None, typer.Option(help="What it ran on, where the run does not say it.")] = None,
) -> None:
    """Import a run measured by another tool: LLMServingSim, vllm bench serve, guidellm, aiperf, inference-perf, series.

    Also power alone, as nvidia-smi and ipmitool log it.

    Example: servetwin capture import bench/RTX4090/Llama --trace workload.jsonl --out captures/rtx4090

    Example: servetwin capture import result.json --trace requests.jsonl --device H100 --out captures/monday

    Example: servetwin capture import gpu.csv --zero "2025/11/03 14:05:33" --trace workload.jsonl --out captures/gpu

    Example: servetwin capture import server_power.tsv --times begin --trace workload.jsonl --out captures/power
    """
    from harness.descriptions.recorded import with_device
    from traces.capture import write_capture
    from traces.formats import import_capture, read_any_trace
    from traces.series_file import SeriesClock

    workload = None if trace is None else read_any_trace(trace)
    imported = import_capture(source, format, workload, part, SeriesClock(times, zero))
    write_capture(with_device(imported, device), out)
    capture_show(out)


@capture_app.command("card")
def capture_card(folder: Path) -> None:
    """Print a capture's card in Markdown: device, engine, flags, date, spread, licence, hash.

    Example: servetwin capture card captures/monday > CARD.md
    """
    from harness.terminal.cards import capture_card as card
    from traces.capture import read_capture

    typer.echo(card(read_capture(folder), folder), nl=False)


@capture_app.command("scenario")
def capture_scenario(
    folder: Path,
    trace: Annotated[Path | None, typer.Option(help="Another trace to serve; left out: the capture's own.")] = None,
) -> None:
    """Print the scenario that a capture is of, to begin with: its model, its device, its engine's options.

    Example: servetwin capture scenario captures/monday > scenario.yaml
    """
    from harness.descriptions.recorded import scenario_text

    typer.echo(scenario_text(folder, trace), nl=False)


@capture_app.command("show")
def capture_show(folder: Path, as_json: Json = False) -> None:
    """Show a capture: what ran, its figures, its notes.

    Example: servetwin capture show captures/monday
    """
    from harness.terminal.facts import print_capture
    from traces.capture import read_capture

    print_capture(read_capture(folder), as_json=as_json)


capture_app.command("timeline")(capture_timeline)
capture_app.command("table")(capture_table)
capture_app.command("serve")(capture_serve)
capture_app.command("openmetrics")(capture_openmetrics)
