"""The command line: each command parses, calls the function of the same name, prints, and exits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from harness.calibrate_cli import calibrate, drift
from harness.collect_cli import collect_app
from harness.console import print_facts, print_json
from harness.trace_cli import trace_app
from traces.errors import ServetwinError

app = typer.Typer(
    help="Replays traces through a twin of an LLM serving engine, and says how far off the twin is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
profile_app = typer.Typer(help="Profiles: what a model's operators cost on a device.", no_args_is_help=True)
capture_app = typer.Typer(help="Captures: what a run did, real or simulated.", no_args_is_help=True)
app.add_typer(trace_app, name="trace")
app.add_typer(profile_app, name="profile")
app.add_typer(capture_app, name="capture")
app.add_typer(collect_app, name="collect")
app.command()(calibrate)
app.command()(drift)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key: engine.max_num_seqs=64. Repeatable.")]
Out = Annotated[Path, typer.Option("--out", help="What to write; must not exist yet.")]
Format = Annotated[str | None, typer.Option("--format", help="Name the format instead of telling it by content.")]
Folders = Annotated[list[Path] | None, typer.Option("--profiles", help="A folder to look in first. Repeatable.")]


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
def simulate(scenario: Path, out: Out, overrides: Set = None, as_json: Json = False) -> None:
    """Simulate a scenario and write the capture it gives, with summary.json.

    Example: servetwin simulate scenario.yaml --out out/run --set engine.max_num_seqs=64
    """
    from harness.console import print_summary
    from harness.simulate import simulate_scenario, write_simulation

    simulation, figures = simulate_scenario(scenario, overrides or ())
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
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Simulate a scenario at a capture's arrivals and compare the two, request by request.

    Example: servetwin validate scenario.yaml --capture captures/monday --out out/monday
    """
    from harness.calibrate_cli import print_attribution
    from harness.console import print_validation
    from harness.validate import validate as run
    from harness.validate import write_validation

    if steps:
        if calibration or score_fitted or noise_floor or explain:
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
def report(folders: list[Path]) -> None:
    """Write report.html into each capture folder; `validate` writes the report of a validation itself.

    Example: servetwin report captures/monday out/run
    """
    from harness.report import capture_report
    from traces.capture import read_capture
    from traces.metrics import summary

    pages = []
    for folder in folders:
        capture = read_capture(folder)
        pages.append((folder / "report.html", capture_report(capture, summary(capture))))
    for file, page in pages:
        file.write_text(page, encoding="utf-8")
        typer.echo(f"Report: {file}")


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


@profile_app.command("import")
def profile_import(source: Path, out: Out, format: Format = None) -> None:
    """Import LLMServingSim profiles, of 2.0 or older: one folder, or a tree of them.

    Example: servetwin profile import profiler/perf --out profiles
    """
    from harness.show import import_profiles_to

    left_out: list[str] = []
    for folder in import_profiles_to(source, out, format, left_out):
        typer.echo(str(folder))
    for what in left_out:
        typer.echo(f"left out: {what}", err=True)


@profile_app.command("list")
def profile_list(folders: Folders = None, as_json: Json = False) -> None:
    """List the profiles that can be simulated now.

    Example: servetwin profile list --profiles my-profiles
    """
    from harness.console import console, table
    from harness.show import profile_rows

    rows = profile_rows(folders or [])
    if as_json:
        print_json(rows)
        return
    columns = ["device", "model", "dtype", "kv_cache_dtype", "engine", "recorded_at", "source"]
    console().print(table("Profiles", columns, [tuple(str(row[column]) for column in columns) for row in rows]))


@profile_app.command("show")
def profile_show(folder: Path, as_json: Json = False) -> None:
    """Show what a profile holds: operators, ranges, points, notes.

    Example: servetwin profile show profiles/RTXPRO6000/meta-llama/Llama-3.1-8B
    """
    from harness.show import profile_facts
    from profiles.profile import read_profile

    facts = profile_facts(read_profile(folder))
    print_json(facts) if as_json else print_facts(facts)


@profile_app.command("memory")
def profile_memory(scenario: Path, overrides: Set = None, as_json: Json = False) -> None:
    """Show where a scenario's device memory goes, line by line, down to the KV blocks that fit.

    Example: servetwin profile memory scenario.yaml --set engine.max_num_seqs=128
    """
    from harness.memory import memory_lines, scenario_memory

    kinds = scenario_memory(scenario, overrides or ())
    if as_json:
        print_json(kinds)
        return
    for facts in kinds:
        print_facts(memory_lines(facts))


@profile_app.command("diff")
def profile_diff(a: Path, b: Path, as_json: Json = False) -> None:
    """Compare the times of two profiles, operator by operator, at the points they share.

    Example: servetwin profile diff profiles/old profiles/new
    """
    from harness.console import console, table
    from profiles.catalog import diff_profiles
    from profiles.profile import read_profile

    rows = diff_profiles(read_profile(a), read_profile(b))
    if as_json:
        print_json(rows)
        return
    columns = ["operator", "tp", "n_common", "ratio_min", "ratio_median", "ratio_max"]
    cells = [tuple(f"{v:.3f}" if isinstance(v := row[name], float) else str(v) for name in columns) for row in rows]
    console().print(table("Times of the second over the first", columns, cells))


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
