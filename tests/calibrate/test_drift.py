"""Planted faults: drift and attribution each name the part that moved, and nothing where nothing did."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from calibrate.attribution import attribute
from calibrate.calibration import Calibration
from calibrate.drift import Drift, change_point, drift
from calibrate.fit import fit
from calibrate.parameters import RESIDUAL
from calibrate.split import parse_split
from calibrate.subject import Subject
from tests.calibrate.synthetic import TRUTH, WAY, bundled, measured

ATTENTION = {"attention": 1.2}
HOST = {"host_step_s": TRUTH["host_step_s"] + 2e-3}
DENSE = {"dense": TRUTH["dense"] * 1.1}
EVERYTHING = {"dense": TRUTH["dense"] * 1.1, "attention": 1.1, "per_request": 1.1}


@cache
def calibration(load: str) -> Calibration:
    return fit([measured(bundled(load), TRUTH, seed=1, way=WAY)], parse_split("all"))


@cache
def _faulty(load: str, *fault: tuple[str, float], **changed: Any) -> Subject:
    return measured(bundled(load), {**TRUTH, **dict(fault)}, seed=2, way=WAY, **changed)


def faulty(load: str, fault: dict[str, float], *, steps: bool = True, **changed: Any) -> Subject:
    """An engine with a fault and its capture, each simulated once; with or without its steps."""
    subject = _faulty(load, *fault.items(), **changed)
    return subject if steps else replace(subject, measured=replace(subject.measured, steps=None))


def causes(found: Drift) -> list[str]:
    return [cause.parameter for cause in found.causes]


@pytest.mark.parametrize("steps", [True, False])
@pytest.mark.parametrize("load", ["light", "prefix", "saturated"])
def test_a_healthy_engine_has_not_drifted(load: str, *, steps: bool) -> None:
    found = drift(faulty(load, {}, steps=steps), calibration(load), 0.05)
    assert not found.drifted, found.reasons
    assert found.kind == ("steps" if steps else "e2el_s")


@pytest.mark.parametrize(
    ("fault", "part", "change"),
    [
        (ATTENTION, "attention", 0.2),
        (HOST, "host_step_s", 2e-3),
        (DENSE, "dense", 0.104),
        (EVERYTHING, "operators", 0.1),
    ],
)
def test_step_records_name_the_part_that_moved_and_by_how_much(
    fault: dict[str, float], part: str, change: float
) -> None:
    for load in ("prefix", "saturated"):
        found = drift(faulty(load, fault), calibration(load), 0.03)
        assert found.drifted
        assert causes(found) == [part]
        assert found.causes[0].change == pytest.approx(change, rel=0.15)
        assert len(found.measure_again) == 1


@pytest.mark.parametrize(("fault", "part"), [(ATTENTION, "attention"), (HOST, "host_step_s")])
def test_request_records_name_it_too_and_what_else_it_could_be(fault: dict[str, float], part: str) -> None:
    found = drift(faulty("prefix", fault, steps=False), calibration("prefix"), 0.03)
    assert found.drifted
    assert causes(found) == [part]


@pytest.mark.parametrize("steps", [True, False])
def test_half_the_kv_capacity_is_named_and_nothing_else(*, steps: bool) -> None:
    subject = faulty("saturated", {}, steps=steps, num_gpu_blocks=128)
    found = drift(subject, calibration("saturated"), 0.05)
    assert found.drifted
    assert found.causes[0].parameter == "num_gpu_blocks"
    assert found.causes[0].change == pytest.approx(-128, abs=15)
    assert not [cause for cause in found.causes[1:] if abs(cause.share) > 0.02]


@pytest.mark.parametrize(
    ("fault", "changed", "part"),
    [(ATTENTION, {}, "attention"), (HOST, {}, "host_step_s"), ({}, {"num_gpu_blocks": 128}, "num_gpu_blocks")],
)
@pytest.mark.parametrize("steps", [True, False])
def test_attribution_names_it(fault: dict[str, float], changed: dict[str, int], part: str, *, steps: bool) -> None:
    load = "saturated" if changed else "prefix"
    subject, fitted = faulty(load, fault, steps=steps, **changed), calibration(load)
    served = subject.simulate(fitted.values(), RESIDUAL)
    scored = [outcome.request_id for outcome in subject.measured.outcomes]
    found = attribute(subject.measured, served, scored, subject.engine, RESIDUAL, fitted.values())
    assert found.causes[0].parameter == part
    assert found.causes_from == ("steps" if steps else "requests")
    assert bool(found.steps) == steps
    for groups in (*found.steps.values(), *found.decode.values()):
        total = sum(group.measured_s for group in groups)
        assert sum(group.share for group in groups) == pytest.approx(
            sum(group.error * group.measured_s for group in groups) / total
        )
    stages = found.stages["e2el_s"]
    largest = max(stages, key=lambda stage: abs(stages[stage].share))
    assert largest == ("queue_s" if changed else "decode_s")
    assert len(found.worst) == 10
    assert abs(found.worst[0].error) >= abs(found.worst[-1].error)


def test_stages_add_up_to_the_error_of_their_metric() -> None:
    subject, fitted = faulty("saturated", ATTENTION), calibration("saturated")
    served = subject.simulate(fitted.values(), RESIDUAL)
    scored = [outcome.request_id for outcome in subject.measured.outcomes]
    found = attribute(subject.measured, served, scored, subject.engine, RESIDUAL, fitted.values())
    twins = {outcome.request_id: outcome for outcome in served.capture.outcomes}
    off = [(twins[o.request_id].finish_s or 0) - (o.finish_s or 0) for o in subject.measured.outcomes]
    assert sum(stage.error_s for stage in found.stages["e2el_s"].values()) == pytest.approx(np.mean(off))


def test_a_change_within_a_capture_is_found_where_it_was() -> None:
    rng = np.random.default_rng(0)
    time_s, calm = np.arange(2000) * 0.01, rng.normal(0, 0.05, 2000)
    changed = calm + np.where(time_s >= 12.0, 0.04, 0.0)
    found = change_point(time_s, changed)
    assert found is not None
    assert found.time_s == pytest.approx(12.0, abs=1.0)
    assert found.after - found.before == pytest.approx(0.04, abs=0.01)
    assert change_point(time_s, calm) is None


def test_change_points_are_rarely_seen_where_there_are_none() -> None:
    rng = np.random.default_rng(1)
    time_s = np.arange(600) * 0.01
    seen = sum(change_point(time_s, rng.normal(0, 0.05, 600)) is not None for _ in range(300))
    assert seen <= 12
