"""Print what planning a step costs: vLLM's own scheduler and ours, in one process, on the same steps.

    PYTHONPATH=. .venv-engine/bin/python tests/benchmarks/scheduler_speed.py

Runs in the engine's environment (scripts/install_engine.sh). A step is counted from the call that plans it to the end
of the call that takes in its output; the best of five runs of 200 steps counts. Of vLLM only `schedule` and
`update_from_output` are counted; of ours everything, new requests and the loop around it included. Two kinds of step:

- decode: all requests compute one token, none comes or goes;
- turnover: the same, but in nearly every step one request ends, and another takes its seat and shares its prefix.

Fast-forward is apart: between two changes our scheduler can plan all decode steps at once, which vLLM's cannot.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, the packages are not on the path
from harness.terminal.console import console, table
from simulator.scheduling.choice import RequestScheduler
from simulator.scheduling.lockstep_scheduler import LockstepScheduler
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.oracle import ANY_TOKEN, Oracle
from simulator.scheduling.spec import SchedulerSpec
from traces.trace import TraceRow

RUNNING = (16, 64, 128, 256)
PROMPT_TOKENS, OUTPUT_TOKENS, MAX_MODEL_LEN = 200, 3000, 8192
BLOCK_SIZE, SHARED_BLOCKS, BLOCKS_EACH = 16, 4, 480
WARM_UP_STEPS, STEPS, RUNS = 20, 200, 5


@dataclass(slots=True)
class Load:
    """So many running requests, all alike or of turnover; `added` counts those that came."""

    n_running: int
    turnover: bool
    async_scheduling: bool
    added: int = 0

    @property
    def options(self) -> EngineOptions:
        """Seats and tokens for all of them."""
        return EngineOptions(
            max_num_seqs=self.n_running,
            max_num_batched_tokens=self.n_running * PROMPT_TOKENS,
            block_size=BLOCK_SIZE,
            async_scheduling=self.async_scheduling,
        )

    @property
    def num_gpu_blocks(self) -> int:
        """Enough for all of them, to their last token."""
        return self.n_running * BLOCKS_EACH

    def start(self, scheduler: RequestScheduler) -> None:
        """Queue those that run first; all decode after the first step."""
        for i in range(self.n_running):
            self._add(scheduler, i + 2 if self.turnover else OUTPUT_TOKENS + BLOCK_SIZE * i)

    def refill(self, scheduler: RequestScheduler) -> None:
        """With turnover, keep one request waiting for the next seat."""
        if self.turnover and not scheduler.waiting:
            self._add(scheduler, self.n_running)

    def _add(self, scheduler: RequestScheduler, output_tokens: int) -> None:
        i, self.added = self.added, self.added + 1
        row = TraceRow(request_id=str(i), arrival_s=0.0, prompt_tokens=PROMPT_TOKENS, output_tokens=output_tokens)
        n_hashes = PROMPT_TOKENS // BLOCK_SIZE if self.turnover else 0
        hashes = tuple(j if j < SHARED_BLOCKS else 1000 * (i + 1) + j for j in range(n_hashes))
        scheduler.add_request(row, i, hashes, 0.0)


def vllm_step_us(load: Load) -> float:
    """Microseconds that vLLM's `schedule` and `update_from_output` take a step; what drives them is not counted."""
    from vllm.v1.outputs import ModelRunnerOutput

    oracle = Oracle(SchedulerSpec(load.options, load.num_gpu_blocks, MAX_MODEL_LEN))
    load.start(oracle)
    scheduler, under_way = oracle.scheduler, []

    def run(n_steps: int) -> float:
        spent_s = 0.0
        for _ in range(n_steps):
            load.refill(oracle)
            begun = time.perf_counter()
            under_way.append(scheduler.schedule())
            spent_s += time.perf_counter() - begun
            if len(under_way) == 1 + load.async_scheduling:
                plan = under_way.pop(0)
                ids = list(plan.num_scheduled_tokens)
                order = {rid: i for i, rid in enumerate(ids)}
                output = ModelRunnerOutput(
                    req_ids=ids, req_id_to_index=order, sampled_token_ids=[[ANY_TOKEN] for _ in ids]
                )
                begun = time.perf_counter()
                scheduler.update_from_output(plan, output)
                spent_s += time.perf_counter() - begun
        return spent_s / n_steps

    run(WARM_UP_STEPS)
    return min(run(STEPS) for _ in range(RUNS)) * 1e6


def our_step_us(load: Load, *, fast_forward: bool = False) -> float:
    """Microseconds that our scheduler takes a step, with all that drives it."""
    scheduler = LockstepScheduler(SchedulerSpec(load.options, load.num_gpu_blocks, MAX_MODEL_LEN))
    load.start(scheduler)
    under_way: list[int] = []

    def run(n_steps: int, *, sweep: bool) -> float:
        begun = time.perf_counter()
        done = 0
        while done < n_steps:
            load.refill(scheduler)
            plan = scheduler.schedule(0.0)
            assert plan is not None
            times = plan.repeat if sweep else 1
            scheduler.repeat(plan, times)
            under_way.append(plan.first_step + times - 1)
            if len(under_way) == 1 + load.async_scheduling:
                scheduler.finish(under_way.pop(0), 0.0)
            done += times
        return (time.perf_counter() - begun) / done

    run(WARM_UP_STEPS, sweep=False)
    return min(run(STEPS, sweep=fast_forward) for _ in range(RUNS)) * 1e6


def main() -> None:
    """Print the two tables."""
    import vllm

    rows, swept = [], []
    for async_scheduling in (False, True):
        scheduling = "asynchronous" if async_scheduling else "synchronous"
        for n_running in RUNNING:
            for turnover in (False, True):
                theirs = vllm_step_us(Load(n_running, turnover, async_scheduling))
                ours = our_step_us(Load(n_running, turnover, async_scheduling))
                kind = "turnover" if turnover else "decode"
                rows.append((scheduling, str(n_running), kind, f"{theirs:.0f}", f"{ours:.1f}", f"{theirs / ours:.0f}"))
            sweep = our_step_us(Load(n_running, False, async_scheduling), fast_forward=True)
            swept.append((scheduling, str(n_running), f"{sweep:.2f}"))
    columns = ["scheduling", "running", "step", f"vLLM {vllm.__version__}, us", "ours, us", "times faster"]
    console().print(table("Planning one step at a time", columns, rows))
    console().print(table("Decode steps planned all at once", ["scheduling", "running", "ours, us a step"], swept))


if __name__ == "__main__":
    main()
