"""How well an operator profile predicts whole steps that it was not made of, on this machine, in one command.

    scripts/install_engine.sh .venv-engine
    .venv/bin/python scripts/held_out_profile.py              # about 4 minutes, of which the profile is 3 at most

A small model is profiled with vLLM, and in the same engine, after every pass over the profile's grid, batches of other
shapes are measured once each: both then see the same disturbances, and whatever speed the machine drifts to. The
batches are drawn from a fixed seed: lengths and histories off the grid, several chunks in a step, decodes of unequal
history, and mixtures. Nothing is fitted on them. They are priced by the simulator's operator model, with the overhead
that the profile's own whole steps give, and compared by the median of their samples.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODEL = "servetwin/llama-s"
SEED = 20_261_121
N_PER_KIND = 12
MAX_TOKENS, MAX_REQUESTS, MAX_KV = 512, 32, 2048
"""As the profile's grid."""

Batch = list[list[int]]
"""(new_tokens, history) of each request; one new token is a decode."""


def one_chunk(rng: np.random.Generator) -> Batch:
    """A prefill chunk of any length behind any history, or none."""
    return [[length(rng, MAX_TOKENS), history(rng)]]


def several_chunks(rng: np.random.Generator) -> Batch:
    """Two to six prefill chunks that share the tokens of a step."""
    tokens = length(rng, MAX_TOKENS, least=64)
    cuts = np.sort(rng.choice(np.arange(8, tokens - 8), int(rng.integers(1, 6)), replace=False))
    sizes = np.diff([0, *cuts, tokens])
    return [[max(int(size), 2), history(rng)] for size in sizes]


def equal_decodes(rng: np.random.Generator) -> Batch:
    """Decodes of one history."""
    return [[1, int(rng.integers(16, MAX_KV))]] * int(rng.integers(1, MAX_REQUESTS + 1))


def unequal_decodes(rng: np.random.Generator) -> Batch:
    """Decodes of any histories, half of the time most of them short."""
    n = int(rng.integers(2, MAX_REQUESTS + 1))
    if rng.random() < 0.5:
        return [[1, int(value)] for value in rng.integers(16, MAX_KV, n)]
    return [[1, int(value)] for value in 16 + (MAX_KV - 16) * rng.random(n) ** 4]


def one_chunk_and_decodes(rng: np.random.Generator) -> Batch:
    """A prefill chunk beside decodes of any histories."""
    return [*one_chunk(rng), *unequal_decodes(rng)[: MAX_REQUESTS - 1]]


def several_chunks_and_decodes(rng: np.random.Generator) -> Batch:
    """Prefill chunks beside decodes of any histories."""
    chunks = several_chunks(rng)
    return [*chunks, *unequal_decodes(rng)[: MAX_REQUESTS - len(chunks)]]


KINDS: dict[str, Callable[[np.random.Generator], Batch]] = {
    "one chunk": one_chunk,
    "several chunks": several_chunks,
    "equal decodes": equal_decodes,
    "unequal decodes": unequal_decodes,
    "one chunk and decodes": one_chunk_and_decodes,
    "several chunks and decodes": several_chunks_and_decodes,
}


def length(rng: np.random.Generator, most: int, least: int = 2) -> int:
    """Tokens of a chunk: as many short ones as long ones, by doublings."""
    return round(float(np.exp(rng.uniform(np.log(least), np.log(most)))))


def history(rng: np.random.Generator) -> int:
    """None half of the time."""
    return 0 if rng.random() < 0.5 else int(rng.integers(1, MAX_KV))


def held_out() -> list[tuple[str, Batch]]:
    """The batches, always the same."""
    rng = np.random.default_rng(SEED)
    return [(kind, make(rng)) for kind, make in KINDS.items() for _ in range(N_PER_KIND)]


def measure(work: Path, budget_s: float) -> None:
    """Inside the engine's environment: the profile, and the batches between its passes."""
    from collectors.journal import say
    from collectors.local.small_model import write_small_model
    from collectors.operators import measure as operators
    from collectors.operators.options import Options
    from collectors.operators.samples import Samples

    options = Options(
        model=write_small_model(work / "model", "s"),
        model_name=MODEL,
        out=work / "profile",
        budget_s=budget_s,
        max_tokens=MAX_TOKENS,
        max_requests=MAX_REQUESTS,
        max_kv=MAX_KV,
    )
    batches = held_out()
    samples = [Samples() for _ in batches]
    spent_s = 0.0

    def measure_held_out(engine: operators.Engine) -> None:
        nonlocal spent_s
        begun_s = time.perf_counter()
        for (_, batch), own in zip(batches, samples, strict=True):
            own.add(engine.time_batch(batch, warm_ups=0 if own.step_us else 1))
        spent_s += time.perf_counter() - begun_s

    begun_s = time.perf_counter()
    operators.measure_profile(options, between=measure_held_out)
    profile_s = time.perf_counter() - begun_s - spent_s
    say(f"the profile took {profile_s:.0f} s with the engine's start; held-out batches took {spent_s:.0f} s beside it")
    found = {"batches": batches, "samples": [asdict(own) for own in samples], "profile_s": profile_s}
    (work / "held_out.json").write_text(json.dumps(found))


def compare(work: Path) -> tuple[dict[str, list[float]], float]:
    """Signed relative errors by kind of batch, and the seconds that the profile took."""
    from profiles.model import model_of
    from profiles.profile_folder import read_profile
    from simulator.scheduling.options import EngineOptions
    from simulator.scheduling.plan import plan_of
    from simulator.steps.operator_model import OperatorModel
    from simulator.steps.profile_overhead import profile_overhead

    profile = read_profile(work / "profile")
    assert profile.meta.model_config is not None
    num_layers = model_of(profile.meta.model_config, MODEL).num_layers
    options = EngineOptions(
        max_num_seqs=MAX_REQUESTS, max_num_batched_tokens=MAX_TOKENS + MAX_REQUESTS, enforce_eager=True
    )
    model = OperatorModel(profile, options, num_layers=num_layers, overhead=profile_overhead(profile, num_layers))
    found = json.loads((work / "held_out.json").read_text())
    errors: dict[str, list[float]] = {}
    for (kind, batch), samples in zip(found["batches"], found["samples"], strict=True):
        new_tokens, computed_tokens = np.array(batch, dtype=np.int64).T
        plan = plan_of(
            [None] * len(batch),  # type: ignore[list-item]  # only how many they are
            new_tokens,
            computed_tokens,
            first_step=0,
            repeat=1,
            n_preempted=0,
            n_running=0,
            n_waiting=0,
            kv_blocks=0,
        )
        cost = model.price(plan)
        measured_s = float(np.median(samples["step_us"])) * 1e-6
        errors.setdefault(kind, []).append(float(cost.device_s[0] + cost.host_s[0]) / measured_s - 1)
    return errors, found["profile_s"]


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-s", type=float, default=110.0, help="seconds for the profile's passes")
    parser.add_argument("--engine-python", type=Path, default=ROOT / ".venv-engine" / "bin" / "python")
    parser.add_argument("--keep", type=Path, help="folder for the profile and what was measured; default: none is kept")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside is not None:
        measure(chosen.inside, chosen.budget_s)
        return
    if not chosen.engine_python.exists():
        sys.exit(f"no engine at {chosen.engine_python}; run scripts/install_engine.sh first")
    with tempfile.TemporaryDirectory() as folder:
        work = chosen.keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        inside = ["--inside", str(work), "--budget-s", str(chosen.budget_s)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        command = [str(chosen.engine_python), __file__, *inside]
        with (work / "engine.log").open("w") as log:
            subprocess.run(command, check=True, env=environment, stdout=log)
        errors, profile_s = compare(work)
    print_errors(errors, profile_s)


def print_errors(errors: dict[str, list[float]], profile_s: float) -> None:
    """The table."""
    everything = [error for own in errors.values() for error in own]
    print(f"{'held-out batches':<28}{'n':>4}{'median |error|':>17}{'p90 |error|':>14}{'median error':>15}")
    for kind, own in [*errors.items(), ("all", everything)]:
        size = np.abs(own)
        cells = f"{np.median(size):>17.1%}{np.quantile(size, 0.9):>14.1%}{np.median(own):>+15.1%}"
        print(f"{kind:<28}{len(own):>4}{cells}")
    print(f"the profile took {profile_s:.0f} s, the engine's start included")


if __name__ == "__main__":
    main()
