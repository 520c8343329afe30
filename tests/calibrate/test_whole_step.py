"""A step's time without a profile: known coefficients come back, and a guess far away is unsure."""

from __future__ import annotations

import numpy as np

from calibrate.calibration import Calibration
from calibrate.fit import fit
from calibrate.repricing import all_priced
from calibrate.split import parse_split
from calibrate.subject import Subject
from calibrate.whole_step import Shape, Unpriced, whole_step_terms
from simulator.steps.correction import CorrectedModel
from tests.calibrate.synthetic import bundled, measured
from tests.simulator.plans import decode_plan

TRUTH = {"step_s": 4e-3, "request_s": 2e-4, "token_s": 1e-4, "kv_token_s": 2e-7}
"""Seconds by coefficient of an engine whose steps are exactly such a sum."""


def exact() -> CorrectedModel:
    shape = Shape((), (np.inf, np.inf, np.inf))
    return CorrectedModel(Unpriced(), TRUTH, lambda plan, cost: whole_step_terms(plan, cost, shape=shape))


def fitted() -> tuple[Subject, Calibration]:
    subject = measured(bundled("light"), {}, seed=1, step_time=exact(), spread=0.0)
    return subject, fit([subject], parse_split("all"), "whole-step")


def test_known_coefficients_come_back_and_price_another_load() -> None:
    _, found = fitted()
    assert found.kind == "whole-step"
    assert found.profile is None
    for n_requests, history in ((2, 100), (8, 300), (30, 500)):
        plan = decode_plan(n_requests, history, repeat=3)
        ours, theirs = found.corrected(Unpriced()).price(plan).device_s, exact().price(plan).device_s
        assert np.allclose(ours, theirs, rtol=0.02)


def test_a_prediction_is_the_less_sure_the_further_it_is_from_the_data() -> None:
    _, found = fitted()
    basis = found.basis()
    covariance = found.covariance_matrix(basis.names)

    def unsure(n_requests: int, history: int) -> float:
        plan = decode_plan(n_requests, history)
        terms, _ = basis.terms(plan, Unpriced().price(plan))
        row = np.array([float(np.atleast_1d(terms[name])[0]) for name in basis.names])
        return float(np.sqrt(row @ covariance @ row) / found.corrected(Unpriced()).price(plan).device_s[0])

    assert unsure(4, 300) < 0.02
    assert unsure(4, 300) < unsure(4, 3000) < unsure(4, 30_000)
    assert unsure(4, 300) < unsure(64, 300) < unsure(512, 300)


def test_steps_outside_the_data_are_counted() -> None:
    _, found = fitted()
    model = found.corrected(Unpriced())
    model.count(decode_plan(4, 300), 5)
    assert model.notes() == ()
    model.count(decode_plan(100, 300), 2)
    assert any(note.startswith("2 of 7 steps lie outside") and "requests per step" in note for note in model.notes())


def test_it_needs_no_operators() -> None:
    subject, found = fitted()
    (priced,) = all_priced(subject.measured, Unpriced(), found.basis())
    assert not priced.device_s.any()
    assert abs(found.residuals["steps"].mean) < 0.005
