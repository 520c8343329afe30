"""What a result is written as: each output against its consumer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import xmlschema
from markdown_it import MarkdownIt

from harness.gate.benchmark import benchmark
from harness.gate.junit import junit
from harness.gate.markdown import markdown
from harness.gate.outputs import outputs_of, write_outputs
from harness.gate.terminal import print_checked
from harness.gate.text import headline
from harness.gate.verdict import Checked, ScenarioCheck, Status, Verdict
from traces.errors import InputError

SCHEMA = xmlschema.XMLSchema(str(Path(__file__).with_name("junit.xsd")))

NASTY = 'a|b <script> & "c" `d` _e_ [f](g)\nh\x00\x1b'
"""A name that every one of the outputs has a character to escape in."""

FAILED = Verdict("fidelity", "ttft.p99", Status.FAILED, 0.1, 0.13, 0.3, (0.2, 0.4), "10%")
UNSURE = Verdict("fidelity", "tpot.mean", Status.INCONCLUSIVE, 0.01, 0.011, 0.1, (0.05, 0.15), "10%", why=NASTY)
PAIRED = Verdict("fidelity", "e2el.mape", Status.PASSED, difference=0.056, tolerance="18%")
MOVED = Verdict("drift", "at_once.duration", Status.CHANGED, 10.0, 10.05, 0.005, None, "2%")
SAME = Verdict("canary", "steps", Status.PASSED, 1202, 1202, 0.0)
UNMEASURED = Verdict("fidelity", "itl.mean", Status.INCONCLUSIVE, tolerance="10%", why="not measured")


@pytest.fixture
def checked() -> Checked:
    red = ScenarioCheck(NASTY, (FAILED, UNSURE, UNMEASURED, MOVED, SAME), (NASTY,))
    return Checked("suite.yaml", "1.2.3", (ScenarioCheck("good", (PAIRED, SAME)), red), reason=NASTY)


def test_the_headline_names_what_failed(checked: Checked) -> None:
    good, red = checked.scenarios
    assert headline(checked).startswith("FAILED: 1 of 2 scenarios: a|b")
    assert headline(checked).endswith("(fidelity ttft.p99).")
    assert headline(Checked("s", "v", (good,))) == "PASSED: 1 scenario, 2 passed."
    assert not red.passed


def test_junit_is_what_its_readers_accept(checked: Checked) -> None:
    SCHEMA.validate(junit(checked))
    root = ET.fromstring(junit(checked))
    assert root.attrib == {"name": "servetwin check", "tests": "7", "failures": "1", "errors": "0"}
    cases = root.findall("testsuite/testcase")
    assert [case.get("name") for case in cases if case.find("failure") is not None] == ["fidelity ttft.p99"]
    assert [case.get("name") for case in cases if case.find("skipped") is not None] == [
        "fidelity tpot.mean",
        "fidelity itl.mean",
    ]
    assert root.find("testsuite[2]").get("skipped") == "2"  # type: ignore[union-attr]


def test_the_schema_refuses_what_is_not_junit(checked: Checked) -> None:
    for broken in (("failures=", "failed="), ("<testcase classname", "<case classname"), ("<failure", "<fail")):
        text = junit(checked).replace(*broken)
        with pytest.raises((xmlschema.XMLSchemaException, ET.ParseError)):
            SCHEMA.validate(text)


def rendered(text: str) -> ET.Element:
    """The Markdown as GitHub would show it, its tables included."""
    return ET.fromstring(f"<html>{MarkdownIt('commonmark').enable('table').render(text)}</html>")


def test_markdown_renders_to_tables_and_nothing_of_a_name_gets_through(checked: Checked) -> None:
    page = rendered(markdown(checked))
    tables = page.findall(".//table")
    rows = [["".join(cell.itertext()) for cell in row] for row in tables[0].findall(".//tr")]
    assert [row[1] for row in rows] == ["", "FAILED", "passed"]
    assert {len(row) for row in rows} == {3}
    for table in tables[1:]:
        assert {len(row) for row in table.findall(".//tr")} == {7}
    assert page.find(".//script") is None
    assert page.find(".//a") is None
    assert "".join(page.find("h2").itertext()).startswith("FAILED: 1 of 2")  # type: ignore[union-attr]
    (details,) = page.findall(".//details[1]")[:1]
    assert "1 more: 1 passed" in "".join(details.itertext())


def test_markdown_keeps_every_figure(checked: Checked) -> None:
    text = markdown(checked)
    for line in ("| fidelity e2el.mape |  |  | 5.6% |", "| canary steps | 1202 | 1202 | +0.00% |"):
        assert line.replace("_", "\\_") in text


def test_benchmark_is_a_list_of_errors_that_should_get_smaller(checked: Checked) -> None:
    entries = json.loads(benchmark(checked))
    assert [(entry["value"], entry["unit"]) for entry in entries] == [(5.6, "%"), (30.0, "%"), (10.0, "%")]
    assert entries[0]["name"] == "good: |error| of e2el.mape"
    assert entries[1]["range"] == "[+20.0%, +40.0%]"
    assert all(isinstance(entry["name"], str) and entry["extra"] for entry in entries)


def test_all_are_written_or_none(checked: Checked, tmp_path: Path) -> None:
    (tmp_path / "old.xml").write_text("old")
    (tmp_path / "folder").mkdir()
    texts = outputs_of(checked, junit=tmp_path / "old.xml", markdown=tmp_path / "folder")
    with pytest.raises(InputError, match="folder: is a folder: accepted: a file"):
        write_outputs(texts)
    assert (tmp_path / "old.xml").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"old.xml", "folder"}
    write_outputs(outputs_of(checked, junit=tmp_path / "old.xml", result=tmp_path / "new" / "result.json"))
    SCHEMA.validate(str(tmp_path / "old.xml"))
    assert json.loads((tmp_path / "new" / "result.json").read_text())["passed"] is False


def test_two_outputs_need_two_files(checked: Checked, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is to hold two outputs"):
        outputs_of(checked, junit=tmp_path / "a", markdown=tmp_path / "a")


def test_the_terminal_shows_names_as_they_are(checked: Checked, capsys: pytest.CaptureFixture[str]) -> None:
    good, _ = checked.scenarios
    print_checked(Checked("suite.yaml", "1.2.3", (good, replace(good, name="[bold]a[/bold]", verdicts=(FAILED,)))))
    printed = capsys.readouterr().out
    assert "[bold]a[/bold]: FAILED, 1 failed" in printed
    assert "[+20.0%, +40.0%]" in printed
    assert printed.splitlines()[-1] == "FAILED: 1 of 2 scenarios: [bold]a[/bold] (fidelity ttft.p99)."
