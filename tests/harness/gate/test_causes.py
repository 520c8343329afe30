"""On a failure the first thing said is what changed: an input, or the simulator; decisions, or times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from harness.gate import check as check_module
from harness.gate.causes import causes, excess, failures, in_a_line
from harness.gate.check import check
from harness.gate.junit import junit
from harness.gate.markdown import markdown
from harness.gate.outputs import outputs_of
from harness.gate.result import read_results
from harness.gate.terminal import print_checked
from harness.gate.verdict import Checked, InputChange, ScenarioCheck, Since, Status, Verdict
from harness.reports.check_page import check_page
from tests.harness.gate.planted import plant
from tests.harness.gate.suites import SUITE, store, write_suite, write_suite_with_baseline

HERE = "No input changed, and no source of servetwin: what else is installed, or the machine, did."


def why(suite: Path, *overrides: str) -> list[str]:
    """Of the one scenario of a suite."""
    return causes(check(suite, overrides=overrides))["tiny"]


def test_a_key_of_the_scenario_is_named_with_both_values(tmp_path: Path) -> None:
    changed, decisions, times, compared = why(write_suite_with_baseline(tmp_path), "engine.max_num_seqs=2")
    assert changed == "Inputs changed: engine.max_num_seqs 16 -> 2."
    assert decisions.startswith("Decisions differ: steps ")
    assert times.startswith("Moved most for its tolerance: ")
    mismatch = "configuration mismatch: max_num_seqs 2 simulated, 16 measured"
    assert compared == f"Not comparable with what was measured: {mismatch}."


def test_steps_that_take_longer_are_the_simulator_and_no_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_suite_with_baseline(tmp_path)
    assert causes(check(suite)) == {}
    assert causes(check(suite, overrides=["scheduler=native"])) == {}
    plant(monkeypatch, 1.001)
    changed, decisions, _ = why(suite)
    assert changed == HERE
    assert decisions == "The canary's decisions are as they were, times are not."
    monkeypatch.setattr(check_module, "sources_digest", lambda: "0")
    assert why(suite)[0] == "No input changed: the simulator did, servetwin's sources are others."
    assert why(suite, "seed=1")[0] == "Inputs changed: seed not said -> 1; servetwin's sources are others too."


def test_what_moved_most_is_told_by_its_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"drift: {{default: report, e2el.mean: 0.02%, tpot.mean: 0.05%}}\n{SUITE}"
    suite = write_suite_with_baseline(tmp_path, text)
    plant(monkeypatch, 1.001)
    (scenario,) = check(suite).scenarios
    times = {one.figure: excess(one) for one in scenario.of(Status.FAILED)}
    assert times["tpot.mean"] == pytest.approx(2, rel=0.01)
    assert times["e2el.mean"] > 4
    assert "Moved most for its tolerance: e2el.mean" in why(suite)[2]
    assert why(suite)[2].endswith(" times the tolerance of 0.02%, and 1 more.")


def test_a_tolerance_of_a_time_is_held_against_a_time() -> None:
    off = Verdict("fidelity", "tpot.mean", Status.FAILED, 0.010, 0.013, 0.3, None, "1ms")
    assert excess(off) == pytest.approx(3)
    assert excess(replace(off, tolerance="10%")) == pytest.approx(3)
    assert excess(replace(off, tolerance=None)) == float("inf")


def test_files_are_told_by_what_they_hold(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path)
    devices = tmp_path / "profiles" / "devices"
    devices.mkdir()
    (devices / "mine.yaml").write_text("name: MINE\nmemory_bytes: 1e9\nsources: {memory_bytes: here}\n")
    ((change,),) = [one.inputs for one in check(suite).scenarios]
    assert change.name == "devices and models"
    store(suite)
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("instances: [{model: test/tiny, device: TESTGPU}]\n")
    scenario = tmp_path / "scenario.yaml"
    head, _, tail = scenario.read_text().partition("cluster:\n")
    scenario.write_text(f"{head}cluster: cluster.yaml\nprofiles{tail.partition('profiles')[2]}")
    store(suite)
    cluster.write_text("instances: [{model: test/tiny, device: TESTGPU, count: 2}]\n")
    ((change,),) = [one.inputs for one in check(suite).scenarios]
    assert change == InputChange("cluster.instances.0.count", "not said", "2")
    cluster.write_text("# The same, in other words.\ninstances: [{model: test/tiny, device: TESTGPU}]\n")
    ((change,),) = [one.inputs for one in check(suite).scenarios]
    assert change.name == "scenario"


def test_a_file_that_a_key_names_counts_with_its_content(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path)
    scenario = tmp_path / "scenario.yaml"
    (tmp_path / "own_router.ini").write_text("1")
    scenario.write_text(f"{scenario.read_text()}cost: {{currency: own_router.ini}}\n")
    store(suite)
    (tmp_path / "own_router.ini").write_text("2")
    ((change,),) = [one.inputs for one in check(suite).scenarios]
    assert change.name == "cost.currency"
    assert str(change.before).startswith("own_router.ini (sha256:")


def test_an_older_baseline_is_read_and_says_what_it_lacks(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path)
    file = tmp_path / "baseline.json"
    kept = json.loads(file.read_text())
    del kept["sources"], kept["scenarios"]["tiny"]["keys"], kept["scenarios"]["tiny"]["inputs"]["devices and models"]
    file.write_text(json.dumps(kept))
    checked = check(suite)
    assert checked.passed
    assert checked.scenarios[0].inputs == ()
    note = "the baseline keeps no keys of the scenario: --update-baseline makes one that does"
    assert note in checked.scenarios[0].notes
    del kept["scenarios"]["tiny"]["tolerances"]
    file.write_text(json.dumps(kept))
    (older,) = check(suite).scenarios
    assert older.tolerances == ()
    assert note.replace("scenario:", "scenario and no tolerances:") in older.notes
    assert why(suite, "engine.max_num_seqs=2")[0] == "Inputs changed: --set engine.max_num_seqs=2."
    assert check(suite, overrides=["scheduler=native"]).scenarios[0].inputs == ()
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(scenario.read_text() + "seed: 1\n")
    ((change,),) = [one.inputs for one in check(suite).scenarios]
    assert change.name == "scenario"


def test_a_twin_that_was_as_far_off_before_has_changed_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = write_suite_with_baseline(tmp_path)
    plant(monkeypatch, 2.0)
    store(suite)
    assert why(suite)[0] == "No input changed, and nothing moved: it was as far off when the baseline was made."
    assert why(suite)[1].startswith("Farthest from what was measured: ")


def retold(suite: Path, *stated: str) -> None:
    """The suite with these lines above it, its baseline left as it is."""
    suite.write_text("".join(f"{line}\n" for line in stated) + SUITE)


def test_a_tolerance_that_is_tighter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = write_suite(tmp_path, f"fidelity: {{e2el.mape: 90%, tpot.mean: 90%, ttft.mape: 90%}}\n{SUITE}")
    plant(monkeypatch, 1.2)
    store(suite)
    assert causes(check(suite)) == {}
    retold(suite, "fidelity: {e2el.mape: 0.1%, tpot.mean: 80%, itl.p50: 90%}")
    tolerated, changed, moved = why(suite)
    assert tolerated == (
        "The suite's tolerance of e2el.mape: 90% -> 0.1%, the suite's tolerance of tpot.mean: 90% -> 80%, "
        "the suite's tolerance of itl.p50: none -> 90%, the suite's tolerance of ttft.mape: 90% -> none."
    )
    assert changed == "No input changed, and nothing moved: it was as far off when the baseline was made."
    assert moved.startswith("Farthest from what was measured: e2el.mape")
    (asked,) = causes(check(suite, fail_on=["e2el.mape:0.2%"])).values()
    assert asked[0].startswith("--fail-on's tolerance of e2el.mape: 90% -> 0.2%, the suite's tolerance of tpot.mean")


def test_a_tolerance_that_is_wider_is_told_though_nothing_fails(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path, f"fidelity: {{e2el.mean: 10%}}\n{SUITE}")
    retold(suite, "fidelity: {e2el.mean: 90%}")
    assert check(suite).passed
    assert [one.tolerances for one in check(suite, fail_on=["e2el.mean:80%"]).scenarios] == [()]
    assert why(suite) == [
        "The suite's tolerance of e2el.mean: 10% -> 90%.",
        "No input changed, and nothing moved.",
    ]


def test_a_tolerance_of_drift_is_named_with_what_held_for_the_figure_before(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path, f"drift: {{default: 2%, tpot.mean: 1ms}}\n{SUITE}")
    retold(suite, "drift: {default: report, tpot.mean: 1ms, e2el.mean: 1%, itl.p50: report}")
    ((one, other, default),) = [one.tolerances for one in check(suite).scenarios]
    assert one == InputChange("the suite's drift tolerance of e2el.mean", "2%", "1%")
    assert other == InputChange("the suite's drift tolerance of itl.p50", "2%", "report")
    assert default == InputChange("the suite's default drift tolerance", "2%", "report")


def test_a_capture_that_is_gone_is_an_input_and_no_tolerance(tmp_path: Path) -> None:
    suite = write_suite_with_baseline(tmp_path)
    suite.write_text(SUITE.replace("    capture: capture\n", ""))
    (scenario,) = check(suite).scenarios
    assert scenario.tolerances == ()
    assert [one.name for one in scenario.inputs] == ["capture"]


def test_a_baseline_is_of_the_suite_as_it_is_written(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, f"fidelity: {{e2el.mean: 10%}}\n{SUITE}")
    checked = check(suite, fail_on=["e2el.mean:50%"], update_baseline="first")
    assert checked.baseline is not None
    kept = json.loads(checked.baseline[1])["scenarios"]["tiny"]["tolerances"]
    assert kept == {"fidelity": {"e2el.mean": "10%"}, "drift": {}, "drift_default": "0.01%"}


def test_without_a_baseline_it_says_so() -> None:
    failed = ScenarioCheck("chat", (Verdict("fidelity", "ttft.mean", Status.FAILED, 0.1, 0.13, 0.3, None, "10%"),))
    (line,) = in_a_line(Checked("suite.yaml", "1", (failed,))).values()
    assert line == (
        "There is no baseline, so that what changed cannot be told. Farthest from what was measured: ttft.mean "
        "100 ms -> 130 ms (+30.0%), 3 times the tolerance of 10%."
    )


def test_a_lost_scenario_and_a_new_one_say_that_alone() -> None:
    lost = ScenarioCheck("old", (Verdict("drift", "scenario", Status.FAILED, why="lost: the suite lacks it"),))
    since = Since("0.1.0", "why", same_sources=True)
    assert in_a_line(Checked("suite.yaml", "1", (lost,), since=since)) == {"old": "Lost: the suite lacks it."}


@pytest.fixture
def red() -> Checked:
    steps = Verdict("canary", "steps", Status.FAILED, 10, 12, 0.2)
    inputs = (InputChange("engine.max_num_seqs", "8", "4"),)
    tolerances = (InputChange("the suite's tolerance of e2el.mape", "20%", "5%"),)
    scenario = ScenarioCheck("<chat>", (steps,), ("a note",), inputs, tolerances)
    return Checked("suite.yaml", "1.2.3", (scenario,), since=Since("1.2.2", "it is better", same_sources=True))


TOLERATED = "The suite's tolerance of e2el.mape: 20% -> 5%."
CHANGED = "Inputs changed: engine.max_num_seqs 8 -> 4."
SAID = f"{TOLERATED} {CHANGED}"


def test_every_output_says_it_first(red: Checked, capsys: pytest.CaptureFixture[str]) -> None:
    print_checked(red)
    first, name, tolerated, changed, moved = capsys.readouterr().out.splitlines()[:5]
    assert first == 'What changed. The baseline is of version 1.2.2, made for: "it is better"'
    assert (name.strip(), tolerated.strip(), changed.strip()) == ("<chat>", TOLERATED, CHANGED)
    assert moved.strip() == "Decisions differ: steps 10 -> 12 (+20.00%)."
    lines = [line for line in markdown(red).splitlines() if line]
    assert lines[1].startswith("What changed. The baseline is of version 1.2.2")
    assert "tolerance of e2el.mape: 20% -&gt; 5%. Inputs changed: engine.max\\_num\\_seqs 8 -&gt; 4" in lines[2]
    root = ET.fromstring(junit(red))
    assert root.findtext(".//failure", "").startswith(SAID)
    assert root.findtext("testsuite/system-out", "").startswith(SAID)
    assert failures(red).splitlines()[1].startswith(f"<chat>: {SAID}")


def test_the_page_says_it_first(red: Checked, tmp_path: Path) -> None:
    (text,) = outputs_of(red, result=tmp_path / "check.json").values()
    assert list(json.loads(text))[:2] == ["passed", "what_changed"]
    assert json.loads(text)["what_changed"]["<chat>"].startswith(SAID)
    (tmp_path / "check.json").write_text(text)
    (kept,) = read_results(tmp_path / "check.json")
    assert kept.checked == red
    page = check_page("check.json", [kept]).html()
    assert page.index("<section id='what-changed'>") < page.index("<section id='what-failed'>")
    assert "Inputs changed: engine.max_num_seqs 8 -&gt; 4." in page
    assert "<td class=text>engine.max_num_seqs</td><td>8</td><td>4</td>" in page
    assert "The suite&#x27;s tolerance of e2el.mape: 20% -&gt; 5%." in page
    assert "tolerance of e2el.mape</td><td>20%</td><td>5%</td>" in page


def test_a_result_of_an_earlier_version_is_read(red: Checked, tmp_path: Path) -> None:
    (text,) = outputs_of(red, result=tmp_path / "check.json").values()
    older = json.loads(text)
    del older["since"], older["what_changed"]
    del older["scenarios"]["<chat>"]["inputs"], older["scenarios"]["<chat>"]["tolerances"]
    (tmp_path / "check.json").write_text(json.dumps(older))
    (kept,) = read_results(tmp_path / "check.json")
    assert kept.checked.scenarios[0].verdicts == red.scenarios[0].verdicts
    assert (kept.since, kept.checked.scenarios[0].inputs, kept.checked.scenarios[0].tolerances) == (None, (), ())
