"""The baseline: what each scenario of a suite gave when it was last accepted, and why it was."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from traces.decoding import decode_json, read_bytes

DIGITS = 9
"""Digits that are kept of a number: what another machine may round otherwise is not written down."""


class StoredTolerances(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a scenario's figures could be off by, as its suite said it.

    Attributes:
        fidelity: by figure; empty without a capture.
        drift: by figure; `report` is no limit.
        drift_default: of all other figures.
        change: by figure, likewise; unset of a scenario that is a change of no other.
    """

    fidelity: dict[str, str]
    drift: dict[str, str]
    drift_default: str
    change: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one scenario gave.

    Attributes:
        figures: of the simulation at the trace's own arrivals, by name; None from too few samples.
        requests: how many ended with each status in it.
        counts: of the simulation of all requests at once; they depend on decisions alone and on no time.
        errors: of the figures with a tolerance, against the capture.
        inputs: digests of what went in, by name; None where there is none.
        keys: of the scenario and of its cluster, as they were written; None: an older baseline, which keeps none.
        tolerances: of the suite; None likewise.
        changes: errors of its changes with a tolerance; unset of a scenario that is a change of no other.
    """

    figures: dict[str, float | None]
    requests: dict[str, int]
    counts: dict[str, int | None]
    errors: dict[str, float]
    inputs: dict[str, str | None]
    keys: dict[str, Any] | None = None
    tolerances: StoredTolerances | None = None
    changes: dict[str, float] | msgspec.UnsetType = msgspec.UNSET


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A baseline file.

    Attributes:
        schema_version: of the file.
        version: of servetwin that wrote it.
        reason: why it was written.
        scenarios: by name.
        sources: digest of the sources of servetwin that wrote it; None: an older baseline, which does not say.
    """

    schema_version: Literal["servetwin.baseline/1"] = "servetwin.baseline/1"
    version: str
    reason: Annotated[str, msgspec.Meta(min_length=1)]
    scenarios: dict[str, Stored]
    sources: str | None = None


def read_baseline(path: Path) -> Baseline:
    """Read a baseline. Raises InputError with file and field."""
    return decode_json(read_bytes(path), Baseline, file=path)


def baseline_text(scenarios: Mapping[str, Stored], reason: str, sources: str) -> str:
    """What a baseline file holds. The same scenarios, reason and sources give the same bytes: no date is in it."""
    baseline = Baseline(version=version("servetwin"), reason=reason, scenarios=dict(scenarios), sources=sources)
    return msgspec.json.format(msgspec.json.encode(baseline, order="sorted"), indent=1).decode() + "\n"


def rounded(value: float | None) -> float | None:
    """A number as the baseline keeps it."""
    return None if value is None else float(f"{value:.{DIGITS}g}")
