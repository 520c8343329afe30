"""The commands of `servetwin collect`: each parses, calls the function that does the work, prints, and exits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.console import print_facts, print_summary

collect_app = typer.Typer(help="Collect from a real engine.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", help="What to write; must not exist yet.")]


@collect_app.command("recorder")
def collect_recorder(out: Out) -> None:
    """Write the step recorder: one file to put on a vLLM server's PYTHONPATH.

    Example: servetwin collect recorder --out recorder.py
    """
    from collectors import recorder_path
    from harness.files import new_file

    with new_file(out) as file:
        file.write_text(recorder_path().read_text())
    typer.echo(f"Start vLLM with PYTHONPATH={out.parent} --scheduler-cls {out.stem}.RecordingScheduler")
    typer.echo(f"(asynchronous scheduling: {out.stem}.RecordingAsyncScheduler); SERVETWIN_STEPS names its output")


@collect_app.command("replay")
def collect_replay(
    url: Annotated[str, typer.Option(help="The server, without a path.")],
    trace: Annotated[Path, typer.Option(help="What to send.")],
    steps: Annotated[Path, typer.Option(help="The file that the server's recorder writes (SERVETWIN_STEPS).")],
    model: Annotated[str, typer.Option(help="The model's name at the server.")],
    vocab_size: Annotated[int, typer.Option(min=4, help="Token ids are drawn below it.")],
    device: Annotated[str, typer.Option(help="The device's name, for the record and for profiles.")],
    out: Out,
) -> None:
    """Send a trace to a live vLLM that runs the recorder, on this host, and write the capture.

    Example: servetwin collect replay --url http://127.0.0.1:8000 --trace t.jsonl --steps steps.jsonl --model m
    --vocab-size 128256 --device H100 --out captures/mine
    """
    import datetime

    from collectors.client import Target
    from collectors.join import Subject
    from collectors.replay import replay_and_join
    from harness.show import capture_facts
    from traces.capture import new_folder, write_capture
    from traces.formats import read_any_trace
    from traces.metrics import summary

    subject = Subject(model, device, datetime.date.today().isoformat())
    with new_folder(out) as folder:  # refuse an output that cannot be written before the load is sent
        folder.rmdir()
        capture, _ = replay_and_join(read_any_trace(trace), Target(url.rstrip("/"), model, vocab_size), steps, subject)
        write_capture(capture, folder)
    facts, figures = capture_facts(capture), summary(capture)
    print_facts(facts)
    print_summary(figures)


@collect_app.command("operators")
def collect_operators(
    model: Annotated[Path, typer.Option(help="The model's folder, with config.json and tokenizer.")],
    model_name: Annotated[str, typer.Option(help="The name scenarios will use.")],
    out: Out,
    engine_python: Annotated[Path, typer.Option(help="vLLM's Python.")] = Path(".venv-engine/bin/python"),
    device: Annotated[str | None, typer.Option(help="The device's name; default: this machine's CPU.")] = None,
    budget_s: Annotated[float, typer.Option(min=1, help="Seconds to measure, the engine's start not counted.")] = 170.0,
) -> None:
    """Measure the operator profile of a model with vLLM's own kernels on this machine.

    Example: servetwin collect operators --model llama --model-name my/llama --out profiles/mine
    """
    from harness.profiler import profile_operators
    from harness.show import profile_facts
    from profiles.profile import read_profile

    arguments = ["--model", model, "--model-name", model_name, "--out", out, "--budget-s", budget_s]
    profile_operators(engine_python, [*arguments, *(["--device", device] if device else [])])
    print_facts(profile_facts(read_profile(out)))
