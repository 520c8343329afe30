"""What one scenario of a suite gives with this version: compared with its capture, by itself, and all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from harness.deploy.asked import located
from harness.deploy.deployment import with_run_notes
from harness.deploy.unprofiled import deploy_calibrated
from harness.descriptions.scenario import Scenario, read_scenario
from harness.gate.baseline import Stored, rounded
from harness.gate.canary import counts_of
from harness.gate.figures import AT_ONCE, figure_of, key_of, simulated_figures
from harness.gate.suite import Entry
from harness.running.requests import read_requests
from harness.scoring.change import Change, Changes, changes
from harness.scoring.compare import Validation
from harness.scoring.validate import digest, validate
from simulator.front_end import simulate_behind
from simulator.simulate import Simulation
from traces.capture import CaptureMeta, read_capture
from traces.decoding import read_bytes, sha256
from traces.metrics import summary
from traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Observed:
    """What a scenario gives.

    Attributes:
        validation: against the capture; None without one.
        stored: what the baseline would hold.
        notes: of the validation, or of the simulation where there is none.
        changes: from another scenario, in words why there are none; None: it is a change of no other.
    """

    validation: Validation | None
    stored: Stored
    notes: tuple[str, ...]
    changes: Changes | str | None = None


def observe(entry: Entry, overrides: Sequence[str] = ()) -> Observed:
    """Simulate a scenario of a suite: at the capture's arrivals, at the trace's own, and with all requests at once.

    The last two need no capture but for the engine options that the scenario leaves unsaid, so that another recording
    of the same load gives the same. A scenario that is a change of another may have a load, which its capture must be
    of. Raises InputError, and EngineError where the engine's own scheduler is asked for.
    """
    overrides = (*entry.overrides, *overrides)
    validation = None
    if entry.capture is not None:
        validation = validate(
            entry.scenario,
            entry.capture,
            overrides,
            score_fitted=entry.score_fitted,
            under_load=entry.change_from is not None,
        )
    measured = None if entry.capture is None else read_capture(entry.capture).meta
    scenario = read_scenario(entry.scenario, overrides)
    trace = read_requests(scenario)
    own, inputs, notes = _simulated(scenario, trace, measured)
    at_once, _, _ = _simulated(scenario, _at_once(trace), measured)
    run, together = summary(own.capture), summary(at_once.capture)
    figures = simulated_figures(run["metrics"]) | {AT_ONCE: together["metrics"]["duration_s"]}
    stored = Stored(
        {name: rounded(value) for name, value in figures.items()},
        run["requests"],
        counts_of(at_once),
        {} if validation is None else _errors(entry, validation.result),
        inputs | {"trace": trace.sha256, "capture": None if entry.capture is None else digest(entry.capture)},
    )
    return Observed(validation, stored, notes if validation is None else tuple(validation.result["notes"]))


def with_changes(entry: Entry, observed: Mapping[str, Observed]) -> Observed:
    """What a scenario gives, with its changes where it is a change of another of those observed."""
    own = observed[entry.name]
    if entry.change_from is None:
        return own
    found = _changes(entry.change_from, entry.name, observed)
    of = {} if isinstance(found, str) else {name: found.figures[key_of(name)] for name in entry.change}
    errors = {name: rounded(change.error) for name, change in of.items() if isinstance(change, Change)}
    return replace(own, changes=found, stored=msgspec.structs.replace(own.stored, changes=errors))


def _changes(before: str, after: str, observed: Mapping[str, Observed]) -> Changes | str:
    sides = []
    for name in (before, after):
        validation = observed[name].validation
        assert validation is not None, "a suite is refused in which one has no capture"
        if not validation.result["valid"]:
            return f"the comparison of {name} is not valid"
        sides.append(validation)
    return changes(sides[0], sides[1], seed=sides[1].scenario.file.seed)


def _simulated(
    scenario: Scenario, trace: Trace, measured: CaptureMeta | None
) -> tuple[Simulation, dict[str, str | None], tuple[str, ...]]:
    """A simulation, digests of what is behind it, and its notes."""
    deployment = deploy_calibrated(scenario, measured, scenario.calibration_path)
    with located(scenario):
        simulation = simulate_behind(deployment.front_end, trace, deployment.cluster)
    notes = with_run_notes(simulation.capture.meta, deployment).notes
    return simulation, {**deployment.provenance, "scenario": _digest(scenario)}, notes


def _digest(scenario: Scenario) -> str:
    """Of what the user wrote, overrides and the cluster's file included.

    Not of the scheduler: vLLM's and ours give the same to the last bit, and one baseline serves both.
    """
    written = {name: value for name, value in scenario.requested.items() if name != "scheduler"}
    if isinstance(scenario.file.cluster, str):
        written["cluster"] = sha256(read_bytes(scenario.path.parent / scenario.file.cluster))
    return sha256(msgspec.json.encode(written, order="sorted"))


def _at_once(trace: Trace) -> Trace:
    arrivals_s = {row.request_id: 0.0 for row in trace.rows}
    return trace.with_arrivals(arrivals_s, "all requests at once")


def _errors(entry: Entry, validation: dict[str, Any]) -> dict[str, float]:
    """Errors of the figures with a tolerance."""
    found = {name: figure_of(validation, name) for name in entry.fidelity}
    errors = {name: rounded(figure.error) for name, figure in found.items() if figure is not None}
    return {name: error for name, error in errors.items() if error is not None}
