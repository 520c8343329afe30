"""A capture of series alone that cannot be scored says why."""

from __future__ import annotations

from pathlib import Path

from harness.scoring.compare import compare
from traces.formats import import_capture
from traces.trace import Trace, TraceRow

TRACE = Trace((TraceRow(request_id="0", arrival_s=0.0, prompt_tokens=4, output_tokens=2),), None, "test", "sha256:0")


def test_power_that_nobody_simulated(tmp_path: Path) -> None:
    (tmp_path / "power.csv").write_text("time_s,power_w\n1,100\n2,100\n")
    measured = import_capture(tmp_path / "power.csv", trace=TRACE)
    (tmp_path / "tokens.csv").write_text("time_s,throughput\n1,100\n2,100\n")
    result = compare(measured, import_capture(tmp_path / "tokens.csv", trace=TRACE))
    assert not result["valid"]
    (reason,) = result["reasons"]
    assert reason.startswith("no window of power_w can be scored: not simulated")
    assert compare(measured, measured)["valid"]
