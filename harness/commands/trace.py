"""The commands of `servetwin trace`: each parses, calls the function that does the work, prints, and exits."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.files import new_file, refuse_taken_file
from harness.terminal.console import console, print_facts, print_json, table
from harness.terminal.options import Format, Json, Out
from traces.errors import InputError

if TYPE_CHECKING:
    from traces.arrivals import Rate
    from traces.trace import Trace

trace_app = typer.Typer(help="Traces: the requests to serve.", no_args_is_help=True)

To = Annotated[
    str, typer.Option("--to", help="Format to write: servetwin, mooncake, azure, llmservingsim, tracev2, vllm-bench.")
]
Map = Annotated[
    list[str] | None, typer.Option("--map", help="Any table: what a column is, as arrival_unix_ms=ts. Repeatable.")
]
Seed = Annotated[int, typer.Option(min=0)]


@trace_app.command("import")
def trace_import(
    source: Path,
    out: Out,
    format: Format = None,
    to: To = "servetwin",
    mapping: Map = None,
    hash_block_size: Annotated[int | None, typer.Option(help="Tokens per entry of a mapped block_hashes.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Of text, as sharegpt has: a tokenizer.json, or a model's folder with one.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Where no arrivals are recorded: sessions that begin in a second (Poisson).")
    ] = None,
    start_s: Annotated[
        float | None, typer.Option("--start", help="Requests from this second on; it becomes 0.")
    ] = None,
    end_s: Annotated[float | None, typer.Option("--end", help="Requests before this second.")] = None,
    share: Annotated[float | None, typer.Option(help="A random share of them, whole sessions together.")] = None,
    speed: Annotated[float | None, typer.Option(help="So many times the rate of arrivals.")] = None,
    request_rate: Annotated[
        float | None, typer.Option(help="In place of --speed: requests per second, on the average.")
    ] = None,
    prompt_scale: Annotated[float | None, typer.Option(help="Prompts so many times as long, prefixes too.")] = None,
    output_scale: Annotated[float | None, typer.Option(help="Answers so many times as long.")] = None,
    anonymise: Annotated[bool, typer.Option("--anonymise", help="Take names off; hashes get a salt.")] = False,
    salt: Annotated[str | None, typer.Option(help="The salt; left out: a random one that is not kept.")] = None,
    seed: Seed = 0,
) -> None:
    """Read a trace of any known format, or any table by a mapping, and write it; a part of it, or faster, if asked.

    Example: servetwin trace import AzureLLMInferenceTrace_conv.csv --end 600 --speed 2 --out requests.jsonl
    """
    from traces.load import Load, loaded
    from traces.reshape import anonymised

    refuse_taken_file(out)
    trace = _read(source, format, mapping, hash_block_size, tokenizer)
    if rate is not None:
        trace = _paced(trace, rate, seed)
    load = Load(
        start_s=start_s,
        end_s=end_s,
        share=share,
        speed=speed,
        request_rate=request_rate,
        prompt_scale=prompt_scale,
        output_scale=output_scale,
    )
    trace = loaded(trace, load, seed, _option)
    if salt is not None and not anonymise:
        raise InputError(field="--salt", found=salt, accepted="only with --anonymise")
    if anonymise:
        trace = anonymised(trace, secrets.token_bytes(32) if salt is None else salt.encode())
    _write(trace, out, to)


@trace_app.command("synth")
def trace_synth(
    out: Out,
    requests: Annotated[int | None, typer.Option(help="How many; left out: 300, or as many as --like has.")] = None,
    rate: Annotated[float | None, typer.Option(help="Mean per second; left out: 10, or that of --like.")] = None,
    arrivals: Annotated[str | None, typer.Option(help="poisson (if left out), gamma, weibull or constant.")] = None,
    cv: Annotated[float | None, typer.Option(help="Spread of the gaps of gamma and weibull; 1 is Poisson's.")] = None,
    bursts: Annotated[str | None, typer.Option(help="FACTOR:BURST_S:PERIOD_S, a burst in every period.")] = None,
    diurnal: Annotated[str | None, typer.Option(help="AMPLITUDE:PERIOD_S, a wave about the mean rate.")] = None,
    prompt_tokens: Annotated[
        str | None, typer.Option(help="512, least:most, or lognormal:MEDIAN:SIGMA:MOST; left out: 64:1024.")
    ] = None,
    output_tokens: Annotated[str | None, typer.Option(help="As --prompt-tokens; left out: 16:256.")] = None,
    like: Annotated[Path | None, typer.Option(help="A trace to resemble: arrivals, lengths, prefixes.")] = None,
    servegen: Annotated[Path | None, typer.Option(help="A folder of ServeGen's clients to draw from.")] = None,
    start_s: Annotated[float | None, typer.Option("--start", help="Of --servegen: from this second of theirs.")] = None,
    end_s: Annotated[float | None, typer.Option("--end", help="Of --servegen: to this second, needed.")] = None,
    seed: Seed = 0,
    to: To = "servetwin",
) -> None:
    """Write a synthetic trace: of a process and lengths that are stated, like another trace, or of ServeGen's clients.

    Example: servetwin trace synth --requests 1000 --rate 5 --arrivals gamma --cv 2 --prompt-tokens 512 --out s.jsonl
    """
    stated: dict[str, object] = {"--arrivals": arrivals, "--cv": cv, "--bursts": bursts, "--diurnal": diurnal}
    stated |= {"--prompt-tokens": prompt_tokens, "--output-tokens": output_tokens}
    if servegen is not None:
        _alone("--servegen", {**stated, "--requests": requests, "--like": like}, "--start, --end, --rate and --seed")
        _write(_of_clients(servegen, start_s, end_s, rate, seed), out, to)
        return
    for name, second in (("--start", start_s), ("--end", end_s)):
        if second is not None:
            raise InputError(field=name, found=second, accepted="only with --servegen")
    if like is not None:
        _alone("--like", stated, "--requests, --rate and --seed")
        _write(_twin(like, requests, rate, seed), out, to)
        return
    from traces.synthesis import Lengths, synthetic_trace

    prompt = Lengths.parse(prompt_tokens or "64:1024", "--prompt-tokens")
    output = Lengths.parse(output_tokens or "16:256", "--output-tokens")
    course = _rate(10.0 if rate is None else rate, bursts, diurnal)
    n_requests = 300 if requests is None else requests
    _write(synthetic_trace(n_requests, course, prompt, output, seed, arrivals or "poisson", cv), out, to)


@trace_app.command("mix")
def trace_mix(sources: list[Path], out: Out, format: Format = None, to: To = "servetwin") -> None:
    """Put several traces side by side, each from its own second 0 on; they share nothing.

    Example: servetwin trace mix chat.jsonl code.jsonl --out both.jsonl
    """
    from traces.formats import read_any_trace
    from traces.reshape import mixed_traces

    _write(mixed_traces([read_any_trace(source, format) for source in sources]), out, to)


@trace_app.command("show")
def trace_show(source: Path, format: Format = None, as_json: Json = False) -> None:
    """Summarise a trace.

    Example: servetwin trace show requests.jsonl
    """
    from harness.terminal.facts import trace_facts
    from traces.formats import read_any_trace

    facts = trace_facts(read_any_trace(source, format))
    print_json(facts) if as_json else print_facts(facts)


@trace_app.command("aggregate")
def trace_aggregate(
    rows: Path,
    scenario: Path,
    where: Annotated[list[str] | None, typer.Option(help="Only rows of which this is so: column=value.")] = None,
    rounds: Annotated[int, typer.Option(help="Requests that each seat sends.")] = 4,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: engine.max_num_seqs=64. Repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a scenario at measured means: a closed loop of each row's seats and lengths, TTFT and TPOT side by side.

    Example: servetwin trace aggregate measured.csv scenario.yaml --where tp=4
    """
    from harness.scoring.aggregates import score_aggregates

    scored = score_aggregates(rows, scenario, where or (), overrides or (), rounds)
    if as_json:
        print_json(scored)
        return
    columns = ["line", "seats", "in", "out", "TTFT ms", "simulated", "error", "TPOT ms", "simulated", "error"]
    cells = [tuple(_cell(name, value) for name, value in row.items()) for row in scored["rows"]]
    console().print(table(f"{scenario} against {rows}", columns, cells))
    medians = {name: f"{value:.1%}" for name, value in scored.items() if name.endswith("_median_abs_error")}
    print_facts({**medians, "notes": scored["notes"]})


def _cell(name: str, value: float) -> str:
    if name.endswith("_error"):
        return f"{value:+.1%}"
    return f"{value:.2f}" if name.endswith("_ms") else str(value)


def _option(name: str) -> str:
    """The option that says a part of the load."""
    return "--" + name.removesuffix("_s").replace("_", "-")


def _read(
    source: Path,
    format: str | None,
    mapping: list[str] | None,
    hash_block_size: int | None,
    tokenizer: Path | None,
) -> Trace:
    from traces.formats import read_any_trace
    from traces.readers.mapped import parse_mapping, read_mapped

    if mapping:
        if format is not None:
            raise InputError(field="--map", found=f"--format {format} too", accepted="one of them")
        if tokenizer is not None:
            raise InputError(field="--map", found="--tokenizer too", accepted="one of them")
        return read_mapped(source, parse_mapping(mapping), hash_block_size)
    if hash_block_size is not None:
        raise InputError(field="--hash-block-size", found=hash_block_size, accepted="only with --map block_hashes=...")
    return read_any_trace(source, format, tokenizer)


def _paced(trace: Trace, rate: float, seed: int) -> Trace:
    from traces.arrivals import Rate
    from traces.readers.sharegpt import with_rate

    return with_rate(trace, Rate.steady(rate), seed)


def _twin(like: Path, requests: int | None, rate: float | None, seed: int) -> Trace:
    from traces.formats import read_any_trace
    from traces.twin import fit, twin

    trace = read_any_trace(like)
    return twin(fit(trace), len(trace) if requests is None else requests, seed, trace.source, rate)


def _of_clients(folder: Path, start_s: float | None, end_s: float | None, rate: float | None, seed: int) -> Trace:
    from traces.clients import clients_trace
    from traces.servegen import read_clients

    if end_s is None:
        raise InputError("is missing", field="--end", accepted="a second of the clients' course: they go on for days")
    pool = read_clients(folder, start_s or 0.0, end_s)
    return clients_trace(pool, start_s or 0.0, end_s, seed, rate)


def _alone(option: str, others: dict[str, object], accepted: str) -> None:
    """Raise InputError when one of the others is given, too."""
    if told := [name for name, value in others.items() if value is not None]:
        raise InputError(field=option, found=f"{', '.join(told)} too", accepted=accepted)


def _rate(mean_per_s: float, bursts: str | None, diurnal: str | None) -> Rate:
    from traces.arrivals import Rate

    if bursts is not None and diurnal is not None:
        raise InputError(field="--bursts", found="--diurnal too", accepted="one of them")
    if bursts is not None:
        factor, burst_s, period_s = _numbers(bursts, "--bursts", "FACTOR:BURST_S:PERIOD_S")
        return Rate.bursts(mean_per_s, factor, burst_s, period_s)
    if diurnal is not None:
        amplitude, period_s = _numbers(diurnal, "--diurnal", "AMPLITUDE:PERIOD_S")
        return Rate.diurnal(mean_per_s, amplitude, period_s)
    return Rate.steady(mean_per_s)


def _numbers(text: str, field: str, names: str) -> list[float]:
    parts = text.split(":")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != names.count(":") + 1:
        raise InputError(field=field, found=text, accepted=f"{names}, numbers")
    return numbers


def _write(trace: Trace, out: Path, to: str) -> None:
    """Write the trace's files, whole or not at all, and say what they hold and what was lost."""
    from contextlib import ExitStack

    from harness.terminal.facts import trace_facts
    from traces.writers import trace_as

    written = trace_as(trace, to)
    with ExitStack() as stack:
        for ending, data in written.files.items():
            path = out if not ending else out.with_suffix(ending)
            file = stack.enter_context(new_file(path))
            if path.suffix == ".gz":
                import gzip

                data = gzip.compress(data, mtime=0)
            file.write_bytes(data)
    print_facts({**trace_facts(trace), **({"written": [to, *written.notes]} if to != "servetwin" else {})})
