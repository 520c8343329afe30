"""Energy, objectives and cost of a simulated scenario, as summary.json has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.cost import CostFile, cost_figures, slo_figures
from harness.deploy.power import Energy, device_counts, end_of, energy_figures
from harness.descriptions.scenario import Scenario
from simulator.engine import Engine
from traces.capture import Capture
from traces.metrics import throughput


def priced(scenario: Scenario, capture: Capture, energy: Energy | None, engines: Sequence[Engine]) -> dict[str, Any]:
    """`energy`, `slo` and `cost`; each None where the cluster or the scenario does not ask for it.

    Raises InputError for an objective without a limit, or a cost without a price.
    """
    figures: dict[str, Any] = {"energy": None, "slo": None, "cost": None}
    if energy is not None:
        figures["energy"] = energy_figures(energy, capture)
    if (slo := scenario.file.slo) is not None:
        if slo.ttft_s is slo.tpot_s is slo.e2el_s is None:
            raise scenario.document.error(["slo"], "sets no limit", accepted="ttft_s, tpot_s or e2el_s")
        run = throughput(capture.outcomes)
        figures["slo"] = slo_figures(capture, slo, None if run is None else run.duration_s)
    if (prices := scenario.file.cost) is not None:
        if prices.price_per_device_hour is prices.price_per_kwh is prices.carbon_kg_per_kwh is None:
            accepted = "price_per_device_hour, price_per_kwh or carbon_kg_per_kwh"
            raise scenario.document.error(["cost"], "sets no price", accepted=accepted)
        cost = cost_figures(
            capture,
            prices,
            devices=device_counts(engines),
            window_s=end_of(capture),
            total_j=None if energy is None or not energy.run.components else energy.run.total_j,
            n_meeting_slo=figures["slo"]["n_meeting"] if figures["slo"] else None,
        )
        figures["cost"] = {**cost, "notes": _cost_notes(prices, energy)}
    return figures


def _cost_notes(prices: CostFile, energy: Energy | None) -> list[str]:
    """What a reader should know of figures that depend on energy."""
    if prices.price_per_kwh is prices.carbon_kg_per_kwh is None:
        return []
    if energy is None or not energy.run.components:
        return ["energy is not known: the cluster says nothing of power"]
    if energy.run.unknown:
        return [f"of the energy that is known, which lacks: {', '.join(energy.run.unknown)}"]
    return []
