"""The command line: each command parses, calls the function of the same name, prints, and exits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from harness.commands.calibrate import calibrate, drift
from harness.commands.collect import collect_app
from harness.commands.profile import profile_app
from harness.commands.trace import trace_app
from harness.console import print_facts, print_json
from harness.gate.cli import check
from harness.reports.cli import (
    capture_openmetrics,
    capture_serve,
    capture_table,
    capture_timeline,
    figures,
    report,
)
from harness.sweeps.cli import sweep
from traces.errors import ServetwinError

app = typer.Typer(
    help="Replays traces through a twin of an LLM serving engine, and says how far off the twin is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
capture_app = typer.Typer(help="Captures: what a run did, real or simulated.", no_args_is_help=True)
app.add_typer(trace_app, name="trace")
app.add_typer(profile_app, name="profile")
app.add_typer(capture_app, name="capture")
app.add_typer(collect_app, name="collect")
app.command()(calibrate)
app.command()(drift)
app.command()(check)
app.command()(report)
app.command()(figures)
capture_app.command("timeline")(capture_timeline)
capture_app.command("table")(capture_table)
capture_app.command("serve")(capture_serve)
capture_app.command("openmetrics")(capture_openmetrics)
app.command()(sweep)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key: engine.max_num_seqs=64. Repeatable.")]
Out = Annotated[Path, typer.Option("--out", help="What to write; must not exist yet.")]
Format = Annotated[str | None, typer.Option("--format", help="Name the format instead of telling it by content.")]


def main() -> None:
    """Entry point: what servetwin raises on purpose is a message and an exit code, never a traceback."""
    try:
        app()
    except ServetwinError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder for validation.json and report.html.")] = None,
    load: Annotated[str, typer.Option(help="light, prefix or saturated.")] = "saturated",
    as_json: Json = False,
) -> None:
    """Replay a bundled capture of a real engine and print measured against simulated.

    Example: servetwin demo --out out/demo
    """
    from harness.console import print_validation
    from harness.demo import LOADS
    from harness.demo import demo as run

    if load not in LOADS:
        raise typer.BadParameter(f"{load!r} is none of {', '.join(LOADS)}", param_hint="--load")
    validation, repeat = run(out, load)
    if as_json:
        print_json(validation.result)
        return
    print_validation(validation.result, repeat)
    if out is not None:
        typer.echo(f"\nReport: {out / 'report.html'}")


@app.command()
def simulate(
    scenario: Path,
    out: Out,
    overrides: Set = None,
    as_json: Json = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read, simulate and write in pieces, for traces larger than memory.")
    ] = False,
    batches: Annotated[
        bool, typer.Option("--batches", help="Keep which requests were in each step, for timelines.")
    ] = False,
) -> None:
    """Simulate a scenario and write the capture it gives, with summary.json.

    Example: servetwin simulate scenario.yaml --out out/run --set engine.max_num_seqs=64
    """
    from harness.console import print_summary
    from harness.progress import simulation_progress, stream_progress
    from harness.simulate import simulate_scenario, write_simulation

    if stream:
        from harness.stream import stream_scenario

        if batches:
            raise typer.BadParameter("are not kept with --stream", param_hint="--batches")

        with stream_progress() as tell:
            figures = stream_scenario(scenario, out, overrides or (), tell)
    else:
        with simulation_progress() as watch:
            simulation, figures = simulate_scenario(scenario, overrides or (), batches=batches, watch=watch)
        write_simulation(simulation, figures, out)
    print_json(figures) if as_json else print_summary(figures)


@app.command()
def validate(
    scenario: Path,
    capture: Annotated[Path, typer.Option(help="The measured run.")],
    out: Annotated[
        Path | None, typer.Option(help="What to write; must not exist yet. May be left out with --steps.")
    ] = None,
    steps: Annotated[
        bool, typer.Option(help="Compare the recorded steps, batch by batch; exit 1 if one differs.")
    ] = False,
    calibration: Annotated[Path | None, typer.Option(help="A fitted file; left out: the scenario's.")] = None,
    score_fitted: Annotated[bool, typer.Option("--score-fitted", help="Score fitted requests too.")] = False,
    noise_floor: Annotated[
        list[Path] | None, typer.Option(help="Another recording of the same requests. Repeatable.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say where the error comes from.")] = False,
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="Simulations whose median a request is paired with; 16 with a calibration, else 1."),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Simulate a scenario at a capture's arrivals and compare the two, request by request.

    Example: servetwin validate scenario.yaml --capture captures/monday --out out/monday
    """
    from harness.commands.calibrate import print_attribution
    from harness.console import print_validation
    from harness.validate import validate as run
    from harness.validate import write_validation

    if steps:
        if calibration or score_fitted or noise_floor or explain or draws:
            raise typer.BadParameter("goes with none of the options that are about times", param_hint="--steps")
        _validate_steps(scenario, capture, out, overrides or (), as_json=as_json)
        return
    if out is None:
        raise typer.BadParameter("is needed, except with --steps", param_hint="--out")
    validation = run(
        scenario,
        capture,
        overrides or (),
        calibration=calibration,
        score_fitted=score_fitted,
        repeats=noise_floor or (),
        explain=explain,
        draws=draws,
    )
    write_validation(validation, out)
    if as_json:
        print_json(validation.result)
        return
    print_validation(validation.result)
    if validation.attribution is not None:
        print_attribution(validation.attribution)


def _validate_steps(
    scenario: Path, capture: Path, out: Path | None, overrides: Sequence[str], *, as_json: bool
) -> None:
    from harness.validate_steps import steps_text, validate_steps, write_steps

    result = validate_steps(scenario, capture, overrides)
    if out is not None:
        write_steps(result, out)
    print_json(result) if as_json else typer.echo(steps_text(result))
    raise typer.Exit(0 if result["agrees"] else 1)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check the installation and the bundled data; exit 2 when something is missing or damaged.

    Example: servetwin doctor
    """
    import dataclasses

    from harness.console import console, table
    from harness.doctor import doctor as run

    checks = run()
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        marks = {True: "ok", False: "WRONG", None: "–"}
        rows = [(check.name, marks[check.ok], check.found) for check in checks]
        console().print(table("servetwin", ["what", "", "found"], rows))
    raise typer.Exit(2 if any(check.ok is False for check in checks) else 0)


@capture_app.command("import")
def capture_import(
    source: Path,
    out: Out,
    trace: Annotated[Path | None, typer.Option(help="The workload it served, where the run does not hold it.")] = None,
    format: Format = None,
    part: Annotated[int | None, typer.Option(help="Which benchmark (guidellm) or stage (inference-perf).")] = None,
) -> None:
    """Import a run measured by another tool: LLMServingSim, vllm bench serve, guidellm, aiperf, inference-perf, series.

    Example: servetwin capture import bench/RTX4090/Llama --trace workload.jsonl --out captures/rtx4090
    """
    from traces.capture import write_capture
    from traces.formats import import_capture, read_any_trace

    workload = None if trace is None else read_any_trace(trace)
    write_capture(import_capture(source, format, workload, part), out)
    capture_show(out)


@capture_app.command("card")
def capture_card(folder: Path) -> None:
    """Print a capture's card in Markdown: device, engine, flags, date, spread, licence, hash.

    Example: servetwin capture card captures/monday > CARD.md
    """
    from harness.cards import capture_card as card
    from traces.capture import read_capture

    typer.echo(card(read_capture(folder), folder), nl=False)


@capture_app.command("show")
def capture_show(folder: Path, as_json: Json = False) -> None:
    """Show a capture: what ran, its figures, its notes.

    Example: servetwin capture show captures/monday
    """
    from harness.console import print_summary
    from harness.show import capture_facts
    from traces.capture import read_capture
    from traces.metrics import summary

    capture = read_capture(folder)
    facts, figures = capture_facts(capture), summary(capture)
    if as_json:
        print_json({**facts, **figures})
        return
    print_facts(facts)
    print_summary(figures)
