"""Queueing theory the simulator must agree with, within the sampling error of the simulation."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.simulate import simulate
from tests.engines import LinearStepTime, engine, trace

SERVICE_S = 0.01
REPLICATIONS = 20
REQUESTS = 2000
WARM_UP = 200


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_seat_waits_like_an_m_d_1_queue(load: float) -> None:
    """Poisson arrivals, one seat, one step of constant time each: the mean wait is load * D / (2 * (1 - load)).

    Pollaczek-Khinchine for deterministic service (Kleinrock, Queueing Systems vol. 1, eq. 5.69).
    """
    waits = []
    for seed in range(REPLICATIONS):
        gaps_s = np.random.default_rng(seed).exponential(SERVICE_S / load, REQUESTS)
        rows = [(float(t), 1, 1) for t in np.cumsum(gaps_s)]
        run = simulate(trace(*rows), engine(LinearStepTime(SERVICE_S), max_num_seqs=1))
        queue_s = [outcome.scheduled_s - outcome.arrival_s for outcome in run.capture.outcomes]  # type: ignore[operator]
        waits.append(np.mean(queue_s[WARM_UP:]))
    expected_s = load * SERVICE_S / (2 * (1 - load))
    standard_error_s = np.std(waits, ddof=1) / np.sqrt(REPLICATIONS)
    assert abs(np.mean(waits) - expected_s) < 3 * standard_error_s


def test_a_server_of_many_seats_waits_for_the_next_step_only() -> None:
    """With seats to spare, a request that arrives while steps run waits for the one in flight: half a step on average.

    Arrivals are uniform within a step (Poisson arrivals see time averages), so that the mean wait is D / 2 and its
    standard error D / sqrt(12 n).
    """
    rng = np.random.default_rng(7)
    background = [(0.0, 1, 20_000)]
    arrivals = np.sort(rng.uniform(1.0, 150.0, 1000))
    rows = background + [(float(t), 1, 1) for t in arrivals]
    run = simulate(trace(*rows), engine(LinearStepTime(SERVICE_S), max_model_len=30_000, num_gpu_blocks=5000))
    waits = [outcome.scheduled_s - outcome.arrival_s for outcome in run.capture.outcomes[1:]]  # type: ignore[operator]
    assert np.mean(waits) == pytest.approx(SERVICE_S / 2, abs=4 * SERVICE_S / np.sqrt(12 * len(waits)))
