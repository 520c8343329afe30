"""Print how the cost of a simulation grows with the trace, and what Mooncake's conversation trace takes.

    .venv/bin/python tests/benchmarks/scale.py [N]...        sizes; 1000 10000 100000 unless told, 1000000 takes minutes

Requests of the shape of Azure's conversation trace (its lengths, drawn again; Poisson arrivals, two a second for each
instance) over 64 instances, streamed from a file to a capture's outcomes.parquet, each size in a process of its own;
and the first size once more behind routers that look at the instances. Mooncake's trace over 8 instances of a 32B model
at TP2, prefix hashes on. The public traces are read where the ground truth is; without them the lengths are lognormal.

Step times are a closed form and no measurement: what is timed here is the simulator. Seconds are of one processor
(`time.process_time`), so that whoever else works on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, `tests` is not on the path
from harness.terminal.console import console, table
from simulator.cluster import Cluster
from simulator.engine import Engine
from simulator.scheduling.options import EngineOptions
from simulator.simulate import simulate
from simulator.stream import Stream
from tests.engines import LinearStepTime
from tests.measured import GROUND_TRUTH
from traces.capture import OutcomeWriter
from traces.formats import TraceStream, read_any_trace
from traces.trace import TraceRow

INSTANCES = 64
PER_INSTANCE_PER_S = 2.0
LOOKING = ("least_loaded", "power_of_two", "prefix_aware", "vllm_dp")
"""Routers that look at what instances are doing."""
AZURE = GROUND_TRUTH / "traces" / "AzureLLMInferenceTrace_conv.csv"
MOONCAKE = GROUND_TRUTH / "traces" / "mooncake_conversation_trace.jsonl"


def azure_shape(n_requests: int, file: Path) -> None:
    """Write a trace of Azure's format: its conversation lengths drawn again, Poisson arrivals."""
    rng = np.random.default_rng(0)
    if AZURE.is_file():
        rows = read_any_trace(AZURE).rows
        drawn = rng.integers(len(rows), size=n_requests)
        lengths = [(rows[i].prompt_tokens, rows[i].output_tokens) for i in drawn.tolist()]
    else:
        prompts = np.clip(rng.lognormal(6.6, 1.0, n_requests), 1, 14_000).astype(int)
        outputs = np.clip(rng.lognormal(5.0, 0.8, n_requests), 1, 1000).astype(int)
        lengths = list(zip(prompts.tolist(), outputs.tolist(), strict=True))
    arrivals_s = np.cumsum(rng.exponential(1 / (PER_INSTANCE_PER_S * INSTANCES), n_requests)).tolist()
    begun = datetime(2023, 11, 16)
    with file.open("w") as out:
        out.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for arrival_s, (prompt, output) in zip(arrivals_s, lengths, strict=True):
            out.write(f"{begun + timedelta(seconds=arrival_s):%Y-%m-%d %H:%M:%S.%f},{prompt},{output}\n")


def engine(*, num_gpu_blocks: int, max_num_batched_tokens: int) -> Engine:
    """An engine whose steps take 12 ms and so much a token, as large models at TP2 do on large GPUs."""
    options = EngineOptions(
        max_num_seqs=256, max_num_batched_tokens=max_num_batched_tokens, async_scheduling=True, block_size=16
    )
    step_time = LinearStepTime(0.012, 8e-5, 4e-8, 5e-4)
    return Engine("model", "device", options, num_gpu_blocks, 131_072, step_time)


def streamed(n_requests: int, routing: str) -> dict[str, Any]:
    """Stream a trace of so many requests to a file of outcomes."""
    cluster = Cluster((engine(num_gpu_blocks=17_500, max_num_batched_tokens=8192),) * INSTANCES, routing=routing)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.csv"
        azure_shape(n_requests, file)
        begun_s = time.process_time()
        read = TraceStream(file)
        stream = Stream(read.trace(), cluster)
        spent_s = {"load": 0.0, "write": 0.0}
        with OutcomeWriter(Path(folder) / "outcomes.parquet") as outcomes:
            for piece in stream.serve(_timed(iter(read), spent_s)):
                write_s = time.process_time()
                outcomes.add(piece)
                spent_s["write"] += time.process_time() - write_s
        total_s = time.process_time() - begun_s
        n_bytes = (Path(folder) / "outcomes.parquet").stat().st_size
    simulate_s = total_s - sum(spent_s.values())
    return {
        "requests": n_requests,
        "steps": stream.n_steps,
        "events": stream.n_sweeps,
        **{f"{stage}_s": seconds for stage, seconds in spent_s.items()},
        "simulate_s": simulate_s,
        "total_s": total_s,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "file_bytes": n_bytes,
        "most_in_flight": stream.most_in_flight,
    }


def _timed(rows: Iterator[TraceRow], spent_s: dict[str, float]) -> Iterator[TraceRow]:
    """The rows; the time that reading them takes is added to `spent_s`."""
    while True:
        begun_s = time.process_time()
        row = next(rows, None)
        spent_s["load"] += time.process_time() - begun_s
        if row is None:
            return
        yield row


def mooncake(routing: str) -> dict[str, Any]:
    """Mooncake's conversation trace over 8 instances of 280,000 tokens of KV each."""
    begun_s = time.process_time()
    trace = read_any_trace(MOONCAKE)
    loaded_s = time.process_time()
    cluster = Cluster((engine(num_gpu_blocks=17_500, max_num_batched_tokens=8192),) * 8, routing=routing)
    run = simulate(trace, cluster)
    simulated_s = time.process_time()
    cached = sum(outcome.cached_tokens or 0 for outcome in run.capture.outcomes)
    return {
        "requests": len(trace),
        "steps": run.n_steps,
        "events": run.n_sweeps,
        "load_s": loaded_s - begun_s,
        "simulate_s": simulated_s - loaded_s,
        "total_s": time.process_time() - begun_s,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "hit_rate": cached / sum(row.prompt_tokens for row in trace.rows),
    }


def _in_a_process(*words: str) -> dict[str, Any]:
    """Run one measurement in a process of its own, whose peak memory is then its own too."""
    done = subprocess.run([sys.executable, __file__, "--one", *words], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _cells(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    stages = [f"{found[key]:.2f}" if key in found else "–" for key in ("load_s", "simulate_s", "write_s", "total_s")]
    each_us = 1e6 * found["total_s"] / found["requests"]
    memory = f"{found['peak_bytes'] / 2**20:.0f}"
    return (name, *(str(found[key]) for key in ("requests", "steps", "events")), *stages, f"{each_us:.0f}", memory)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[1000, 10_000, 100_000])
    parser.add_argument(
        "--one", nargs=2, metavar=("N", "ROUTING"), help="one measurement, as JSON; 0: Mooncake's trace"
    )
    given = parser.parse_args()
    if given.one:
        n_requests, routing = given.one
        print(json.dumps(streamed(int(n_requests), routing) if int(n_requests) else mooncake(routing)))
        return
    measured = [(n, "round_robin") for n in given.sizes] + [(given.sizes[0], name) for name in LOOKING]
    rows = [_cells(f"Azure shape, {INSTANCES} instances, {name}", _in_a_process(str(n), name)) for n, name in measured]
    if MOONCAKE.is_file():
        rows += [_cells(f"Mooncake, {name}", _in_a_process("0", name)) for name in ("round_robin", "prefix_aware")]
    else:
        sys.stderr.write(f"no {MOONCAKE}: Mooncake's trace is left out\n")
    columns = ["case", "requests", "steps", "sweeps", "load s", "simulate s", "write s", "total s", "µs each", "MiB"]
    console().print(table("Cost by size", columns, rows))


if __name__ == "__main__":
    main()
