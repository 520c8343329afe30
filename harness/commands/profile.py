"""The commands of `servetwin profile`: each parses, calls the function that does the work, prints, and exits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.terminal.console import print_facts, print_json
from harness.terminal.options import Format, Json, Out, Set

profile_app = typer.Typer(help="Profiles: what a model's operators cost on a device.", no_args_is_help=True)

Folders = Annotated[list[Path] | None, typer.Option("--profiles", help="A folder to look in first. Repeatable.")]

TABLES = "aiconfigurator:"


@profile_app.command("import")
def profile_import(
    source: str,
    out: Out,
    format: Format = None,
    model: Annotated[str | None, typer.Option(help="aiconfigurator: a model of the catalogue.")] = None,
    dtype: Annotated[str | None, typer.Option(help="aiconfigurator: bfloat16, if left out, fp8 or nvfp4.")] = None,
    kv_cache_dtype: Annotated[str | None, typer.Option(help="aiconfigurator: auto, if left out, or fp8.")] = None,
    tp: Annotated[list[int] | None, typer.Option(help="aiconfigurator: a tensor-parallel degree. Repeatable.")] = None,
    folders: Folders = None,
    network: Annotated[Path | None, typer.Option(help="Vidur: a folder of data/profiling/network.")] = None,
) -> None:
    """Import profiles of LLMServingSim or Vidur, one folder or a tree of them; or aiconfigurator's tables.

    Example: servetwin profile import profiler/perf --out profiles

    Example: servetwin profile import aiconfigurator:h100_sxm --model Qwen/Qwen3-32B --tp 2 --tp 4 --out profiles
    """
    from harness.terminal.facts import import_profiles_to, import_tables_to

    if source.startswith(TABLES):
        if network is not None:
            raise typer.BadParameter("has no effect: aiconfigurator's tables have their own", param_hint="--network")
        if model is None:
            raise typer.BadParameter("is needed for aiconfigurator's tables", param_hint="--model")
        system = source.removeprefix(TABLES)
        types = dtype or "bfloat16", kv_cache_dtype or "auto"
        typer.echo(str(import_tables_to(system, model, *types, tp or [1], folders or [], out)))
        return
    if model or dtype or kv_cache_dtype or tp:
        raise typer.BadParameter("go with aiconfigurator:SYSTEM alone", param_hint="--model, --dtype, --tp")
    left_out: list[str] = []
    for folder in import_profiles_to(Path(source), out, format, left_out, network, folders or []):
        typer.echo(str(folder))
    for what in left_out:
        typer.echo(f"left out: {what}", err=True)


@profile_app.command("list")
def profile_list(
    folders: Folders = None,
    kind: Annotated[str | None, typer.Option(help="measured, aiconfigurator or roofline alone.")] = None,
    as_json: Json = False,
) -> None:
    """List what can be simulated now: from which source of times, and how well validated.

    Example: servetwin profile list --profiles my-profiles
    """
    from harness.terminal.catalogue import KINDS, catalogue, missing_tables
    from harness.terminal.console import console, table

    if kind not in (None, *KINDS):
        raise typer.BadParameter(f"{kind!r} is none of {', '.join(KINDS)}", param_hint="--kind")
    rows = [row for row in catalogue(folders or []) if kind in (None, row["kind"])]
    if as_json:
        print_json(rows)
        return
    columns = ["kind", "device", "model", "dtype", "engine", "source", "validated"]
    cells = [tuple("–" if row[column] is None else str(row[column]) for column in columns) for row in rows]
    console().print(table("What can be simulated", columns, cells))
    if (missing := missing_tables()) is not None:
        typer.echo(f"aiconfigurator: {missing}")
    typer.echo("How it was validated: docs/validity.md. Any other device: `source: external` (docs/profiles.md).")


@profile_app.command("models")
def profile_models(folders: Folders = None, as_json: Json = False) -> None:
    """List the models that are known by name, with their dimensions.

    Example: servetwin profile models --profiles my-profiles
    """
    from harness.terminal.console import console, table
    from harness.terminal.names import MODEL_COLUMNS, known_models, model_cells

    rows = known_models(folders or [])
    if as_json:
        print_json(rows)
        return
    console().print(table("Models known by name", MODEL_COLUMNS, [model_cells(row) for row in rows]))
    for row in rows:
        if row["error"] is not None:
            typer.echo(f"not modelled: {row['error']}")
    typer.echo("Any other: its Hugging Face config as models/NAME/config.json in a folder of profiles.")


@profile_app.command("devices")
def profile_devices(folders: Folders = None, as_json: Json = False) -> None:
    """List the devices that are described, with their memory, bandwidth, peaks and power.

    Example: servetwin profile devices --profiles my-profiles
    """
    from harness.terminal.console import console, table
    from harness.terminal.names import DEVICE_COLUMNS, device_cells, known_devices

    rows = known_devices(folders or [])
    if as_json:
        print_json(rows)
        return
    console().print(table("Devices known by name", DEVICE_COLUMNS, [device_cells(row) for row in rows]))
    typer.echo("Any other: its description as devices/NAME.yaml in a folder of profiles (docs/devices.md).")


@profile_app.command("show")
def profile_show(folder: Path, as_json: Json = False) -> None:
    """Show what a profile holds: operators, ranges, points, notes.

    Example: servetwin profile show profiles/RTXPRO6000/meta-llama/Llama-3.1-8B
    """
    from harness.terminal.facts import profile_facts
    from profiles.profile_folder import read_profile

    facts = profile_facts(read_profile(folder))
    print_json(facts) if as_json else print_facts(facts)


@profile_app.command("card")
def profile_card(folder: Path) -> None:
    """Print a profile's card in Markdown: device, engine, flags, date, spread, licence, hash.

    Example: servetwin profile card profiles/RTXPRO6000/meta-llama/Llama-3.1-8B > CARD.md
    """
    from harness.terminal.cards import profile_card as card
    from profiles.profile_folder import read_profile

    typer.echo(card(read_profile(folder)), nl=False)


@profile_app.command("memory")
def profile_memory(scenario: Path, overrides: Set = None, as_json: Json = False) -> None:
    """Show where a scenario's device memory goes, line by line, down to the KV blocks that fit.

    Example: servetwin profile memory scenario.yaml --set engine.max_num_seqs=128
    """
    from harness.deploy.memory import memory_lines, scenario_memory

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
    from harness.terminal.console import console, table
    from profiles.catalog import diff_profiles
    from profiles.profile_folder import read_profile

    rows = diff_profiles(read_profile(a), read_profile(b))
    if as_json:
        print_json(rows)
        return
    columns = ["operator", "tp", "n_common", "ratio_min", "ratio_median", "ratio_max"]
    cells = [tuple(f"{v:.3f}" if isinstance(v := row[name], float) else str(v) for name in columns) for row in rows]
    console().print(table("Times of the second over the first", columns, cells))
