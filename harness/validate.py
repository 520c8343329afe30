"""Simulated against measured: the same requests at the same arrivals, paired by id, with an interval on every error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from harness.compare import Validation, compare
from harness.deployment import deploy, located, with_run_notes
from harness.report import validation_report
from harness.scenario import read_scenario
from simulator.simulate import simulate
from traces.capture import Capture, new_folder, read_capture, write_capture
from traces.decoding import read_bytes, sha256
from traces.errors import InputError
from traces.formats import read_any_trace
from traces.trace import Trace


def validate(scenario_path: Path, capture_path: Path, overrides: Sequence[str] = ()) -> Validation:
    """Simulate the scenario at a capture's measured arrivals and compare the two.

    Raises InputError for whatever cannot be read or simulated, and when no request of the trace was measured.
    """
    started = time.perf_counter()
    scenario = read_scenario(scenario_path, overrides)
    measured = read_capture(capture_path)
    trace = _at_measured_arrivals(read_any_trace(scenario.trace_path), measured)
    deployment = deploy(scenario, measured.meta)
    loaded = time.perf_counter()
    with located(scenario):
        simulation = simulate(trace, deployment.engine)
    simulated = time.perf_counter()
    twin = Capture(
        with_run_notes(simulation.capture.meta, deployment),
        trace,
        simulation.capture.outcomes,
        simulation.capture.steps,
    )
    result = compare(measured, twin, seed=scenario.file.seed, reasons=deployment.mismatches)
    result["notes"] = [*twin.meta.notes, *measured.meta.notes]
    result["provenance"] = {
        "trace": trace.sha256,
        "capture": _digest(capture_path),
        **deployment.provenance,
        "version": version("servetwin"),
    }
    result["steps"], result["events"] = simulation.n_steps, simulation.n_sweeps
    result["wall_s"] = {
        "load": loaded - started,
        "simulate": simulated - loaded,
        "total": time.perf_counter() - started,
    }
    return Validation(result, measured, twin, scenario)


def write_validation(validation: Validation, out: Path) -> None:
    """Write validation.json, the twin's capture under simulated/, and report.html; all of it or nothing."""
    with new_folder(out) as folder:
        text = msgspec.json.format(msgspec.json.encode(validation.result), indent=1)
        (folder / "validation.json").write_bytes(text + b"\n")
        write_capture(validation.simulated, folder / "simulated")
        (folder / "report.html").write_text(validation_report(validation), encoding="utf-8")


def _digest(capture: Path) -> str:
    """Digest of a capture's description and outcomes: what a comparison scores."""
    return sha256(b"".join(read_bytes(capture / name) for name in ("meta.json", "outcomes.parquet")))


def _at_measured_arrivals(trace: Trace, measured: Capture) -> Trace:
    """The trace's requests at the times at which they really arrived."""
    arrivals_s = {outcome.request_id: outcome.arrival_s for outcome in measured.outcomes}
    known = [row for row in trace.rows if row.request_id in arrivals_s]
    if not known:
        raise InputError("has no request in common with the capture", file=trace.source, field="request_id")
    late_s = max(abs(arrivals_s[row.request_id] - row.arrival_s) for row in known)
    note = f"served at the measured arrivals, which differ from the trace's by {late_s * 1e3:.1f} ms at most"
    return trace.with_arrivals(arrivals_s, note)
