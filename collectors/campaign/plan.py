"""The parts of a campaign in order of value, as large as a scale says, on the host at hand.

`FULL` is for a datacentre GPU: about 22 minutes for the main model, and 8 for each other one. `TINY` is the same on a
CPU with models of a few layers, to see that every part works before a GPU is there.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from collectors.campaign.loads import (
    KNEE_SHARE,
    LIGHT_SHARE,
    SATURATED_SHARE,
    LoadScale,
    at_once,
    at_rate,
    long_prompts,
    prefixes,
    pulses,
    served_per_s,
    shape,
)
from collectors.campaign.parts import Part, Session
from collectors.engine import recorder_path
from collectors.local.server import local_server
from collectors.local.small_model import VOCAB_SIZE, write_small_model
from profiles.catalog import BUNDLED, model_configs
from profiles.model import read_model
from traces.capture import read_capture
from traces.errors import CollectorError
from traces.synthesis import Lengths
from traces.trace import Trace, write_trace

DTYPE = "bfloat16"

GIVEN = "the requests are those of a workload that was given, which may not be published"
"""Note of captures that are not to be committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model of a campaign.

    Attributes:
        label: what its parts' names begin with.
        name: in scenarios; a bundled model's, or that of a small one.
        small: size of a small model (`collectors.local.small_model`); None: a bundled config.
        n_requests: of the shape.
        operators_s: seconds for its operator profile.
        has_experts: its kernels are a part of vLLM that may be left out.
    """

    label: str
    name: str
    small: str | None = None
    n_requests: int
    operators_s: float
    has_experts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large a campaign is.

    Attributes:
        loads: what is sent.
        main: the model that is measured in full.
        others: those that are measured at the knee, and whose operators are.
        kv_tokens: of the KV cache; None: as much as the device has.
        small_kv_tokens: of the cache that is to run out.
        engine_options: vLLM's options, by flag; they are the same in every server.
        engine_flags: vLLM's flags without a value.
        operator_options: of `collectors.operators`, by flag.
        idle_s, busy_s, rest_s: of the bare device.
        server_s: seconds that a server may take to start.
        load_s: seconds that a load may take.
    """

    loads: LoadScale
    main: Served
    others: tuple[Served, ...]
    kv_tokens: int | None
    small_kv_tokens: int
    engine_options: dict[str, int]
    engine_flags: tuple[str, ...]
    operator_options: dict[str, str | int]
    idle_s: float
    busy_s: float
    rest_s: float
    server_s: float
    load_s: float


FULL = Scale(
    # Lengths as in the measured runs that the twin was first held against: 300 requests of ShareGPT with pinned
    # answers, prompts 860 tokens in the mean, answers 650.
    loads=LoadScale(
        n_requests=300,
        prompt=Lengths(16, 4096, 730.0, 0.55),
        output=Lengths(64, 1024, 650.0, 0.15),
        system_blocks=(64, 256),
        turn_blocks=16,
        n_prefix=150,
        long_prompt=Lengths(8_000, 30_000),
        n_long=24,
        long_gap_s=1.5,
        pulses=(1, 2, 4, 8, 16, 32, 64, 128),
        pulse_output=500,
        pulse_gap_s=7.0,
    ),
    main=Served(label="llama", name="meta-llama/Llama-3.1-8B", n_requests=300, operators_s=150.0),
    others=(
        Served(label="dense", name="Qwen/Qwen3-32B", n_requests=80, operators_s=90.0),
        Served(
            label="moe",
            name="Qwen/Qwen3-30B-A3B-Instruct-2507",
            n_requests=150,
            operators_s=90.0,
            has_experts=True,
        ),
    ),
    kv_tokens=None,
    small_kv_tokens=40_000,
    engine_options={
        "--max-model-len": 32_768,
        "--max-num-seqs": 128,
        "--max-num-batched-tokens": 2048,
        "--block-size": 16,
    },
    engine_flags=(),
    operator_options={
        "--timer": "profiler",
        "--max-tokens": 2048,
        "--max-requests": 128,
        "--max-kv": 16_384,
        "--kv-cache-tokens": 200_000,
        "--block-size": 16,
    },
    idle_s=25.0,
    busy_s=8.0,
    rest_s=40.0,
    server_s=300.0,  # the first on a fresh host compiles all of Python's modules and the model's graph
    load_s=180.0,
)

TINY = Scale(
    loads=LoadScale(
        n_requests=16,
        prompt=Lengths(16, 128, 40.0, 0.5),
        output=Lengths(96, 160),
        system_blocks=(1, 2),
        turn_blocks=1,
        n_prefix=8,
        long_prompt=Lengths(300, 700),
        n_long=4,
        long_gap_s=0.5,
        pulses=(1, 2, 4),
        pulse_output=12,
        pulse_gap_s=1.0,
    ),
    main=Served(label="llama", name="servetwin/llama-xs", small="xs", n_requests=16, operators_s=60.0),
    others=(
        Served(
            label="moe",
            name="servetwin/qwen3-moe-xs",
            small="qwen3-moe-xs",
            n_requests=6,
            operators_s=60.0,
            has_experts=True,
        ),
    ),
    kv_tokens=8192,
    small_kv_tokens=1024,
    engine_options={
        "--max-model-len": 960,
        "--max-num-seqs": 16,
        "--max-num-batched-tokens": 256,
        "--block-size": 32,
    },
    engine_flags=("--enforce-eager",),
    operator_options={
        "--timer": "hooks",
        "--max-tokens": 16,
        "--max-requests": 4,
        "--max-kv": 32,
        "--kv-cache-tokens": 2048,
        "--block-size": 32,
    },
    idle_s=1.0,
    busy_s=0.5,
    rest_s=1.0,
    server_s=400.0,  # a CPU may have other things to do
    load_s=180.0,
)

SCALES = {"full": FULL, "tiny": TINY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where a campaign runs.

    Attributes:
        work: the campaign's folder.
        engine_python: the engine's interpreter, which never outlives its parent (`parts.guarded_python`).
        device: its name in scenarios.
        sensors: of power, as `--sensor` takes them; none: power is not recorded.
        engine_flags: further flags of vLLM's server.
        experts: vLLM has the kernels of mixtures of experts.
        workload: a trace whose requests are sent in place of drawn ones; None: they are drawn.
    """

    work: Path
    engine_python: Path
    device: str
    sensors: tuple[str, ...] = ()
    engine_flags: tuple[str, ...] = ()
    experts: bool = True
    workload: Trace | None = None


def plan(scale: Scale, host: Host) -> list[Part]:
    """All parts, in order of value."""
    main = scale.main
    others = [other for other in scale.others if host.experts or not other.has_experts]
    return [
        _device(scale, host),
        *_loads(scale, host, main, "", scale.kv_tokens, ("burst", "knee-1", "light-1", "knee-2", "light-2")),
        *_loads(scale, host, main, "small-kv", scale.small_kv_tokens, ("saturated-1", "saturated-2")),
        *_operators(scale, host, main),
        *_loads(scale, host, main, "again", scale.kv_tokens, ("prefix-1", "long-1", "pulses-1", "prefix-2", "long-2")),
        *(part for other in others for part in _other(scale, host, other)),
    ]


def _other(scale: Scale, host: Host, model: Served) -> list[Part]:
    loads = _loads(scale, host, model, "", scale.kv_tokens, ("burst", "knee-1", "knee-2"))
    return [*loads, *_operators(scale, host, model)]


def _device(scale: Scale, host: Host) -> Part:
    """The bare device: its levels of power, and the rates of copies and matrix products."""
    times = {"--idle-s": scale.idle_s, "--busy-s": scale.busy_s, "--rest-s": scale.rest_s}

    def command(folder: Path, _: str) -> list[str | Path]:
        return [*_measure("device", host, folder), *_words({"--engine-python": host.engine_python, **times})]

    return Part("device", scale.idle_s + 4 * scale.busy_s + scale.rest_s + 60, command)


def _loads(
    scale: Scale, host: Host, model: Served, kind: str, kv_tokens: int | None, loads: Sequence[str]
) -> list[Part]:
    """Loads that one server serves, each a part; names end with the number of the recording."""
    name = "-".join(word for word in (model.label, kind, "server") if word)
    steps = host.work / "running" / f"{name}.steps.jsonl"

    def serving(log: Path, within_s: float) -> AbstractContextManager[str]:
        return _serving(scale, host, model, kv_tokens, steps, log, within_s)

    session = Session(name, scale.server_s, serving)
    return [_load(scale, host, model, session, steps, load) for load in loads]


def _load(scale: Scale, host: Host, model: Served, session: Session, steps: Path, load: str) -> Part:
    part = f"{model.label}-{load}"

    def command(folder: Path, url: str) -> list[str | Path]:
        trace = folder / "trace.jsonl.gz"
        write_trace(_trace(scale, host, model, load.rsplit("-", 1)[0]), trace)
        spec = read_model(_model_folder(host, model) / "config.json", model.name)
        options: dict[str, object] = {
            "--url": url,
            "--trace": trace,
            "--steps": steps,
            "--model-name": model.name,
            "--device": host.device,
            "--vocab-size": spec.vocab_size,
            "--seed": zlib.crc32(part.encode()),  # no load finds another's prompts in the prefix cache
            "--note": f"'{part}' of a campaign (docs/campaign.md); random weights",
        }
        given = [] if host.workload is None else ["--note", GIVEN]
        return [*_measure("capture", host, folder), *_words(options), *given]

    return Part(part, scale.load_s, command, session)


def _trace(scale: Scale, host: Host, model: Served, load: str) -> Trace:
    """What a load sends. Raises CollectorError when it is a share of a rate that was not measured."""
    requests = shape(scale.loads, model.n_requests, host.workload)
    match load:
        case "burst":
            return at_once(requests)
        case "long":
            return long_prompts(scale.loads)
        case "pulses":
            return pulses(scale.loads)
    per_s = round(_served_per_s(host, model), 3)
    match load:
        case "light":
            return at_rate(requests, LIGHT_SHARE * per_s)
        case "prefix":
            return prefixes(scale.loads, scale.engine_options["--block-size"], KNEE_SHARE * per_s)
        case "saturated":
            return at_rate(requests, SATURATED_SHARE * per_s)
        case _:
            return at_rate(requests, KNEE_SHARE * per_s)


def _served_per_s(host: Host, model: Served) -> float:
    """What the model's server served when all requests came at once, by that part's capture."""
    archive = host.work / "done" / f"{model.label}-burst.tar.gz"
    if not archive.is_file():
        raise CollectorError(f"{model.label}-burst is not complete, and this load is a share of its rate")
    with tarfile.open(archive) as tar, TemporaryDirectory() as folder:
        tar.extractall(folder, filter="data")
        return served_per_s(read_capture(Path(folder) / "capture"))


def _operators(scale: Scale, host: Host, model: Served) -> list[Part]:
    """The operator profile, by other means where the first fails."""
    name = f"{model.label}-operators"

    def part(name: str, instead_of: str | None = None, **changed: str) -> Part:
        options: dict[str, str | int] = {**scale.operator_options, **changed}
        options |= {"--model-name": model.name, "--device": host.device, "--dtype": DTYPE}
        options["--budget-s"] = round(model.operators_s)

        def command(folder: Path, _: str) -> list[str | Path]:
            values = {"--model": _model_folder(host, model), "--out": folder / "profile", **options}
            return [host.engine_python, "-m", "collectors.operators", *_words(values)]

        return Part(name, scale.server_s + 1.5 * model.operators_s, command, instead_of=instead_of, resumes=True)

    return [
        part(name),
        part(f"{name}-hooks", name, **{"--timer": "hooks"}),
        part(f"{name}-torch", f"{name}-hooks", **{"--timer": "hooks", "--engine": "torch"}),
    ]


def _measure(kind: str, host: Host, out: Path) -> list[str | Path]:
    sensors = [word for sensor in host.sensors for word in ("--sensor", sensor)]
    return [sys.executable, "-m", "collectors.campaign.measure", kind, "--out", out, *sensors]


def _words(options: Mapping[str, object]) -> list[str]:
    """Options and their values, as a command line has them."""
    return [str(word) for pair in options.items() for word in pair]


@contextmanager
def _serving(
    scale: Scale, host: Host, model: Served, kv_tokens: int | None, steps: Path, log: Path, within_s: float
) -> Iterator[str]:
    """A server of the model that records its steps; `kv_tokens` None: vLLM fills the device's memory."""
    folder = _model_folder(host, model)
    recorder = host.work / "recorder"
    recorder.mkdir(exist_ok=True)
    (recorder / "recorder.py").write_bytes(recorder_path().read_bytes())  # alone on the server's path
    options = ["--load-format", "dummy", "--dtype", DTYPE, "--scheduler-cls", "recorder.RecordingScheduler"]
    options += _words(scale.engine_options)
    if kv_tokens is not None:
        kv_bytes = kv_tokens * read_model(folder / "config.json", model.name).kv_bytes_per_token(DTYPE)
        options += ["--kv-cache-memory-bytes", str(kv_bytes)]
    environment = {
        "PYTHONPATH": os.pathsep.join([str(recorder), os.environ.get("PYTHONPATH", "")]),
        "SERVETWIN_STEPS": str(steps),
        "SERVETWIN_STRICT": "1",
    }
    steps.unlink(missing_ok=True)
    flags = [*options, *scale.engine_flags, *host.engine_flags]
    with local_server(
        host.engine_python, folder, log, flags=flags, environment=environment, start_timeout_s=within_s
    ) as url:
        yield url


def _model_folder(host: Host, model: Served) -> Path:
    """The model's folder, written when it is not there: a config and a tokenizer, no weights."""
    folder = host.work / "models" / model.label
    if not (folder / "tokenizer_config.json").is_file():
        if model.small is not None:
            return write_small_model(folder, model.small)
        write_model(model_configs([BUNDLED])[model.name], folder)
    return folder


def write_model(config: dict[str, Any], out: Path) -> Path:
    """Write a model folder with this config.json, and the small models' tokenizer with as many words as it needs."""
    write_small_model(out, "xs")
    (out / "config.json").write_text(json.dumps(config))
    changes: dict[str, Callable[[dict[str, Any]], None]] = {
        "tokenizer.json": lambda it: it["model"]["vocab"].update(
            {f"w{i}": i for i in range(VOCAB_SIZE, config["vocab_size"])}
        ),
        "tokenizer_config.json": lambda it: it.update(model_max_length=config["max_position_embeddings"]),
    }
    for name in sorted(changes):
        content = json.loads((out / name).read_text())
        changes[name](content)
        (out / name).write_text(json.dumps(content))
    return out
