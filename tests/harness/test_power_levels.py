"""`calibrate --from power`: levels fitted to a capture's power, written as a section that a description takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from harness.cli import app
from harness.power_levels import fit_levels, write_levels
from harness.running.simulate import simulate_scenario, write_simulation
from tests.engines import trace
from tests.harness.test_power import scenario
from tests.measured_power import START, power_case
from tests.pages import shown_and_printed
from traces.capture import Series, read_capture, write_capture
from traces.errors import InputError
from traces.formats import import_capture, read_any_trace
from traces.trace import write_trace


def bursts(folder: Path) -> Path:
    """A scenario of five bursts, ten seconds apart; its levels are 20, 50 and 200 W and a base of 200."""
    path = scenario(folder)
    rows = [(10.0 * burst + 0.01 * i, 20 + 13 * i % 200, 2 + 7 * i % 30) for burst in range(5) for i in range(60)]
    (folder / "requests.jsonl").unlink()
    write_trace(trace(*rows), folder / "requests.jsonl")
    return path


def measured(folder: Path) -> Path:
    """A run whose levels are known, as if measured."""
    folder.mkdir()
    simulation, figures = simulate_scenario(bursts(folder))
    write_simulation(simulation, figures, folder / "run")
    return folder / "run"


def described_wrongly(folder: Path) -> Path:
    path = bursts(folder)
    said = yaml.safe_load(path.read_text())
    power = said["cluster"]["power"]
    power["devices"]["TESTGPU"] |= {"standby_w": 40, "active_w": 90}
    power["base_w"] = 20
    path.write_text(yaml.safe_dump(said))
    return path


def test_levels_come_back_and_the_section_is_read_as_it_is(tmp_path: Path) -> None:
    run, wrong = measured(tmp_path / "real"), described_wrongly(tmp_path)
    levels = fit_levels(wrong, run)
    assert levels.steps == "measured"
    assert levels.fitted.device.active_w == pytest.approx(200, rel=1e-3)
    assert levels.fitted.base_w == pytest.approx(200, rel=1e-2)
    write_levels(levels, tmp_path / "levels.yaml")
    section = yaml.safe_load((tmp_path / "levels.yaml").read_text())["power"]
    said = yaml.safe_load(wrong.read_text())
    said["cluster"]["power"] = section
    wrong.write_text(yaml.safe_dump(said))
    fitted, real = (
        simulate_scenario(path)[1]["energy"]["total_j"] for path in (wrong, tmp_path / "real" / "scenario.yaml")
    )
    assert fitted == pytest.approx(real, rel=1e-3)


def test_a_meter_of_the_devices_tells_their_levels_and_no_base(tmp_path: Path) -> None:
    run, wrong = measured(tmp_path / "real"), described_wrongly(tmp_path)
    capture = read_capture(run)
    devices = {name: series for name, series in capture.series.items() if name == "power_w.devices"}
    write_capture(replace(capture, series=devices), tmp_path / "gpus")
    levels = fit_levels(wrong, tmp_path / "gpus")
    assert levels.fitted.device.active_w == pytest.approx(200, rel=1e-3)
    assert levels.fitted.mape < 1e-3
    assert levels.fitted.base_w is None
    assert levels.power.base_w == 20, "as described"
    write_capture(replace(capture, series={}), tmp_path / "none")
    with pytest.raises(InputError, match=r"'power_w': has no measured power: .* or of its devices in power_w.devices"):
        fit_levels(wrong, tmp_path / "none")


@pytest.mark.parametrize("metered", ["power_w", "power_w.devices"])
def test_windows_before_the_run_tell_nothing(tmp_path: Path, metered: str) -> None:
    """A recording begins before the load: at rest, which is not simulated."""
    run, wrong = measured(tmp_path / "real"), described_wrongly(tmp_path)
    capture = read_capture(run)
    watts = capture.series[metered]
    before = Series(np.append(np.arange(-19.0, 1.0), watts.time_s), np.append(np.full(20, 99.0), watts.value))
    write_capture(replace(capture, series={metered: before}), tmp_path / "early")
    levels = fit_levels(wrong, tmp_path / "early", "first:0.6")
    assert levels.n_before == 20
    assert levels.fitted.n_windows + levels.n_rest == len(watts.time_s)
    assert levels.fitted.device.active_w == pytest.approx(200, rel=1e-3)
    assert levels.rest_mape is not None
    assert levels.rest_mape < 0.02


def test_a_part_is_fitted_and_the_rest_is_scored(tmp_path: Path) -> None:
    run, wrong = measured(tmp_path / "real"), described_wrongly(tmp_path)
    levels = fit_levels(wrong, run, "first:0.5")
    assert levels.n_rest == pytest.approx(levels.fitted.n_windows, abs=1)
    assert levels.rest_mape is not None
    assert levels.rest_mape < 0.02
    told = CliRunner().invoke(
        app,
        ["calibrate", str(wrong), "--capture", str(run), "--from", "power", "--out", str(tmp_path / "levels.yaml")],
    )
    assert told.exit_code == 0, told.output
    assert "error of the windows that were fitted" in told.output


@pytest.mark.parametrize(
    ("fit_on", "message"), [("load:0:8", "first:SHARE or time:FROM:TO of power"), ("time:6:9", "levels cannot be told")]
)
def test_a_part_that_tells_nothing_is_refused(tmp_path: Path, fit_on: str, message: str) -> None:
    run, wrong = measured(tmp_path / "real"), described_wrongly(tmp_path)
    with pytest.raises(InputError) as caught:
        fit_levels(wrong, run, fit_on)
    assert message in f"{caught.value} {caught.value.accepted}"


def test_without_power_there_is_nothing_to_fit(tmp_path: Path) -> None:
    run = measured(tmp_path / "real")
    path = described_wrongly(tmp_path)
    said = yaml.safe_load(path.read_text())
    del said["cluster"]["power"]
    path.write_text(yaml.safe_dump(said))
    with pytest.raises(InputError, match="is missing"):
        fit_levels(path, run)


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("energy.md", tmp_path)
    assert printed == shown


@pytest.mark.ground_truth
def test_a_measured_server(ground_truth: Path, tmp_path: Path) -> None:
    """One A6000 under a pulsed load: fitted on the first half of the seconds, scored on the second."""
    path = power_case(tmp_path)
    assert START.year == 2025
    trace = read_any_trace(ground_truth / "ispass26" / "dataset" / "sharegpt_pulse_req10_n3_delay60.jsonl")
    file = ground_truth / "ispass26" / "power" / "server_power.tsv"
    write_capture(import_capture(file, trace=trace), tmp_path / "capture")
    levels = fit_levels(path, tmp_path / "capture", "first:0.5")
    assert levels.steps == "simulated"
    assert levels.rest_mape is not None
    assert levels.rest_mape <= 0.03
