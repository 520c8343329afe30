"""Levels of power fitted to a capture's measured power: a `power` section for the cluster description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from calibrate.power import FittedPower, fit_power
from calibrate.split import Split, parse_split
from harness.deploy.asked import located
from harness.deploy.power import end_of
from harness.deploy.unprofiled import deploy_calibrated
from harness.descriptions.scenario import read_scenario
from harness.files import new_file
from harness.running.predicted import run
from harness.running.requests import refuse_load
from harness.scoring.validate import at_measured_arrivals
from simulator.power.nodes import NodePower
from traces.capture import Series, read_capture
from traces.errors import InputError
from traces.formats import read_any_trace
from traces.windows import DEVICES_POWER, SERVER_POWER, grid_like, is_before_second_0


@dataclass(frozen=True, slots=True)
class PowerLevels:
    """What was fitted, and how far off it is.

    Attributes:
        power: of each node: the description's, with the fitted levels in it.
        fitted: the levels, with their error over the windows that were fitted.
        rest_mape: mean relative error over the other windows; None where there are none.
        n_rest: how many these are.
        n_before: windows before second 0, of which nothing is simulated; they are in neither.
        fit_on: which part was fitted.
        steps: whose steps say when devices were at work: measured or simulated.
    """

    power: NodePower
    fitted: FittedPower
    rest_mape: float | None
    n_rest: int
    n_before: int
    fit_on: str
    steps: str


def fit_levels(
    scenario_path: Path, capture_path: Path, fit_on: str = "all", overrides: Sequence[str] = ()
) -> PowerLevels:
    """Fit standby and active level, and base, to a capture's power, by its own steps or else by simulated ones.

    A meter of the whole server tells all three. One of the devices alone, which is taken where there is no other, says
    nothing of the base.

    Args:
        scenario_path: with a `power` section that says the rest: idle levels, host, memory and so on.
        capture_path: a run with a `power_w` series, or one of `power_w.devices`.
        fit_on: all, first:SHARE or time:FROM:TO of its windows.
        overrides: of the scenario's keys.

    Raises:
        InputError: nothing is said or measured of power, devices are unlike, or the part does not tell the levels.
    """
    scenario, split = read_scenario(scenario_path, overrides), parse_split(fit_on)
    refuse_load(scenario)
    measured = read_capture(capture_path)
    metered = next((name for name in (SERVER_POWER, DEVICES_POWER) if name in measured.series), None)
    if metered is None:
        accepted = f"power of the whole server, or of its devices in {DEVICES_POWER}"
        raise InputError("has no measured power", file=capture_path, field=SERVER_POWER, accepted=accepted)
    watts = measured.series[metered]
    deployment = deploy_calibrated(scenario, measured.meta, scenario.calibration_path)
    plan = deployment.power
    if plan is None:
        accepted = "levels to start from: idle power cannot be told from the rest of a server"
        raise InputError("is missing", file=scenario.path, field="power", accepted=accepted)
    if any(node != plan.nodes[0] for node in plan.nodes):
        raise InputError("levels of unlike nodes are not fitted together", file=scenario.path, field="power")
    if plan.memories:
        message = "levels are not fitted beside near memory or offload"
        raise InputError(message, file=scenario.path, field="cluster.instances")
    kind, steps, end_s = "measured", measured.steps, end_of(measured)
    if steps is None:
        with located(scenario):
            trace = at_measured_arrivals(read_any_trace(scenario.trace_path), measured)
            twin = run(deployment, trace)[0].capture
        kind, steps, end_s = "simulated", twin.steps, end_of(twin)
        assert steps is not None
    grid = grid_like(watts)
    ran = np.full(len(watts.time_s), True) if grid is None else ~is_before_second_0(grid)
    own = _windows(watts, split) & ran
    fitted = fit_power(steps, plan.machines, plan.nodes, _chosen(watts, own), metered=metered)
    rest, rest_mape = ran & ~own, None
    if rest.any():
        assert grid is not None
        drawn = fitted.series(fitted.run(steps, plan.machines, plan.nodes, end_s), grid)
        rest_mape = float(np.mean(np.abs(drawn.value - watts.value)[rest] / watts.value[rest]))
    device = deployment.cluster.engines[0].device
    node = fitted.node(plan.nodes[0])
    power = msgspec.structs.replace(node, devices={**node.devices, device: fitted.device})
    return PowerLevels(power, fitted, rest_mape, int(rest.sum()), int((~ran).sum()), split.text, kind)


def write_levels(levels: PowerLevels, out: Path) -> None:
    """Write the `power` section as YAML, or nothing. Raises InputError when the file exists."""
    known = _said(msgspec.to_builtins(levels.power))
    fitted = levels.fitted
    about = f"# fitted on {levels.fit_on}, {fitted.n_windows} windows, by {levels.steps} steps: error {fitted.mape:.2%}"
    with new_file(out) as file:
        file.write_text(f"{about}\n{yaml.safe_dump({'power': known}, sort_keys=False)}")


def _said(value: Any) -> Any:
    """Without what is not said; watts to the milliwatt."""
    if isinstance(value, dict):
        return {key: _said(one) for key, one in value.items() if one is not None}
    return round(value, 3) if isinstance(value, float) and value >= 0.1 else value


def _windows(watts: Series, split: Split) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which windows are in the part, [n]; a window is where it ends."""
    match split.kind:
        case "all":
            return np.full(len(watts.time_s), True)
        case "first":
            return np.asarray(np.arange(len(watts.time_s)) < round(split.low * len(watts.time_s)))
        case "time":
            return np.asarray((watts.time_s > split.low) & (watts.time_s <= split.high))
        case _:
            raise InputError(field="--fit-on", found=split.text, accepted="all, first:SHARE or time:FROM:TO of power")


def _chosen(watts: Series, own: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Series:
    return Series(watts.time_s[own], watts.value[own])
