"""Our scheduler against the installed vLLM's own: the same decisions, step by step."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]


def test_every_step_is_planned_as_vllm_plans_it() -> None:
    python = ROOT / ".venv-engine" / "bin" / "python"
    if not python.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    ran = subprocess.run(
        [python, "-m", "tests.conformance.compare", "1000", "1010"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    counts = json.loads(ran.stdout.splitlines()[-1])
    assert counts["n_mismatches"] == 0, counts["mismatches"]
    assert counts["scenarios"] == 20
    assert counts["steps"] >= 2000
    assert counts["preemptions"] > 0
    assert counts["hit_tokens"] > 0
