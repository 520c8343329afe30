"""Arrivals of every process have the rate, the spread and the course that were asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.arrivals import LAWS, Rate, arrivals_s, unit_gaps, weibull_shape
from traces.errors import InputError

N = 40_000


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("law", "cv", "expected"),
    [("constant", None, 0.0), ("poisson", None, 1.0), ("gamma", 0.5, 0.5), ("gamma", 3.0, 3.0), ("weibull", 2.0, 2.0)],
)
def test_gaps_have_mean_1_and_the_spread_asked_for(law: str, cv: float | None, expected: float) -> None:
    gaps = unit_gaps(N, law, cv, rng())
    assert gaps.mean() == pytest.approx(1.0, abs=4 * max(expected, 1e-9) / math.sqrt(N))
    assert gaps.std() == pytest.approx(expected, rel=0.06, abs=1e-9)


@given(st.floats(0.05, 10))
def test_the_weibull_shape_gives_the_cv(cv: float) -> None:
    k = weibull_shape(cv)
    assert math.gamma(1 + 2 / k) / math.gamma(1 + 1 / k) ** 2 - 1 == pytest.approx(cv**2, rel=1e-6)


def test_a_weibull_of_cv_1_is_exponential() -> None:
    assert weibull_shape(1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("law", LAWS)
def test_arrivals_ascend_from_0_at_the_rate(law: str) -> None:
    times_s = arrivals_s(N, Rate.steady(8.0), law, 1.5 if law in ("gamma", "weibull") else None, rng())
    assert times_s[0] == 0
    assert (np.diff(times_s) >= 0).all()
    assert (N - 1) / times_s[-1] == pytest.approx(8.0, rel=0.05)


def test_bursts_have_their_share_of_the_requests() -> None:
    rate = Rate.bursts(10.0, factor=5.0, burst_s=10.0, period_s=60.0)
    times_s = arrivals_s(N, rate, "poisson", None, rng())
    inside = (times_s % 60.0 < 10.0).mean()
    assert inside == pytest.approx(5 * 10 / (5 * 10 + 50), abs=0.02)
    assert N / times_s[-1] == pytest.approx(10.0, rel=0.03)


def test_a_day_is_fullest_a_quarter_in() -> None:
    times_s = arrivals_s(N, Rate.diurnal(10.0, amplitude=0.8, period_s=400.0), "poisson", None, rng())
    counts = np.histogram(times_s % 400.0, np.linspace(0, 400, 5))[0] / N
    sine = 0.25 + 0.8 / (2 * np.pi) * np.array([1, 1, -1, -1])
    assert counts == pytest.approx(sine, abs=0.02)


@given(st.floats(0.1, 100), st.floats(1, 20), st.floats(0.01, 0.99))
def test_what_a_rate_has_brought_comes_back(mean_per_s: float, factor: float, part: float) -> None:
    rate = Rate.bursts(mean_per_s, factor, part * 30.0, 30.0)
    assert rate.times_s(np.array([0.0, mean_per_s * 30.0, mean_per_s * 90.0])) == pytest.approx([0.0, 30.0, 90.0])


@pytest.mark.parametrize(
    ("law", "cv"),
    [("poisson", 1.0), ("constant", 1.0), ("gamma", None), ("gamma", 0.0), ("weibull", 50.0), ("lognormal", 1.0)],
)
def test_a_spread_that_cannot_be_had_is_named(law: str, cv: float | None) -> None:
    with pytest.raises(InputError, match=r"--cv|--arrivals"):
        unit_gaps(10, law, cv, rng())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rate.steady(0.0),
        lambda: Rate.steady(float("nan")),
        lambda: Rate.bursts(1.0, 0.5, 1.0, 2.0),
        lambda: Rate.bursts(1.0, 2.0, 2.0, 2.0),
        lambda: Rate.diurnal(1.0, 1.5, 10.0),
        lambda: Rate.diurnal(1.0, 0.5, 0.0),
    ],
)
def test_a_rate_that_cannot_be_is_named(make: object) -> None:
    with pytest.raises(InputError, match="--"):
        make()  # type: ignore[operator]
