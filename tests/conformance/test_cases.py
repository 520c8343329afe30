"""The kept scenarios: what vLLM did in each of them, our scheduler does by the rules of that version. Needs no vLLM."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from simulator.scheduling.rules import rules_of, version_of
from tests.conformance.cases import Case, keep, read_cases
from tests.conformance.compare import first_difference, our_states
from tests.conformance.mismatch import script
from tests.conformance.scenario import State

CASES = read_cases()
JUDGED = [(name, version) for name, case in CASES.items() for version in case.judged]


@pytest.mark.parametrize(("name", "version"), JUDGED)
def test_our_scheduler_does_what_vllm_did(name: str, version: str) -> None:
    case = CASES[name]
    rules = rules_of(version_of(version) or (0, 0))
    assert first_difference(case.judged[version], our_states(case.scenario, rules)) is None, case.about


def test_every_rule_that_versions_differ_in_has_a_case_on_both_sides() -> None:
    judged = [case.judged for case in CASES.values() if len(case.judged) > 1]
    sides = {tuple(versions) for versions in judged if len(set(versions.values())) > 1}
    assert sides == {
        ("0.23.0", "0.24.0", "0.32.0"),
        ("0.27.1", "0.28.0", "0.32.0"),
        ("0.30.0", "0.31.0", "0.32.0"),
        ("0.32.0", "0.33.0"),
    }


def test_a_difference_is_found_and_named() -> None:
    case = CASES["prefix-in-the-same-step"]
    states = case.judged["0.32.0"]
    changed = State((("0", 40, 0), ("1", 24, 16)), *(getattr(states[0], name) for name in State.__struct_fields__[1:]))
    found = first_difference((changed, *states[1:]), states)
    assert found is not None
    assert (found.tick, found.what) == (0, "batch")
    assert str(found).startswith("tick 0: batch: vLLM (('0', 40, 0), ('1', 24, 16)), ours (('0', 40, 0), ('1', 8, 32)")
    missing = first_difference(states[:-1], states)
    assert missing is not None
    assert missing.what == "ticks"


def test_a_found_scenario_is_kept_and_read_again(tmp_path: Path) -> None:
    case = CASES["adaptive-threshold"]
    file = keep(case.scenario, "0.32.0", case.judged["0.32.0"], "a test", tmp_path)
    assert file.name.startswith("found-")
    assert read_cases(tmp_path) == {
        file.stem: Case(about="a test", scenario=case.scenario, judged={"0.32.0": case.judged["0.32.0"]})
    }


def test_a_found_scenario_is_printed_as_a_script() -> None:
    text = script(CASES["adaptive-threshold"].scenario, "a test")
    names = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert names == {"tests.conformance.compare", "tests.conformance.judge", "tests.conformance.scenario"}
    assert '"long_prefill_token_threshold_adaptive": true' in text
