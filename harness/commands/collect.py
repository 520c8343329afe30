"""The commands of `servetwin collect`: each parses, calls the function that does the work, prints, and exits."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.terminal.console import print_facts, print_json
from harness.terminal.durations import parse_duration_s
from harness.terminal.options import Json, Out
from traces.errors import InputError

if TYPE_CHECKING:
    from traces.capture import Capture

collect_app = typer.Typer(help="Collect from a real engine.", no_args_is_help=True)


@collect_app.command("recorder")
def collect_recorder(
    out: Out,
    kind: Annotated[
        str, typer.Option(help="scheduler: every step; stat-logger: the front end's view; transfers: KV that it reads.")
    ] = "scheduler",
) -> None:
    """Write what a vLLM server records itself with: one file, or the folder of the stat logger, for its PYTHONPATH.

    Example: servetwin collect recorder --out recorder.py
    """
    from collectors.engine import recorder_path
    from collectors.engine.stat_logger_package import write_stat_logger
    from collectors.engine.transfer_recorder_folder import write_transfer_recorder
    from harness.files import new_file
    from traces.capture import new_folder

    match kind:
        case "scheduler":
            with new_file(out) as file:
                file.write_text(recorder_path().read_text())
            typer.echo(f"Start vLLM with PYTHONPATH={out.parent} --scheduler-cls {out.stem}.RecordingScheduler")
            typer.echo("SERVETWIN_STEPS names the file it writes")
        case "stat-logger":
            with new_folder(out) as folder:
                write_stat_logger(folder)
            typer.echo(f"Start vLLM with PYTHONPATH={out}; SERVETWIN_STATS names the file it writes")
        case "transfers":
            with new_folder(out) as folder:
                write_transfer_recorder(folder)
            typer.echo(f"Start the decode server with PYTHONPATH={out} and, in its --kv-transfer-config,")
            typer.echo('"kv_connector": "NixlConnector", "kv_connector_module_path": "transfer_recorder"')
            typer.echo("SERVETWIN_TRANSFERS names the file it writes")
        case _:
            raise InputError(field="--kind", found=kind, accepted="scheduler, stat-logger, transfers")


@collect_app.command("replay")
def collect_replay(
    url: Annotated[str, typer.Option(help="The server, without a path.")],
    trace: Annotated[Path, typer.Option(help="What to send.")],
    out: Out,
    steps: Annotated[
        Path | None, typer.Option(help="The file that the server's recorder writes (SERVETWIN_STEPS), on this host.")
    ] = None,
    transfers: Annotated[
        Path | None, typer.Option(help="What a decode server's transfer recorder writes (SERVETWIN_TRANSFERS).")
    ] = None,
    model: Annotated[str, typer.Option(help="The model's name at the server, where it serves several.")] = "",
    model_name: Annotated[str | None, typer.Option(help="Its name in scenarios; default: as at the server.")] = None,
    device: Annotated[str | None, typer.Option(help="The device's name in scenarios.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask /v1/chat/completions; prompts are words.")] = False,
    words: Annotated[bool, typer.Option("--words", help="Prompts are words and not token ids.")] = False,
    vocab_size: Annotated[int, typer.Option(min=4, help="Token ids are drawn below it.")] = 1000,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="A closed loop of so many seats; arrivals then mean nothing.")
    ] = None,
    time_scale: Annotated[float, typer.Option(help="Arrivals are multiplied by it; 0.5 is twice the load.")] = 1.0,
    warm_up: Annotated[int, typer.Option(min=0, help="So many requests first, which are not recorded.")] = 0,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="An answer that brings nothing so long stalled.")] = 300.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts.")] = 0,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    extra_body: Annotated[str, typer.Option(help="Further fields of every request, as a JSON object.")] = "{}",
    as_json: Json = False,
) -> None:
    """Send a trace to a live OpenAI-compatible server by the trace's clock, and write the capture.

    Example: servetwin collect replay --url http://127.0.0.1:8000 --trace t.jsonl --steps steps.jsonl --out mine
    """
    import datetime

    from collectors.client.load import Pacing
    from collectors.client.request import Target, base_url
    from collectors.recording.folder import About
    from collectors.recording.replay import replay
    from harness.terminal.progress import progress, replay_progress
    from traces.formats import read_any_trace

    target = Target(
        url=base_url(url),
        model=model,
        api="chat" if chat else "completions",
        words=words,
        vocab_size=vocab_size,
        timeout_s=timeout_s,
        seed=seed,
        api_key=_secret(api_key_env),
        extra=_object(extra_body),
    )
    if not 0 < time_scale < math.inf:
        raise InputError(field="--time-scale", found=time_scale, accepted="a finite number above 0")
    if concurrency is not None and time_scale != 1.0:
        raise InputError(field="--time-scale", found=time_scale, accepted="no time scale in a closed loop")
    if transfers is not None and steps is None:
        raise InputError("is needed beside --transfers: it tells whose KV was sent", field="--steps")
    about = About(
        model=model_name or model,
        device=device,
        recorded_at=datetime.date.today().isoformat(),
        steps=None if steps is None else str(steps.absolute()),
        transfers=None if transfers is None else str(transfers.absolute()),
        notes=(f"closed loop of {concurrency} seats",) if concurrency is not None else (),
    )
    rows = read_any_trace(trace)
    with progress("requests", len(rows)) as tell:
        show = replay_progress(tell)
        capture = replay(rows, target, Pacing(time_scale, concurrency, warm_up), about, out, show=show)
    _show_capture(capture, as_json=as_json)


@collect_app.command("attach")
def collect_attach(
    url: Annotated[str, typer.Option(help="The server, without a path.")],
    out: Out,
    for_: Annotated[str | None, typer.Option("--for", help="How long, as 10m; default: until interrupted.")] = None,
    every: Annotated[str, typer.Option(help="Period of reading its metrics, as 1s.")] = "1s",
    steps: Annotated[
        Path | None, typer.Option(help="The file that the server's recorder writes (SERVETWIN_STEPS), on this host.")
    ] = None,
    stats: Annotated[
        Path | None, typer.Option(help="The file that its stat logger writes (SERVETWIN_STATS), on this host.")
    ] = None,
    spans: Annotated[bool, typer.Option(help="Listen for the spans of its requests.")] = True,
    otlp_port: Annotated[int, typer.Option(help="Where to listen for them, on 127.0.0.1.")] = 4318,
    kv_events: Annotated[
        list[str] | None, typer.Option(help="Endpoint of its KV events, as in --kv-events-config. Repeatable.")
    ] = None,
    kv_events_connect: Annotated[bool, typer.Option(help="Connect there, where a server elsewhere binds.")] = False,
    model: Annotated[str | None, typer.Option(help="The model's name at the server, where it serves several.")] = None,
    model_name: Annotated[str | None, typer.Option(help="Its name in scenarios; default: as at the server.")] = None,
    device: Annotated[str | None, typer.Option(help="The device's name in scenarios.")] = None,
    as_json: Json = False,
) -> None:
    """Record a server that others are using, without disturbing it, and write the capture.

    Example: servetwin collect attach --url http://127.0.0.1:8000 --for 10m --steps steps.jsonl --out captures/monday
    """
    import datetime

    from collectors.recording.attach import attach
    from collectors.recording.folder import About

    about = About(
        model=model_name or model or "",
        device=device,
        recorded_at=datetime.date.today().isoformat(),
        steps=None if steps is None else str(steps.absolute()),
        stats=None if stats is None else str(stats.absolute()),
    )
    capture = attach(
        url,
        out,
        about,
        for_s=None if for_ is None else parse_duration_s(for_, "--for"),
        every_s=parse_duration_s(every, "--every"),
        model=model,
        otlp_port=otlp_port if spans else None,
        kv_endpoints=kv_events or (),
        kv_connect=kv_events_connect,
    )
    _show_capture(capture, as_json=as_json)


@collect_app.command("finish")
def collect_finish(recording: Path, out: Out, as_json: Json = False) -> None:
    """Make a capture of a recording that was cut off: what a killed collector left behind.

    Example: servetwin collect finish captures/mine.recording --out captures/mine
    """
    from collectors.recording.folder import finish_recording
    from traces.capture import write_capture

    capture = finish_recording(recording)
    write_capture(capture, out)
    _show_capture(capture, as_json=as_json)


@collect_app.command("operators")
def collect_operators(
    model: Annotated[Path, typer.Option(help="The model's folder, with config.json and tokenizer.")],
    model_name: Annotated[str, typer.Option(help="The name scenarios will use.")],
    out: Out,
    engine_python: Annotated[Path, typer.Option(help="The engine's Python.")] = Path(".venv-engine/bin/python"),
    device: Annotated[str | None, typer.Option(help="The device's name; default: as it names itself.")] = None,
    budget_s: Annotated[float, typer.Option(min=1, help="Seconds to measure, the engine's start not counted.")] = 170.0,
    engine: Annotated[str, typer.Option(help="Whose kernels: vllm, or torch where there is no vLLM.")] = "vllm",
    operators: Annotated[str, typer.Option(help="modules, or none: whole steps alone, on any backend.")] = "modules",
    timer: Annotated[str, typer.Option(help="hooks, or profiler: torch's, for tiny kernels.")] = "hooks",
    compiled: Annotated[bool, typer.Option("--compiled", help="With --operators none: as served, not eager.")] = False,
    collectives: Annotated[str, typer.Option(help="auto: between several GPUs; none, cpu:N, cuda:N.")] = "auto",
    tensor_parallel: Annotated[
        str, typer.Option(help="Degrees, as '1 2 4'; one rank's share is computed alone.")
    ] = "1",
    dtype: Annotated[str, typer.Option(help="Of weights and activations.")] = "bfloat16",
    kv_cache_dtype: Annotated[str, typer.Option(help="auto: as --dtype; fp8.")] = "auto",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest prefill chunk.")] = 512,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests of the largest batch.")] = 32,
    max_kv: Annotated[int, typer.Option(min=1, help="Tokens of the longest history.")] = 2048,
    kv_cache_tokens: Annotated[int, typer.Option(min=1, help="Batches that hold more are left out.")] = 67_584,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens of a KV block.")] = 32,
) -> None:
    """Measure the operator profile of a model on this machine's device, with the engine's own kernels.

    Run again after an interruption, it goes on where it was.

    Example: servetwin collect operators --model llama --model-name my/llama --out profiles/mine
    """
    from harness.profiler import profile_operators
    from harness.terminal.facts import profile_facts
    from profiles.profile_folder import read_profile

    options = {
        "--model": model,
        "--model-name": model_name,
        "--out": out,
        "--device": device,
        "--budget-s": budget_s,
        "--engine": engine,
        "--operators": operators,
        "--timer": timer,
        "--collectives": collectives,
        "--dtype": dtype,
        "--kv-cache-dtype": kv_cache_dtype,
        "--max-tokens": max_tokens,
        "--max-requests": max_requests,
        "--max-kv": max_kv,
        "--kv-cache-tokens": kv_cache_tokens,
        "--block-size": block_size,
    }
    flags = [*(["--compiled"] if compiled else []), "--tensor-parallel", *tensor_parallel.split()]
    profile_operators(engine_python, options, flags)
    print_facts(profile_facts(read_profile(out)))


def _show_capture(capture: Capture, *, as_json: bool) -> None:
    """Print a capture that was collected, and whether it may be scored."""
    from harness.terminal.facts import print_capture

    print_capture(capture, as_json=as_json)
    if capture.meta.reasons and not as_json:
        typer.echo("INVALID: this capture must not be scored, for the reasons above.", err=True)


def _secret(variable: str | None) -> str | None:
    """The API key in an environment variable; raises InputError when there is none."""
    if variable is not None and not os.environ.get(variable):
        raise InputError(field="--api-key-env", found=variable, accepted="an environment variable that is set")
    return os.environ.get(variable) if variable is not None else None


def _object(text: str) -> dict[str, Any]:
    """A JSON object given as an option."""
    from traces.decoding import decode_json

    return decode_json(text.encode(), dict[str, Any], file="--extra-body")


@collect_app.command("power")
def collect_power(
    out: Annotated[Path, typer.Option("--out", help="A new file, or a recording of this host to go on with.")],
    sensor: Annotated[
        list[str] | None,
        typer.Option(help="auto (the default), nvml, rapl, ipmi, dcgm=URL, tpu=URL#METRIC, command=CMD. Repeatable."),
    ] = None,
    rate_hz: Annotated[float, typer.Option(help="Samples per second of each sensor.")] = 10.0,
    for_: Annotated[str | None, typer.Option("--for", help="As 10m; default: until interrupted.")] = None,
    as_json: Json = False,
) -> None:
    """Record the power of this host's devices for a while, or until it is interrupted, and print a summary.

    Run again onto the same file, it goes on behind what is there.

    Example: servetwin collect power --out power.jsonl --for 10m --sensor nvml --sensor rapl
    """
    from collectors.power.power_file import power_facts
    from collectors.power.record import record_power, until_interrupted

    for_s = None if for_ is None else parse_duration_s(for_, "--for")
    with until_interrupted() as stop:
        recording = record_power(out, sensor or ("auto",), rate_hz=rate_hz, for_s=for_s, stop=stop)
    _show_power(power_facts(recording), as_json=as_json)


@collect_app.command("power-show")
def collect_power_show(recording: Path, as_json: Json = False) -> None:
    """Print the summary of a recording of power, whole or cut off, or of a log of nvidia-smi or ipmitool.

    Example: servetwin collect power-show power.jsonl
    """
    from collectors.power.power_file import power_facts, read_power

    _show_power(power_facts(read_power(recording)), as_json=as_json)


def _show_power(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print a recording's components, and its notes."""
    from harness.terminal.console import console, table

    if as_json:
        print_json(facts)
        return
    figures = {
        "mean W": ("mean_w", ".1f"),
        "max W": ("max_w", ".1f"),
        "J": ("energy_j", ".1f"),
        "samples/s": ("rate_hz", ".2f"),
        "covered": ("coverage", ".1%"),
        "readings": ("tries", "d"),
        "failed": ("failed", "d"),
    }
    rows = []
    for name, one in facts["components"].items():
        shown = ["–" if one[key] is None else format(one[key], how) for key, how in figures.values()]
        rows.append((name, f"{one['sensor']} {one['source'] or '–'}", *shown))
    out = console()
    out.print(table("Power", ["", "by", *figures], rows))
    reasons = [f"{name}: {one['reason']}" for name, one in facts["components"].items() if one["reason"]]
    for note in [*facts["notes"], *reasons]:
        out.print(f"note: {note}", style="dim")
