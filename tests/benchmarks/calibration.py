"""Print how far off the twin is once it is calibrated, and how sure it says it is, on requests that were not fitted.

    .venv/bin/python tests/benchmarks/calibration.py

Ground-truth GPU runs, where they are present: fitted on the first third of the requests, scored on the rest. Bundled
CPU recordings: fitted on the light load, scored on the others with their noise floor; with the profile, and as a
whole-step model without one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibrate.fit import Source
from harness.calibrate import calibrate, write_calibration
from harness.demo import BUNDLED
from harness.scoring.validate import validate
from harness.terminal.console import console, table
from harness.terminal.facts import import_profiles_to
from traces.capture import write_capture
from traces.formats import import_capture, read_any_trace

ROOT = Path(__file__).resolve().parents[2]
GROUND_TRUTH = Path(os.environ.get("SERVETWIN_GROUND_TRUTH", ROOT.parent / "shared" / "ground-truth"))
METRICS = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2el_s": "E2EL"}
CASES = {
    "RTXPRO6000 Llama-3.1-8B": ("Llama-3.1-8B", "sharegpt-llama-3.1-8b-300-sps10", "meta-llama"),
    "RTXPRO6000 Qwen3-30B-A3B, DP2 x EP2": (
        "Qwen3-30B-A3B-Instruct-2507",
        "sharegpt-qwen3-30b-a3b-300-sps10",
        "Qwen",
    ),
}
FITS: dict[str, tuple[tuple[str, ...], Source]] = {
    "light-1": (("light-1",), "steps"),
    "light-2": (("light-2",), "steps"),
    "both light": (("light-1", "light-2"), "steps"),
    "light-1, its requests alone": (("light-1",), "requests"),
    "light-1, no profile": (("light-1",), "whole-step"),
    "both light, no profile": (("light-1", "light-2"), "whole-step"),
}
"""Names of fits, the recordings that each is of, and from which records."""

Coverage = dict[str, list[dict[str, Any]]]
"""How many E2EL values of each scored part are within their intervals, by what the parts have in common."""


def gpu_case(name: str, work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A ground-truth run with nothing fitted, and fitted on its first third; both scored on the rest."""
    model, workload_name, maker = CASES[name]
    case = GROUND_TRUTH / "vllm-0.19"
    workload, run = case / "workloads" / f"{workload_name}.jsonl", case / "bench" / "RTXPRO6000" / model
    import_profiles_to(case / "perf" / "RTXPRO6000" / maker, work / "profiles")
    write_capture(import_capture(run, trace=read_any_trace(workload)), work / "capture")
    scenario = work / "scenario.yaml"
    scenario.write_text(f"trace: {workload}\ncluster: {run / 'cluster.json'}\nprofiles: [profiles]\n")
    fitted = calibrate(scenario, [work / "capture"], "first:0.33")
    write_calibration(fitted, work / "fitted.json")
    return (
        validate(scenario, work / "capture").result,
        validate(scenario, work / "capture", calibration=work / "fitted.json").result,
    )


def gpu_rows(name: str, work: Path, held_back: Coverage) -> list[tuple[str, ...]]:
    """Each metric's paired error before and after, the largest error of its statistics, and the coverage."""
    bare, fitted = gpu_case(name, work)
    rows = []
    for metric, label in METRICS.items():
        errors = [abs(figure["error"]) for figure in fitted["metrics"][metric].values() if figure is not None]
        covered = fitted["prediction"]["coverage"][metric]["share"]
        before, after = (of["paired"][metric]["mape"] for of in (bare, fitted))
        median = fitted["paired"][metric]["median_ape"]
        cells = (f"{before:.2%}", f"{after:.2%}", f"{median:.2%}", f"{max(errors):.2%}", f"{covered:.0%}")
        rows.append((name, label, *cells, str(fitted["n_scored"])))
    held_back["GPU"].append(fitted["prediction"]["coverage"]["e2el_s"])
    return rows


def cpu_rows(
    label: str, captures: Sequence[str], source: Source, work: Path, held_back: Coverage
) -> list[tuple[str, ...]]:
    """A fit of light recordings, scored on those of the other loads; its coverage is added to `held_back`."""
    folder = BUNDLED / "captures"
    fitted = calibrate(BUNDLED / "light.yaml", [folder / name for name in captures], source=source)
    out = work / f"{label}.json"
    write_calibration(fitted, out)
    rows = []
    for load in ("prefix", "saturated"):
        for number, other in ((1, 2), (2, 1)):
            capture, repeat = (folder / f"{load}-{i}" for i in (number, other))
            arguments = (BUNDLED / f"{load}.yaml", capture)
            alone = validate(*arguments, calibration=out).result
            result = validate(*arguments, calibration=out, repeats=[repeat]).result
            cells = []
            for metric in METRICS:
                error, floor = (of["paired"][metric]["mape"] for of in (result, result["noise_floor"]))
                cells += [f"{error:.1%}", f"{floor:.1%}"]
            covered = [of["prediction"]["coverage"]["e2el_s"]["share"] for of in (alone, result)]
            rows.append((label, f"{load}-{number}", *cells, *(f"{share:.0%}" for share in covered)))
            held_back["CPU, without the floor"].append(alone["prediction"]["coverage"]["e2el_s"])
            held_back["CPU, with the floor"].append(result["prediction"]["coverage"]["e2el_s"])
    return rows


def pooled(parts: Sequence[dict[str, Any]]) -> str:
    """Share of all held-back values within their intervals."""
    n = sum(part["n"] for part in parts)
    return f"{sum(part['share'] * part['n'] for part in parts) / n:.1%} of {n}"


def main() -> None:
    """Print both tables, and the coverage of all."""
    held_back: Coverage = {"GPU": [], "CPU, without the floor": [], "CPU, with the floor": []}
    if not GROUND_TRUTH.is_dir():
        sys.stderr.write(f"no ground truth at {GROUND_TRUTH}: the GPU runs are left out\n")
    else:
        rows = []
        for name in CASES:
            with tempfile.TemporaryDirectory() as folder:
                rows += gpu_rows(name, Path(folder), held_back)
        columns = ["GPU run, first third fitted", "", "bare, all", "paired", "median", "worst of five", "in 90 %", "n"]
        console().print(table("Error on the other two thirds", columns, rows))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for label, (captures, source) in FITS.items():
            rows += cpu_rows(label, captures, source, Path(folder), held_back)
    columns = ["CPU, fitted on", "scored on"]
    for label in METRICS.values():
        columns += [f"{label} paired", "floor"]
    columns += ["E2EL in 90 %", "with the floor"]
    console().print(table("Error on other loads", columns, rows))
    shares = [(name, pooled(parts)) for name, parts in held_back.items() if parts]
    console().print(table("E2EL within the 90 % interval, all held-back requests together", ["", "share"], shares))


if __name__ == "__main__":
    main()
