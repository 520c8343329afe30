"""A suite checked: what its baseline remembers, what is lost, new or accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.calibrate import calibrate, write_calibration
from harness.demo import BUNDLED
from harness.gate.check import check
from harness.gate.verdict import InputChange, Status
from tests.harness.gate.planted import plant
from tests.harness.gate.suites import SUITE, store, write_suite, write_suite_with_baseline
from traces.errors import InputError

SECOND = "  second:\n    scenario: scenario.yaml\n    set: [engine.max_num_seqs=4]\n"


def test_a_twin_of_itself_passes(tmp_path: Path) -> None:
    checked = check(write_suite_with_baseline(tmp_path))
    assert checked.passed
    (scenario,) = checked.scenarios
    assert {verdict.status for verdict in scenario.verdicts} == {Status.PASSED}
    assert scenario.verdicts[0].why == "40 requests scored"


def test_a_baseline_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path)
    first = (tmp_path / "baseline.json").read_bytes()
    store(suite)
    assert (tmp_path / "baseline.json").read_bytes() == first
    kept = json.loads(first)
    assert kept["reason"] == "the first one"
    assert kept["version"]
    assert kept["scenarios"]["tiny"]["requests"]["finished"] == 40


def test_checking_writes_nothing(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert check(suite, update_baseline="why").baseline is not None
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_baseline_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"baseline.json: there is no baseline yet: accepted: --update-baseline"):
        check(write_suite(tmp_path))


def test_a_new_scenario_is_reported_and_a_lost_one_blocks(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path)
    suite.write_text(SUITE + SECOND)
    checked = check(suite)
    assert checked.passed
    assert [verdict.status for verdict in checked.scenarios[1].verdicts] == [Status.NEW]
    store(suite, "a second one")
    suite.write_text(SUITE)
    checked = check(suite)
    assert [(one.name, one.passed) for one in checked.scenarios] == [("tiny", True), ("second", False)]
    accepted = check(suite, update_baseline="it is no longer of interest")
    assert accepted.passed
    assert accepted.scenarios[1].verdicts[0].why == "accepted: it is no longer of interest"
    assert accepted.baseline is not None
    assert list(json.loads(accepted.baseline[1])["scenarios"]) == ["tiny"]


def test_a_drift_blocks_until_it_is_accepted_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = write_suite_with_baseline(tmp_path)
    plant(monkeypatch, 1.001)
    checked = check(suite)
    assert not checked.passed
    assert {verdict.gate for verdict in checked.scenarios[0].of(Status.FAILED)} == {"drift"}
    assert check(suite, update_baseline="steps are longer").passed
    store(suite, "steps are longer")
    assert check(suite).passed


def test_updating_the_baseline_does_not_excuse_a_twin_that_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_suite_with_baseline(tmp_path)
    plant(monkeypatch, 2.0)
    checked = check(suite, update_baseline="twice as slow")
    assert {verdict.gate for verdict in checked.scenarios[0].of(Status.FAILED)} == {"fidelity"}


def test_a_twin_that_comes_nearer_is_an_improvement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = write_suite(tmp_path)
    with monkeypatch.context() as worse:
        plant(worse, 1.03)
        store(suite)
    checked = check(suite)
    improved = {verdict.figure for verdict in checked.scenarios[0].of(Status.IMPROVED)}
    assert {"tpot.mean", "e2el.mean"} <= improved
    assert not checked.passed, "what moved has to be accepted all the same"


def test_an_input_that_changed_is_named(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path)
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(scenario.read_text() + "seed: 1\n")
    (checked,) = check(suite).scenarios
    assert checked.inputs == (InputChange("seed", "not said", "1"),)


def test_a_scenario_without_a_capture_is_held_against_the_baseline_alone(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path, SUITE.replace("    capture: capture\n", ""))
    (checked,) = check(suite).scenarios
    assert {verdict.gate for verdict in checked.verdicts} == {"drift", "canary"}
    with pytest.raises(InputError, match="--fail-on': has no effect: no scenario of the suite has a capture"):
        check(suite, fail_on=["ttft.p99:10%"])


def test_fail_on_goes_over_the_suite(tmp_path: Path) -> None:
    text = f"{SUITE}    set: [engine.max_num_batched_tokens=128]\nfidelity: {{e2el.mean: 1000%}}\n"
    suite = write_suite(tmp_path, text.replace("baseline: baseline.json\n", ""))
    checked = check(suite, fail_on=["ttft.mean:1us"])
    assert [verdict.figure for verdict in checked.scenarios[0].verdicts] == ["comparison", "e2el.mean", "ttft.mean"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_baseline": " "}, "--update-baseline': found ' ': accepted: the reason, in words"),
        ({"update_baseline": "why", "overrides": ["seed=1"]}, "accepted: no --set beside it"),
    ],
)
def test_a_baseline_needs_a_reason_and_the_suite_as_it_is(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check(write_suite(tmp_path), **options)  # type: ignore[arg-type]


def test_a_baseline_that_is_none_is_refused(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    (tmp_path / "baseline.json").write_text('{"schema_version": "servetwin.baseline/2", "version": "9"}')
    with pytest.raises(InputError, match=r"baseline.json: field 'schema_version': found .*baseline/2"):
        check(suite)


def test_fitted_requests_are_scored_where_the_suite_says_so(tmp_path: Path) -> None:
    light, capture = BUNDLED / "light.yaml", BUNDLED / "captures" / "light-1"
    write_calibration(calibrate(light, [capture]), tmp_path / "light.json")
    suite = tmp_path / "suite.yaml"
    text = f"scenarios:\n  a:\n    scenario: {light}\n    capture: {capture}\n"
    text += f"    set: [calibration={tmp_path}/light.json]\n"
    suite.write_text(text)
    with pytest.raises(InputError, match="every request of this capture was fitted"):
        check(suite)
    suite.write_text(f"{text}    score_fitted: true\n")
    (scenario,) = check(suite).scenarios
    assert scenario.verdicts[0].why == "90 requests scored"
