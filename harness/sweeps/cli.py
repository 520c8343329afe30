"""`servetwin sweep`: parses, calls the function of its name, prints, and exits."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from harness.terminal.console import console, print_json, table
from harness.terminal.words import seconds
from traces.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.sweeps.trials import Progress

MOST_FAILURES = 5
"""Reasons of failed points that are listed on the terminal; results.csv has all."""
INTERRUPTED = 130
"""What a shell reports of a command that an interrupt has ended."""


def sweep(
    study: Path,
    out: Annotated[Path, typer.Option("--out", help="The study's folder: a new one, or one in which it was begun.")],
    executor: Annotated[str, typer.Option(help="local: processes of this machine; ray: a Ray cluster.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Points at once; left out: as many as there are processors.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Simulate many variants: which are not beaten, or how much each can serve. Run again, it goes on where it was.

    Example: servetwin sweep study.yaml --out out/study
    """
    from harness.sweeps.sweep import Executor
    from harness.sweeps.sweep import sweep as run

    if executor not in get_args(Executor):
        raise InputError(field="--executor", found=executor, accepted=", ".join(get_args(Executor)))
    begun = time.monotonic()
    with console(stderr=True).status("loading") as status:
        try:
            swept = run(
                study,
                out,
                executor=executor,  # type: ignore[arg-type]
                workers=workers,
                report=lambda now: status.update(progress_text(now, time.monotonic() - begun)),
            )
        except KeyboardInterrupt:
            sys.stderr.write(f"interrupted; what is done is kept: servetwin sweep {study} --out {out} goes on\n")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(swept.record)
        return
    _print_study(swept.record, swept.progress)


def progress_text(now: Progress, took_s: float) -> str:
    """How far a study is, and how long the rest may take if it goes on like that."""
    n_run, n_left = now.n_done - now.n_known, now.n_total - now.n_done
    left = f", {seconds(round(took_s / n_run * n_left))} left" if n_run and n_left > 0 else ""
    failed = f", {now.n_failed} failed" if now.n_failed else ""
    return f"{now.n_done} of {now.n_total} points{failed}{left}"


def _print_study(record: dict[str, Any], progress: Progress) -> None:
    from harness.sweeps.below_table import failure_lines, time_lines
    from harness.sweeps.devices import device_lines

    out = console()
    (_print_front if record["capacities"] is None else _print_capacities)(out, record, progress.n_known)
    failed = failure_lines(record)
    for line in [*device_lines(record), *time_lines(record), *failed[:MOST_FAILURES]]:
        out.print(line)
    if len(failed) > MOST_FAILURES:
        out.print(f"and for {len(failed) - MOST_FAILURES} more reasons, see results.csv")
    for note in record["notes"]:
        out.print(f"note: {note}", style="dim")


def _print_front(out: Console, record: dict[str, Any], n_known: int) -> None:
    from harness.sweeps.front_table import counted, front_table, nearest_miss
    from harness.sweeps.wording import broken

    columns, rows = front_table(record)
    if rows:
        out.print(table("Points that no other beats", columns, rows, broken=broken))
    out.print(counted(record, n_known))
    if (nearest := nearest_miss(record)) is not None:
        out.print(nearest, markup=False)


def _print_capacities(out: Console, record: dict[str, Any], n_known: int) -> None:
    from harness.sweeps.capacity_table import capacities_counted, capacity_table
    from harness.sweeps.wording import broken

    key = record["study"]["capacity"]["key"]
    out.print(table(f"Highest {key} within the constraints", *capacity_table(record), broken=broken))
    out.print(capacities_counted(record, n_known))
