"""`servetwin calibrate` and `servetwin drift`: each parses, calls the function of its name, prints, and exits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from harness.terminal.console import console, print_json, table
from harness.terminal.options import Json, Set
from harness.terminal.words import interval, percent, seconds
from traces.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from calibrate.attribution import Attribution
    from calibrate.calibration import Calibration
    from calibrate.drift import Drift
    from calibrate.explain import Cause


def calibrate(
    scenario: Path,
    captures: Annotated[list[Path], typer.Option("--capture", help="A measured run. Repeatable.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write; must not exist yet.")],
    fit_on: Annotated[
        str, typer.Option(help="What is fitted: all, first:0.33, time:0:60, load:0:8, capture:NAME.")
    ] = "all",
    source: Annotated[
        str,
        typer.Option("--from", help="auto, steps, requests, whole-step (without a profile), or power: its levels."),
    ] = "auto",
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Fit what is between a scenario's step times and a measured run, on the named part of its requests only.

    Example: servetwin calibrate scenario.yaml --capture captures/monday --fit-on first:0.33 --out fitted.json
    """
    import msgspec

    from calibrate.fit import Source
    from harness.calibrate import calibrate as run
    from harness.calibrate import write_calibration
    from harness.files import refuse_taken_file

    refuse_taken_file(out)
    if source == "power":
        _calibrate_power(scenario, captures, out, fit_on, overrides or (), as_json=as_json)
        return
    if source not in get_args(Source):
        raise InputError(field="--from", found=source, accepted=", ".join((*get_args(Source), "power")))
    with console(stderr=True).status("fitting"):
        fitted = run(scenario, captures, fit_on, overrides or (), source=source)  # type: ignore[arg-type]
    write_calibration(fitted, out)
    print_json(msgspec.to_builtins(fitted)) if as_json else _print_calibration(fitted)


def _calibrate_power(
    scenario: Path, captures: Sequence[Path], out: Path, fit_on: str, overrides: Sequence[str], *, as_json: bool
) -> None:
    """Fit levels of power, and write them as a section of a cluster description."""
    import msgspec

    from harness.power_levels import fit_levels, write_levels

    if len(captures) != 1:
        raise InputError(field="--capture", found=len(captures), accepted="one, with --from power")
    levels = fit_levels(scenario, captures[0], fit_on, overrides)
    write_levels(levels, out)
    if as_json:
        print_json(msgspec.to_builtins(levels))
        return
    device, fitted = levels.fitted.device, levels.fitted
    standby = "–" if device.standby_w is None else f"{device.standby_w:.1f} W"
    rest = "–" if levels.rest_mape is None else f"{levels.rest_mape:.2%} of {levels.n_rest}"
    rows = [
        ("idle, held", f"{device.idle_w:.1f} W"),
        ("standby", standby),
        ("active", f"{device.active_w:.1f} W"),
        ("base", "–" if fitted.base_w is None else f"{fitted.base_w:.1f} W"),
        ("error of the windows that were fitted", f"{fitted.mape:.2%} of {fitted.n_windows}"),
        ("error of the others", rest),
    ]
    if levels.n_before:
        rows.append(("windows before second 0, in neither", str(levels.n_before)))
    console().print(table(f"Power, by {levels.steps} steps", ["", ""], rows))


def drift(
    scenario: Path,
    capture: Annotated[Path, typer.Option(help="A new measured run.")],
    calibration: Annotated[Path | None, typer.Option(help="A fitted file; left out: the scenario's.")] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Relative change of time that is still no drift.")] = 0.05,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Say whether a calibration is stale for a new measured run, and which part moved; exit 1 when it is.

    Example: servetwin drift scenario.yaml --capture captures/tuesday --calibration fitted.json
    """
    import msgspec

    from harness.calibrate import drift as run

    found = run(scenario, capture, calibration, tolerance, overrides or ())
    print_json(msgspec.to_builtins(found)) if as_json else _print_drift(found)
    raise typer.Exit(1 if found.drifted else 0)


def _print_calibration(fitted: Calibration) -> None:
    out = console()
    rows = []
    for name, parameter in fitted.parameters.items():
        show = _amount if parameter.unit == "1" else seconds
        error = "held" if parameter.standard_error is None else show(parameter.standard_error)
        rows.append((name, show(parameter.value), error, parameter.note or ""))
    out.print(table("Calibration", ["parameter", "value", "standard error", "why it was held"], rows))
    left = [
        (name, str(r.n), percent(r.mean), interval([r.quantiles[1], r.quantiles[-2]]), f"{r.common:.1%}")
        for name, r in fitted.residuals.items()
    ]
    columns = ["measured over calibrated, less 1", "n", "mean", "5 to 95 % of them", "in common"]
    out.print(table("What is left", columns, left))
    captures = ", ".join(f.capture for f in fitted.fitted_on)
    n = sum(f.n_requests for f in fitted.fitted_on)
    out.print(f"fitted from {fitted.kind} of {captures}, part {fitted.fit_on}: {n} requests")
    for note in fitted.notes:
        out.print(f"note: {note}", style="dim")


def _print_drift(found: Drift) -> None:
    out = console()
    rows = [
        (name, str(r.n), percent(r.mean), *(percent(r.quantiles[i]) for i in (1, 3, 5)))
        for name, r in (("of the calibration", found.expected), ("of this capture", found.found))
        if r is not None
    ]
    what = "steps" if found.kind == "steps" else "requests' E2EL"
    out.print(table(f"Residuals of {what}", ["", "n", "mean", "p5", "p50", "p95"], rows))
    if found.causes:
        out.print(_causes_table("What moved", found.causes))
    if found.change is not None:
        out.print(
            f"change point at {found.change.time_s:.1f} s: {percent(found.change.before)} before it, "
            f"{percent(found.change.after)} after it"
        )
    if not found.drifted:
        out.print(f"NOT STALE: within the tolerance of {found.tolerance:.0%}.")
        return
    out.print(f"STALE, beyond the tolerance of {found.tolerance:.0%}:")
    for reason in found.reasons:
        out.print(f"  {reason}")
    for what in found.measure_again:
        out.print(f"measure again: {what}")


def print_attribution(found: Attribution) -> None:
    """Print where an error comes from: stages, causes, kinds of steps and requests, and the worst requests."""
    out = console()
    rows: list[tuple[str, ...]] = [
        (metric, stage, seconds(error.error_s), percent(error.share))
        for metric, stages in found.stages.items()
        for stage, error in stages.items()
    ]
    out.print(table("Error of the mean by stage", ["metric", "stage", "simulated less measured", "of it"], rows))
    out.print(_causes_table(f"What would explain it, from {found.causes_from}", found.causes))
    for title, grouped in (("Steps", found.steps), ("Decode time of requests", found.decode)):
        rows = [
            (by, group.label, str(group.n), seconds(group.measured_s), percent(group.error), percent(group.share))
            for by, groups in grouped.items()
            for group in groups
        ]
        if rows:
            columns = [f"{title} by", "", "n", "measured", "error", "of all"]
            out.print(table(f"{title}: where the error is", columns, rows))
    rows = [
        (
            w.request_id,
            str(w.prompt_tokens),
            str(w.output_tokens),
            percent(w.error),
            w.stage,
            *_stamps(w.measured, w.simulated),
        )
        for w in found.worst
    ]
    columns = ["worst requests", "prompt", "output", "E2EL", "stage", "scheduled after", "first token", "finish"]
    out.print(table("Measured > simulated, seconds after arrival", columns, rows))


def _stamps(measured: object, simulated: object) -> list[str]:
    """Each stamp of two timelines."""
    names = ("scheduled_s", "first_token_s", "finish_s")
    return [f"{seconds(getattr(measured, name))} > {seconds(getattr(simulated, name))}" for name in names]


def _causes_table(title: str, causes: Sequence[Cause]) -> Table:
    rows = []
    for cause in causes:
        show = seconds if cause.parameter.endswith("_s") else _amount
        change = "less" if cause.change is None else f"{'+' if cause.change > 0 else '-'}{show(abs(cause.change))}"
        error = "" if cause.standard_error is None else show(cause.standard_error)
        rows.append((cause.parameter, show(cause.was), change, error, percent(cause.share), ", ".join(cause.alike)))
    columns = ["parameter", "was", "change", "standard error", "of the time", "or instead"]
    return table(title, columns, rows or [("nothing that the records can tell", "", "", "", "", "")])


def _amount(value: float) -> str:
    return f"{value:.4g}"
