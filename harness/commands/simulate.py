"""`servetwin simulate` and `servetwin validate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from harness.terminal.console import print_json
from harness.terminal.options import Json, Out, Set


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
    from harness.running.simulate import simulate_scenario, write_simulation
    from harness.terminal.caveats import print_caveats
    from harness.terminal.progress import simulation_progress, stream_progress
    from harness.terminal.summary import print_summary
    from traces.capture import refuse_taken_folder

    refuse_taken_folder(out)
    if stream:
        from harness.running.stream import stream_scenario

        if batches:
            raise typer.BadParameter("are not kept with --stream", param_hint="--batches")

        with stream_progress() as tell:
            figures = stream_scenario(scenario, out, overrides or (), tell)
    else:
        with simulation_progress() as watch:
            simulation, figures = simulate_scenario(scenario, overrides or (), batches=batches, watch=watch)
        write_simulation(simulation, figures, out)
    if as_json:
        print_json(figures)
        return
    print_summary(figures)
    print_caveats(out)


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
    from harness.reports.validation_folder import write_validation
    from harness.scoring.tables import print_validation
    from harness.scoring.validate import validate as run
    from traces.capture import refuse_taken_folder

    if out is not None:
        refuse_taken_folder(out)
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
    from harness.scoring.steps import steps_text, validate_steps, write_steps

    result = validate_steps(scenario, capture, overrides)
    if out is not None:
        write_steps(result, out)
    print_json(result) if as_json else typer.echo(steps_text(result))
    raise typer.Exit(0 if result["agrees"] else 1)
