"""Memory and prefix hits that were measured by the second on an A6000, and the simulated run's at the same moments."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from scipy.stats import theilslopes

from harness.running.simulate import simulate_scenario
from harness.terminal.facts import import_profiles_to
from tests.measured import GROUND_TRUTH
from traces.capture import Capture
from traces.series import counted_at_s, gpu_memory_bytes, prefix_hit_rate
from traces.steps import Floats
from traces.windows import Grid


@dataclass(frozen=True)
class MemoryErrors:
    """How far the simulated run is from the measured one.

    Attributes:
        memory_mape: of the bytes that hold something.
        hit_rate: [n] error of the hit rate so far, in points, at each reading of the counters.
        final_hit_rate: in points, at the end.
    """

    memory_mape: float
    hit_rate: Floats
    final_hit_rate: float


@dataclass(frozen=True, slots=True)
class Moments(Grid):
    """Windows that end at given moments, of whatever width."""

    at_s: Floats

    def ends_s(self) -> Floats:
        """The moments."""
        return self.at_s


def memory_errors(work: Path) -> MemoryErrors:
    """Simulate the run as its description states it, and compare at the moments of its readings.

    The device's memory is the catalogue's: the run's own cluster file says 40 GB, which is not what the engine had.
    """
    case = GROUND_TRUTH / "ispass26"
    trace = case / "dataset" / "sharegpt_pulse_req50_n6_delay15_pc.jsonl"
    import_profiles_to(case / "perf", work / "profiles")
    scenario = work / "memory.yaml"
    scenario.write_text(
        f"trace: {trace}\ncluster: {{instances: [{{model: meta-llama/Llama-3.1-8B, device: A6000}}]}}\n"
        "profiles: [profiles]\nengine_version: '0.11'\n"
        "engine: {max_num_seqs: 128, max_num_batched_tokens: 2048, max_model_len: 2048, enforce_eager: true, "
        "async_scheduling: false, enable_prefix_caching: true}\n"
    )
    capture = simulate_scenario(scenario)[0].capture
    return _errors(capture, case / "memory")


def _errors(capture: Capture, folder: Path) -> MemoryErrors:
    with (folder / "kv_metrics_sd.csv").open() as file:
        rows = list(csv.DictReader(file))
    started = datetime.fromisoformat(rows[0]["timestamp"])
    read_s = np.array([(datetime.fromisoformat(row["timestamp"]) - started).total_seconds() for row in rows])
    queries = np.array([float(row["vllm:prefix_cache_queries_total"]) for row in rows])
    hits = np.array([float(row["vllm:prefix_cache_hits_total"]) for row in rows])
    asked = queries > 0
    at_s = read_s[asked] - _offsets_s(read_s, queries, capture)[asked]
    # The published table has the same readings, numbered from the first at which something was asked for.
    with (folder / "SD+PC.tsv").open() as file:
        mib = np.array([float(row["gpu_mem_mb"]) for row in csv.DictReader(file, delimiter="\t")])
    moments = Moments(0.0, 1.0, len(at_s), at_s)
    memory, rate = gpu_memory_bytes(capture, moments), prefix_hit_rate(capture, moments)
    assert memory is not None
    assert rate is not None
    assert len(rate.value) == len(at_s)
    ape = np.abs(memory.value[: len(mib)] / 2**20 - mib) / mib
    errors = 100 * (rate.value - hits[asked] / queries[asked])
    return MemoryErrors(float(ape.mean()), np.abs(errors), float(abs(errors[-1])))


def _offsets_s(read_s: Floats, queries: Floats, capture: Capture) -> Floats:
    """Second 0 of the trace on the readings' clock, [n] for each reading.

    The counter of tokens asked for is the sum of the first prompts, and so says whose admission it had seen. It moves
    when the step that admitted a request is over (`traces.series.prefix_hit_rate`): a reading that moved falls between
    two such moments of the simulated run. A client that waits from one request to the next, as vLLM's of then does, is
    later by a little with each of them: the offset is a line in the number of requests, through readings between which
    no pause of the load lies, by the median of their slopes (Theil and Sen).
    """
    outcomes = capture.outcomes
    counted_s = counted_at_s(capture, np.array([o.scheduled_s for o in outcomes], dtype=np.float64))
    order = np.argsort(counted_s, kind="stable")
    counted_s = counted_s[order]
    last = np.searchsorted(np.cumsum(np.array([o.prompt_tokens for o in outcomes])[order]), queries)
    moved = np.flatnonzero(np.diff(queries) > 0) + 1
    moved = moved[last[moved] + 1 < len(outcomes)]
    until_s = counted_s[last[moved] + 1]
    known = until_s - counted_s[last[moved]] < 1
    between = moved[known]
    middle_s = (counted_s[last[between]] + until_s[known]) / 2
    line = theilslopes(read_s[between] - middle_s, last[between])
    return np.asarray(line.intercept + line.slope * last, dtype=np.float64)
