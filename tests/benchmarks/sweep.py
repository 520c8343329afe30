"""Print what a study costs: one worker against two, and a study of which every point is known. Ratios are not asserted.

    .venv/bin/python tests/benchmarks/sweep.py

64 points of a synthetic load on the bundled profile, with one worker and with two in turns, and once more when all are
known. Where others use the machine too, the clock says more of them than of the study: CPU seconds of this process,
which plans and writes, and of the workers say what two free processors would make of it.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from harness.running.simulate import simulate_scenario
from harness.sweeps.sweep import sweep
from harness.terminal.console import console, table
from traces.synthesis import Lengths, poisson_trace
from traces.trace import write_trace

N_REQUESTS, TURNS = 300, 2

SCENARIO = """\
trace: requests.jsonl
cluster:
  routing: least_loaded
  instances: [{model: servetwin/llama-s, device: AMD-EPYC-2vCPU, count: 2}]
engine:
  {max_num_seqs: 8, max_num_batched_tokens: 512, max_model_len: 2048, block_size: 32, num_gpu_blocks: 500,
   async_scheduling: false, enforce_eager: true}
"""

STUDY = """\
scenario: scenario.yaml
grid:
  cluster.instances.0.count: [2, 3, 4, 5]
  engine.max_num_seqs: [4, 8, 16, 32]
  engine.max_num_batched_tokens: [128, 256, 512, 1024]
objectives: {output_tokens_per_s: max, ttft_s.p99: min}
"""


def timed(study: Path, out: Path, workers: int) -> tuple[float, float, float]:
    """Seconds that a study takes: by the clock, of this process, and of the processes that do its points."""
    begun, own_s, workers_s = time.perf_counter(), cpu_s(resource.RUSAGE_SELF), cpu_s(resource.RUSAGE_CHILDREN)
    sweep(study, out, workers=workers)
    took_s = time.perf_counter() - begun
    return took_s, cpu_s(resource.RUSAGE_SELF) - own_s, cpu_s(resource.RUSAGE_CHILDREN) - workers_s


def cpu_s(who: int) -> float:
    """Processor time so far."""
    use = resource.getrusage(who)
    return use.ru_utime + use.ru_stime


def main() -> None:
    """Print the table."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lengths = Lengths.parse("256", "prompt"), Lengths.parse("64", "output")
        write_trace(poisson_trace(N_REQUESTS, 4.0, *lengths, seed=0), folder / "requests.jsonl")
        (folder / "scenario.yaml").write_text(SCENARIO)
        (folder / "study.yaml").write_text(STUDY)
        simulate_scenario(folder / "scenario.yaml")  # whatever is imported late
        for turn in range(TURNS):
            one_s, own_s, workers_s = timed(folder / "study.yaml", folder / f"one-{turn}", 1)
            two_s, own_2_s, workers_2_s = timed(folder / "study.yaml", folder / f"two-{turn}", 2)
            known_s, _, _ = timed(folder / "study.yaml", folder / f"two-{turn}", 2)
            at_best = (own_s + workers_s) / (own_2_s + workers_2_s / 2)
            cells = (one_s, two_s, one_s / two_s, own_2_s, workers_2_s, at_best, known_s)
            rows.append((str(turn), *(f"{value:.2f}" for value in cells)))
            sys.stderr.write(f"turn {turn}: {one_s / two_s:.2f} times\n")
    columns = [
        "turn",
        "one worker s",
        "two workers s",
        "ratio",
        "own CPU s",
        "workers' CPU s",
        "ratio by CPU s",
        "known s",
    ]
    console().print(table(f"64 points of {N_REQUESTS} requests", columns, rows))


if __name__ == "__main__":
    main()
