"""A scenario scored at measured means: a closed loop of each row's seats and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from harness.deploy.asked import engine_asked
from harness.descriptions.scenario import read_scenario
from harness.running.requests import refuse_load
from harness.running.simulate import simulate_trace
from traces.errors import InputError
from traces.readers.aggregates import Aggregate, closed_loop_trace, read_aggregates


def score_aggregates(
    rows: Path, scenario: Path, where: Sequence[str] = (), overrides: Sequence[str] = (), rounds: int = 4
) -> dict[str, Any]:
    """Measured and simulated mean TTFT and TPOT of every row, and the medians of their absolute errors.

    Args:
        rows: a file of `traces.readers.aggregates`.
        scenario: of one engine; its trace is not read.
        where: `column=value`, of which a row must have all.
        overrides: of the scenario's keys.
        rounds: requests that each seat sends.

    Raises:
        InputError: rows or scenario cannot be used, or contradict each other.
    """
    measured, said = read_aggregates(rows, where)
    found = [_scored(rows, row, scenario, overrides, rounds) for row in measured]
    medians = {
        f"{name}_median_abs_error": median(abs(row[f"{name}_error"]) for row in found) for name in ("ttft", "tpot")
    }
    how = f"{rounds} rounds; all seats start at once, so prompts wait for each other: TTFT is hardly comparable"
    return {"rows": found, **medians, "notes": [*said, how]}


def _scored(file: Path, row: Aggregate, path: Path, overrides: Sequence[str], rounds: int) -> dict[str, Any]:
    """A row's measured and simulated means, milliseconds, and the signed relative errors. Raises InputError."""
    asked = read_scenario(path, overrides)
    refuse_load(asked)
    if asked.file.concurrency is not None:
        raise InputError("stands in the rows", file=path, field="concurrency", accepted="a scenario without it")
    scenario = read_scenario(path, [*overrides, f"concurrency={row.concurrency}"])
    spec = engine_asked(scenario).spec
    for name in ("model", "tensor_parallel_size", "pipeline_parallel_size"):
        stated, asked = getattr(row, name), getattr(spec, name)
        if stated is not None and stated != asked:
            accepted = f"{asked}, as the scenario; --where picks rows"
            raise InputError(file=file, line=row.line, field=name, found=stated, accepted=accepted)
    metrics = simulate_trace(scenario, closed_loop_trace(row, rounds))[1]["metrics"]
    found: dict[str, Any] = {"line": row.line, "concurrency": row.concurrency}
    found |= {"prompt_tokens": row.prompt_tokens, "output_tokens": row.output_tokens}
    for name, measured_s in (("ttft", row.mean_ttft_s), ("tpot", row.mean_tpot_s)):
        simulated_s = metrics[f"{name}_s"]["mean"]
        found |= {f"{name}_measured_ms": measured_s * 1e3, f"{name}_simulated_ms": simulated_s * 1e3}
        found[f"{name}_error"] = simulated_s / measured_s - 1
    return found
