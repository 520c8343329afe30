"""What goes into a scenario of a suite: kept with what it gave, so that a later check can name which of it changed.

Figures move because an input is another, or because the simulator is. Keys of the scenario and of its cluster are kept
as they are written, files that they name with a digest, and servetwin by the digest of its sources. A scenario may
also fail because less is tolerated: the tolerances of the suite are kept too.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.descriptions.inputs import named_files
from harness.descriptions.scenario import Scenario, read_scenario
from harness.descriptions.written import by_key, differing, text_of, written
from harness.gate.baseline import Stored, StoredTolerances
from harness.gate.drift import REPORT
from harness.gate.figures import OF_CHANGE
from harness.gate.suite import Entry
from harness.gate.tolerance import Tolerance
from harness.gate.verdict import InputChange
from profiles.catalog import with_bundled
from traces.decoding import read_bytes, sha256

CATALOGUE = "devices and models"
DIGITS = 12
"""Hexadecimal digits of a digest that a reader is shown."""

DIGESTED = ("trace", "calibration")
"""Keys that name files whose digests are inputs by themselves."""

NO_TIME = ("scheduler",)
"""Keys that change nothing: vLLM's scheduler and ours give the same to the last bit, and one baseline serves both."""


def with_inputs(stored: Stored, entry: Entry, overrides: Sequence[str]) -> Stored:
    """What a scenario gave, with its keys, its tolerances and the catalogue that its devices and models are from.

    Raises InputError when a file that it names cannot be read.
    """
    scenario = read_scenario(entry.scenario, (*entry.overrides, *overrides))
    inputs = stored.inputs | {CATALOGUE: _catalogue_digest(scenario)}
    keys = _keys(scenario) | ({} if entry.change_from is None else {"change_from": entry.change_from})
    return msgspec.structs.replace(stored, inputs=inputs, keys=keys, tolerances=_tolerances(entry))


def _tolerances(entry: Entry) -> StoredTolerances:
    return StoredTolerances(
        {figure: tolerance.text for figure, tolerance in entry.fidelity.items()},
        {figure: _text(tolerance) for figure, tolerance in entry.drift.items()},
        _text(entry.drift_default),
        msgspec.UNSET if entry.change_from is None else {name: _text(one) for name, one in entry.change.items()},
    )


def _text(tolerance: Tolerance | None) -> str:
    return REPORT if tolerance is None else tolerance.text


def _keys(scenario: Scenario) -> dict[str, Any]:
    folders = [scenario.path.parent, Path()]
    if isinstance(scenario.file.cluster, str):
        folders.insert(0, (scenario.path.parent / scenario.file.cluster).parent)
    said = {name: value for name, value in written(scenario).items() if name not in NO_TIME}
    return {key: value if key in DIGESTED else _with_digest(value, folders) for key, value in by_key(said).items()}


def _with_digest(value: Any, folders: list[Path]) -> Any:
    """The value; a text that names a file with the digest of what it holds."""
    files = dict.fromkeys(path.resolve() for path in named_files(value, folders))
    digests = ", ".join(str(short(sha256(read_bytes(path)))) for path in files)
    return f"{text_of(value)} ({digests})" if files else value


def _catalogue_digest(scenario: Scenario) -> str:
    """Of every description of a device or a model that a name can mean."""
    files = [
        (file.relative_to(folder).as_posix(), sha256(read_bytes(file)))
        for folder in with_bundled(scenario.profile_folders)
        for pattern in ("devices/*.yaml", "models/**/*.json")
        for file in sorted(folder.glob(pattern))
    ]
    return sha256(msgspec.json.encode(files))


def changes(now: Stored, before: Stored, overrides: Sequence[str]) -> tuple[InputChange, ...]:
    """What went in otherwise than for the baseline: keys first, then files by their digests.

    A baseline that keeps no keys knows no more than that its scenario was another; `overrides` say what they can.
    """
    others = [name for name in now.inputs if name in before.inputs and now.inputs[name] != before.inputs[name]]
    if before.keys is not None:
        keys = [InputChange(key, old, new) for key, (old, new) in differing([before.keys, now.keys or {}]).items()]
    else:
        keys = [InputChange("--set", None, override) for override in overrides if "scenario" in others]
    if keys and "scenario" in others:
        others.remove("scenario")  # its keys say it
    return (*keys, *(InputChange(name, short(before.inputs[name]), short(now.inputs[name])) for name in others))


def other_tolerances(
    entry: Entry, before: Stored, asked: Container[str], failed: Container[str]
) -> tuple[InputChange, ...]:
    """Tolerances that are not those of the baseline; none where it keeps none.

    Where a scenario had no capture, or has none now, there is no fidelity to compare, and the capture is an input that
    changed. A figure without a tolerance of drift of its own has the suite's default. What `--fail-on` asks for is no
    change of the suite: it is told where it fails.

    Args:
        entry: the scenario as it is checked, `--fail-on` included.
        before: what it gave when the baseline was made.
        asked: figures of `--fail-on`, those of changes with their prefix.
        failed: likewise, those whose fidelity, or whose change, failed.
    """
    if before.tolerances is None:
        return ()
    old, new = before.tolerances, _tolerances(entry)
    pairs: list[tuple[str, str | None, str | None]] = []
    if entry.capture is not None and before.inputs.get("capture") is not None:
        both = dict.fromkeys((*new.fidelity, *old.fidelity))
        pairs += [(figure, old.fidelity.get(figure), new.fidelity.get(figure)) for figure in both]
    if isinstance(old.change, dict) and isinstance(new.change, dict):
        both = dict.fromkeys((*new.change, *old.change))
        pairs += [(f"{OF_CHANGE}{figure}", old.change.get(figure), new.change.get(figure)) for figure in both]
    changed = []
    for figure, was, now in pairs:
        if figure in asked and figure not in failed:
            continue
        whose = "--fail-on" if figure in asked else "the suite"
        changed.append(InputChange(f"{whose}'s tolerance of {figure}", was, now))
    for figure in dict.fromkeys((*new.drift, *old.drift)):
        texts = old.drift.get(figure, old.drift_default), new.drift.get(figure, new.drift_default)
        changed.append(InputChange(f"the suite's drift tolerance of {figure}", *texts))
    changed.append(InputChange("the suite's default drift tolerance", old.drift_default, new.drift_default))
    return tuple(one for one in changed if one.before != one.now)


def short(digest: str | None) -> str | None:
    """A digest as far as a reader needs it; None where there is none."""
    return None if digest is None else digest[: len("sha256:") + DIGITS]
