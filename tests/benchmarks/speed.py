"""Print what a simulation costs: steps, sweeps and seconds by stage. Counts are asserted in tests, times are not.

.venv/bin/python tests/benchmarks/speed.py
"""

from __future__ import annotations

import time

import numpy as np

from harness.console import console, table
from harness.demo import LOADS, bundled_validation
from simulator.simulate import simulate
from tests.engines import LinearStepTime, engine, trace


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
    counts = (n_requests, run.n_steps, run.n_sweeps)
    return (f"synthetic {n_requests}", *map(str, counts), f"{took_s:.2f}", f"{took_s / n_requests * 1e3:.2f}")


def main() -> None:
    """Print the table."""
    rows = []
    for load in LOADS:
        result = bundled_validation(load)[0].result
        n, took_s = result["n_requests"], result["wall_s"]["simulate"]
        counts = (n, result["steps"], result["events"])
        rows.append((f"bundled {load}", *map(str, counts), f"{took_s:.2f}", f"{took_s / n * 1e3:.2f}"))
    rows += [synthetic(n) for n in (1000, 10_000)]
    columns = ["case", "requests", "steps", "sweeps", "simulate s", "ms per request"]
    console().print(table("Cost of a simulation", columns, rows))


if __name__ == "__main__":
    main()
