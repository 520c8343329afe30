"""The commands that write what a reader opens: each parses, calls the function of its name, prints, and exits."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def report(
    paths: Annotated[list[Path], typer.Argument(help="Captures, validations, sweeps, calibrations, results of check.")],
    out: Annotated[
        Path | None, typer.Option(help="One page of all, side by side; must not exist yet. Default: a page for each.")
    ] = None,
) -> None:
    """Write an HTML page of each capture, validation, sweep, calibration or check, or one of several of a kind.

    Example: servetwin report captures/monday captures/tuesday --out days.html
    """
    from harness.reports.report import report as run

    for file in run(paths, out):
        typer.echo(f"Report: {file}")


def capture_timeline(
    folder: Path,
    out: Annotated[Path, typer.Option("--out", help="The file to write, as trace.json.gz; must not exist yet.")],
    from_: Annotated[str | None, typer.Option("--from", help="Leave out what is over before, as 90s.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="Leave out what begins after, as 2m.")] = None,
) -> None:
    """Write a capture's steps and requests as a timeline that https://ui.perfetto.dev opens.

    Example: servetwin capture timeline captures/monday --out trace.json.gz
    """
    from harness.reports.timeline import Cut, write_timeline
    from harness.terminal.durations import parse_duration_s
    from traces.capture import read_capture

    from_s = 0.0 if from_ is None else parse_duration_s(from_, "--from")
    to_s = float("inf") if to is None else parse_duration_s(to, "--to")
    n_events = write_timeline(read_capture(folder), out, Cut(from_s, to_s))
    typer.echo(f"{n_events} events: {out}")


def figures(
    paths: Annotated[list[Path], typer.Argument(help="What `report` takes; several stand side by side.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; must not exist yet.")],
    format: Annotated[str, typer.Option(help="png, svg or pdf.")] = "png",
) -> None:
    """Write the charts of a report as pictures, a file each, for papers and pull requests.

    Example: servetwin figures out/monday --out figures --format svg
    """
    from harness.reports.figures import figures as run

    for file in run(paths, out, format):
        typer.echo(str(file))


def capture_table(
    folder: Path,
    out: Annotated[Path, typer.Option("--out", help="A new .csv or .parquet file.")],
    of: Annotated[str, typer.Option(help="requests, steps, or series.")] = "requests",
) -> None:
    """Write a capture's requests with their durations, its steps or its series as one table.

    Example: servetwin capture table captures/monday --of series --out monday.csv
    """
    from harness.reports.tables import write_table
    from traces.capture import read_capture

    typer.echo(f"{write_table(read_capture(folder), of, out)} rows: {out}")


def capture_serve(
    folder: Path,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0 takes a free one.")] = 9090,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    speed: Annotated[float, typer.Option(help="Seconds of the run per second.")] = 1.0,
) -> None:
    """Serve a capture as vLLM's Prometheus metrics, as if it were running now, until interrupted.

    Example: servetwin capture serve out/run --port 9090 --speed 10
    """
    import time

    from harness.reports.serve import serve
    from harness.terminal.progress import progress
    from traces.capture import read_capture

    capture = read_capture(folder)
    with serve(capture, port=port, host=host, speed=speed) as serving:
        typer.echo(f"{serving.url}: {serving.replayed.end_s:.1f} s at {speed:g} times its speed; interrupt to stop")
        with suppress(KeyboardInterrupt), progress("seconds", round(serving.replayed.end_s)) as tell:
            while True:
                tell(min(serving.replayed.time_s, serving.replayed.end_s) // 1, "")
                time.sleep(1)


def capture_openmetrics(
    folder: Path,
    out: Annotated[Path, typer.Option("--out", help="The file to write; must not exist yet.")],
    at: Annotated[str, typer.Option(help="When the run's second 0 is to be, as 2026-01-31T12:00:00Z.")],
    every: Annotated[str, typer.Option(help="From one reading to the next.")] = "15s",
) -> None:
    """Write a capture as vLLM's Prometheus metrics with times, for promtool tsdb create-blocks-from openmetrics.

    Example: servetwin capture openmetrics out/run --at 2026-01-31T12:00:00Z --out run.om
    """
    from harness.reports.serve import write_openmetrics
    from harness.terminal.durations import parse_duration_s
    from traces.capture import read_capture

    n = write_openmetrics(read_capture(folder), out, at=at, every_s=parse_duration_s(every, "--every"))
    typer.echo(f"{n} readings: {out}")
