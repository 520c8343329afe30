"""Whole simulations with vLLM's own scheduler in place of ours: the same bytes must come out.

Runs where vllm is installed (tests/conformance/engine.py) and prints one JSON line: for each case whether outcomes and
steps are identical, how many steps there were, and the seconds of each.

    python -m tests.conformance.outcomes WORK_FOLDER [GROUND_TRUTH_FOLDER]
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from harness.demo import BUNDLED, LOADS
from harness.deploy.deployment import deploy
from harness.descriptions.scenario import Scenario, read_scenario
from harness.terminal.facts import import_profiles_to
from simulator.engine import Engine
from simulator.scheduling.step_replay import replay_steps
from simulator.simulate import Simulation, simulate
from tests.conformance.engine import ROOT
from traces.capture import Capture, CaptureMeta, read_capture
from traces.formats import import_capture, read_any_trace
from traces.steps import STEP_COLUMNS
from traces.trace import Trace

EXAMPLES = ROOT / "docs" / "examples"


def compared(trace: Trace, engine: Engine) -> dict[str, Any]:
    """A simulation with each scheduler, step by step with vLLM's and in sweeps with ours."""
    begun = time.perf_counter()
    native = simulate(trace, engine)
    halfway = time.perf_counter()
    vllm = simulate(trace, dataclasses.replace(engine, scheduler="vllm"), record_batches=True)
    ended = time.perf_counter()
    options = {**vllm.capture.meta.engine_options, "max_model_len": engine.max_model_len}
    meta = msgspec.structs.replace(vllm.capture.meta, engine_options=options)
    drafts = None if vllm.speculation is None else vllm.speculation.num_drafts
    # A capture does not say which drafts were accepted, so that its steps cannot be planned again.
    replay = replay_steps(dataclasses.replace(vllm.capture, meta=meta)) if drafts is None else None
    return {
        "identical": _bytes_of(native) == _bytes_of(vllm) and native.speculation == vllm.speculation,
        "steps": vllm.n_steps,
        "requests": len(vllm.capture.outcomes),
        "preemptions": sum(outcome.num_preemptions or 0 for outcome in vllm.capture.outcomes),
        "replayed": None if replay is None else replay.n_steps,
        "drafts": drafts,
        "native_s": round(halfway - begun, 3),
        "vllm_s": round(ended - halfway, 3),
    }


def _bytes_of(simulation: Simulation) -> bytes:
    """Outcomes and steps, to the last bit."""
    steps = simulation.capture.steps
    assert steps is not None
    columns = b"".join(getattr(steps, name).tobytes() for name in STEP_COLUMNS)
    return msgspec.msgpack.encode(simulation.capture.outcomes) + columns


def _case(scenario: Scenario, trace: Trace, measured: CaptureMeta) -> dict[str, Any]:
    return compared(trace, deploy(scenario, measured).engine)


def _bundled(load: str, work: Path) -> tuple[Scenario, Capture]:
    capture = read_capture(BUNDLED / "captures" / f"{load}-1")
    file = work / f"{load}.yaml"
    instance = {"model": capture.meta.model, "device": capture.meta.device}
    file.write_text(json.dumps({"trace": "none", "cluster": {"instances": [instance]}}))
    return read_scenario(file), capture


def main() -> None:
    """Compare the bundled loads, synchronous as recorded and asynchronous, and the ground-truth run if there is one."""
    work = Path(sys.argv[1])
    results = {}
    for load in LOADS:
        scenario, capture = _bundled(load, work)
        engine = deploy(scenario, capture.meta).engine
        results[load] = compared(capture.trace, engine)
        asynchronous = msgspec.structs.replace(engine.options, async_scheduling=True)
        results[f"{load}, asynchronous"] = compared(capture.trace, dataclasses.replace(engine, options=asynchronous))
    drafting = read_scenario(EXAMPLES / "speculation.yaml", ["engine.async_scheduling=true"])
    results["drafts, asynchronous"] = compared(read_any_trace(drafting.trace_path), deploy(drafting).engine)
    if len(sys.argv) > 2:
        case = Path(sys.argv[2]) / "vllm-0.19"
        workload = case / "workloads" / "sharegpt-llama-3.1-8b-300-sps10.jsonl"
        run = case / "bench" / "RTXPRO6000" / "Llama-3.1-8B"
        import_profiles_to(case / "perf" / "RTXPRO6000" / "meta-llama", work / "profiles")
        file = work / "ground_truth.yaml"
        file.write_text(f"trace: {workload}\ncluster: {run / 'cluster.json'}\nprofiles: [profiles]\n")
        trace = read_any_trace(workload)
        results["ground truth"] = _case(read_scenario(file), trace, import_capture(run, trace=trace).meta)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
