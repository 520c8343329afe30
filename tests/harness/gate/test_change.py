"""The change gate: a predicted change against the measured one, in a suite and in all that a check writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from harness.gate.benchmark import benchmark
from harness.gate.causes import causes
from harness.gate.change import DEFAULT, HEAD, judge_change
from harness.gate.check import check
from harness.gate.fidelity import DEFAULT as OF_FIDELITY
from harness.gate.figures import SAID_OF_CHANGES
from harness.gate.junit import junit
from harness.gate.markdown import markdown
from harness.gate.outputs import outputs_of
from harness.gate.result import read_results, with_line
from harness.gate.suite import read_suite
from harness.gate.terminal import print_checked
from harness.gate.text import OF_CHANGES, sentence
from harness.gate.tolerance import Tolerance, parse_of_change
from harness.gate.verdict import Checked, Gate, InputChange, ScenarioCheck, Status, Verdict
from harness.reports.check_page import check_page
from harness.running.simulate import simulate_scenario, write_simulation
from harness.scoring.change import FROM_ZERO, Change, Changes
from tests.harness.gate.planted import plant
from tests.harness.gate.suites import CHANGES, store, write_changes, write_changes_with_baseline
from tests.harness.gate.test_outputs import SCHEMA
from tests.harness.gate.test_suite import read
from traces.errors import InputError


def of(scenario: ScenarioCheck, figure: str, gate: Gate = "change") -> Verdict:
    (found,) = [one for one in scenario.verdicts if (one.gate, one.figure) == (gate, figure)]
    return found


def judged(
    change: Change | str, tolerance: str | None, name: str = "ttft.mean", before: float | None = None
) -> Verdict:
    tolerances: dict[str, Tolerance | None] = {
        name: None if tolerance is None else parse_of_change(tolerance, name, name)
    }
    key = {"ttft.mean": "ttft_s.mean"}.get(name, name)
    found = Changes(True, (90, 90), {key: change})
    head, verdict = judge_change(found, tolerances, {} if before is None else {name: before})
    assert head.figure == HEAD
    return verdict


UP = Change((0.1, 0.5), (0.1, 0.55), (3.5, 4.6), (0.06, 0.14))
"""Five times measured, five and a half predicted: 50 points, and 10 % of the ratio."""


@pytest.mark.parametrize(
    ("tolerance", "status"),
    [("15%", Status.PASSED), ("10%", Status.INCONCLUSIVE), ("5%", Status.FAILED), ("-5%", Status.PASSED)],
)
def test_a_tolerance_is_of_the_ratio_and_blocks_when_all_of_the_interval_is_beyond(
    tolerance: str, status: Status
) -> None:
    verdict = judged(UP, tolerance)
    assert verdict.status is status
    assert (verdict.reference, verdict.simulated) == (pytest.approx(4.0), pytest.approx(4.5))
    assert verdict.difference == pytest.approx(0.1)


def test_what_is_only_reported_blocks_nothing_and_what_is_not_known_is_said() -> None:
    assert judged(replace(UP, ci95=(0.5, 0.6)), None).status is Status.REPORTED
    assert judged(replace(UP, ci95=None), "5%").why == "too few requests for an interval"
    unknown = judged(FROM_ZERO, "5%")
    assert (unknown.status, unknown.why, unknown.change) == (Status.INCONCLUSIVE, FROM_ZERO, None)
    assert judged(FROM_ZERO, None).status is Status.REPORTED


def test_one_number_for_a_run_is_judged_as_it_is() -> None:
    rate = Change((100.0, 200.0), (100.0, 188.0))
    assert judged(rate, "5%", "output_tokens_per_s").status is Status.FAILED
    assert judged(rate, "7%", "output_tokens_per_s").status is Status.PASSED


def test_a_smaller_error_than_in_the_baseline_is_an_improvement() -> None:
    assert judged(UP, "20%", before=-0.15).status is Status.IMPROVED
    assert judged(UP, "20%", before=0.05).status is Status.PASSED


def test_a_wrong_direction_is_told_and_blocks_only_beyond_the_tolerance() -> None:
    down = Change((0.1, 0.104), (0.1, 0.099), (0.02, 0.06), (-0.06, -0.04))
    tolerances: dict[str, Tolerance | None] = {"ttft.mean": parse_of_change("10%", "", ""), "e2el.mean": None}
    head, verdict, _ = judge_change(Changes(True, (90, 90), {"ttft_s.mean": down, "e2el_s.mean": UP}), tolerances, {})
    assert verdict.status is Status.PASSED
    assert head.status is Status.REPORTED
    assert head.why == "90 requests, paired; direction right in 1 of 2, wrong in ttft.mean"
    apart = Changes(False, (90, 80), {"ttft_s.mean": UP})
    head, _ = judge_change(apart, {"ttft.mean": None}, {})
    assert head.why == "90 requests and 80 others, not paired; direction right in 1 of 1"
    assert judged(replace(down, measured=(0.1, 0.12), ci95=(-0.2, -0.16)), "10%").status is Status.FAILED


BOTH = "scenarios:\n  a: {scenario: a.yaml, capture: a}\n  b:\n    scenario: a.yaml\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{BOTH}    capture: b\n    change_from: c", "6: field 'scenarios.b.change_from': found 'c': accepted: a"),
        (
            f"{BOTH}    capture: b\n    change_from: b",
            "6: field 'scenarios.b.change_from': is the scenario itself: acc",
        ),
        (f"{BOTH}    capture: b\n    change_from: 3", "6: field 'change_from': found 3: accepted: str"),
        (f"{BOTH}    capture: a\n    change_from: a", "6: field 'scenarios.b.change_from': has the same capture"),
        (
            f"baseline: x\n{BOTH}    change_from: a",
            "6: field 'scenarios.b.change_from': has no effect without a capture",
        ),
        (
            f"baseline: x\n{BOTH}    capture: b\n    change_from: c\n  c: {{scenario: a.yaml}}",
            "7: field 'scenarios.b.change_from': found 'c': accepted: a scenario with a capture",
        ),
        (
            f"{BOTH}    capture: b\nchange: {{ttft.mean: 1%}}",
            "6: field 'change': has no effect: no scenario has change_",
        ),
        (
            f"{BOTH}    capture: b\n    change: {{ttft.mean: 1%}}",
            "6: field 'scenarios.b.change': has no effect without change_from",
        ),
        (
            f"{BOTH}    capture: b\n    change_from: a\n    change: {{ttft.mean: 1ms}}",
            "7: field 'scenarios.b.change.ttft.mean': found '1ms': accepted: a share of the change's ratio, such",
        ),
        (
            f"{BOTH}    capture: b\n    change_from: a\n    change: {{ttft.mean: much}}",
            "7: field 'scenarios.b.change.ttft.mean': found 'much': accepted: a share of the change's ratio",
        ),
        (
            f"{BOTH}    capture: b\n    change_from: a\nchange: {{e2el.mape: 1%}}",
            "7: field 'change.e2el.mape': is unknown",
        ),
    ],
)
def test_what_is_wrong_in_a_suite_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert read(tmp_path, text).startswith(f"suite.yaml:{message}")


def test_a_suite_that_states_no_tolerance_has_those_of_fidelity(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(f"{BOTH}    capture: b\n    change_from: a\n")
    before, after = read_suite(tmp_path / "suite.yaml").entries
    assert (before.change_from, before.change) == (None, {})
    assert {name: one.text for name, one in after.change.items() if one is not None} == OF_FIDELITY
    assert tuple(after.change) == SAID_OF_CHANGES
    assert DEFAULT["default"] == "report"


def test_a_default_is_of_all_that_is_told_and_a_stage_must_be_named(tmp_path: Path) -> None:
    head = f"change: {{default: 30%, itl.p99: report, queue.mean: 90%}}\n{BOTH}    capture: b\n    change_from: a\n"
    (tmp_path / "suite.yaml").write_text(f"{head}    change: {{default: 40%, ttft.mean: 10%}}\n")
    (_, after) = read_suite(tmp_path / "suite.yaml").entries
    said = {name: None if one is None else one.text for name, one in after.change.items()}
    named = {"itl.p99": None, "queue.mean": "90%", "ttft.mean": "10%"}
    assert said == dict.fromkeys(SAID_OF_CHANGES, "40%") | named
    assert "prefill.mean" not in said


def test_a_change_that_the_twin_knows_passes(tmp_path: Path) -> None:
    checked = check(write_changes_with_baseline(tmp_path))
    assert checked.passed
    base, after = checked.scenarios
    assert not [one for one in base.verdicts if one.gate == "change"]
    assert [one.figure for one in after.verdicts if one.gate == "change"] == [HEAD, *SAID_OF_CHANGES]
    assert of(after, HEAD).why.startswith("40 requests, paired; direction right in ")
    ttft = of(after, "ttft.mean")
    assert ttft.change is not None
    assert (ttft.change.direction, ttft.difference) == ("right", pytest.approx(0.0))
    own, other = (
        simulate_scenario(tmp_path / "scenario.yaml", asked)[1]["metrics"]["ttft_s"]["mean"]
        for asked in ([], ["engine.max_num_seqs=4"])
    )
    assert ttft.reference == pytest.approx(other / own - 1)
    assert of(after, "itl.p99").status is Status.REPORTED


def test_a_change_that_costs_more_than_predicted_fails_and_is_not_accepted(tmp_path: Path) -> None:
    suite = write_changes(tmp_path, factor=1.5)
    checked = check(suite, update_baseline="first")
    assert [one.name for one in checked.scenarios if not one.passed] == ["seats-4"]
    assert {one.gate for one in checked.scenarios[1].of(Status.FAILED)} == {"change"}
    store(suite)
    (why,) = causes(check(suite)).values()
    assert why[0] == "No input changed, and nothing moved: it was as far off when the baseline was made."
    assert why[1].startswith("Farthest from the measured change from base: ")
    assert "times the tolerance of " in why[1]


def test_a_twin_that_came_nearer_is_an_improvement_between_the_same_captures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_changes(tmp_path, CHANGES.replace("e2el.mean: 10%", "e2el.mean: 90%"), factor=1.5)
    with monkeypatch.context() as patch:
        plant(patch, 1.0)
        store(suite)
    kept = json.loads((tmp_path / "baseline.json").read_text())["scenarios"]
    assert "changes" not in kept["base"]
    assert kept["seats-4"]["changes"]["e2el.mean"] < -0.2
    kept["seats-4"]["changes"]["e2el.mean"] *= 2
    text = json.loads((tmp_path / "baseline.json").read_text()) | {"scenarios": kept}
    (tmp_path / "baseline.json").write_text(json.dumps(text))
    assert of(check(suite).scenarios[1], "e2el.mean").status in (Status.IMPROVED, Status.INCONCLUSIVE)
    wide = CHANGES.replace("e2el.mean: 10%", "e2el.mean: 900%")
    suite.write_text(wide)
    assert of(check(suite).scenarios[1], "e2el.mean").status is Status.IMPROVED
    write_simulation(*simulate_scenario(tmp_path / "scenario.yaml", ["seed=7"]), tmp_path / "other")
    meta = tmp_path / "other" / "meta.json"
    meta.write_text(meta.read_text().replace('"reasons"', '"recorded_at": "2026-01-01", "reasons"', 1))
    suite.write_text(wide.replace("capture: capture", "capture: other"))
    assert of(check(suite).scenarios[1], "e2el.mean").status is Status.PASSED, "the base is of another recording"


def test_a_side_that_cannot_be_compared_leaves_the_change_unsaid(tmp_path: Path) -> None:
    text = CHANGES.replace("capture: capture\n", "capture: capture\n    set: [engine.max_num_seqs=8]\n")
    checked = check(write_changes(tmp_path, text.replace("baseline: baseline.json\n", "")))
    base, after = checked.scenarios
    assert (base.passed, after.passed) == (False, True)
    assert {one.why for one in after.verdicts if one.gate == "change"} == {"the comparison of base is not valid"}
    assert of(after, "ttft.mean").status is Status.INCONCLUSIVE


def test_fail_on_knows_changes(tmp_path: Path) -> None:
    suite = write_changes_with_baseline(tmp_path, factor=1.05)
    assert check(suite).passed
    checked = check(suite, fail_on=["change.e2el.mean:1%", "change.itl.p50:90%", "e2el.mean:90%"])
    (why,) = causes(checked).values()
    assert of(checked.scenarios[1], "e2el.mean").status is Status.FAILED
    assert of(checked.scenarios[1], "itl.p50").tolerance == "90%"
    assert why[0] == "--fail-on's tolerance of change.e2el.mean: 10% -> 1%."
    assert checked.scenarios[0].passed
    for wrong, message in (
        ("change.e2el.mape:1%", r"'--fail-on': is unknown: found 'change.e2el.mape'"),
        ("change.ttft.mean:1ms", "'--fail-on change.ttft.mean': found '1ms': accepted: a share of the change's ratio"),
    ):
        with pytest.raises(InputError, match=message):
            check(suite, fail_on=[wrong])
    suite.write_text(CHANGES.replace("    change_from: base\n", "").replace("change: {", "drift: {"))
    with pytest.raises(InputError, match=r"--fail-on change.ttft.mean': has no effect: no scenario of the suite has"):
        check(suite, fail_on=["change.ttft.mean:1%"])


def test_what_changed_names_tolerances_the_base_and_its_inputs(tmp_path: Path) -> None:
    suite = write_changes_with_baseline(tmp_path, factor=1.5)
    suite.write_text(
        CHANGES.replace("e2el.mean: 10%", "e2el.mean: 5%").replace("max_num_seqs=4", "max_num_seqs=4, seed=1")
    )
    tolerated, changed, *_ = causes(check(suite))["seats-4"]
    assert tolerated == "The suite's tolerance of change.e2el.mean: 10% -> 5%."
    assert changed == "Inputs changed: seed not said -> 1."
    suite.write_text(CHANGES.replace("    capture: capture\n", "    capture: capture\n    set: [seed=1]\n"))
    why = causes(check(suite))["seats-4"]
    assert why[0] == "No input changed, and nothing moved."
    assert why[1] == "Inputs of base, which it is a change of, changed: seed not said -> 1."
    again = CHANGES.replace("  seats-4:", "  other: {scenario: scenario.yaml, capture: capture}\n  seats-4:")
    suite.write_text(again.replace("change_from: base", "change_from: other"))
    (scenario,) = [one for one in check(suite).scenarios if one.name == "seats-4"]
    assert scenario.inputs == (InputChange("change_from", "base", "other"),)


def test_a_load_is_held_against_what_was_measured_under_it(tmp_path: Path) -> None:
    suite = write_changes(tmp_path)
    write_simulation(*simulate_scenario(tmp_path / "scenario.yaml", ["load.speed=2"]), tmp_path / "speed-2")
    own = "  at-its-own:\n    scenario: scenario.yaml\n    capture: speed-2\n    change_from: base\n"
    asked = own.replace("at-its-own", "from-the-base").replace("    capture", "    set: [load.speed=2]\n    capture")
    suite.write_text(f"{CHANGES}{own}{asked}".replace("baseline: baseline.json\n", ""))
    _, _, measured, predicted = check(suite).scenarios
    moved = [[one for one in scenario.verdicts if one.gate == "change"] for scenario in (measured, predicted)]
    assert moved[0] == moved[1], "at the arrivals of the capture, and at the base's at twice the speed"
    assert of(predicted, "e2el.mean").difference == pytest.approx(0.0)
    note = "served as the load has requests come, 0.0 ms at most from their measured arrivals"
    assert note in predicted.notes


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (
            "load.speed=0.1",
            r"scenario.yaml:1: field 'load': makes requests up to 3.51 s from their measured arrivals: a",
        ),
        (
            "load.end_s=0.2",
            r"scenario.yaml:1: field 'load': makes 20 requests, 20 of them among the 40 of the capture: ",
        ),
    ],
)
def test_a_load_that_was_not_measured_is_refused(tmp_path: Path, load: str, message: str) -> None:
    suite = write_changes(tmp_path, CHANGES.replace("engine.max_num_seqs=4", f"engine.max_num_seqs=4, {load}"))
    with pytest.raises(InputError, match=message):
        check(suite, update_baseline="why")
    suite.write_text(CHANGES.replace("    capture: capture\n", f"    capture: capture\n    set: [{load}]\n"))
    with pytest.raises(InputError, match="'load': makes requests that were not measured"):
        check(suite, update_baseline="why")


MOVED = Verdict("change", "ttft.mean", Status.FAILED, 4.0, 4.5, 0.1, (0.06, 0.14), "5%", change=UP)
TOLD = Verdict("change", "itl.p50", Status.REPORTED, 4.0, 4.5, 0.1, (0.06, 0.14), "report", change=UP)
NONE = Verdict("change", "queue.mean", Status.INCONCLUSIVE, tolerance="5%", why=FROM_ZERO)
START = Verdict("change", HEAD, Status.PASSED, why="90 requests, paired; direction right in 2 of 2")
FAR = Verdict("fidelity", "ttft.mean", Status.FAILED, 0.1, 0.13, 0.3, (0.2, 0.4), "10%")
RED = ScenarioCheck("<seats>", (FAR, START, MOVED, TOLD, NONE), change_from="<base>")
CHECKED = Checked("suite.yaml", "1.2.3", (ScenarioCheck("<base>", (replace(FAR, status=Status.PASSED),)), RED))


def test_a_sentence_says_both_changes_and_how_far_apart_they_are() -> None:
    assert sentence(MOVED) == (
        "change ttft.mean failed; predicted +450.0%; measured +400.0% [+350.0%, +460.0%]; +50.0 points; "
        "right direction; ratio off by +10.0% [+6.0%, +14.0%]; tolerance 5%"
    )
    assert sentence(NONE) == f"change queue.mean inconclusive: {FROM_ZERO}; tolerance 5%"


def test_the_terminal_has_a_table_of_its_own_for_changes(capsys: pytest.CaptureFixture[str]) -> None:
    print_checked(CHECKED)
    printed = capsys.readouterr().out
    assert "<seats>: change from <base>" in printed
    row = next(line for line in printed.splitlines() if line.strip().startswith("ttft.mean  "))
    told = ["+400.0%", "[+350.0%, +460.0%]", "+450.0%", "+50.0", "right", "+10.0%", "[+6.0%, +14.0%]", "5%", "failed"]
    assert [part for part in told if part not in row] == []
    assert "itl.p50" not in printed
    assert "1 passed, 1 reported, 1 inconclusive, 2 failed" in printed
    why = "Farthest from the measured change from <base>: ttft.mean +400.0% -> +450.0% (+10.0%), 2 times the tolerance"
    assert why in " ".join(printed.split())


def test_junit_and_markdown_have_them(tmp_path: Path) -> None:
    SCHEMA.validate(junit(CHECKED))
    cases = {case.get("name"): case for case in ET.fromstring(junit(CHECKED)).findall("testsuite[2]/testcase")}
    failure = cases["change ttft.mean"].find("failure")
    assert failure is not None
    assert (failure.get("type"), failure.get("message")) == ("change", sentence(MOVED))
    assert cases["change queue.mean"].find("skipped") is not None
    assert "change itl.p50 reported" in cases["change itl.p50"].findtext("system-out", "")
    text = markdown(CHECKED)
    assert f"| {' | '.join(OF_CHANGES)} |" in text
    row = "| ttft.mean | +400.0% | \\[+350.0%, +460.0%\\] | +450.0% | +50.0 | right | +10.0% "
    assert row in text
    assert text.count("| itl.p50 |") == 1, "among the rest, in full"


def test_a_result_and_a_history_keep_them(tmp_path: Path) -> None:
    (text,) = outputs_of(CHECKED, result=tmp_path / "check.json").values()
    (tmp_path / "check.json").write_text(text)
    (kept,) = read_results(tmp_path / "check.json")
    assert kept.checked == CHECKED
    scenario = json.loads(text)["scenarios"]["<seats>"]
    assert scenario["change_from"] == "<base>"
    assert scenario["verdicts"][2]["change"] == {
        "measured": [0.1, 0.5],
        "simulated": [0.1, 0.55],
        "measured_ci95": [3.5, 4.6],
        "ci95": [0.06, 0.14],
        "points": pytest.approx(0.5),
        "direction": "right",
    }
    base = json.loads(text)["scenarios"]["<base>"]
    assert "change_from" not in base
    assert "change" not in base["verdicts"][0], "a suite without changes is written as it was"
    (tmp_path / "history.jsonl").write_text(with_line(tmp_path / "history.jsonl", CHECKED, at="2026", commit=None))
    assert read_results(tmp_path / "history.jsonl")[0].checked == CHECKED


def test_the_benchmark_follows_what_is_judged() -> None:
    entries = {entry["name"]: entry for entry in json.loads(benchmark(CHECKED))}
    assert list(entries) == [
        "<base>: |error| of ttft.mean",
        "<seats>: |error| of ttft.mean",
        "<seats>: |error| of change.ttft.mean",
    ]
    assert entries["<seats>: |error| of change.ttft.mean"]["value"] == 10.0


def test_the_page_draws_both_changes(tmp_path: Path) -> None:
    for number in (1, 2):
        (text,) = outputs_of(CHECKED, result=tmp_path / f"{number}.json").values()
        (tmp_path / f"{number}.json").write_text(text)
    kept = [read_results(tmp_path / f"{number}.json")[0] for number in (1, 2)]
    page = check_page("check.json", kept)
    charts = {chart.name: chart for chart in page.charts}
    measured, predicted = charts["change-0"].marks
    assert measured.labels == predicted.labels == ("ttft.mean", "itl.p50")  # type: ignore[union-attr]
    assert measured.low.tolist() == pytest.approx([3.5, 3.5])  # type: ignore[union-attr]
    assert predicted.value.tolist() == pytest.approx([4.5, 4.5])  # type: ignore[union-attr]
    assert [line.name for line in charts["history-1"].marks] == ["ttft.mean", "change.ttft.mean"]
    html = page.html()
    failed = html[html.index("<section id='what-failed'>") :].partition("</section>")[0]
    assert "<td class=text>&lt;seats&gt;</td><td class=text>ttft.mean</td><td>+400.0%</td>" in failed
    assert "in the last 2 checks" in failed
    assert "&lt;base&gt;" in html
    assert "<base>" not in html.replace("\\u003cbase>", "")
