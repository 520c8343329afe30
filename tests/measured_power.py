"""The measured power of a server: LLMServingSim's ISPASS 2026 artifact, figure 6, one A6000 under a pulsed load.

Nothing of the simulation is fitted to it. Rows of `server_power.tsv` are means of the readings of the second that
begins at `time_s` (the artifact's `raw_data/server_power_log_tp1.csv` has the readings: 440, 558, 617 and 668 W in the
second whose row says 571), and its second 0 is 21:08:28 of that log and of `gpu_power.csv`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from calibrate.power import fit_power
from harness.deploy.power import PowerPlan, end_of
from harness.deploy.unprofiled import deploy_calibrated
from harness.descriptions.scenario import read_scenario
from harness.running.predicted import run
from harness.terminal.facts import import_profiles_to
from simulator.power.run import power_run
from tests.measured import GROUND_TRUTH
from traces.capture import Series
from traces.formats import read_any_trace
from traces.series_error import series_error
from traces.series_file import read_series
from traces.steps import STEP_COLUMNS, Steps, steps_from_columns
from traces.windows import grid_like

START = datetime(2025, 12, 11, 21, 8, 28)
DELAYS_S = tuple(float(delay) for delay in np.arange(0.0, 1.01, 0.05))
"""By how much a server's meter may be behind; it averages over a part of a second, and is read four times in each."""


@dataclass(frozen=True, slots=True)
class PowerScore:
    """Errors of a power series.

    Attributes:
        mape: mean relative error of its seconds.
        energy: relative error of their sum.
        n: seconds.
    """

    mape: float
    energy: float
    n: int


def power_case(work: Path) -> Path:
    """The scenario, written to `work`.

    Eager, no prefix caching, vLLM 0.11.1's defaults and the KV blocks it printed: 216,720 tokens.
    """
    case = GROUND_TRUTH / "ispass26"
    import_profiles_to(case / "perf", work / "profiles")
    (work / "power.yaml").write_text(
        f"trace: {case / 'dataset' / 'sharegpt_pulse_req10_n3_delay60.jsonl'}\n"
        f"cluster: {case / 'power' / 'cluster.json'}\nprofiles: [profiles]\nengine_version: '0.19'\n"
        "engine: {max_num_seqs: 256, max_num_batched_tokens: 2048, enforce_eager: true, async_scheduling: false, "
        f"enable_prefix_caching: false, max_model_len: 131072, num_gpu_blocks: {216_720 // 16}}}\n"
    )
    return work / "power.yaml"


def simulated(path: Path) -> tuple[Steps, PowerPlan, float]:
    """Steps of the scenario, what draws power in it, and its end."""
    scenario = read_scenario(path)
    deployment = deploy_calibrated(scenario, None, None)
    simulation, _ = run(deployment, read_any_trace(scenario.trace_path))
    assert simulation.capture.steps is not None
    assert deployment.power is not None
    return simulation.capture.steps, deployment.power, end_of(simulation.capture)


def server_power() -> Series:
    """The measured server, second by second; times are the ends of the seconds."""
    series = read_series(GROUND_TRUTH / "ispass26" / "power" / "server_power.tsv")[0]["power_w"]
    return Series(series.time_s + 1.0, series.value)


def peer_power() -> Series:
    """The same as LLMServingSim simulated it."""
    series = read_series(GROUND_TRUTH / "ispass26" / "power" / "peer_llmservingsim.tsv")[0]["power_w"]
    return Series(series.time_s + 1.0, series.value)


def measured_busy() -> Steps:
    """When the GPU was at work by its own log, five times a second, as one step for each stretch."""
    lines = (GROUND_TRUTH / "ispass26" / "power" / "gpu_power.csv").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    time_s = np.array([(datetime.strptime(row[0], "%Y/%m/%d %H:%M:%S.%f") - START).total_seconds() for row in rows])
    busy = np.array([float(row[2]) > 0 for row in rows])
    between_s = (time_s[1:] + time_s[:-1]) / 2
    begin_s, end_s = between_s[busy[1:] & ~busy[:-1]], between_s[busy[:-1] & ~busy[1:]]
    columns = {name: np.zeros(len(begin_s)) for name in STEP_COLUMNS}
    ones = np.ones(len(begin_s))
    return steps_from_columns({**columns, "scheduled_s": begin_s, "end_s": end_s, "n_decode_tokens": ones})


def score(measured: Series, predicted: Series) -> PowerScore:
    """One series against another, second by second."""
    error = series_error(measured, predicted)
    assert error is not None
    return PowerScore(error.mape, float(predicted.value.sum() / measured.value.sum()) - 1, error.n)


def score_as_described(steps: Steps, plan: PowerPlan, end_s: float) -> PowerScore:
    """With the levels of the description."""
    measured = server_power()
    grid = grid_like(measured)
    assert grid is not None
    drawn = power_run(steps, plan.machines, plan.nodes, end_s)
    return score(measured, drawn.series(grid)["power_w"])


def score_calibrated(steps: Steps, plan: PowerPlan, end_s: float, *, delays_s: tuple[float, ...]) -> PowerScore:
    """With levels fitted to the first half of the seconds, scored on the second."""
    measured = server_power()
    half = len(measured.time_s) // 2
    first, second = (Series(measured.time_s[part], measured.value[part]) for part in (slice(half), slice(half, None)))
    fitted = fit_power(steps, plan.machines, plan.nodes, first, delays_s)
    grid = grid_like(second)
    assert grid is not None
    return score(second, fitted.series(fitted.run(steps, plan.machines, plan.nodes, end_s), grid))
