"""What a run cost: devices by the hour, energy by the kWh, and its carbon dioxide, over what it produced."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from profiles.device import Above0
from simulator.power.nodes import AtLeast0
from traces.capture import Capture
from traces.errors import InputError
from traces.metrics import Slo, n_meeting
from traces.outcome import Status

J_PER_KWH = 3.6e6
S_PER_HOUR = 3600.0


class CostFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices, in a scenario.

    Attributes:
        currency: of all prices.
        price_per_device_hour: one price, or one for each device's name; None: devices are not paid for by the hour.
        price_per_kwh: of energy; None: it is not paid for.
        pue: energy that the building draws over that of its servers (power usage effectiveness).
        carbon_kg_per_kwh: carbon dioxide of the energy; None: not wanted.
    """

    currency: Annotated[str, msgspec.Meta(min_length=1)] = "USD"
    price_per_device_hour: AtLeast0 | dict[str, AtLeast0] | None = None
    price_per_kwh: AtLeast0 | None = None
    pue: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    carbon_kg_per_kwh: AtLeast0 | None = None


class SloFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most each duration of a request may be; None sets no limit."""

    ttft_s: Above0 | None = None
    tpot_s: Above0 | None = None
    e2el_s: Above0 | None = None

    def slo(self) -> Slo:
        """The same for `traces.metrics`."""
        return Slo(self.ttft_s, self.tpot_s, self.e2el_s)


def slo_figures(capture: Capture, file: SloFile, duration_s: float | None) -> dict[str, Any]:
    """Requests that meet every limit, and their rate; None: not known."""
    met = n_meeting(capture.outcomes, file.slo())
    rate = None if met is None or not duration_s else met / duration_s
    return {"limits": msgspec.to_builtins(file), "n_meeting": met, "goodput_per_s": rate}


def cost_figures(
    capture: Capture,
    prices: CostFile,
    *,
    devices: dict[str, int],
    window_s: float,
    total_j: float | None,
    n_meeting_slo: int | None,
) -> dict[str, Any]:
    """What the run cost, in all and per unit of what it produced. None: not known, or not priced.

    Args:
        capture: the run.
        prices: of devices and energy.
        devices: how many of each name, whether they were busy or not.
        window_s: how long they were held.
        total_j: energy of all that is known; None: nothing is.
        n_meeting_slo: requests that met the SLO; None: there is none, or it is not known.

    Raises:
        InputError: a device without a price where others have one.
    """
    hours = {name: count * window_s / S_PER_HOUR for name, count in devices.items()}
    of_devices = _device_cost(prices, hours)
    kwh = None if total_j is None else total_j * prices.pue / J_PER_KWH
    of_energy = None if kwh is None or prices.price_per_kwh is None else kwh * prices.price_per_kwh
    wanted = (prices.price_per_device_hour is not None, of_devices), (prices.price_per_kwh is not None, of_energy)
    asked = [value for is_asked, value in wanted if is_asked]
    total = None if not asked or None in asked else sum(value for value in asked if value is not None)
    done = [outcome for outcome in capture.outcomes if outcome.status is Status.FINISHED]
    outputs = sum(outcome.output_tokens for outcome in done)
    tokens = outputs + sum(outcome.prompt_tokens for outcome in done)
    carbon = None if kwh is None or prices.carbon_kg_per_kwh is None else kwh * prices.carbon_kg_per_kwh
    return {
        "currency": prices.currency,
        "device_hours": sum(hours.values()),
        "energy_kwh": kwh,
        "devices": of_devices,
        "energy": of_energy,
        "total": total,
        "per_million_tokens": _per(total, tokens / 1e6),
        "per_million_output_tokens": _per(total, outputs / 1e6),
        "per_request": _per(total, len(done)),
        "per_slo_request": None if n_meeting_slo is None else _per(total, n_meeting_slo),
        "carbon_kg": carbon,
        "carbon_kg_per_million_tokens": _per(carbon, tokens / 1e6),
    }


def _device_cost(prices: CostFile, hours: dict[str, float]) -> float | None:
    price = prices.price_per_device_hour
    if price is None:
        return None
    if not isinstance(price, dict):
        return price * sum(hours.values())
    for name in hours:
        if name not in price:
            accepted = f"a price of {name} too"
            raise InputError("is missing", field=f"cost.price_per_device_hour.{name}", accepted=accepted)
    return sum(price[name] * count for name, count in hours.items())


def _per(value: float | None, count: float) -> float | None:
    return None if value is None or not count else value / count
