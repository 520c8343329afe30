"""Levels of power are found again in a series that was made of them."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.power import fit_power
from profiles.device import DevicePower
from simulator.network.topology import Place
from simulator.power.nodes import HostPower, NodePower
from simulator.power.run import Machine, power_run
from tests.simulator.test_power import record
from traces.capture import Series
from traces.errors import InputError
from traces.windows import Grid

TRUE = DevicePower(idle_w=30, standby_w=95, standby_s=6, active_w=280)
START = DevicePower(idle_w=30, standby_w=60, standby_s=6, active_w=400)
NODE = NodePower(host=HostPower(idle_w=100, active_w=130), base_w=200)
STEPS = record(*[(0, 30.0 * i + 3.2, 30.0 * i + 11.7, 0, 1) for i in range(4)])
GRID = Grid(0.0, 1.0, 120)


def machine(power: DevicePower | None) -> list[Machine]:
    return [Machine(0, (Place(0, 0),), power)]


def measured(delay_s: float = 0.0, noise_w: float = 0.0) -> Series:
    """A server's power, on a clock that is behind."""
    run = power_run(STEPS, machine(TRUE), [NODE], 120.0)
    watts = run.series(Grid(-delay_s, 1.0, 120))["power_w"].value
    return Series(GRID.ends_s(), watts + noise_w * np.random.default_rng(1).standard_normal(120))


def test_levels_are_found_again() -> None:
    fitted = fit_power(STEPS, machine(START), [NODE], measured())
    assert fitted.base_w == pytest.approx(200)
    assert (fitted.device.standby_w, fitted.device.active_w) == (pytest.approx(95), pytest.approx(280))
    assert fitted.device.idle_w == 30
    assert fitted.mape == pytest.approx(0, abs=1e-9)
    assert fitted.n_windows == 120


def test_the_meters_delay_is_found_again() -> None:
    fitted = fit_power(STEPS, machine(START), [NODE], measured(0.5, noise_w=1.0), (0.0, 0.25, 0.5, 0.75))
    assert fitted.delay_s == 0.5
    assert fitted.device.active_w == pytest.approx(280, abs=2)
    again = fitted.series(fitted.run(STEPS, machine(START), [NODE], 120.0), GRID)
    assert again.value == pytest.approx(measured(0.5).value, abs=2)


def test_windows_that_are_far_off_do_not_bend_the_levels() -> None:
    series = measured(noise_w=1.0)
    series.value[[12, 42, 72]] = 540.0  # a stretch that lasted longer than was simulated
    fitted = fit_power(STEPS, machine(START), [NODE], series)
    assert fitted.device.standby_w == pytest.approx(95, abs=2)


@pytest.mark.parametrize(
    ("machines", "series", "message"),
    [
        (machine(None), measured(), "levels of one kind of device"),
        (machine(START), Series(np.array([1.0, 2.0, 4.0]), np.ones(3)), "windows of equal width"),
        (machine(START), Series(np.arange(1.0, 4.0), np.full(3, 300.0)), "each of rest, standby and work"),
    ],
)
def test_what_cannot_be_told_is_refused(machines: list[Machine], series: Series, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_power(STEPS, machines, [NODE], series)
