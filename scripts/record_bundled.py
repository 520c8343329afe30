"""Record the bundled data: a small model on a real vLLM on this machine's CPU, its operators, three loads each twice.

    scripts/install_engine.sh .venv-engine
    .venv/bin/python scripts/record_bundled.py                 # all, about 12 minutes
    .venv/bin/python scripts/record_bundled.py --only light-1  # one recording; `profile` is one too

The machine should do nothing else meanwhile. Loads are drawn from fixed seeds; both recordings of a load serve the
same requests at the same times, from a freshly started server.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collectors.client.load import Pacing
from collectors.client.request import Target
from collectors.engine import recorder_path
from collectors.host import cpu_name
from collectors.local.server import local_server
from collectors.local.small_model import VOCAB_SIZE, write_small_model
from collectors.recording.folder import About
from collectors.recording.replay import replay
from traces.capture import Capture
from traces.metrics import summary
from traces.trace import Trace, TraceRow

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "harness" / "bundled" / "captures"
PROFILES = ROOT / "profiles" / "bundled"
MODEL = "servetwin/llama-s"
BLOCK_SIZE = 32
WARM_UP = 12
KV_BYTES_PER_TOKEN = 8192  # model s: 2 * 8 layers * 4 KV heads * 64 * 2 bytes


@dataclass(frozen=True, slots=True)
class Load:
    """A workload and the size of the KV cache it meets."""

    make: Callable[[], list[TraceRow]]
    kv_tokens: int


def row(index: int, arrival_s: float, prompt: int, output: int, hashes: tuple[int, ...] = ()) -> TraceRow:
    """A request; prompts without a shared part get no hashes."""
    return TraceRow(
        request_id=str(index),
        arrival_s=round(float(arrival_s), 6),
        prompt_tokens=prompt,
        output_tokens=output,
        block_hashes=hashes or None,
    )


def light() -> list[TraceRow]:
    """Two requests a second: well below what the engine can do."""
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1 / 2.0, 90))
    lengths = zip(rng.integers(50, 400, 90), rng.integers(20, 120, 90), strict=True)
    return [row(i, t, int(p), int(o)) for i, (t, (p, o)) in enumerate(zip(arrivals, lengths, strict=True))]


def prefix() -> list[TraceRow]:
    """Three requests a second behind six system prompts; each user comes back with a longer conversation."""
    rng = np.random.default_rng(2)
    arrivals = np.cumsum(rng.exponential(1 / 3.0, 120))
    systems = [int(n) for n in rng.integers(4, 16, 6)]
    turns: dict[int, int] = {}
    rows = []
    for i, arrival_s in enumerate(arrivals):
        user = int(rng.integers(30))
        system, turn = user % len(systems), turns.get(user, 0)
        turns[user] = turn + 1
        shared = [1000 * (system + 1) + j for j in range(systems[system])]
        shared += [10**6 * (user + 1) + j for j in range(3 * (turn + 1))]
        prompt = len(shared) * BLOCK_SIZE + int(rng.integers(1, BLOCK_SIZE))
        rows.append(row(i, float(arrival_s), prompt, int(rng.integers(10, 60)), tuple(shared)))
    return rows


def saturated() -> list[TraceRow]:
    """Bursts that fill a KV cache of 8,192 tokens, so that requests wait and are preempted."""
    rng = np.random.default_rng(3)
    arrivals = np.sort(np.concatenate([5.0 * burst + rng.uniform(0, 1.0, 22) for burst in range(6)]))
    return [row(i, float(t), int(rng.integers(100, 500)), int(rng.integers(60, 260))) for i, t in enumerate(arrivals)]


LOADS = {"light": Load(light, 32768), "prefix": Load(prefix, 32768), "saturated": Load(saturated, 8192)}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that records its steps.

    Attributes:
        url: where it answers.
        steps: the file that its recorder writes.
    """

    url: str
    steps: Path


FLAGS = {
    "--load-format": "dummy",
    "--dtype": "bfloat16",
    "--enforce-eager": None,
    "--max-model-len": "4096",
    "--max-num-seqs": "32",
    "--max-num-batched-tokens": "512",
    "--block-size": str(BLOCK_SIZE),
}
"""Of every server; None: a flag without a value."""


@contextmanager
def recording_server(
    engine_python: Path, work: Path, name: str, kv_tokens: int, flags: Mapping[str, str | None] | None = None
) -> Iterator[Server]:
    """A server of the small model, with the step recorder as its scheduler; ends it afterwards.

    Args:
        engine_python: interpreter of the engine's environment.
        work: folder for the model, the server's log and its steps.
        name: of those.
        kv_tokens: that its KV cache is to hold.
        flags: over `FLAGS`.
    """
    model = write_small_model(work / "model", "s")
    recorded = work / f"{name}.jsonl"
    kv_bytes = str(kv_tokens * KV_BYTES_PER_TOKEN)
    given = {**FLAGS, "--kv-cache-memory-bytes": kv_bytes, **(flags or {})}
    given["--scheduler-cls"] = "recorder.RecordingScheduler"
    words = [word for flag, value in given.items() for word in (flag, value) if word is not None]
    environment = {"PYTHONPATH": str(recorder_path().parent), "SERVETWIN_STEPS": str(recorded)}
    with local_server(engine_python, model, work / f"{name}.log", flags=words, environment=environment) as url:
        yield Server(url, recorded)


def record_load(server: Server, trace: Trace, out: Path, what: str, seed: int = 0) -> Capture:
    """Send a load to a server, write the capture in place of an earlier one, and print its figures.

    Args:
        server: that records its steps.
        trace: the load.
        out: folder of the capture.
        what: that is recorded, for the capture's card.
        seed: of the prompts: another one shares no prefix with what the server has served.
    """
    about = About(
        model=MODEL,
        device=cpu_name(),
        recorded_at=datetime.date.today().isoformat(),
        steps=str(server.steps),
        notes=(f"{what}; random weights; server and client shared 2 vCPUs",),
    )
    shutil.rmtree(out, ignore_errors=True)
    target = Target(server.url, "model", vocab_size=VOCAB_SIZE, seed=seed)
    capture = replay(trace, target, Pacing(warm_up=WARM_UP), about, out)
    figures = summary(capture)
    print(out.name, capture.meta.reasons, capture.meta.notes[-1], flush=True)
    for key in ("ttft_s", "tpot_s", "e2el_s"):
        print("  ", key, {k: round(v, 4) for k, v in figures["metrics"][key].items() if v is not None})
    print("   preemptions", figures["num_preemptions"], "hit rate", figures["prefix_hit_rate"], flush=True)
    return capture


def record(name: str, engine_python: Path, work: Path) -> None:
    """Record one load, e.g. `light-1`, into the bundled captures."""
    load = LOADS[name.rsplit("-", 1)[0]]
    trace = Trace(tuple(load.make()), BLOCK_SIZE, f"scripts/record_bundled.py {name}", "sha256:none")
    with recording_server(engine_python, work, name, load.kv_tokens) as server:
        record_load(server, trace, OUT / name, f"load '{name}' of scripts/record_bundled.py")


def record_profile(engine_python: Path, work: Path, profiles: Path = PROFILES) -> None:
    """Record the operator profile of the same model into a folder of profiles."""
    model = write_small_model(work / "model", "s")
    out = profiles / cpu_name() / MODEL
    shutil.rmtree(out, ignore_errors=True)
    command = [engine_python, "-m", "collectors.operators", "--model", model, "--model-name", MODEL, "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    subprocess.run(command, check=True, env=environment)


def check_engine(python: Path) -> None:
    """End here where no engine is installed."""
    if not python.exists():
        sys.exit(f"no engine at {python}; run scripts/install_engine.sh first")


def main() -> None:
    """Record what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["profile", *(f"{load}-{repeat}" for repeat in (1, 2) for load in LOADS)]
    parser.add_argument("--only", choices=names, action="append", help="one recording; may be repeated; default: all")
    parser.add_argument("--engine-python", type=Path, default=ROOT / ".venv-engine" / "bin" / "python")
    chosen = parser.parse_args()
    check_engine(chosen.engine_python)
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.only or names:
            if name == "profile":
                record_profile(chosen.engine_python, Path(folder))
            else:
                record(name, chosen.engine_python, Path(folder))


if __name__ == "__main__":
    main()
