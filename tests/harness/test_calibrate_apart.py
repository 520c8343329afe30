"""`calibrate`, `validate --explain` and `drift` of prefill and decode apart, from files to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibrate.calibration import read_calibration
from harness.calibrate import calibrate, drift, write_calibration
from harness.demo import BUNDLED
from harness.reports.calibration_page import calibration_page
from harness.scoring.validate import validate
from tests.calibrate.apart import EXAMPLE, HALVED, SAME, SENT, measured_apart, pair
from traces.capture import Capture, write_capture
from traces.steps import Floats


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy pair's capture and its calibration, and a faulty pair's capture."""
    folder = tmp_path_factory.mktemp("apart")
    for name, values, seed in (("healthy", SENT, 1), ("again", SENT, 2), ("faulty", HALVED, 3)):
        write_capture(measured_apart(pair(), values, seed=seed).measured, folder / name)
    write_calibration(calibrate(EXAMPLE, [folder / "healthy"], overrides=SAME), folder / "fitted.json")
    return folder


def took_s(capture: Capture) -> Floats:
    assert capture.transfers is not None
    order = np.argsort(capture.transfers.request)
    return (capture.transfers.end_s - capture.transfers.start_s)[order]


def test_fit_and_score_apart_a_calibrated_twins_transfers_take_as_long(folder: Path) -> None:
    bare = validate(EXAMPLE, folder / "again", SAME)
    fitted = validate(EXAMPLE, folder / "again", SAME, calibration=folder / "fitted.json", draws=1)
    measured_s = took_s(fitted.measured)
    assert np.median(took_s(fitted.simulated) / measured_s) == pytest.approx(1.0, abs=0.03)
    assert np.median(took_s(bare.simulated) / measured_s) < 0.8
    for metric in ("ttft_s", "tpot_s", "e2el_s"):
        assert fitted.result["paired"][metric]["mape"] < bare.result["paired"][metric]["mape"]


def test_an_explanation_names_the_transfers(folder: Path) -> None:
    found = validate(EXAMPLE, folder / "faulty", SAME, calibration=folder / "fitted.json", explain=True, draws=1)
    assert found.attribution is not None
    assert {cause.parameter for cause in found.attribution.causes} == {"kv_transfer", "kv_transfer_s"}
    assert found.attribution.causes_from == "steps"


def test_draws_of_the_calibration_give_intervals(folder: Path) -> None:
    found = validate(EXAMPLE, folder / "again", SAME, calibration=folder / "fitted.json", draws=4)
    assert found.result["prediction"]["coverage"]["ttft_s"]["n"] == len(found.measured.outcomes)


def test_drift_says_what_to_measure_again(folder: Path) -> None:
    assert not drift(EXAMPLE, folder / "again", folder / "fitted.json", 0.1, SAME).drifted
    found = drift(EXAMPLE, folder / "faulty", folder / "fitted.json", 0.1, SAME)
    assert found.drifted
    assert any("kv_transfer" in reason and "of the KV transfers' time" in reason for reason in found.reasons)
    assert any("bandwidth between prefill and decode" in what for what in found.measure_again)


def test_the_page_of_a_calibration_says_what_they_mean(folder: Path) -> None:
    page = calibration_page("fitted", read_calibration(folder / "fitted.json"))
    assert "against their links" in page.html()


# -- a real pair -----------------------------------------------------------------------------------------------


REAL = Path(__file__).parents[2] / "docs" / "examples" / "measured_apart.yaml"
FIRST, SECOND = (BUNDLED / "captures" / f"apart-{number}" for number in (1, 2))


def test_two_recordings_of_a_real_pair_tell_the_same_of_its_transfers() -> None:
    first, second = (calibrate(REAL, [capture]).parameters for capture in (FIRST, SECOND))
    for name in ("kv_transfer_s", "kv_transfer"):
        one, other = first[name], second[name]
        assert one.standard_error is not None
        assert other.standard_error is not None
        assert abs(one.value - other.value) < 2 * np.hypot(one.standard_error, other.standard_error)
    assert first["kv_transfer"].value == pytest.approx(3.4, abs=0.2)


def test_a_real_pair_is_nearer_to_its_calibrated_twin(tmp_path: Path) -> None:
    """Fitted on one recording and scored on the other; ceilings may only go down."""
    write_calibration(calibrate(REAL, [FIRST]), tmp_path / "fitted.json")
    bare = validate(REAL, SECOND).result["paired"]
    fitted = validate(REAL, SECOND, calibration=tmp_path / "fitted.json", repeats=[FIRST]).result
    for metric, ceiling in (("ttft_s", 0.36), ("tpot_s", 0.37), ("e2el_s", 0.37)):
        assert fitted["paired"][metric]["mape"] < ceiling < bare[metric]["mape"]
        assert fitted["error_over_floor"][metric] < 1
    found = drift(REAL, SECOND, tmp_path / "fitted.json")
    assert not [cause for cause in found.causes if cause.parameter.startswith("kv_transfer")]
