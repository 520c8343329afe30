"""A suite file that cannot be used says where and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.gate import fidelity
from harness.gate.suite import read_suite
from traces.errors import InputError

ONE = "scenarios: {a: {scenario: a.yaml, capture: a}}\n"


def read(folder: Path, text: str) -> str:
    """The message of the error that reading gives."""
    (folder / "suite.yaml").write_text(text)
    with pytest.raises(InputError) as raised:
        read_suite(folder / "suite.yaml")
    return str(raised.value).removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "suite.yaml:1: field 'scenarios': is missing"),
        ("scenarios: {}", "suite.yaml:1: field 'scenarios': found {}: accepted: a mapping of length >= 1"),
        ("scenarios: {a: {capture: a}}", "suite.yaml:1: field 'scenario': is missing"),
        ("scenarios:\n  a: b.yaml", "suite.yaml:2: field 'scenarios.a': found 'b.yaml': accepted: a mapping with a"),
        ("scenarios:\n  a:\n    scenaro: b.yaml", "suite.yaml:3: field 'scenaro': is unknown: accepted: 'scenario'"),
        (f"{ONE}fidelty: {{}}", "suite.yaml:2: field 'fidelty': is unknown: accepted: 'fidelity' is the nearest"),
        (
            f"{ONE}fidelity:\n  ttft.p9: 1%",
            "suite.yaml:3: field 'fidelity.ttft.p9': is unknown: accepted: ttft.p90, ttft.p95",
        ),
        (f"{ONE}fidelity:\n  ttft.p90: 1", "suite.yaml:3: field 'fidelity.ttft.p90': found 1: accepted: 10%"),
        (f"{ONE}fidelity:\n  ttft.p90: few", "suite.yaml:3: field 'fidelity.ttft.p90': found 'few': accepted: 10%"),
        (f"{ONE}fidelity:\n  ttft.p90: report", "suite.yaml:3: field 'fidelity.ttft.p90': found 'report': accepted"),
        (f"{ONE}drift: {{default: 1%}}", "suite.yaml:2: field 'drift': has no effect without a baseline"),
        (f"{ONE}baseline: b\ndrift: {{e2el.mape: 1%}}", "suite.yaml:3: field 'drift.e2el.mape': is unknown"),
        ("scenarios: {a: {scenario: a.yaml}}", "suite.yaml:1: field 'scenarios.a': is judged by nothing"),
        (
            "baseline: b\nscenarios:\n  a:\n    scenario: a.yaml\n    fidelity: {ttft.mean: 1%}",
            "suite.yaml:5: field 'scenarios.a.fidelity': has no effect without a capture",
        ),
        (
            "baseline: b\nscenarios:\n  a:\n    scenario: a.yaml\n    score_fitted: true",
            "suite.yaml:5: field 'scenarios.a.score_fitted': has no effect without a capture",
        ),
        (
            "scenarios:\n  a:\n    scenario: a.yaml\n    capture: a\n    drift: {itl.p50: 1%}",
            "suite.yaml:5: field 'scenarios.a.drift': has no effect without a baseline",
        ),
        (
            "scenarios: {a: {scenario: a.yaml, capture: a}, a: {}}",
            "suite.yaml:1: is not YAML (the key 'a' stands twice",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert read(tmp_path, text).startswith(message)


def test_a_suite_that_states_no_tolerance_has_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(ONE)
    (entry,) = read_suite(tmp_path / "suite.yaml").entries
    assert {name: tolerance.text for name, tolerance in entry.fidelity.items()} == fidelity.DEFAULT
    assert entry.scenario == tmp_path / "a.yaml"


def test_a_scenarios_own_tolerances_go_over_the_suites(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(
        "baseline: b\nfidelity: {ttft.mean: 1%, tpot.mean: 2%}\ndrift: {default: report}\n"
        "scenarios:\n  a:\n    scenario: a.yaml\n    capture: a\n"
        "    fidelity: {ttft.mean: 3%}\n    drift: {default: 4%, itl.p50: report}\n"
    )
    (entry,) = read_suite(tmp_path / "suite.yaml").entries
    assert {name: tolerance.text for name, tolerance in entry.fidelity.items()} == {
        "ttft.mean": "3%",
        "tpot.mean": "2%",
    }
    assert entry.drift_default is not None
    assert entry.drift_default.text == "4%"
    assert entry.drift == {"itl.p50": None}
