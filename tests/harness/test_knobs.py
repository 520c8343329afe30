"""Every option does something: changing it moves the result the way it should, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from harness.demo import BUNDLED
from harness.running.simulate import simulate_scenario
from simulator.scheduling.options import EngineOptions
from traces.capture import Capture
from traces.errors import InputError
from traces.outcome import Status

BASE = {
    "max_num_seqs": "32",
    "max_num_batched_tokens": "512",
    "max_model_len": "2048",
    "block_size": "32",
    "num_gpu_blocks": "110",
    "async_scheduling": "false",
    "enforce_eager": "true",
}
"""Too few KV blocks for the load, so that requests wait and are preempted."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a knob can move."""

    capture: Capture

    @property
    def ttft_s(self) -> float:
        return float(np.mean([(o.first_token_s or 0) - o.arrival_s for o in self.finished]))

    @property
    def preemptions(self) -> int:
        return sum(o.num_preemptions or 0 for o in self.capture.outcomes)

    @property
    def cached_tokens(self) -> int:
        return sum(o.cached_tokens or 0 for o in self.capture.outcomes)

    @property
    def finished(self) -> list:  # type: ignore[type-arg]
        return [o for o in self.capture.outcomes if o.status is Status.FINISHED]

    @property
    def step_s(self) -> float:
        assert self.capture.steps is not None
        return float(self.capture.steps.duration_s().mean())

    @property
    def largest_prefill(self) -> int:
        assert self.capture.steps is not None
        return int(self.capture.steps.n_prefill_tokens.max())


def run(folder: Path, load: str = "saturated", instance: object = None, **changes: object) -> Run:
    """The bundled load on one engine, with these options changed."""
    text = "\n".join(f"  {name}: {value}" for name, value in {**BASE, **changes}.items())
    trace = BUNDLED / "captures" / f"{load}-1" / "trace.jsonl.gz"
    served = msgspec.json.encode(instance or {"model": "servetwin/llama-s", "device": "AMD-EPYC-2vCPU"}).decode()
    (folder / "scenario.yaml").write_text(f"trace: {trace}\ncluster: {{instances: [{served}]}}\nengine:\n{text}\n")
    simulation, _ = simulate_scenario(folder / "scenario.yaml")
    return Run(simulation.capture)


def chunked(run: Run) -> int:
    """Steps that used their token budget to the last, as only a part of a prompt fits exactly."""
    assert run.capture.steps is not None
    tokens = run.capture.steps.n_prefill_tokens + run.capture.steps.n_decode_tokens
    return int((tokens == 512).sum())


Moves = Callable[[Run, Run], bool]
KNOBS: dict[str, tuple[str, dict[str, str], Moves]] = {
    "max_num_seqs": ("4", {}, lambda before, after: after.ttft_s > before.ttft_s),
    "max_num_active_seqs": ("4", {}, lambda before, after: after.ttft_s > before.ttft_s),
    "max_num_batched_tokens": ("64", {}, lambda before, after: after.largest_prefill <= 64 < before.largest_prefill),
    "max_model_len": ("200", {}, lambda before, after: len(after.finished) < len(before.finished)),
    "block_size": ("64", {}, lambda before, after: after.preemptions < before.preemptions),
    "num_gpu_blocks": ("90", {}, lambda before, after: after.ttft_s > before.ttft_s),
    "enable_chunked_prefill": (
        "false",
        {"max_model_len": "512", "num_gpu_blocks": "500"},
        lambda before, after: 0 < chunked(after) < chunked(before),
    ),
    "long_prefill_token_threshold": ("32", {}, lambda before, after: after.ttft_s > before.ttft_s),
    "long_prefill_token_threshold_adaptive": (
        "true",
        {"long_prefill_token_threshold": "32"},
        lambda before, after: after.ttft_s < before.ttft_s,
    ),
    "scheduler_reserve_full_isl": (
        "false",
        {"max_num_batched_tokens": "64"},
        lambda before, after: after.preemptions > before.preemptions,
    ),
    "watermark": ("0.3", {}, lambda before, after: after.preemptions < before.preemptions),
    "async_scheduling": ("true", {}, lambda before, after: after.ttft_s != before.ttft_s),
    "enforce_eager": (
        "false",
        {"cudagraph_capture_sizes": "[64]"},
        lambda before, after: after.step_s > before.step_s,
    ),
    "cudagraph_capture_sizes": (
        "[64]",
        {"enforce_eager": "false"},
        lambda before, after: after.step_s > before.step_s,
    ),
}
"""By option: another value, other options that it needs, and how the result must move."""

ELSEWHERE = {
    "enable_prefix_caching": "test_without_prefix_caching_nothing_is_cached",
    "scheduling_policy": "test_priorities_count_under_their_policy_alone",
    "gpu_memory_utilization": "test_less_memory_is_fewer_blocks",
    "kv_cache_memory_bytes": "test_less_memory_is_fewer_blocks",
    "dtype": "test_types_without_a_profile_are_refused",
    "kv_cache_dtype": "test_types_without_a_profile_are_refused",
    "cpu_offload_gb": "test_weights_in_the_hosts_memory_take_their_time",
    "offload_group_size": "test_weights_in_the_hosts_memory_take_their_time",
    "offload_num_in_group": "test_weights_in_the_hosts_memory_take_their_time",
    "offload_prefetch_step": "test_weights_in_the_hosts_memory_take_their_time",
    "speculative_config": "test_drafted_tokens_need_fewer_steps",
}


def test_no_option_is_forgotten() -> None:
    options = {field.name for field in msgspec.structs.fields(EngineOptions)}
    assert options == KNOBS.keys() | ELSEWHERE.keys()
    assert set(ELSEWHERE.values()) <= globals().keys()


@pytest.mark.parametrize("name", KNOBS)
def test_an_option_moves_the_result(tmp_path: Path, name: str) -> None:
    value, needed, moves = KNOBS[name]
    before, after = run(tmp_path, **needed), run(tmp_path, **needed, **{name: value})
    assert moves(before, after), (before.ttft_s, after.ttft_s, before.preemptions, after.preemptions)


def test_without_prefix_caching_nothing_is_cached(tmp_path: Path) -> None:
    before = run(tmp_path, "prefix", num_gpu_blocks="500")
    after = run(tmp_path, "prefix", num_gpu_blocks="500", enable_prefix_caching="false")
    assert before.cached_tokens > 0 == after.cached_tokens
    assert after.ttft_s > before.ttft_s


def test_priorities_count_under_their_policy_alone(tmp_path: Path) -> None:
    rows = [{"request_id": str(i), "arrival_s": 0.0, "prompt_tokens": 100, "output_tokens": 20} for i in range(8)]
    rows[7]["priority"] = -1
    lines = [{"schema": "servetwin.trace/1"}, *rows]
    (tmp_path / "trace.jsonl").write_bytes(b"\n".join(msgspec.json.encode(line) for line in lines) + b"\n")
    first = {}
    for policy in ("fcfs", "priority"):
        text = (
            f"trace: trace.jsonl\ncluster: {{instances: [{{model: servetwin/llama-s, device: AMD-EPYC-2vCPU}}]}}\n"
            f"engine: {{max_num_seqs: 2, max_num_batched_tokens: 512, max_model_len: 2048, block_size: 32, "
            f"num_gpu_blocks: 100, scheduling_policy: {policy}}}\n"
        )
        (tmp_path / "scenario.yaml").write_text(text)
        simulation, _ = simulate_scenario(tmp_path / "scenario.yaml")
        outcomes = simulation.capture.outcomes
        first[policy] = min(outcomes, key=lambda o: (o.scheduled_s or 0, -int(o.request_id == "7"))).request_id
    assert first == {"fcfs": "0", "priority": "7"}


def test_less_memory_is_fewer_blocks(tmp_path: Path) -> None:
    text = (BUNDLED.parents[1] / "docs" / "examples" / "llmservingsim.json").read_text()
    blocks = {}
    for share in ("0.5", "0.25", "stated"):
        stated = ", kv_cache_memory_bytes: 100000000" if share == "stated" else ""
        mem_util = "0.5" if stated else share
        (tmp_path / "cluster.json").write_text(text.replace('"mem_util": 0.5', f'"mem_util": {mem_util}'))
        trace = BUNDLED / "captures" / "light-1" / "trace.jsonl.gz"
        limits = "max_num_seqs: 32, max_num_batched_tokens: 512, max_model_len: 2048, block_size: 32"
        engine = f"{{{limits}{stated}}}"
        (tmp_path / "scenario.yaml").write_text(f"trace: {trace}\ncluster: cluster.json\nengine: {engine}\n")
        simulation, _ = simulate_scenario(tmp_path / "scenario.yaml")
        notes = [note for note in simulation.capture.meta.notes if " KV blocks " in note]
        blocks[share] = int(notes[0].split()[0])
    assert blocks["stated"] < blocks["0.25"] < blocks["0.5"]


def test_weights_in_the_hosts_memory_take_their_time(tmp_path: Path) -> None:
    instance = {"model": "servetwin/llama-s", "device": "AMD-EPYC-2vCPU"}
    link = {"bandwidth_bytes_per_s": 2e9, "latency_s": 1e-5}

    def ttft_s(**options: float) -> float:
        return run(tmp_path, instance={**instance, **({"host_link": link} if options else {})}, **options).ttft_s

    grouped = ttft_s(offload_group_size=4)
    assert ttft_s() < ttft_s(cpu_offload_gb=0.01) < ttft_s(cpu_offload_gb=0.02)
    assert ttft_s() < grouped < ttft_s(offload_group_size=4, offload_num_in_group=4)
    two = ttft_s(offload_group_size=4, offload_num_in_group=4, offload_prefetch_step=2)
    assert two < ttft_s(offload_group_size=4, offload_num_in_group=4)


def test_drafted_tokens_need_fewer_steps(tmp_path: Path) -> None:
    drafter = "{method: eagle3, num_speculative_tokens: 1, acceptance_rates: [0.9], draft_s: 0.001}"
    before, after = run(tmp_path, "light"), run(tmp_path, "light", speculative_config=drafter)
    assert before.capture.steps is not None
    assert after.capture.steps is not None
    assert len(after.capture.steps) < 0.7 * len(before.capture.steps)


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"kv_cache_dtype": "fp8"}])
def test_types_without_a_profile_are_refused(tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(InputError, match="no profile of AMD-EPYC-2vCPU / servetwin/llama-s"):
        run(tmp_path, **change)
