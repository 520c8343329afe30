"""The regression: known values come back, outliers do not matter, what is not told is named."""

from __future__ import annotations

import numpy as np

from calibrate.parameters import Parameter
from calibrate.regression import Equations, Estimate, identify, robust_sd, stretches

PARAMETERS = [
    Parameter("level", "s", 0.0, 1.0, ""),
    Parameter("slope", "s", 0.0, 1.0, ""),
    Parameter("unseen", "s", 0.0, 1.0, ""),
]


def estimate(rng: np.random.Generator, *, outliers: int = 0, cluster_sd: float = 0.0) -> Estimate:
    n, n_clusters = 400, 20
    design = np.column_stack([np.ones(n), rng.uniform(0, 1, n), np.zeros(n)])
    cluster = np.arange(n) * n_clusters // n
    target = design @ [0.5, 0.2, 0.0] + rng.normal(0, 0.05, n) + rng.normal(0, cluster_sd, n_clusters)[cluster]
    target[:outliers] += 50.0
    equations = Equations(target, design, np.ones(n), np.zeros(n, dtype=np.int64), cluster)
    return identify(lambda _: equations, PARAMETERS, {})


def test_known_values_come_back_within_their_errors() -> None:
    found = estimate(np.random.default_rng(0))
    errors = np.sqrt(np.diag(found.covariance))
    assert np.all(np.abs(found.values - [0.5, 0.2, 0.0]) < 3 * errors)
    assert errors[1] < 0.02


def test_what_the_data_do_not_tell_is_held_at_its_prior_named_and_as_unsure_as_the_prior() -> None:
    found = estimate(np.random.default_rng(1))
    assert found.held == {"unseen": "nothing in the data depends on it"}
    assert found.values[2] == 0.0
    assert np.isclose(found.covariance[2, 2], 1.0)


def test_outliers_hardly_move_the_fit() -> None:
    clean, dirty = (estimate(np.random.default_rng(2), outliers=n) for n in (0, 8))
    assert np.allclose(clean.values, dirty.values, atol=0.03)


def test_standard_errors_hold_where_noise_is_shared_by_neighbours() -> None:
    """Independent noise would be a third of the truth here; over 200 draws the errors must fit the scatter."""
    rng = np.random.default_rng(3)
    found = [estimate(rng, cluster_sd=0.05) for _ in range(200)]
    scatter = np.std([each.values[0] for each in found])
    claimed = np.mean([np.sqrt(each.covariance[0, 0]) for each in found])
    assert 0.9 < claimed / scatter < 1.5


def test_a_value_below_what_is_possible_is_held_and_says_so() -> None:
    bounded = [*PARAMETERS[:1], Parameter("slope", "s", 0.0, 1.0, "", least=0.0)]
    design = np.column_stack([np.ones(50), np.linspace(0, 1, 50)])
    target = 1 - 0.5 * design[:, 1]
    none = np.zeros(50, dtype=np.int64)
    found = identify(lambda _: Equations(target, design, np.ones(50), none, np.arange(50) // 10), bounded, {})
    assert "cannot be below 0" in found.held["slope"]
    assert found.values[1] == 0.0


def test_noise_is_dependent_within_stretches_of_one_capture_alone() -> None:
    assert stretches(5, 2, 0).tolist() == [0, 0, 0, 1, 1]
    assert stretches(5, 2, 3).tolist() == [6, 6, 6, 7, 7]
    assert stretches(0, 2, 3).tolist() == []


def test_a_robust_deviation_is_the_standard_one_and_survives_disturbances() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, 10_000)
    assert np.isclose(robust_sd(values, 5.0), 2.0, rtol=0.03)
    assert np.isclose(robust_sd(np.where(np.arange(10_000) % 4, values, 1e6), 5.0), 2.0, rtol=0.5)
