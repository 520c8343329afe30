"""Percentiles and intervals: exact ranks, coverage on draws whose truth is known, refusals."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from traces.statistics import (
    STATISTICS,
    enough,
    has_interval,
    mean_ci,
    percentile,
    pooled_error_ci,
    quantile_ci,
    quantile_ranks,
    ratio_ci,
    relative_error,
    relative_error_ci,
    statistic,
)


def test_percentile_is_numpys_linear_one() -> None:
    assert percentile(np.array([1.0, 2.0, 3.0, 4.0]), 0.9) == pytest.approx(3.7)


@pytest.mark.parametrize(("name", "least"), [("mean", 1), ("p50", 2), ("p90", 10), ("p95", 20), ("p99", 100)])
def test_a_percentile_needs_a_sample_expected_beyond_it(name: str, least: int) -> None:
    assert enough(least, name)
    assert not enough(least - 1, name)
    assert statistic(np.ones(least), name) == 1.0
    assert statistic(np.ones(least - 1), name) is None


@pytest.mark.parametrize(("name", "least"), [("mean", 2), ("p50", 6), ("p90", 29), ("p95", 59), ("p99", 299)])
def test_an_interval_needs_its_order_statistics(name: str, least: int) -> None:
    assert has_interval(least, name)
    assert not has_interval(least - 1, name)


@given(st.integers(0, 2000), st.sampled_from([0.01, 0.5, 0.9, 0.95, 0.99]), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_ranks_hold_the_quantile_as_often_as_they_say(n: int, q: float, confidence: float) -> None:
    ranks = quantile_ranks(n, q, confidence)
    if ranks is None:  # not even the smallest and the largest sample bracket it often enough
        assert binom.cdf(n - 1, n, q) - binom.cdf(0, n, q) < confidence + 1e-9
    else:
        r, s = ranks
        assert 1 <= r < s <= n
        assert binom.cdf(s - 1, n, q) - binom.cdf(r - 1, n, q) >= confidence - 1e-9


def test_equal_tails_where_the_sample_allows() -> None:
    # 100 samples, median: ranks 40 and 61 are the textbook pair (David & Nagaraja, section 7.1).
    assert quantile_ranks(100, 0.5) == (40, 61)


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_quantile_interval_covers_the_truth(q: float) -> None:
    rng = np.random.default_rng(1)
    truth = -np.log1p(-q)  # of the exponential distribution
    draws = np.sort(rng.exponential(size=(2000, 120)), axis=1)
    intervals = [quantile_ci(row, q) for row in draws]
    held = [low <= truth <= high for low, high in filter(None, intervals)]
    assert len(held) == 2000
    assert 0.945 <= np.mean(held) <= 0.985  # 95 % or a little more: ranks are whole numbers


def test_mean_and_ratio_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(2)
    held = []
    for _ in range(300):
        requests = rng.integers(1, 9, size=80).astype(np.float64)
        tokens = requests * rng.normal(100, 10, size=80)
        low, high = ratio_ci(tokens, requests, rng, n_resamples=200) or (np.nan, np.nan)
        held.append(low <= 100 <= high)
        assert (interval := mean_ci(tokens, rng, n_resamples=50)) is not None
        assert interval[0] < tokens.mean() < interval[1]
    assert 0.90 <= np.mean(held) <= 0.99


def test_error_interval_covers_the_truth_and_pairing_narrows_it() -> None:
    rng = np.random.default_rng(3)
    held = []
    for _ in range(300):
        measured = rng.lognormal(sigma=1.0, size=100)
        simulated = measured * rng.normal(1.1, 0.05, size=100)
        low, high = relative_error_ci(measured, simulated, ["mean"], rng, n_resamples=200)["mean"] or (np.nan, np.nan)
        assert high - low < 0.1  # unpaired, the spread of the lognormal alone would make it about 0.5
        held.append(low <= 0.1 <= high)
    assert 0.88 <= np.mean(held) <= 0.99


def test_error_intervals_agree_with_resampling_one_by_one() -> None:
    rng = np.random.default_rng(4)
    measured, simulated = rng.exponential(size=(2, 40))
    found = relative_error_ci(measured, simulated, ["p90"], np.random.default_rng(5), n_resamples=300)["p90"]
    again = np.random.default_rng(5).integers(40, size=(300, 40))
    errors = [percentile(simulated[i], 0.9) / percentile(measured[i], 0.9) - 1 for i in again]
    assert found == pytest.approx(tuple(np.quantile(errors, [0.025, 0.975])))


def test_pooled_error_intervals_draw_requests_with_all_their_values() -> None:
    rng = np.random.default_rng(8)
    level = rng.lognormal(sigma=0.5, size=60)  # values of one request resemble each other
    measured = [own * rng.uniform(0.9, 1.1, size=n) for own, n in zip(level, rng.integers(1, 90, size=60), strict=True)]
    simulated = [own * rng.normal(1.2, 0.1) for own in measured]
    found = pooled_error_ci(measured, simulated, ["mean", "p90"], np.random.default_rng(9), n_resamples=400)
    errors: dict[str, list[float]] = {"mean": [], "p90": []}
    for weights in np.random.default_rng(9).multinomial(60, np.full(60, 1 / 60), size=400):
        drawn = np.repeat(np.arange(60), weights)
        before, after = (np.concatenate([side[i] for i in drawn]) for side in (measured, simulated))
        errors["mean"].append(after.mean() / before.mean() - 1)
        errors["p90"].append(percentile(after, 0.9) / percentile(before, 0.9) - 1)
    for name, expected in errors.items():
        assert found[name] == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])), abs=0.005)


def test_pooled_intervals_are_none_where_values_are_few() -> None:
    rng = np.random.default_rng(0)
    assert pooled_error_ci([], [], ["mean"], rng) == {"mean": None}
    assert pooled_error_ci([np.ones(9)], [np.ones(9)], ["mean"], rng) == {"mean": None}
    two = [np.ones(9), np.empty(0)]  # some resample holds the empty one only
    assert pooled_error_ci(two, two, ["mean"], rng) == {"mean": None}
    full = [np.ones(9), np.ones(9)]
    assert pooled_error_ci(full, full, ["mean", "p99"], rng) == {"mean": (0.0, 0.0), "p99": None}


def test_same_generator_same_intervals_and_none_where_samples_are_few() -> None:
    measured = np.linspace(1.0, 2.0, 60)
    first, second = (
        relative_error_ci(measured, measured * 1.5, STATISTICS, np.random.default_rng(7)) for _ in range(2)
    )
    assert first == second
    assert first["p95"] == pytest.approx((0.5, 0.5))
    assert first["p99"] is None
    assert relative_error_ci(np.empty(0), np.empty(0), ["mean"], np.random.default_rng(0)) == {"mean": None}


def test_relative_error_is_signed_and_refuses_a_zero() -> None:
    two, three = np.full(10, 2.0), np.full(10, 3.0)
    assert relative_error(two, three, "mean") == 0.5
    assert relative_error(three, two, "p50") == pytest.approx(-1 / 3)
    assert relative_error(np.zeros(10), two, "mean") is None
    assert relative_error(two, two, "p99") is None


def test_blocks_of_resamples_do_not_change_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(50.0)
    whole = mean_ci(values, np.random.default_rng(0), n_resamples=100)
    monkeypatch.setattr("traces.statistics._BLOCK_ELEMENTS", 50 * 7)
    assert mean_ci(values, np.random.default_rng(0), n_resamples=100) == whole


@pytest.mark.parametrize(("n", "q"), [*product([300, 200_000], [0.5, 0.99])])
def test_binomial_sums_stay_exact_for_many_samples(n: int, q: float) -> None:
    r, s = quantile_ranks(n, q) or (0, 0)
    assert binom.cdf(r - 1, n, q) <= 0.025 + 1e-9
    assert binom.cdf(s - 1, n, q) - binom.cdf(r - 1, n, q) >= 0.95 - 1e-9
