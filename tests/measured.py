"""The measured runs that are not part of the project, set up as scenarios and captures; nothing of them is fitted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from harness.running.simulate import simulate_scenario
from harness.terminal.facts import import_profiles_to
from traces.capture import Capture, Series, write_capture
from traces.formats import import_capture, read_any_trace
from traces.series_error import LogPhase, log_phase, series_mape

ROOT = Path(__file__).resolve().parents[1]
GROUND_TRUTH = Path(os.environ.get("SERVETWIN_GROUND_TRUTH", ROOT.parent / "shared" / "ground-truth"))

RUNS = {
    "RTXPRO6000 Llama-3.1-8B": ("RTXPRO6000/Llama-3.1-8B", "sharegpt-llama-3.1-8b-300-sps10", "RTXPRO6000"),
    "RTXPRO6000 Qwen3-30B-A3B DP2 x EP2": (
        "RTXPRO6000/Qwen3-30B-A3B-Instruct-2507",
        "sharegpt-qwen3-30b-a3b-300-sps10",
        "RTXPRO6000",
    ),
}
"""Requests measured one by one on vLLM 0.19: folder of the run, its workload, its device's profiles."""

SERIES = ("MD", "SD+PC", "PDD", "SM")
"""Throughput measured second by second on A6000s, vLLM 0.11 to 0.13: two instances, prefix caching, prefill and decode
apart, experts.
"""


def measured_run(name: str, work: Path) -> tuple[Path, Path]:
    """Scenario and capture of one of `RUNS`, written to `work`."""
    folder, workload, device = RUNS[name]
    case = GROUND_TRUTH / "vllm-0.19"
    trace, run = case / "workloads" / f"{workload}.jsonl", case / "bench" / folder
    import_profiles_to(case / "perf" / device, work / "profiles")
    write_capture(import_capture(run, trace=read_any_trace(trace)), work / "capture")
    (work / "scenario.yaml").write_text(f"trace: {trace}\ncluster: {run / 'cluster.json'}\nprofiles: [profiles]\n")
    return work / "scenario.yaml", work / "capture"


def series_run(name: str, work: Path) -> tuple[Capture, Series]:
    """One of `SERIES`, simulated, and its measured output tokens per second.

    Options as the runs' description states them: eager, block size 16, max_num_batched_tokens 2048, prefix caching in
    SD+PC alone, round robin. What it does not state is vLLM 0.11's default on these devices: max_num_seqs 256, no
    asynchronous scheduling. The oldest rules known are those of 0.19.
    """
    case = GROUND_TRUTH / "ispass26"
    model = "phi" if name == "SM" else "llama"
    trace = case / "dataset" / f"sharegpt_req300_rate10_{model}.jsonl"
    if not (work / "profiles").exists():
        import_profiles_to(case / "perf", work / "profiles")
    scenario = work / f"{name}.yaml"
    scenario.write_text(
        f"trace: {trace}\ncluster: {case / 'throughput' / 'A6000' / 'config' / f'{name}_config.json'}\n"
        "profiles: [profiles]\nengine_version: '0.19'\n"
        "engine: {max_num_seqs: 256, max_num_batched_tokens: 2048, enforce_eager: true, async_scheduling: false, "
        f"enable_prefix_caching: {str(name == 'SD+PC').lower()}}}\n"
    )
    simulation, _ = simulate_scenario(scenario)
    file = case / "throughput" / "A6000" / "reference" / f"{name}_throughput.tsv"
    (series,) = import_capture(file, trace=read_any_trace(trace)).series.values()
    return simulation.capture, series


@dataclass(frozen=True, slots=True)
class SeriesScore:
    """Errors of the output tokens per second of one of `SERIES`.

    Attributes:
        mape: with the rows' times as they stand.
        phase: of the log, and the error in it over the seconds that did not tell it.
        in_phase_mape: the error in it over all seconds.
        n: seconds.
    """

    mape: float
    phase: LogPhase
    in_phase_mape: float
    n: int


def series_score(name: str, work: Path) -> SeriesScore:
    """Errors of one of `SERIES`."""
    simulated, measured = series_run(name, work)
    error, phase = series_mape(simulated, measured), log_phase(simulated, measured)
    assert error is not None
    assert phase is not None
    in_phase = series_mape(simulated, measured, early_s=phase.early_s)
    assert in_phase is not None
    return SeriesScore(error.mape, phase, in_phase.mape, error.n)
