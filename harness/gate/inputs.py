"""What goes into a scenario of a suite: kept with what it gave, so that a later check can name which of it changed.

Figures move because an input is another, or because the simulator is. Keys of the scenario and of its cluster are kept
as they are written, files that they name with a digest, and servetwin by the digest of its sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.descriptions.inputs import named_files
from harness.descriptions.scenario import Scenario, read_scenario
from harness.descriptions.written import by_key, differing, in_words, written
from harness.gate.baseline import Stored
from harness.gate.suite import Entry
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
    """What a scenario gave, with its keys and the catalogue that its devices and models are from.

    Raises InputError when a file that it names cannot be read.
    """
    scenario = read_scenario(entry.scenario, (*entry.overrides, *overrides))
    inputs = stored.inputs | {CATALOGUE: _catalogue_digest(scenario)}
    return msgspec.structs.replace(stored, inputs=inputs, keys=_keys(scenario))


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
    return f"{in_words(value)} ({digests})" if files else value


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


def short(digest: str | None) -> str | None:
    """A digest as far as a reader needs it; None where there is none."""
    return None if digest is None else digest[: len("sha256:") + DIGITS]
