"""Print what a simulation costs: steps, sweeps and seconds by stage. Counts are asserted in tests, times are not.

    .venv/bin/python tests/benchmarks/speed.py

The bundled loads and synthetic ones, and the ground-truth run where it is present.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness.demo import LOADS, bundled_validation
from harness.scoring.validate import validate
from harness.terminal.console import console, table
from simulator.simulate import simulate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, `tests` is not on the path
from tests.engines import LinearStepTime, engine, trace
from tests.measured import GROUND_TRUTH, RUNS, measured_run


def synthetic(n_requests: int) -> tuple[str, ...]:
    """Poisson arrivals at 10 a second with lognormal lengths, on a model with a closed-form price."""
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(0.1, n_requests))
    prompts = np.clip(rng.lognormal(6.0, 1.0, n_requests), 1, 8000).astype(int)
    outputs = np.clip(rng.lognormal(5.0, 0.8, n_requests), 1, 2000).astype(int)
    made = trace(*zip(arrivals.tolist(), prompts.tolist(), outputs.tolist(), strict=True))
    chosen = engine(
        LinearStepTime(0.02), num_gpu_blocks=40_000, max_model_len=16_384, max_num_seqs=256, async_scheduling=True
    )
    begun = time.perf_counter()
    run = simulate(made, chosen)
    took_s = time.perf_counter() - begun
    return cells(f"synthetic {n_requests}", n_requests, run.n_steps, run.n_sweeps, {"simulate": took_s})


def validated(name: str, result: dict[str, Any]) -> tuple[str, ...]:
    """What a validation cost."""
    return cells(name, result["n_requests"], result["steps"], result["events"], result["wall_s"])


def cells(name: str, n_requests: int, n_steps: int, n_sweeps: int, wall_s: dict[str, float]) -> tuple[str, ...]:
    """A row; a stage that was not timed has none."""
    stages = [f"{wall_s[stage]:.2f}" if stage in wall_s else "–" for stage in ("load", "simulate", "total")]
    return (name, *map(str, (n_requests, n_steps, n_sweeps)), *stages, f"{n_requests / wall_s['simulate']:.0f}")


def main() -> None:
    """Print the table."""
    rows = [validated(f"bundled {load}", bundled_validation(load)[0].result) for load in LOADS]
    if not GROUND_TRUTH.is_dir():
        sys.stderr.write(f"no ground truth at {GROUND_TRUTH}: the GPU runs are left out\n")
    for name in RUNS if GROUND_TRUTH.is_dir() else ():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(validated(name, validate(*measured_run(name, Path(folder))).result))
    rows += [synthetic(n) for n in (1000, 10_000)]
    columns = ["case", "requests", "steps", "sweeps", "load s", "simulate s", "total s", "requests per s simulated"]
    console().print(table("Cost of a simulation", columns, rows))


if __name__ == "__main__":
    main()
