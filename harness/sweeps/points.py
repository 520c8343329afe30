"""One point of a study: a scenario with some keys set. And what all points read, loaded once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from harness.deploy.unprofiled import deploy_calibrated
from harness.descriptions.scenario import Scenario, scenario_of, set_key
from harness.descriptions.written import text_of
from harness.running.requests import requests_of
from harness.running.simulate import simulate_trace
from harness.sweeps.space import Overrides
from harness.sweeps.times import refusal, times_of
from traces.decoding import Document, read_document
from traces.errors import InputError, ServetwinError
from traces.formats import read_any_trace
from traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Point:
    """One scenario of a study.

    Attributes:
        overrides: what it sets in the scenario.
        fingerprint: of all that it depends on.
        first_requests: it serves so many requests of the trace, the first; None: all.
    """

    overrides: Overrides
    fingerprint: str
    first_requests: int | None = None

    @property
    def label(self) -> str:
        """What it sets, in one line."""
        parts = [f"{key}={text_of(value)}" for key, value in self.overrides.items()]
        return ", ".join(parts) + ("" if self.first_requests is None else f" ({self.first_requests} requests)")


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of a point: figures, or the reason why there are none.

    Attributes:
        figures: as summary.json has them, without how long it took.
        times: what kinds of times they are of, and how far off such were found to be.
        reason: why there are none.
        is_lasting: whether it would end the same way again; a crash may not.
    """

    figures: dict[str, Any] | None = None
    times: tuple[str, ...] = ()
    reason: str | None = None
    is_lasting: bool = True


@dataclass(slots=True)
class Inputs:
    """What the points of a study read: the scenario without overrides, and traces by path as they are first needed."""

    document: Document
    traces: dict[Path, Trace] = field(default_factory=dict)

    def scenario(self, overrides: Overrides) -> Scenario:
        """The scenario of a point. Raises InputError."""
        value = deepcopy(self.document.value)
        for key, set_to in overrides.items():
            set_key(value, key, deepcopy(set_to), field="key")
        return scenario_of(Document(self.document.path, value, self.document.tree))

    def trace(self, path: Path) -> Trace:
        """The trace as it was read. Raises InputError."""
        if path not in self.traces:
            self.traces[path] = read_any_trace(path)
        return self.traces[path]

    def requests(self, scenario: Scenario, first_requests: int | None = None) -> Trace:
        """A scenario's requests, under its load; or the first of them. Raises InputError."""
        trace = requests_of(scenario, self.trace(scenario.trace_path))
        return trace if first_requests is None else replace(trace, rows=trace.rows[:first_requests])

    def read_traces(self, points: Sequence[Point]) -> None:
        """Read the points' traces before workers share them; what cannot be read is for the points to say."""
        for point in points:
            with suppress(ServetwinError):
                self.trace(self.scenario(point.overrides).trace_path)


def read_inputs(scenario_path: Path) -> Inputs:
    """Inputs with nothing but the scenario read. Raises InputError."""
    return Inputs(read_document(scenario_path))


def simulate_point(inputs: Inputs, point: Point) -> Result:
    """Simulate a point. It fails alone: whatever goes wrong is its result.

    So does one that vLLM would not start, before anything is simulated.
    """
    try:
        scenario = inputs.scenario(point.overrides)
        deployment = deploy_calibrated(scenario, None, scenario.calibration_path)
        if (reason := refusal(deployment.notes)) is not None:
            return Result(reason=reason)
        requests = inputs.requests(scenario, point.first_requests)
        simulation, figures = simulate_trace(scenario, requests, deployment=deployment)
    except InputError as error:
        return Result(reason=str(error))
    except ServetwinError as error:
        return Result(reason=str(error), is_lasting=False)
    except Exception as error:
        return Result(reason=f"{type(error).__name__}: {error}", is_lasting=False)
    del figures["wall_s"]
    # As they would be read from a file: a result is the same whether it is new or known.
    return Result(figures=msgspec.json.decode(msgspec.json.encode(figures)), times=times_of(simulation.capture.meta))
