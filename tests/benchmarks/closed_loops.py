"""Print how far off closed loops are whose operators are aiconfigurator's, against runs that were measured end to end.

    .venv/bin/python tests/benchmarks/closed_loops.py

aiconfigurator-core ships mean TTFT and TPOT of such runs (`systems/silicon_sample.csv`); of dense models on vLLM it has
Qwen3-32B on H100s, vLLM 0.12: prompts of 1,024 or 4,096 tokens, answers of 128 to 1,024, at 8 to 128 seats, TP 2 to 8.
What is not stated is vLLM's default of then on that device: a budget of 8,192 tokens, 1,024 seats, bfloat16, no
asynchronous scheduling; the oldest rules known are those of 0.19. Nothing is fitted. How far apart the seats started is
not recorded. Here they all start at once, and with equal lengths stay in step, so that prompts wait for each other:
TPOT can be compared, TTFT hardly.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.running.simulate import simulate_scenario
from harness.terminal.console import console, table
from harness.terminal.facts import import_tables_to
from traces.trace import write_trace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, `tests` is not on the path
from tests.engines import trace

MODEL, SYSTEM, DEVICE = "Qwen/Qwen3-32B", "h100_sxm", "H100"
DEGREES = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class Run:
    """A measured run: seats of a closed loop, lengths, tensor-parallel degree, and what came out, in milliseconds."""

    seats: int
    prompt_tokens: int
    output_tokens: int
    tp: int
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True)
class Errors:
    """Signed relative errors of the simulated means."""

    ttft: float
    tpot: float


def measured_runs() -> list[Run]:
    """Those of the sample, whose weights were not quantized."""
    import aiconfigurator_core

    file = Path(aiconfigurator_core.__file__).parent / "systems" / "silicon_sample.csv"
    with file.open(newline="") as stream:
        rows = [
            row
            for row in csv.DictReader(stream)
            if (row["model_path"], row["system"], row["backend"], row["mode"]) == (MODEL, SYSTEM, "vllm", "agg")
            and not row["gemm_quant_mode"]
        ]
    names = "batch_size", "isl", "osl", "tp_size"
    return [
        Run(*(int(float(row[name])) for name in names), float(row["silicon_ttft_ms"]), float(row["silicon_tpot_ms"]))
        for row in rows
    ]


def write_tables(folder: Path) -> None:
    """The profile that all runs use."""
    import_tables_to(SYSTEM, MODEL, "bfloat16", "auto", DEGREES, (), folder / "profiles" / "qwen")


def errors_of(run: Run, folder: Path) -> Errors:
    """Errors of one run's twin, whose tables are in `folder`: four rounds of all seats."""
    rows = [(0.0, run.prompt_tokens, run.output_tokens)] * (4 * run.seats)
    write_trace(trace(*rows), folder / "requests.jsonl")
    (folder / "scenario.yaml").write_text(
        f"trace: requests.jsonl\nprofiles: [profiles]\nconcurrency: {run.seats}\n"
        f"cluster: {{instances: [{{model: {MODEL}, device: {DEVICE}, tensor_parallel_size: {run.tp}}}]}}\n"
        "engine: {max_num_seqs: 1024, max_num_batched_tokens: 8192, async_scheduling: false, "
        "enable_prefix_caching: false}\n"
    )
    _, figures = simulate_scenario(folder / "scenario.yaml")
    ttft_s, tpot_s = (figures["metrics"][name]["mean"] for name in ("ttft_s", "tpot_s"))
    return Errors(ttft_s * 1e3 / run.ttft_ms - 1, tpot_s * 1e3 / run.tpot_ms - 1)


def scored(runs: list[Run]) -> Iterator[tuple[Run, Errors]]:
    """Each run with its errors."""
    with tempfile.TemporaryDirectory() as name:
        write_tables(Path(name))
        for run in runs:
            yield run, errors_of(run, Path(name))


def main() -> None:
    """Print the table, and the medians."""
    found = list(scored(measured_runs()))
    rows = [
        (f"TP {run.tp}, {run.prompt_tokens} in, {run.output_tokens} out", str(run.seats), f"{run.ttft_ms:.0f}",
         f"{errors.ttft:+.1%}", f"{run.tpot_ms:.2f}", f"{errors.tpot:+.1%}")
        for run, errors in found
    ]  # fmt: skip
    columns = ["run", "seats", "TTFT ms", "error", "TPOT ms", "error"]
    console().print(table(f"{MODEL} on {DEVICE}s, vLLM 0.12, aiconfigurator's tables", columns, rows))
    for name in ("ttft", "tpot"):
        errors = np.array([getattr(one, name) for _, one in found])
        quartiles = " to ".join(f"{q:+.1%}" for q in np.quantile(errors, [0.25, 0.75]))
        print(f"{name}: median of |error| {np.median(np.abs(errors)):.1%}, middle half {quartiles}")


if __name__ == "__main__":
    main()
