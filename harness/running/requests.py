"""The requests of a scenario: those of its trace, under its load."""

from __future__ import annotations

from harness.deploy.asked import located
from harness.descriptions.scenario import Scenario, load_key
from traces.formats import read_any_trace
from traces.load import loaded
from traces.trace import Trace


def read_requests(scenario: Scenario) -> Trace:
    """Read the requests that a scenario serves. Raises InputError."""
    return requests_of(scenario, read_any_trace(scenario.trace_path))


def requests_of(scenario: Scenario, trace: Trace) -> Trace:
    """The same, of the scenario's trace as it was read. Raises InputError with file, line and key of the load."""
    if scenario.file.load is None:
        return trace
    with located(scenario):
        return loaded(trace, scenario.file.load, scenario.file.seed, load_key)


def refuse_load(scenario: Scenario) -> None:
    """Raise InputError where a scenario that is held against measured requests has a load."""
    if scenario.file.load is not None:
        message = "makes requests that were not measured"
        raise scenario.document.error(["load"], message, accepted="nothing here, as with --set load=null")
