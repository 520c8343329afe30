"""Print what planning a step costs: vLLM's own scheduler and ours, in one process, on the same decode steps.

    PYTHONPATH=. .venv-engine/bin/python tests/benchmarks/scheduler_speed.py

Runs in the engine's environment (scripts/install_engine.sh). A step is `schedule` and `finish`; the best of five runs
counts. With fast-forward our scheduler plans all steps up to the next change at once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, the packages are not on the path
from harness.console import console, table
from simulator.options import EngineOptions
from simulator.scheduling import RequestScheduler, SchedulerKind, new_scheduler
from traces.trace import TraceRow

RUNNING = (16, 64, 128, 256)
PROMPT_TOKENS, OUTPUT_TOKENS = 200, 3000
WARM_UP_STEPS, STEPS, RUNS = 20, 200, 5


def filled(kind: SchedulerKind, n_running: int, *, async_scheduling: bool) -> RequestScheduler:
    """A scheduler with so many requests that all decode, and blocks and tokens for all of them."""
    options = EngineOptions(
        max_num_seqs=n_running, max_num_batched_tokens=n_running * PROMPT_TOKENS, async_scheduling=async_scheduling
    )
    scheduler = new_scheduler(kind, options, num_gpu_blocks=n_running * 210, max_model_len=4096)
    for i in range(n_running):
        row = TraceRow(
            request_id=str(i), arrival_s=0.0, prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS + 16 * i
        )
        scheduler.add_request(row, i, (), 0.0)
    return scheduler


def run(scheduler: RequestScheduler, under_way: list[int], n_steps: int, *, depth: int, fast_forward: bool) -> int:
    """Plan and finish at least so many steps. Returns how many they were."""
    done = 0
    while done < n_steps:
        plan = scheduler.schedule(0.0)
        assert plan is not None
        times = plan.repeat if fast_forward else 1
        scheduler.repeat(plan, times)
        under_way.append(plan.first_step + times - 1)
        if len(under_way) == depth:
            scheduler.finish(under_way.pop(0), 0.0)
        done += times
    return done


def step_us(
    kind: SchedulerKind, n_running: int, *, async_scheduling: bool = False, fast_forward: bool = False
) -> float:
    """Microseconds a step, the best of a few runs."""
    best = float("inf")
    scheduler, under_way = filled(kind, n_running, async_scheduling=async_scheduling), []
    depth = 1 + async_scheduling
    run(scheduler, under_way, WARM_UP_STEPS, depth=depth, fast_forward=False)
    for _ in range(RUNS):
        begun = time.perf_counter()
        n_steps = run(scheduler, under_way, STEPS, depth=depth, fast_forward=fast_forward)
        best = min(best, (time.perf_counter() - begun) / n_steps * 1e6)
    return best


def main() -> None:
    """Print the table."""
    import vllm

    rows = []
    for async_scheduling in (False, True):
        for n_running in RUNNING:
            theirs = step_us("vllm", n_running, async_scheduling=async_scheduling)
            ours = step_us("native", n_running, async_scheduling=async_scheduling)
            swept = step_us("native", n_running, async_scheduling=async_scheduling, fast_forward=True)
            name = "asynchronous" if async_scheduling else "synchronous"
            times = (f"{theirs:.0f}", f"{ours:.1f}", f"{theirs / ours:.0f}", f"{swept:.2f}", f"{theirs / swept:.0f}")
            rows.append((name, str(n_running), *times))
    columns = ["scheduling", "running", f"vLLM {vllm.__version__}, us a step", "ours", "times faster"]
    columns += ["ours, fast-forward", "times faster"]
    console().print(table("Planning one step", columns, rows))


if __name__ == "__main__":
    main()
