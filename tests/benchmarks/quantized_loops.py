"""Print how far off closed loops of quantized models and of experts are, with aiconfigurator's tables.

    .venv/bin/python tests/benchmarks/quantized_loops.py

As `closed_loops.py`, of other runs in the same sample (`systems/silicon_sample.csv`): Llama-3.1-70B in fp8 and nvfp4
(October 2025, a version of vLLM that is not stated), answers of 1,024 tokens; and Qwen3-235B-A22B in fp8 by blocks on
H200s (vLLM 0.12), experts split as attention is. Nothing is fitted. What else is not stated is vLLM's default of 0.19,
the oldest rules known, with no asynchronous scheduling. Only TPOT can be compared (see there).
"""

from __future__ import annotations

import csv
import shutil
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.running.simulate import simulate_scenario
from harness.terminal.console import console, table
from traces.errors import InputError
from traces.trace import write_trace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, `tests` is not on the path
from tests.engines import trace

DEVICES = {"h100_sxm": "H100", "h200_sxm": "H200", "b200_sxm": "B200"}
LLAMA, QWEN = "meta-llama/Llama-3.1-70B", "Qwen/Qwen3-235B-A22B-FP8"


@dataclass(frozen=True, slots=True)
class Run:
    """A measured run: what served it, seats of a closed loop, lengths, and the mean TPOT that came out."""

    model: str
    device: str
    dtype: str
    tp: int
    seats: int
    prompt_tokens: int
    output_tokens: int
    tpot_ms: float


def package() -> Path:
    """The folder of aiconfigurator-core."""
    import aiconfigurator_core

    return Path(aiconfigurator_core.__file__).parent


def measured_runs() -> list[Run]:
    """Those of the sample whose experts, if any, are split over the devices as all else is."""
    runs = []
    with (package() / "systems" / "silicon_sample.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            if row["backend"] != "vllm" or row["mode"] != "agg" or row["model_path"] not in (LLAMA, QWEN):
                continue
            if row["moe_ep_size"] != "1" or row["moe_tp_size"] != row["tp_size"] or int(row["osl"]) > 2048:
                continue
            sizes = (int(float(row[name])) for name in ("tp_size", "batch_size", "isl", "osl"))
            names = row["model_path"], DEVICES[row["system"]], row["gemm_quant_mode"]
            runs.append(Run(*names, *sizes, float(row["silicon_tpot_ms"])))
    return sorted(runs, key=lambda run: (run.model, run.device, run.dtype, run.tp, run.seats, run.prompt_tokens))


def write_config(folder: Path) -> None:
    """The model that the catalogue lacks, from the package."""
    config = folder / "models" / QWEN / "config.json"
    config.parent.mkdir(parents=True)
    shutil.copy(package() / "model_configs" / f"{QWEN.replace('/', '--')}_config.json", config)


def error_of(run: Run, folder: Path) -> float:
    """Signed relative error of the mean TPOT of a run's twin: three rounds of all seats. Raises InputError."""
    rows = [(0.0, run.prompt_tokens, run.output_tokens)] * (3 * run.seats)
    write_trace(trace(*rows), folder / "requests.jsonl")
    blocks = ", aiconfigurator: {gemm: fp8_block}" if run.model == QWEN else ""
    (folder / "scenario.yaml").write_text(
        f"trace: requests.jsonl\nprofiles: [.]\nconcurrency: {run.seats}\n"
        f"cluster: {{instances: [{{model: {run.model}, device: {run.device}, source: aiconfigurator"
        f", tensor_parallel_size: {run.tp}{blocks}}}]}}\n"
        f"engine: {{dtype: {run.dtype}, max_num_seqs: 1024, max_num_batched_tokens: 8192, async_scheduling: false, "
        "enable_prefix_caching: false, max_model_len: 16384}\n"
    )
    _, figures = simulate_scenario(folder / "scenario.yaml")
    return float(figures["metrics"]["tpot_s"]["mean"] * 1e3 / run.tpot_ms - 1)


def main() -> None:
    """Print the medians of each model, device and type."""
    groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    refused: dict[str, int] = defaultdict(int)
    with tempfile.TemporaryDirectory() as name:
        write_config(Path(name))
        for run in measured_runs():
            try:
                error = error_of(run, Path(name))
            except InputError as why:
                refused[str(why).replace(name, "")] += 1
                continue
            groups[run.model, run.device, run.dtype].append(error)
            print(f"{run} {error:+.1%}", file=sys.stderr)
    rows = [
        (" ".join(key), str(len(errors)), f"{np.median(np.abs(errors)):.1%}",
         " to ".join(f"{q:+.1%}" for q in np.quantile(errors, [0.25, 0.75])))
        for key, errors in groups.items()
    ]  # fmt: skip
    columns = ["model, device, type", "runs", "median |error| of TPOT", "middle half"]
    console().print(table("aiconfigurator's tables against runs of others", columns, rows))
    for why, count in refused.items():
        print(f"{count} runs: {why}")


if __name__ == "__main__":
    main()
