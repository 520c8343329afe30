"""A result for github-action-benchmark (`tool: customSmallerIsBetter`): every judged error as a curve over commits."""

from __future__ import annotations

import json
from typing import Any

from harness.gate.drift import REPORT
from harness.gate.text import sentence
from harness.gate.verdict import MEASURED, Checked, ScenarioCheck, Verdict
from harness.terminal.words import interval


def benchmark(checked: Checked) -> str:
    """A JSON list: the size of each fidelity error, and of each change's, in percent.

    What could not be measured, and changes that are only reported, are not in it.
    """
    entries = [
        _entry(scenario, verdict)
        for scenario in checked.scenarios
        for verdict in scenario.verdicts
        if verdict.gate in MEASURED and verdict.difference is not None and verdict.tolerance != REPORT
    ]
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def _entry(scenario: ScenarioCheck, verdict: Verdict) -> dict[str, Any]:
    assert verdict.difference is not None
    entry = {
        "name": f"{scenario.name}: |error| of {verdict.name}",
        "unit": "%",
        "value": round(100 * abs(verdict.difference), 4),
        "extra": sentence(verdict),
    }
    return entry if verdict.ci95 is None else {**entry, "range": interval(list(verdict.ci95))}
