"""Print how far off simulated power is on a measured server, with levels as described and calibrated.

.venv/bin/python tests/benchmarks/power.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from harness.terminal.console import console, table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, `tests` is not on the path
from tests.measured_power import (
    DELAYS_S,
    measured_busy,
    peer_power,
    power_case,
    score,
    score_as_described,
    score_calibrated,
    server_power,
    simulated,
)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        steps, plan, end_s = simulated(power_case(Path(folder)))
    busy = measured_busy()
    scores = {
        "LLMServingSim": score(server_power(), peer_power()),
        "as described": score_as_described(steps, plan, end_s),
        "calibrated on the 1st half, of the 2nd": score_calibrated(steps, plan, end_s, delays_s=(0.0,)),
        "the same, and the meter's delay": score_calibrated(steps, plan, end_s, delays_s=DELAYS_S),
        "measured busy times, as described": score_as_described(busy, plan, end_s),
        "measured busy times, calibrated": score_calibrated(busy, plan, end_s, delays_s=(0.0,)),
        "the same, and the meter's delay ": score_calibrated(busy, plan, end_s, delays_s=DELAYS_S),
    }
    rows = [(name, f"{one.mape:.2%}", f"{one.energy:+.2%}", str(one.n)) for name, one in scores.items()]
    console().print(table("Server power, A6000, pulsed load", ["levels", "error", "energy", "seconds"], rows))


if __name__ == "__main__":
    main()
