"""KV transfers: what was planted comes back within its errors, what cannot be told is held, faults are named."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from calibrate.attribution import attribute
from calibrate.calibration import Calibration, encode_calibration, read_calibration
from calibrate.drift import drift
from calibrate.fit import fit
from calibrate.kv_transfer import kv_residual_of, sent_in, transfer_residuals
from calibrate.parameters import RESIDUAL
from calibrate.split import parse_split
from calibrate.subject import Subject
from simulator.kv_transfer import NO_RESIDUAL
from tests.calibrate.apart import HALVED, SENT, measured_apart, pair, without_transfers
from tests.calibrate.synthetic import TRUTH, bundled, measured
from traces.errors import InputError

ALL = parse_split("all")
NAMES = ("kv_transfer_s", "kv_transfer")


@cache
def _recorded(*values: tuple[str, float], seed: int) -> Subject:
    return measured_apart(pair(), dict(values), seed=seed)


def recorded(values: dict[str, float] = SENT, *, seed: int, steps: bool = True) -> Subject:
    """The pair with a capture, each simulated once; with or without its steps."""
    subject = _recorded(*values.items(), seed=seed)
    return subject if steps else replace(subject, measured=replace(subject.measured, steps=None))


@cache
def calibration() -> Calibration:
    return fit([recorded(seed=1)], ALL)


def off(fitted: Calibration, name: str, truth: float) -> float:
    """How far a parameter is from the truth, in its standard errors."""
    parameter = fitted.parameters[name]
    assert parameter.standard_error is not None, f"{name}: {parameter.note}"
    return abs(parameter.value - truth) / parameter.standard_error


@pytest.mark.parametrize("values", [SENT, HALVED])
@pytest.mark.parametrize("steps", [True, False])
def test_what_was_planted_comes_back_within_its_errors(values: dict[str, float], *, steps: bool) -> None:
    fitted = fit([recorded(values, seed=1, steps=steps)], ALL)
    assert fitted.kind == ("steps" if steps else "requests")
    for name in NAMES:
        assert off(fitted, name, values[name]) < 3
        assert fitted.parameters[name].value == pytest.approx(values[name], rel=0.1)
    assert fitted.residuals["KV transfers"].n == len(pair().trace)


def test_steps_of_both_engines_are_fitted_too() -> None:
    assert off(calibration(), "dense", TRUTH["dense"]) < 4
    assert calibration().fitted_on[0].n_steps is not None


def test_the_way_between_the_engines_comes_back_where_steps_were_recorded() -> None:
    values = {**SENT, "handover_s": 4e-3}
    fitted = fit([recorded(values, seed=1)], ALL)
    assert fitted.parameters["handover_s"].value == pytest.approx(4e-3, rel=0.01)
    assert kv_residual_of(fitted.values()).handover_s == fitted.parameters["handover_s"].value
    without = fit([recorded(values, seed=1, steps=False)], ALL)
    note = "0 requests found the decode engine without work, fewer than 10"
    assert without.parameters["handover_s"].note == note


def test_outliers_matter_little() -> None:
    fitted = fit([measured_apart(pair(), seed=1, outliers=5)], ALL)
    for name in NAMES:
        assert fitted.parameters[name].value == pytest.approx(SENT[name], rel=0.15)


def test_transfers_that_are_known_only_between_two_looks_tell_it_less_surely() -> None:
    """2.5 ms apart, about as long as a transfer takes: an engine that decodes looks no oftener.

    A few transfers then say all there is, and may agree by chance: it is the median of three captures that is less
    sure.
    """
    looked = [fit([measured_apart(pair(), HALVED, seed=seed, looks_s=2.5e-3)], ALL) for seed in (1, 2, 3)]
    exact = fit([recorded(HALVED, seed=1)], ALL)
    for name in NAMES:
        for fitted in looked:
            assert fitted.parameters[name].value == pytest.approx(HALVED[name], rel=0.25)
        errors = [fitted.parameters[name].standard_error or 0.0 for fitted in looked]
        exact_error = exact.parameters[name].standard_error
        assert exact_error is not None
        assert np.median(errors) > exact_error


def test_one_size_tells_one_parameter_and_the_other_is_held_and_named() -> None:
    subject = recorded(seed=1)
    sent = subject.measured.transfers
    assert sent is not None
    took_s = 2e-3 * np.exp(np.random.default_rng(0).normal(0, 0.02, len(sent)))
    alike = replace(
        sent,
        n_bytes=np.full(len(sent), 1e6),
        start_s=np.arange(len(sent)) * 1.0,
        under_way_s=np.arange(len(sent)) + took_s,
        end_s=np.arange(len(sent)) + took_s,
    )
    fitted = fit([replace(subject, measured=replace(subject.measured, transfers=alike))], ALL)
    told = [name for name in NAMES if fitted.parameters[name].identified]
    assert len(told) == 1
    (held,) = set(NAMES) - set(told)
    assert fitted.parameters[held].note == f"the data do not tell it apart from {told[0]}"


def test_without_a_record_of_transfers_both_are_held() -> None:
    fitted = fit([without_transfers(recorded(seed=1))], ALL)
    for name in NAMES:
        assert fitted.parameters[name].note == "no KV transfer was recorded"
    assert kv_residual_of(fitted.values()) == NO_RESIDUAL


def test_too_few_transfers_tell_nothing() -> None:
    subject = recorded(seed=1)
    sent = subject.measured.transfers
    assert sent is not None
    few = replace(subject, measured=replace(subject.measured, transfers=sent.chosen(slice(5))))
    fitted = fit([few], ALL)
    assert fitted.parameters["kv_transfer"].note == "5 KV transfers were recorded, fewer than 10"


def test_engines_that_do_all_of_a_request_have_no_such_parameters() -> None:
    fitted = fit([measured(bundled("light"), TRUTH, seed=1)], ALL)
    assert not fitted.parameters.keys() & set(NAMES)


def test_a_file_of_them_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "fitted.json").write_bytes(encode_calibration(calibration()))
    assert read_calibration(tmp_path / "fitted.json") == calibration()


def test_one_of_the_two_alone_is_refused(tmp_path: Path) -> None:
    text = encode_calibration(calibration()).decode().replace('"kv_transfer_s"', '"kv_transfer_x"')
    (tmp_path / "fitted.json").write_text(text)
    with pytest.raises(InputError, match=r"parameters\.kv_transfer_s"):
        read_calibration(tmp_path / "fitted.json")


def test_only_the_transfers_of_the_fitted_requests_are_looked_at() -> None:
    """The others' are on the links all the same: what they delay is not taken for a slower link."""
    subject = recorded(seed=1)
    mask = parse_split("first:0.5").requests(subject.measured, subject.name)
    sent = subject.sent(mask)
    assert sent is not None
    assert sent.chosen.sum() == mask.sum()
    relative = transfer_residuals(sent, SENT)
    assert len(relative) == mask.sum()
    assert abs(np.median(relative)) < 0.03


def test_transfers_between_other_instances_are_refused() -> None:
    subject = recorded(seed=1)
    sent = subject.measured.transfers
    assert sent is not None
    turned = replace(sent, source=sent.target, target=sent.source)
    with pytest.raises(InputError, match="not from a prefill to a decode instance"):
        sent_in(turned, np.ones(len(subject.trace), dtype=bool), subject.cluster)


# -- planted faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [True, False])
def test_a_healthy_pair_has_not_drifted(*, steps: bool) -> None:
    found = drift(recorded(seed=2, steps=steps), calibration(), 0.1)
    assert not found.drifted, found.reasons


@pytest.mark.parametrize(
    ("fault", "part", "change"),
    [
        ({**SENT, "kv_transfer_s": HALVED["kv_transfer_s"]}, ["kv_transfer_s"], 2e-3),
        ({**SENT, "kv_transfer": HALVED["kv_transfer"]}, ["kv_transfer"], 1.3),
        (HALVED, ["kv_transfer", "kv_transfer_s"], 2e-3),
    ],
)
@pytest.mark.parametrize("steps", [True, False])
def test_drift_and_attribution_name_the_kv_transfer(
    fault: dict[str, float], part: list[str], change: float, *, steps: bool
) -> None:
    subject = recorded(fault, seed=2, steps=steps)
    found = drift(subject, calibration(), 0.1)
    assert found.drifted
    assert sorted(cause.parameter for cause in found.causes) == part
    slow = next(cause for cause in found.causes if cause.parameter == part[-1])
    assert slow.change == pytest.approx(change, rel=0.15)
    assert found.measure_again
    assert sorted(_attributed(subject)) == part


def _attributed(subject: Subject) -> list[str]:
    values = calibration().values()
    served = subject.simulate(values, RESIDUAL)
    ids = [outcome.request_id for outcome in subject.measured.outcomes]
    sent = subject.sent(np.ones(len(ids), dtype=bool))
    engine = subject.cluster.engines[0]
    found = attribute(subject.measured, served, ids, engine, RESIDUAL, values, sent)
    return [cause.parameter for cause in found.causes]
