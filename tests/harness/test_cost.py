"""Cost: devices by the hour and energy by the kWh, over what was produced; what is not known is not free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.cost import CostFile, cost_figures
from harness.running.simulate import simulate_scenario
from harness.terminal.summary import cost_lines, energy_lines, slo_lines
from simulator.simulate import simulate
from tests.engines import engine, trace
from tests.harness.scenarios import write_scenario
from traces.capture import Capture
from traces.errors import InputError
from traces.metrics import Slo, goodput_per_s, n_meeting, throughput


def served() -> Capture:
    """Four requests of 100 prompt and 150 output tokens."""
    return simulate(trace(*[(float(i), 100, 150) for i in range(4)]), engine()).capture


def figures(prices: CostFile, **changes: Any) -> dict[str, Any]:
    """Costs of two devices for half an hour and 1 kWh."""
    said: dict[str, Any] = {"devices": {"D": 2}, "window_s": 1800.0, "total_j": 3.6e6, "n_meeting_slo": 2}
    return cost_figures(served(), prices, **{**said, **changes})


def test_a_run_costs_its_devices_and_its_energy() -> None:
    cost = figures(CostFile(price_per_device_hour=3.0, price_per_kwh=0.2, pue=1.5, carbon_kg_per_kwh=0.4))
    assert (cost["device_hours"], cost["energy_kwh"]) == (1.0, 1.5)
    assert cost["devices"] == 3.0
    assert cost["energy"] == pytest.approx(0.3)
    assert cost["total"] == pytest.approx(3.3)
    assert cost["per_million_tokens"] == pytest.approx(3.3 / 1000 * 1e6)
    assert cost["per_million_output_tokens"] == pytest.approx(3.3 / 600 * 1e6)
    assert cost["per_request"] == pytest.approx(3.3 / 4)
    assert cost["per_slo_request"] == pytest.approx(3.3 / 2)
    assert cost["carbon_kg"] == pytest.approx(0.6)
    assert cost["carbon_kg_per_million_tokens"] == pytest.approx(600.0)


def test_energy_that_is_priced_and_not_known_leaves_the_cost_unknown() -> None:
    cost = figures(CostFile(price_per_device_hour=3.0, price_per_kwh=0.2), total_j=None)
    assert cost["devices"] == 3.0
    assert (cost["energy_kwh"], cost["energy"], cost["total"], cost["per_request"]) == (None, None, None, None)


def test_devices_alone_can_be_priced() -> None:
    cost = figures(CostFile(price_per_device_hour=3.0), total_j=None)
    assert (cost["total"], cost["energy"], cost["carbon_kg"]) == (3.0, None, None)


def test_each_device_can_have_its_price_and_each_must() -> None:
    cost = figures(CostFile(price_per_device_hour={"D": 3.0, "E": 1.0}), devices={"D": 2, "E": 4})
    assert cost["total"] == 3.0 + 2.0
    with pytest.raises(InputError, match=r"cost.price_per_device_hour.E': is missing"):
        figures(CostFile(price_per_device_hour={"D": 3.0}), devices={"D": 2, "E": 4})


def test_no_request_that_met_the_objective_has_no_price() -> None:
    assert figures(CostFile(price_per_device_hour=3.0), n_meeting_slo=0)["per_slo_request"] is None
    assert figures(CostFile(price_per_device_hour=3.0), n_meeting_slo=None)["per_slo_request"] is None


def test_goodput_is_the_requests_that_meet_the_objective() -> None:
    capture = served()
    run = throughput(capture.outcomes)
    assert run is not None
    limit_s = sorted((o.finish_s or 0) - o.arrival_s for o in capture.outcomes)[1]
    slo = Slo(e2el_s=limit_s)
    met = n_meeting(capture.outcomes, slo)
    assert met is not None
    assert 2 <= met <= 4
    assert goodput_per_s(capture.outcomes, slo) == met / run.duration_s


def test_a_scenario_says_objective_and_prices(tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    path.write_text(path.read_text() + "slo: {ttft_s: 10}\ncost: {price_per_device_hour: 2, price_per_kwh: 0.1}\n")
    _, found = simulate_scenario(path)
    assert found["slo"]["n_meeting"] == 40
    assert found["cost"]["devices"] == pytest.approx(2 * found["cost"]["device_hours"])
    assert found["cost"]["total"] is None
    assert found["cost"]["notes"] == ["energy is not known: the cluster says nothing of power"]
    assert cost_lines(found["cost"])[0].startswith("cost not known")
    assert energy_lines(found["energy"]) == []
    assert slo_lines(found["slo"], 40)[0].startswith("slo met by 40 of 40 requests, ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("slo: {}", "'slo': sets no limit.*ttft_s"),
        ("cost: {}", "'cost': sets no price.*price_per_device_hour"),
        ("cost: {price_per_kwh: -1}", "cost.price_per_kwh': found -1"),
        ("cost: {pue: 0.9, price_per_kwh: 1}", "cost.pue': found 0.9"),
        ("slo: {ttft: 1}", "slo.ttft': is unknown.*ttft_s"),
    ],
)
def test_what_says_nothing_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = write_scenario(tmp_path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=message):
        simulate_scenario(path)
