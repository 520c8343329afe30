"""Random scenarios through vLLM's own scheduler and through ours, step by step. Runs in the engine's environment:

    PYTHONPATH=. .venv-engine/bin/python -m tests.conformance.compare FIRST_SEED LAST_SEED

prints one JSON line: scenarios, steps, preemptions, prefix-hit tokens, and the first mismatches.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from collectors.small_model import write_small_model
from simulator.kv_cache import BlockHash
from simulator.options import EngineOptions
from simulator.oracle import Oracle
from simulator.scheduler import Scheduler
from traces.trace import TraceRow

MAX_MODEL_LEN = 4096
MOST_MISMATCHES = 3


class Scenario:
    """A few requests with shared prefixes, arriving at step numbers, and an engine too small for them."""

    def __init__(self, seed: int, *, async_scheduling: bool) -> None:
        rng = np.random.default_rng(seed)
        size = int(rng.choice([16, 32]))
        self.rows: list[tuple[int, TraceRow, tuple[BlockHash, ...]]] = []
        step = 0
        for i in range(int(rng.integers(1, 25))):
            step += int(rng.integers(0, 6)) if rng.random() < 0.6 else 0
            prompt, output = int(rng.integers(1, 240)), int(rng.integers(1, 120))
            group, shared = int(rng.integers(1, 5)), int(rng.integers(0, prompt // size + 1))
            known = int(rng.integers(0, (prompt + output) // size + 1))
            hashes = tuple(1000 * group + j if j < shared else 10**6 * (i + 1) + j for j in range(known))
            row = TraceRow(request_id=str(i), arrival_s=step, prompt_tokens=prompt, output_tokens=output)
            self.rows.append((step, row, hashes))
        seats = int(rng.integers(1, 12))
        self.options = EngineOptions(
            max_num_seqs=seats,
            max_num_batched_tokens=max(int(rng.integers(16, 160)), seats),
            block_size=size,
            long_prefill_token_threshold=int(rng.choice([0, 10, 40])),
            scheduler_reserve_full_isl=bool(rng.random() < 0.7),
            enable_prefix_caching=bool(rng.random() < 0.7),
            async_scheduling=async_scheduling,
        )
        self.num_gpu_blocks = -(-360 // size) + 2 + int(rng.integers(0, 38))


def compare(scenario: Scenario, model: Path, counts: Counter[str]) -> str | None:
    """Run a scenario through both. Returns what differs first, None when nothing does."""
    sizes = {"num_gpu_blocks": scenario.num_gpu_blocks, "max_model_len": MAX_MODEL_LEN}
    oracle, ours = Oracle(model, scenario.options, **sizes), Scheduler(scenario.options, **sizes)
    depth = 2 if scenario.options.async_scheduling else 1
    in_flight: list[int] = []
    arrived = 0
    for step in range(100_000):
        while arrived < len(scenario.rows) and scenario.rows[arrived][0] <= step:
            _, row, hashes = scenario.rows[arrived]
            oracle.add_request(row, arrived, hashes)
            ours.add_request(row, arrived, hashes, float(step))
            arrived += 1
        theirs, plan = oracle.schedule(), ours.schedule(float(step))
        planned = []
        if plan is not None:
            batch = zip(plan.requests, plan.new_tokens.tolist(), plan.computed_tokens.tolist(), strict=True)
            planned = [(request.row.request_id, new, computed) for request, new, computed in batch]
            counts["preemptions"] += plan.n_preempted
        states = {
            "batch": (theirs, planned),
            "free blocks": (oracle.num_free_blocks, ours.kv_cache.num_free),
            "waiting": (oracle.waiting, [request.row.request_id for request in ours.waiting]),
            "running": (oracle.running, [request.row.request_id for request in ours.running]),
        }
        for name, (expected, found) in states.items():
            if expected != found:
                return f"step {step}: {name}: vLLM {expected}, ours {found}"
        counts["steps"] += bool(planned)
        if plan is not None:
            in_flight.append(plan.first_step)
            if len(in_flight) < depth:
                continue
        if in_flight:
            oracle.finish()
            done = ours.finish(in_flight.pop(0), float(step))
            counts["hit_tokens"] += sum(request.cached_tokens or 0 for request in done)
        elif arrived == len(scenario.rows):
            return None if not oracle.waiting else f"step {step}: stuck with {oracle.waiting} waiting"
    return "did not end"


def main() -> None:
    """Compare the seeds that the command line names, each with synchronous and asynchronous scheduling."""
    first, last = int(sys.argv[1]), int(sys.argv[2])
    counts: Counter[str] = Counter()
    mismatches = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_small_model(Path(folder), "xs")
        for seed in range(first, last):
            for async_scheduling in (False, True):
                counts["scenarios"] += 1
                difference = compare(Scenario(seed, async_scheduling=async_scheduling), model, counts)
                if difference is not None:
                    mismatches.append(f"seed {seed}, async_scheduling {async_scheduling}: {difference}")
    print(json.dumps({**counts, "n_mismatches": len(mismatches), "mismatches": mismatches[:MOST_MISMATCHES]}))


if __name__ == "__main__":
    main()
