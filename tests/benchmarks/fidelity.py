"""Print how far off the twin is on every measured run at hand, with nothing fitted.

    .venv/bin/python tests/benchmarks/fidelity.py

The bundled loads against both of their recordings, with the noise floor between the two, and the ground-truth runs
where they are present.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.demo import LOADS, bundled_validation
from harness.scoring.validate import validate
from harness.terminal.console import console, table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, `tests` is not on the path
from tests.measured import GROUND_TRUTH, RUNS, SERIES, measured_run, series_score

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


def main() -> None:
    """Print the table."""
    rows = []
    for load in LOADS:
        validation, repeat = bundled_validation(load)
        rows.append(row(f"bundled {load}, 1st recording", validation.result, repeat.floor))
        rows.append(row(f"bundled {load}, 2nd recording", repeat.again, repeat.floor))
    if not GROUND_TRUTH.is_dir():
        sys.stderr.write(f"no ground truth at {GROUND_TRUTH}: the GPU runs are left out\n")
    for name in RUNS if GROUND_TRUTH.is_dir() else ():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, validate(*measured_run(name, Path(folder))).result, None))
    columns = ["case", "requests"]
    for metric in ("TTFT", "TPOT", "E2EL"):
        columns += [f"{metric} paired", "mean", "floor"]
    console().print(table("Error with nothing fitted", [*columns, "simulate s"], rows))
    if GROUND_TRUTH.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            scores = [(name, series_score(name, Path(folder))) for name in SERIES]
        series = [
            (name, f"{s.mape:.2%}", f"{s.in_phase_mape:.2%}", f"{s.phase.mape:.2%}", f"{s.phase.early_s:.2f}", str(s.n))
            for name, s in scores
        ]
        columns = ["load", "as stamped", "in the log's phase", "of that the last two thirds", "early_s", "seconds"]
        console().print(table("Output tokens per second, A6000", columns, series))


if __name__ == "__main__":
    main()
