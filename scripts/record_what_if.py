"""Record what changes do to a real vLLM on this machine's CPU: a base load, and it again under each change, all twice.

    scripts/install_engine.sh .venv-engine
    .venv/bin/python scripts/record_what_if.py                                     # all, 23 minutes
    .venv/bin/python scripts/record_what_if.py --requests 40 --out x --only base   # a try
    .venv/bin/servetwin check out/what_if/suite.yaml                               # measured and predicted changes
    .venv/bin/python tests/benchmarks/what_if.py                                   # those of both recordings

The machine should do nothing else meanwhile, and be as fast in the end as in the beginning. Its operators come first.
All recordings serve the same requests. The second ones come in the opposite order, so that what drifts in the machine
is shared, and from servers that were started anew. Then the twin is calibrated on the second recording of the base, the
side before the changes that the suite, of scripts/what_if, holds the twin's predictions against.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from record_bundled import BLOCK_SIZE, ROOT, check_engine, record_load, record_profile, recording_server, row

from collectors.host import cpu_name
from harness.calibrate import calibrate, write_calibration
from traces.capture import Capture, write_capture
from traces.load import Load, loaded
from traces.trace import Trace, TraceRow

OUT = ROOT / "out" / "what_if"
DESCRIPTIONS = ROOT / "scripts" / "what_if"
DEVICE = "CPU-OF-MINE"
"""Stands in base.yaml for the machine that records."""
KV_TOKENS = 32768
N_REQUESTS = 90
RATE = 2.0
"""Requests a second: at twice that the engine is about full."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is not as in the base.

    Attributes:
        name: of its captures, which a number follows.
        speed: so many times the base's rate of arrivals.
        server: which server serves it, of `SERVERS`.
    """

    name: str
    speed: float = 1.0
    server: str = "base"


BASE_FLAGS = {"--max-model-len": "2048"}
"""Over those of all recordings: a cache of few blocks must hold one request of that length, or vLLM does not start."""

SERVERS: dict[str, Mapping[str, str | None]] = {
    "base": {},
    "seats-8": {"--max-num-seqs": "8"},
    "no-prefix-caching": {"--no-enable-prefix-caching": None},
    "budget-64": {"--max-num-batched-tokens": "64"},
    "blocks-72": {"--num-gpu-blocks-override": "72"},
}
"""Flags over those of the base. Of 72 blocks the load's peaks need half as many again: requests are preempted."""

CHANGES = (
    Change("base"),
    Change("speed-0.5", speed=0.5),
    Change("speed-1.5", speed=1.5),
    Change("speed-2", speed=2.0),
    *(Change(name, server=name) for name in SERVERS if name != "base"),
)
"""In the order of the first recordings; those of one server stand together."""


def base(n: int = N_REQUESTS, rate: float = RATE) -> Trace:
    """Requests at a rate a second behind six system prompts, which are over half of all prompt tokens."""
    rng = np.random.default_rng(11)
    arrivals = np.cumsum(rng.exponential(1 / rate, n))
    systems = [int(blocks) for blocks in rng.integers(4, 9, 6)]
    rows: list[TraceRow] = []
    for i, arrival_s in enumerate(arrivals - arrivals[0]):
        system = int(rng.integers(len(systems)))
        shared = tuple(1000 * (system + 1) + block for block in range(systems[system]))
        prompt = len(shared) * BLOCK_SIZE + int(rng.integers(40, 240))
        rows.append(row(i, float(arrival_s), prompt, int(rng.integers(30, 140)), shared))
    return Trace(tuple(rows), BLOCK_SIZE, "scripts/record_what_if.py", "sha256:none")


def record(changes: Sequence[Change], load: Trace, engine_python: Path, work: Path, out: Path) -> None:
    """Record every change of a load twice, the second time in the opposite order; a server for each run of one kind."""
    order = [(change, 1) for change in changes] + [(change, 2) for change in reversed(changes)]
    seeds = itertools.count(1)
    for start, (kind, some) in enumerate(itertools.groupby(order, lambda one: one[0].server)):
        flags = {**BASE_FLAGS, **SERVERS[kind]}
        with recording_server(engine_python, work, f"{start}-{kind}", KV_TOKENS, flags) as server:
            for change, number in some:
                trace = load if change.speed == 1 else loaded(load, Load(speed=change.speed), seed=0)
                folder = out / f"{change.name}-{number}"
                what = f"'{change.name}' of scripts/record_what_if.py, recording {number}"
                capture = record_load(server, trace, folder, what, seed=next(seeds))
                write_small(capture, folder, steps=change.name == "base")


def write_small(capture: Capture, folder: Path, *, steps: bool) -> None:
    """Write the same capture without when the client saw each token, and without its steps where nothing needs them."""
    outcomes = tuple(msgspec.structs.replace(one, client_token_times_s=None) for one in capture.outcomes)
    shutil.rmtree(folder)
    write_capture(replace(capture, outcomes=outcomes, steps=capture.steps if steps else None), folder)


def main() -> None:
    """Record, and calibrate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for all that is written")
    parser.add_argument("--requests", type=int, default=N_REQUESTS)
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second; less on a slow machine")
    names = [change.name for change in CHANGES]
    parser.add_argument("--only", choices=names, action="append", help="one of them; may be repeated; default: all")
    parser.add_argument("--engine-python", type=Path, default=ROOT / ".venv-engine" / "bin" / "python")
    chosen = parser.parse_args()
    check_engine(chosen.engine_python)
    changes = [change for change in CHANGES if chosen.only is None or change.name in chosen.only]
    describe(chosen.out)
    with tempfile.TemporaryDirectory() as folder:
        if not (chosen.out / "profiles").exists():
            record_profile(chosen.engine_python, Path(folder), chosen.out / "profiles")
        record(changes, base(chosen.requests, chosen.rate), chosen.engine_python, Path(folder), chosen.out / "captures")
    if CHANGES[0] in changes:
        fit(chosen.out)


def describe(out: Path) -> None:
    """Write the scenario, of this machine, and the suite."""
    out.mkdir(parents=True, exist_ok=True)
    for file in DESCRIPTIONS.iterdir():
        (out / file.name).write_text(file.read_text().replace(DEVICE, cpu_name()))


def fit(out: Path) -> None:
    """Calibrate the scenario on the second recording of the base, over an earlier file."""
    (out / "calibration.json").unlink(missing_ok=True)
    write_calibration(calibrate(out / "base.yaml", [out / "captures" / "base-2"]), out / "calibration.json")


if __name__ == "__main__":
    main()
