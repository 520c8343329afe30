"""Levels of power fitted to a measured series: what a device draws on standby and at work, and what all else does.

Power is linear in its levels once it is known when the devices were at work, so that levels are a linear regression on
the seconds that each window has of each state:

    measured = described + base + (standby - idle) * seconds on standby + (active - idle) * seconds at work

where `described` is what the description says of everything else. A level of devices at rest cannot be told from the
rest of the server, and is held. Of a meter of the devices alone there is neither base nor anything else. The regression
is of relative errors and reweighted towards their median, as windows at the edge of a busy stretch are far off where
the simulated stretch is longer than the measured one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from profiles.device import DevicePower
from simulator.power.nodes import NodePower
from simulator.power.run import Machine, PowerRun, power_run
from traces.capture import Series
from traces.errors import InputError
from traces.steps import Floats, Steps
from traces.windows import DEVICES_POWER, SERVER_POWER, Grid, grid_like, is_before_second_0

REWEIGHTINGS = 30
SMALLEST_ERROR = 0.005
"""Errors below this weigh as if they were it: half a percent is what meters of servers tell."""


@dataclass(frozen=True, slots=True)
class FittedPower:
    """Levels of power, and how well they describe what they were fitted to.

    Attributes:
        device: levels of each device.
        base_w: of a node, what no other component explains; None: of a meter of the devices, which does not say.
        metered: the series, `power_w` or `power_w.devices`.
        delay_s: by how much the series' clock, or its meter, is behind the run's.
        mape: mean relative error over the windows that were fitted.
        n_windows: how many there were.
    """

    device: DevicePower
    base_w: float | None
    metered: str
    delay_s: float
    mape: float
    n_windows: int

    def run(self, steps: Steps, machines: Sequence[Machine], nodes: Sequence[NodePower], end_s: float) -> PowerRun:
        """What these steps draw by the fitted levels."""
        own = [replace(one, power=self.device) for one in machines]
        return power_run(steps, own, [self.node(one) for one in nodes], end_s)

    def node(self, described: NodePower) -> NodePower:
        """A node with the fitted base, where there is one."""
        return described if self.base_w is None else msgspec.structs.replace(described, base_w=self.base_w)

    def series(self, run: PowerRun, grid: Grid) -> Series:
        """The run's power on the series' clock."""
        watts = run.series(Grid(grid.start_s - self.delay_s, grid.window_s, grid.n))[self.metered]
        return Series(grid.ends_s(), watts.value)


def fit_power(
    steps: Steps,
    machines: Sequence[Machine],
    nodes: Sequence[NodePower],
    measured: Series,
    delays_s: Sequence[float] = (0.0,),
    *,
    metered: str = SERVER_POWER,
) -> FittedPower:
    """Fit standby and active level, and base, to the power of all nodes together.

    Args:
        steps: when devices were at work, simulated or measured.
        machines: the ranks that they are of, all on one kind of device.
        nodes: what is said of all else; whatever they say of base and of the device's levels but idle is fitted anew.
        measured: mean watts of windows of equal width.
        delays_s: delays of the series to choose from, by the smallest error.
        metered: which series it is, `SERVER_POWER` or `DEVICES_POWER`.

    Raises:
        InputError: unlike devices or none described; windows that are not of equal width, or that do not hold each of
            rest, standby and work.
    """
    kinds = {machine.power for machine in machines}
    power = next(iter(kinds)) if len(kinds) == 1 else None
    if power is None:
        raise InputError(field="devices", found=len(kinds), accepted="levels of one kind of device to start from")
    grid = grid_like(measured)
    if grid is None:
        raise InputError(field=metered, accepted="windows of equal width")
    found = [_fitted(steps, machines, nodes, measured, grid, power, delay_s, metered) for delay_s in delays_s]
    return min(found, key=lambda one: one.mape)


def _fitted(
    steps: Steps,
    machines: Sequence[Machine],
    nodes: Sequence[NodePower],
    measured: Series,
    grid: Grid,
    power: DevicePower,
    delay_s: float,
    metered: str,
) -> FittedPower:
    """The levels at one delay."""
    idle_w = power.idle_w
    bare = DevicePower(idle_w=idle_w, standby_w=idle_w, standby_s=power.standby_s, active_w=idle_w)
    shifted = Grid(grid.start_s - delay_s, grid.window_s, grid.n)

    def watts(device: DevicePower) -> Floats:
        plain = [msgspec.structs.replace(node, base_w=0.0) for node in nodes]
        own = [replace(one, power=device) for one in machines]
        return power_run(steps, own, plain, float(steps.end_s.max(initial=0.0))).series(shifted)[metered].value

    described = watts(bare)
    active = watts(msgspec.structs.replace(bare, active_w=idle_w + 1)) - described
    columns = [active]
    if power.standby_s is not None:
        columns.append(watts(msgspec.structs.replace(bare, standby_w=idle_w + 1)) - described)
    if metered == SERVER_POWER:
        columns.append(np.full(grid.n, float(len(nodes))))
    ran = ~is_before_second_0(shifted)  # of the time before, nothing is said
    if not ran.any():
        raise InputError(field=metered, accepted="windows after second 0")
    by_level = np.stack(columns, axis=1)
    found = _regression(by_level[ran], (measured.value - described)[ran], measured.value[ran], metered)
    active_w, *standby = found if metered == DEVICES_POWER else found[:-1]
    levels = DevicePower(
        idle_w=idle_w,
        standby_w=idle_w + standby[0] if standby else None,
        standby_s=power.standby_s,
        active_w=idle_w + active_w,
    )
    predicted = described + by_level @ np.array(found)
    mape = float(np.mean((np.abs(predicted - measured.value) / measured.value)[ran]))
    base_w = None if metered == DEVICES_POWER else found[-1]
    return FittedPower(levels, base_w, metered, delay_s, mape, int(ran.sum()))


def _regression(columns: Floats, target: Floats, measured: Floats, metered: str) -> list[float]:
    """Coefficients that make the relative errors small, most of all the common ones."""
    if np.linalg.matrix_rank(columns) < columns.shape[1]:
        accepted = "a series that holds each of rest, standby and work"
        raise InputError("levels cannot be told apart", field=metered, accepted=accepted)
    weights = 1 / measured
    for _ in range(REWEIGHTINGS):
        found = np.linalg.lstsq(columns * weights[:, None], target * weights, rcond=None)[0]
        off = np.abs(columns @ found - target) / measured
        weights = 1 / measured / np.sqrt(np.maximum(off, SMALLEST_ERROR))
    return [float(one) for one in found]
