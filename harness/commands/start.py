"""What a newcomer tries first: the demo, and whether all is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.terminal.console import print_json
from harness.terminal.options import Json


def demo(
    out: Annotated[Path | None, typer.Option(help="Folder for validation.json and report.html.")] = None,
    load: Annotated[str, typer.Option(help="light, prefix or saturated.")] = "saturated",
    as_json: Json = False,
) -> None:
    """Replay a bundled capture of a real engine and print measured against simulated.

    Example: servetwin demo --out out/demo
    """
    from harness.demo import LOADS
    from harness.demo import demo as run
    from harness.scoring.tables import print_validation

    if load not in LOADS:
        raise typer.BadParameter(f"{load!r} is none of {', '.join(LOADS)}", param_hint="--load")
    validation, repeat = run(out, load)
    if as_json:
        print_json(validation.result)
        return
    print_validation(validation.result, repeat)
    if out is not None:
        typer.echo(f"\nReport: {out / 'report.html'}")


def doctor(as_json: Json = False) -> None:
    """Check the installation and the bundled data; exit 2 when something is missing or damaged.

    Example: servetwin doctor
    """
    import dataclasses

    from harness.doctor import doctor as run
    from harness.terminal.console import console, table

    checks = run()
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        marks = {True: "ok", False: "WRONG", None: "–"}
        rows = [(check.name, marks[check.ok], check.found) for check in checks]
        console().print(table("servetwin", ["what", "", "found"], rows))
    raise typer.Exit(2 if any(check.ok is False for check in checks) else 0)
