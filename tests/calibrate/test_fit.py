"""A known residual comes back, from step records and from requests alone, with errors that hold."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from calibrate.calibration import Calibration
from calibrate.fit import fit
from calibrate.parameters import RESIDUAL
from calibrate.repricing import all_priced
from calibrate.served import corrected, serve
from calibrate.split import parse_split
from simulator.front_end import DIRECT, simulate_behind
from tests.calibrate.synthetic import TRUTH, WAY, bundled, measured
from traces.errors import InputError
from traces.outcome import Status

ALL = parse_split("all")


def off(fitted: Calibration, name: str, truth: float) -> float:
    """How far a parameter is from the truth, in its standard errors."""
    parameter = fitted.parameters[name]
    assert parameter.standard_error is not None, f"{name}: {parameter.note}"
    return abs(parameter.value - truth) / parameter.standard_error


def total_error(fitted: Calibration, load: str, *, asynchronous: bool) -> float:
    """Relative error of all steps' time on another load of the same engine."""
    other = measured(bundled(load, asynchronous=asynchronous), TRUTH, seed=9, way=WAY)
    (priced,) = all_priced(other.measured, other.engine.step_time, RESIDUAL)
    changes = RESIDUAL.changes(fitted.values())
    base_s, rows = priced.rows(changes, asynchronous=asynchronous)
    return float((base_s + rows @ changes).sum() / priced.cycle_s.sum()) - 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_residual_comes_back_from_steps(*, asynchronous: bool) -> None:
    fitted = fit([measured(bundled("light", asynchronous=asynchronous), TRUTH, seed=1, way=WAY)], ALL)
    assert fitted.kind == "steps"
    assert off(fitted, "dense", TRUTH["dense"]) < 3
    assert off(fitted, "front_end_s", WAY.request_s) < 4
    assert abs(total_error(fitted, "prefix", asynchronous=asynchronous)) < 0.01
    if not asynchronous:
        assert off(fitted, "host_step_s", TRUTH["host_step_s"]) < 3
        assert "adds up" in (fitted.parameters["device_step_s"].note or "")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_residual_comes_back_from_requests_alone(*, asynchronous: bool) -> None:
    subject = measured(bundled("light", asynchronous=asynchronous), TRUTH, seed=2, way=WAY, steps=False)
    fitted = fit([subject], ALL)
    assert fitted.kind == "requests"
    assert off(fitted, "dense", TRUTH["dense"]) < 3
    assert abs(total_error(fitted, "prefix", asynchronous=asynchronous)) < 0.015
    assert fitted.parameters["moe"].note == "nothing in the data depends on it"
    assert fitted.parameters["moe"].value == 1.0


def test_disturbed_steps_hardly_matter() -> None:
    """One step in a hundred takes a second longer: a hundred times its length."""
    calm = measured(bundled("light"), TRUTH, seed=3)
    steps = calm.measured.steps
    assert steps is not None
    late = np.cumsum(np.where(np.arange(len(steps)) % 100 == 50, 1.0, 0.0))
    outcomes = tuple(calm.measured.outcomes)
    moved = replace(steps, scheduled_s=steps.scheduled_s + late, end_s=steps.end_s + late)
    disturbed = replace(calm, measured=replace(calm.measured, steps=moved, outcomes=outcomes))
    split = parse_split("capture:seed-3")
    assert abs(fit([calm], split).values()["dense"] - fit([disturbed], split, "steps").values()["dense"]) < 0.02


def test_only_the_chosen_part_is_looked_at() -> None:
    """What becomes of the other requests does not change the file, but for their arrivals and lengths."""
    subject = measured(bundled("light"), TRUTH, seed=4, steps=False)
    split = parse_split("first:0.5")
    own = split.requests(subject.measured, subject.name)
    import msgspec

    spoiled = tuple(
        outcome if mine else msgspec.structs.replace(outcome, first_token_s=1e6, finish_s=2e6)
        for outcome, mine in zip(subject.measured.outcomes, own, strict=True)
    )
    other = replace(subject, measured=replace(subject.measured, outcomes=spoiled))
    assert fit([subject], split) == fit([other], split)


def test_a_simulation_knows_what_its_steps_are_made_of() -> None:
    """What is heard while it runs is what its recorded batches are priced as, and adds up to its steps' time."""
    for asynchronous in (False, True):
        subject = bundled("saturated", asynchronous=asynchronous)
        values = {**dict(zip(RESIDUAL.names, RESIDUAL.neutral.tolist(), strict=True)), **TRUTH}
        cluster = corrected(subject.cluster, values, RESIDUAL)
        (heard,) = serve(subject.trace, cluster, WAY, RESIDUAL).priced
        again = simulate_behind(WAY, subject.trace, cluster, record_batches=True).capture
        (priced,) = all_priced(again, subject.engine.step_time, RESIDUAL)
        for name in ("end_s", "device_s", "host_s", "on_device", "on_host", "axes"):
            assert np.allclose(getattr(heard, name), getattr(priced, name), rtol=1e-12), name
        changes = RESIDUAL.changes(values)
        base_s, rows = heard.rows(changes, asynchronous=asynchronous)
        assert np.isclose((base_s + rows @ changes).sum(), heard.cycle_s.sum(), rtol=0.01 if asynchronous else 1e-9)


def test_what_cannot_be_fitted_is_refused() -> None:
    subject = measured(bundled("light"), TRUTH, seed=5, way=DIRECT)
    with pytest.raises(InputError, match="chooses 9 requests"):
        fit([subject], parse_split("first:0.1"))
    with pytest.raises(InputError, match="chooses no request"):
        fit([subject], parse_split("capture:monday"))
    with pytest.raises(InputError, match="captures of different scheduling"):
        fit([subject, bundled("light", asynchronous=True)], ALL)
    nobody = [msgspec.structs.replace(outcome, status=Status.ABORTED) for outcome in subject.measured.outcomes]
    with pytest.raises(InputError, match="chooses 0 requests that finished"):
        fit([replace(subject, measured=replace(subject.measured, outcomes=tuple(nobody)))], ALL)
    bare = replace(subject, measured=replace(subject.measured, steps=None))
    with pytest.raises(InputError, match="no record of which requests"):
        fit([bare], ALL, "steps")
