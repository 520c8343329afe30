"""The way of requests to the engine, from queue stamps that an engine sets between two steps."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.fit import fit
from calibrate.front_end import Ways, fit_front_end, ways
from calibrate.parameters import FRONT_END
from calibrate.split import parse_split
from simulator.front_end import DIRECT, FrontEnd
from tests.calibrate.synthetic import TRUTH, bundled, measured


def drawn(rng: np.random.Generator, mean_s: float, token_s: float, spread_s: float, *, exact: float) -> Ways:
    """Ways of which a share is known; of the others, that they are longer than one time and shorter than another."""
    tokens = rng.integers(50, 500, 400).astype(np.float64)
    way_s = mean_s + token_s * tokens + rng.normal(0, spread_s, 400)
    known = rng.random(400) < exact
    least_s = np.where(known, way_s, np.maximum(way_s - rng.uniform(0, 5e-3, 400), 0))
    return Ways(least_s, np.where(known, way_s, way_s + rng.uniform(0, 5e-3, 400)), tokens)


@pytest.mark.parametrize("token_s", [0.0, 4e-6])
def test_mean_growth_and_spread_come_back(token_s: float) -> None:
    found = fit_front_end([drawn(np.random.default_rng(0), 3e-3, token_s, 2e-4, exact=0.2)])
    errors = np.sqrt(np.diag(found.estimate.covariance))
    assert abs(found.estimate.values[0] - 3e-3) < 3.5 * errors[0]
    assert found.spread_s == pytest.approx(2e-4, rel=0.25)
    assert (FRONT_END[1].name in found.estimate.held) == (token_s == 0.0)
    assert found.estimate.values[1] == pytest.approx(token_s, abs=1e-6)


def test_an_engine_that_always_has_work_tells_nothing() -> None:
    found = fit_front_end([drawn(np.random.default_rng(1), 3e-3, 0.0, 2e-4, exact=0.0)])
    assert set(found.estimate.held) == {parameter.name for parameter in FRONT_END}
    assert "found the engine without work" in found.estimate.held["front_end_s"]
    assert found.spread_s is None


@pytest.mark.parametrize("way", [DIRECT, FrontEnd(2e-3, 3e-6)])
def test_bounds_of_a_simulation_hold_the_truth_and_its_fit_finds_it(way: FrontEnd) -> None:
    subject = measured(bundled("light"), TRUTH, seed=1, way=way)
    bounds = ways(subject.measured, np.ones(90, dtype=bool))
    truth_s = way.request_s + way.prompt_token_s * bounds.prompt_tokens
    assert np.all(bounds.least_s <= truth_s + 1e-9)
    assert np.all(bounds.most_s >= truth_s - 1e-9)
    values = fit([subject], parse_split("all")).values()
    assert values["front_end_s"] == pytest.approx(way.request_s, abs=1e-4)
    assert values["front_end_token_s"] == pytest.approx(way.prompt_token_s, abs=5e-7)
