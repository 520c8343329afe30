"""A result as JUnit XML: a suite per scenario, a case per figure.

Elements and attributes are those of junit-10.xsd of Jenkins' xUnit plugin, which pytest and Maven Surefire write too.
There are no times in it: the same result gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from harness.gate.causes import in_a_line
from harness.gate.text import sentence
from harness.gate.verdict import Checked, ScenarioCheck, Status, Verdict

_NOT_XML = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not allow (section 2.2)."""


def junit(checked: Checked) -> str:
    """A failure for what blocks, a skipped case for what cannot be said, a passed one for the rest.

    A failure's text, and the first line of its scenario's, is what changed since the baseline.
    """
    root = ET.Element("testsuites", {"name": "servetwin check", **_numbers(checked.scenarios)})
    why = in_a_line(checked)
    for scenario in checked.scenarios:
        root.append(_suite(scenario, why.get(scenario.name)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(scenario: ScenarioCheck, why: str | None) -> ET.Element:
    skipped = str(len(scenario.of(Status.INCONCLUSIVE)))
    suite = ET.Element("testsuite", {"name": _xml(scenario.name), **_numbers([scenario]), "skipped": skipped})
    for verdict in scenario.verdicts:
        suite.append(_case(scenario, verdict, why))
    if said := [*([] if why is None else [why]), *scenario.notes]:
        suite.append(_text("system-out", "\n".join(said)))
    return suite


def _numbers(scenarios: Sequence[ScenarioCheck]) -> dict[str, str]:
    failed = sum(len(scenario.of(Status.FAILED)) for scenario in scenarios)
    return {"tests": str(sum(len(one.verdicts) for one in scenarios)), "failures": str(failed), "errors": "0"}


def _case(scenario: ScenarioCheck, verdict: Verdict, why: str | None) -> ET.Element:
    name = {"classname": _xml(f"servetwin.{scenario.name}"), "name": f"{verdict.gate} {verdict.figure}"}
    case, said = ET.Element("testcase", name), _xml(sentence(verdict))
    match verdict.status:
        case Status.FAILED:
            ET.SubElement(case, "failure", {"type": verdict.gate, "message": said}).text = _xml(why or "")
        case Status.INCONCLUSIVE:
            ET.SubElement(case, "skipped", {"type": verdict.gate, "message": said})
        case _:
            case.append(_text("system-out", said))
    return case


def _text(name: str, text: str) -> ET.Element:
    element = ET.Element(name)
    element.text = _xml(text)
    return element


def _xml(text: str) -> str:
    return _NOT_XML.sub("�", text)
