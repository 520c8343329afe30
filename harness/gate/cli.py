"""`servetwin check`: parses, calls the function of its name, writes, prints, and exits."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.terminal.console import console, print_json
from traces.errors import InputError

if TYPE_CHECKING:
    from harness.gate.verdict import Checked

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key of every scenario. Repeatable.")]


def check(
    suite: Path,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="ttft.p99:10%, tpot.mean:1ms, e2el.mean:+5% (above only), change.ttft.mean:10%. Repeatable."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown.")] = None,
    result: Annotated[Path | None, typer.Option(help="Write JSON.")] = None,
    benchmark: Annotated[Path | None, typer.Option(help="Write JSON for github-action-benchmark.")] = None,
    history: Annotated[
        Path | None, typer.Option(help="Add the result to this .jsonl, of which `report` draws curves.")
    ] = None,
    update_baseline: Annotated[
        str | None, typer.Option(metavar="REASON", help="Make what is found the new baseline, for this reason.")
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Check a suite: fidelity and changes against captures, drift and counts against a baseline; exit 1 when one fails.

    Example: servetwin check suite.yaml --fail-on ttft.p99:10% --junit check.xml
    """
    from harness.gate.causes import as_json as to_json
    from harness.gate.check import check as run
    from harness.gate.outputs import outputs_of, write_outputs
    from harness.gate.terminal import print_checked

    for path in (junit, markdown, result, benchmark, history):
        if path is not None and path.is_dir():
            raise InputError("is a folder", file=path, accepted="a file")
    with console(stderr=True).status("checking") as status:
        checked = run(
            suite,
            fail_on=fail_on or (),
            overrides=overrides or (),
            update_baseline=update_baseline,
            progress=lambda name: status.update(f"checking {name}"),
        )
    kept = None if history is None else (history, _with_line(history, checked))
    texts = outputs_of(checked, junit=junit, markdown=markdown, result=result, benchmark=benchmark, history=kept)
    write_outputs(texts)
    _add_to_job_summary(checked)
    print_json(to_json(checked)) if as_json else print_checked(checked)
    raise typer.Exit(0 if checked.passed else 1)


def _with_line(history: Path, checked: Checked) -> str:
    """The history with this result, now, and of the commit that GitHub Actions says is checked."""
    from harness.gate.result import with_line

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return with_line(history, checked, at=now, commit=os.environ.get("GITHUB_SHA"))


def _add_to_job_summary(checked: Checked) -> None:
    """GitHub Actions shows what is appended to this file below the job."""
    from harness.gate.markdown import markdown

    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(markdown(checked))
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", file=path, field="GITHUB_STEP_SUMMARY") from None
