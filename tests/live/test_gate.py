"""The gate of the bundled captures with vLLM's own scheduler in the twin: the same baseline holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.demo import BUNDLED
from harness.gate.check import check
from tests.conformance.engine import ENGINE, run_in_engine

pytestmark = pytest.mark.live


def test_the_bundled_suite_is_green_with_vllms_own_scheduler(tmp_path: Path) -> None:
    if not ENGINE.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    suite = BUNDLED / "suite.yaml"
    printed = run_in_engine("tests.conformance.cli", "check", str(suite), "--set", "scheduler=vllm", "--json")
    with_vllm, native = json.loads(printed), check(suite).as_dict()
    assert with_vllm["passed"]
    for name, scenario in with_vllm["scenarios"].items():
        assert any("'s own scheduler" in note for note in scenario["notes"]), "it was vLLM that planned"
        assert scenario["verdicts"] == native["scenarios"][name]["verdicts"], "to the last digit"
