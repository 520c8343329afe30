"""Medians over draws: of what each gave, and the fitted run where nothing is unsure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from calibrate.calibration import Calibration, Residuals, front_end_of
from calibrate.draws import drawn_latencies
from calibrate.fit import fit
from calibrate.parameters import RESIDUAL
from calibrate.served import corrected
from calibrate.split import parse_split
from calibrate.subject import Subject
from simulator.cluster import Cluster
from simulator.front_end import FrontEnd, simulate_behind
from tests.calibrate.synthetic import TRUTH, WAY, bundled, measured
from traces.capture import Capture
from traces.metrics import requests


def fitted_to_light() -> Calibration:
    return fit([measured(bundled("light"), TRUTH, seed=1, way=WAY)], parse_split("all"))


def drawn(
    subject: Subject, calibration: Calibration, n: int, seed: int = 0, runs: list[Capture] | None = None
) -> Mapping[str, Mapping[str, float]]:
    def simulate(cluster: Cluster, front_end: FrontEnd) -> Capture:
        capture = simulate_behind(front_end, subject.trace, cluster).capture
        if runs is not None:
            runs.append(capture)
        return capture

    cluster = corrected(subject.cluster, calibration.values(), RESIDUAL)
    return drawn_latencies(cluster, calibration, simulate, n, seed=seed).medians()


def latencies(capture: Capture, metric: str) -> dict[str, float]:
    values = getattr(requests(capture.outcomes), metric)
    return {outcome.request_id: value for outcome, value in zip(capture.outcomes, values.tolist(), strict=True)}


def once(subject: Subject, calibration: Calibration, metric: str) -> dict[str, float]:
    cluster = corrected(subject.cluster, calibration.values(), RESIDUAL)
    return latencies(simulate_behind(front_end_of(calibration.values()), subject.trace, cluster).capture, metric)


def test_without_doubt_every_draw_is_the_fitted_run() -> None:
    fitted = fitted_to_light()
    k = len(fitted.covariance_of)
    certain = msgspec.structs.replace(
        fitted,
        covariance=((0.0,) * k,) * k,
        residuals={"tpot_s": Residuals(90, 0.0, (0.0,) * 7, 0.0)},
    )
    subject = bundled("saturated")
    assert drawn(subject, certain, 3)["e2el_s"] == once(subject, certain, "e2el_s")


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    fitted, subject = fitted_to_light(), bundled("light")
    assert drawn(subject, fitted, 2) == drawn(subject, fitted, 2)
    assert drawn(subject, fitted, 2) != drawn(subject, fitted, 2, seed=1)


def test_it_is_the_median_of_what_each_draw_gave() -> None:
    fitted, subject = fitted_to_light(), bundled("saturated")
    runs: list[Capture] = []
    medians = drawn(subject, fitted, 5, runs=runs)
    assert len(runs) == 5
    for metric in ("ttft_s", "tpot_s", "e2el_s"):
        each = [latencies(run, metric) for run in runs]
        assert len({tuple(values.values()) for values in each}) == 5
        for request_id, median in medians[metric].items():
            assert median == np.median([values[request_id] for values in each])


def test_a_pace_scales_every_step() -> None:
    fitted, subject = fitted_to_light(), bundled("light")
    k = len(fitted.covariance_of)
    wandering = msgspec.structs.replace(
        fitted,
        covariance=((0.0,) * k,) * k,
        residuals={"tpot_s": Residuals(90, 0.0, (0.0,) * 7, 0.2)},
    )
    one = drawn(subject, wandering, 1)["tpot_s"]
    still = drawn(subject, msgspec.structs.replace(wandering, residuals={}), 1)["tpot_s"]
    ratios = np.array([one[i] / still[i] for i in still if still[i] > 0])
    assert abs(np.median(ratios) - 1) > 0.02
    assert np.percentile(ratios, 75) / np.percentile(ratios, 25) < 1.1
