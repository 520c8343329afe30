"""Print how far off the twin is on every measured run at hand, with nothing fitted.

    .venv/bin/python tests/benchmarks/fidelity.py

The bundled loads against both of their recordings, with the noise floor between the two, and the ground-truth runs
where they are present.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.console import console, table
from harness.demo import LOADS, bundled_validation
from harness.show import import_profiles_to
from harness.validate import validate
from traces.capture import write_capture
from traces.formats import import_capture, read_any_trace

ROOT = Path(__file__).resolve().parents[2]
GROUND_TRUTH = Path(os.environ.get("SERVETWIN_GROUND_TRUTH", ROOT.parent / "shared" / "ground-truth"))
METRICS = ("ttft_s", "tpot_s", "e2el_s")


def row(name: str, result: dict[str, Any], floor: dict[str, Any] | None) -> tuple[str, ...]:
    """A case: paired error of each metric, signed error of its mean, and the noise floor."""
    cells = [name, str(result["n_scored"])]
    for metric in METRICS:
        cells.append(f"{result['paired'][metric]['mape']:.2%}")
        cells.append(f"{result['metrics'][metric]['mean']['error']:+.2%}")
        cells.append("–" if floor is None else f"{floor['paired'][metric]['mape']:.2%}")
    cells.append(f"{result['wall_s']['simulate']:.2f}")
    return tuple(cells)


def ground_truth_case(work: Path) -> dict[str, Any]:
    """RTX PRO 6000, Llama-3.1-8B, vLLM 0.19."""
    case = GROUND_TRUTH / "vllm-0.19"
    workload = case / "workloads" / "sharegpt-llama-3.1-8b-300-sps10.jsonl"
    run = case / "bench" / "RTXPRO6000" / "Llama-3.1-8B"
    import_profiles_to(case / "perf" / "RTXPRO6000" / "meta-llama", work / "profiles")
    write_capture(import_capture(run, trace=read_any_trace(workload)), work / "capture")
    scenario = f"trace: {workload}\ncluster: {run / 'cluster.json'}\nprofiles: [profiles]\n"
    (work / "scenario.yaml").write_text(scenario)
    return validate(work / "scenario.yaml", work / "capture").result


def main() -> None:
    """Print the table."""
    rows = []
    for load in LOADS:
        validation, repeat = bundled_validation(load)
        rows.append(row(f"bundled {load}, 1st recording", validation.result, repeat.floor))
        rows.append(row(f"bundled {load}, 2nd recording", repeat.again, repeat.floor))
    if not GROUND_TRUTH.is_dir():
        sys.stderr.write(f"no ground truth at {GROUND_TRUTH}: the GPU run is left out\n")
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row("RTXPRO6000 Llama-3.1-8B", ground_truth_case(Path(folder)), None))
    columns = ["case", "requests"]
    for metric in ("TTFT", "TPOT", "E2EL"):
        columns += [f"{metric} paired", "mean", "floor"]
    console().print(table("Error with nothing fitted", [*columns, "simulate s"], rows))


if __name__ == "__main__":
    main()
