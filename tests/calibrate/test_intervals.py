"""Intervals hold what is measured about as often as they say, and widen with what is not known."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from calibrate.calibration import Calibration, Residuals, front_end_of
from calibrate.draws import drawn_latencies
from calibrate.fit import fit
from calibrate.intervals import Intervals, intervals, intervals_of_draws
from calibrate.parameters import RESIDUAL
from calibrate.served import corrected, serve
from calibrate.split import parse_split
from calibrate.subject import Subject
from simulator.cluster import Cluster
from simulator.front_end import FrontEnd, simulate_behind
from tests.calibrate.synthetic import TRUTH, WAY, bundled, measured
from traces.capture import Capture
from traces.metrics import requests


def of(load: str, fitted: Calibration, floor: dict[str, float] | None = None) -> Intervals:
    subject, values = bundled(load), fitted.values()
    served = serve(subject.trace, corrected(subject.cluster, values, RESIDUAL), front_end_of(values), RESIDUAL)
    return intervals(served, fitted, floor or {}, range(len(subject.trace.rows)), seed=0)


def width(found: Intervals) -> float:
    return float(np.mean(found.high["e2el_s"] - found.low["e2el_s"]))


def of_draws(load: str, fitted: Calibration, n: int, floor: dict[str, float] | None = None) -> Intervals:
    """The same out of n whole simulations."""
    subject = bundled(load)

    def simulate(cluster: Cluster, front_end: FrontEnd) -> Capture:
        return simulate_behind(front_end, subject.trace, cluster).capture

    cluster = corrected(subject.cluster, fitted.values(), RESIDUAL)
    drawn = drawn_latencies(cluster, fitted, simulate, n, seed=0)
    return intervals_of_draws(drawn.latencies, fitted, floor or {}, range(len(drawn.ids)), seed=0)


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    """A calibration on one recording."""
    return fit([measured(bundled("light"), TRUTH, seed=1, way=WAY)], parse_split("all"))


@pytest.fixture(scope="module")
def twelve() -> list[Subject]:
    """Recordings between which the engine's speed differs by 3 %."""
    rng = np.random.default_rng(0)
    speeds = np.exp(rng.normal(0, 0.03, 12))
    return [
        measured(bundled("light"), {"dense": TRUTH["dense"] * s, "attention": s, "per_request": s}, seed=i, way=WAY)
        for i, s in enumerate(speeds.tolist())
    ]


@pytest.fixture(scope="module")
def fitted_on_five(twelve: list[Subject]) -> Calibration:
    return fit(twelve[:5], parse_split("all"))


@pytest.mark.parametrize("found_by", [of, lambda load, fitted: of_draws(load, fitted, 16)], ids=["one", "draws"])
def test_intervals_hold_held_back_captures_about_as_often_as_they_say(
    found_by: Callable[[str, Calibration], Intervals], twelve: list[Subject], fitted_on_five: Calibration
) -> None:
    """Five are fitted, seven held back."""
    found = found_by("light", fitted_on_five)
    shares = []
    for subject in twelve[5:]:
        covered = found.coverage("e2el_s", requests(subject.measured.outcomes).e2el_s, range(90))
        assert covered is not None
        shares.append(covered[0])
    assert 0.8 <= np.mean(shares) <= 0.98, shares


def test_a_noise_floor_widens_them(fitted: Calibration) -> None:
    narrow, wide = of("light", fitted), of("light", fitted, {"e2el_s": 0.1})
    assert width(wide) > 2 * width(narrow)
    low, high = wide.statistics["e2el_s"]["mean"] or (0.0, 0.0)
    assert 0.25 < (high - low) / (high + low) * 2 < 0.45  # 2 * 1.645 * 0.1 of the mean
    low, high = of_draws("light", fitted, 4, {"e2el_s": 0.1}).statistics["e2el_s"]["mean"] or (0.0, 0.0)
    assert 0.25 < (high - low) / (high + low) * 2 < 0.45


def test_what_the_fit_leaves_open_widens_them_where_it_matters(fitted: Calibration) -> None:
    place = fitted.covariance_of.index("attention")
    opened = np.array(fitted.covariance)
    opened[place, :] = opened[:, place] = 0.0
    opened[place, place] = 0.3**2
    unsure = msgspec.structs.replace(fitted, covariance=tuple(tuple(row) for row in opened.tolist()))
    assert width(of("saturated", unsure)) > 1.5 * width(of("saturated", fitted))


def test_without_residuals_and_doubt_they_close(fitted: Calibration) -> None:
    none = Residuals(90, 0.0, (0.0,) * 7, 0.0)
    certain = msgspec.structs.replace(
        fitted,
        covariance=tuple((0.0,) * len(fitted.covariance_of) for _ in fitted.covariance_of),
        residuals=dict.fromkeys(("ttft_s", "tpot_s", "e2el_s"), none),
    )
    assert width(of("light", certain)) < 1e-9


def test_the_same_seed_gives_the_same_intervals(fitted: Calibration) -> None:
    first, second = of("light", fitted), of("light", fitted)
    assert np.array_equal(first.low["ttft_s"], second.low["ttft_s"], equal_nan=True)
    assert first.statistics == second.statistics
