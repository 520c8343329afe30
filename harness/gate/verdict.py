"""What the gates say: a verdict per scenario and figure, and whether it blocks. Only FAILED does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from harness.gate.figures import OF_CHANGE
from harness.scoring.change import Change

Gate = Literal["fidelity", "change", "drift", "canary"]

MEASURED: tuple[Gate, ...] = ("fidelity", "change")
"""Gates that compare with what was measured; the others compare with the baseline."""


class Status(Enum):
    """What became of one figure.

    FAILED        it blocks
    INCONCLUSIVE  the interval reaches over the tolerance's edge, or there are too few samples for one
    CHANGED       it moved since the baseline, by no more than is tolerated
    IMPROVED      it is nearer to what was measured than the baseline, or moved in the direction that is welcome
    NEW           the baseline does not know it
    ACCEPTED      it would fail, but the baseline is being updated, with a reason
    REPORTED      it is said, and held against no tolerance
    PASSED        within its tolerance, and all of its interval too
    """

    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    CHANGED = "changed"
    IMPROVED = "improved"
    NEW = "new"
    ACCEPTED = "accepted"
    REPORTED = "reported"
    PASSED = "passed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the result.

    Attributes:
        gate: which of the four.
        figure: what was judged.
        status: what became of it.
        reference: what it was compared with: measured (fidelity), the measured change (change), or stored (drift,
            canary); None where there is none.
        simulated: by this version; of a change, the predicted one. Counts are integers.
        difference: (simulated - reference) / reference; for a `mape`, the mean |error|; of a change the predicted ratio
            over the measured one, less 1. None where there is none.
        ci95: its 95 % interval; None where there is none.
        tolerance: as the suite says it; None where nothing but equality will do.
        why: what the numbers do not say.
        change: all that is known of a change; None of the other gates, and where there is none.
    """

    gate: Gate
    figure: str
    status: Status
    reference: int | float | None = None
    simulated: int | float | None = None
    difference: float | None = None
    ci95: tuple[float, float] | None = None
    tolerance: str | None = None
    why: str = ""
    change: Change | None = None

    @property
    def name(self) -> str:
        """The figure as `--fail-on` calls it, where it knows it."""
        return f"{OF_CHANGE}{self.figure}" if self.gate == "change" else self.figure


@dataclass(frozen=True, slots=True)
class InputChange:
    """Something that went into a scenario and is not what it was for the baseline.

    Attributes:
        name: a key of the scenario, such as `engine.max_num_seqs`; or a file by what it is, such as `profile`; or
            whose tolerance of what it is.
        before: its value, or its digest; None: there was none, or it is not known.
        now: likewise.
    """

    name: str
    before: str | None
    now: str | None


@dataclass(frozen=True, slots=True)
class Since:
    """The baseline that a check compares with.

    Attributes:
        version: of servetwin that made it.
        reason: why it was made.
        same_sources: whether servetwin's sources are those that made it; None: the baseline does not say.
    """

    version: str
    reason: str
    same_sources: bool | None


@dataclass(frozen=True, slots=True)
class ScenarioCheck:
    """All verdicts of one scenario.

    Attributes:
        name: in the suite.
        verdicts: of the gates, in their order.
        notes: what a reader should know of how they came about.
        inputs: what went in otherwise than for the baseline; empty also where the baseline does not know the scenario.
        tolerances: those that are not the baseline's; empty also where it does not keep them.
        change_from: the scenario that it is a change of; None: of none.
    """

    name: str
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()
    inputs: tuple[InputChange, ...] = ()
    tolerances: tuple[InputChange, ...] = ()
    change_from: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing of it blocks."""
        return not self.of(Status.FAILED)

    def of(self, status: Status) -> list[Verdict]:
        """Its verdicts of one status."""
        return [verdict for verdict in self.verdicts if verdict.status is status]


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of checking a suite.

    Attributes:
        suite: name of its file.
        version: of servetwin.
        scenarios: each one of the suite, then those that are lost.
        reason: why the baseline is to be updated; None when it is not.
        baseline: its file and new content; None likewise. `check` writes nothing.
        since: the baseline that it was compared with; None where there is none.
    """

    suite: str
    version: str
    scenarios: tuple[ScenarioCheck, ...]
    reason: str | None = None
    baseline: tuple[Path, str] | None = None
    since: Since | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing blocks."""
        return all(scenario.passed for scenario in self.scenarios)

    def as_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {
            "passed": self.passed,
            "suite": self.suite,
            "version": self.version,
            "reason": self.reason,
            "since": None if self.since is None else asdict(self.since),
            "scenarios": {
                scenario.name: {
                    "passed": scenario.passed,
                    "verdicts": [_as_dict(verdict) for verdict in scenario.verdicts],
                    "notes": list(scenario.notes),
                    "inputs": [asdict(change) for change in scenario.inputs],
                    "tolerances": [asdict(change) for change in scenario.tolerances],
                    **({} if scenario.change_from is None else {"change_from": scenario.change_from}),
                }
                for scenario in self.scenarios
            },
        }


def _as_dict(verdict: Verdict) -> dict[str, Any]:
    return {
        "gate": verdict.gate,
        "figure": verdict.figure,
        "status": verdict.status.value,
        "reference": verdict.reference,
        "simulated": verdict.simulated,
        "difference": verdict.difference,
        "ci95": None if verdict.ci95 is None else list(verdict.ci95),
        "tolerance": verdict.tolerance,
        "why": verdict.why,
        **({} if verdict.change is None else {"change": _change(verdict.change)}),
    }


def _change(change: Change) -> dict[str, Any]:
    return {**asdict(change), "points": change.points, "direction": change.direction}
