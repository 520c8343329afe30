"""The command line: each command parses, calls the function of the same name, prints, and exits."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from harness.commands.calibrate import calibrate, drift
from harness.commands.capture import capture_app
from harness.commands.collect import collect_app
from harness.commands.profile import profile_app
from harness.commands.simulate import simulate, validate
from harness.commands.start import demo, doctor
from harness.commands.trace import trace_app
from harness.gate.cli import check
from harness.reports.cli import figures, report
from harness.sweeps.cli import sweep
from traces.errors import ServetwinError

COMMANDS = (demo, doctor, simulate, validate, calibrate, drift, sweep, check, report, figures)
"""In the order of a newcomer's way."""

app = typer.Typer(
    help="Replays traces through a twin of an LLM serving engine, and says how far off the twin is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"servetwin {version('servetwin')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for command in COMMANDS:
    app.command()(command)
app.add_typer(trace_app, name="trace")
app.add_typer(profile_app, name="profile")
app.add_typer(capture_app, name="capture")
app.add_typer(collect_app, name="collect")


def main() -> None:
    """Entry point: what servetwin raises on purpose is a message and an exit code, never a traceback.

    So is what the system says of a file: that it may not be read, that its name is too long, that the disk is full.
    """
    try:
        app()
    except ServetwinError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.strerror is None:
            raise
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        _complain(f"{where}cannot be used ({error.strerror})")
        sys.exit(2)


def _complain(message: str) -> None:
    """Say what is wrong on stderr; what a file's text would do to the terminal is shown as an escape."""
    shown = (c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in message)
    sys.stderr.write(f"error: {''.join(shown)}\n")
