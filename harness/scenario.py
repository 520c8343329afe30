"""A scenario: which trace is served by what. One YAML file, typed and strict, with overrides from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from simulator.options import EngineOptions
from simulator.step_time import Overhead
from traces.decoding import read_document
from traces.errors import InputError


class OverheadFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured time of a step beside its operators, as `simulator.step_time.Overhead`; it must name its source."""

    source: str
    device_step_s: float = 0.0
    host_step_s: float = 0.0
    host_request_s: float = 0.0

    def overhead(self) -> Overhead:
        """The same for the step-time model."""
        return Overhead(self.device_step_s, self.host_step_s, self.host_request_s, self.source)


class ScenarioFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scenario as the user writes it. Paths are relative to the file.

    Attributes:
        trace: the requests, in any known format.
        cluster: what serves them: a file, or its content in place.
        profiles: folders in which profiles, models and devices are looked up before the bundled ones.
        calibration: reserved for a fitted calibration; this version reads none.
        engine: options of every engine, by vLLM's names.
        overhead: measured time of a step beside its operators; None: what the profile itself says.
        seed: of everything drawn at random.
    """

    trace: str
    cluster: str | dict[str, Any]
    profiles: tuple[str, ...] = ()
    calibration: None = None
    engine: EngineOptions = EngineOptions()
    overhead: OverheadFile | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario as it is run.

    Attributes:
        path: its file.
        requested: what the user asked for, overrides applied, otherwise verbatim.
        file: the same, typed.
    """

    path: Path
    requested: dict[str, Any]
    file: ScenarioFile

    @property
    def trace_path(self) -> Path:
        """Where the requests are."""
        return self.path.parent / self.file.trace

    @property
    def profile_folders(self) -> list[Path]:
        """Where profiles are looked up first."""
        return [self.path.parent / folder for folder in self.file.profiles]

    @property
    def said_options(self) -> dict[str, Any]:
        """The engine options that the user wrote down; all others have their defaults."""
        return dict(self.requested.get("engine") or {})


def read_scenario(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario, with `key.sub=value` overrides; values are YAML. Raises InputError with file, line and field."""
    document = read_document(path)
    for override in overrides:
        _apply(document.value, override)
    return Scenario(path, document.value, document.convert(ScenarioFile))


def _apply(requested: dict[str, Any], override: str) -> None:
    """Set one key of the mapping from `key.sub=value`."""
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise InputError(field="--set", found=override, accepted="key=value or key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"is not YAML ({error})", field=f"--set {key}", found=text) from None
    at = requested
    for name in names[:-1]:
        at = at.setdefault(name, {})
        if not isinstance(at, dict):
            raise InputError(field=f"--set {key}", found=name, accepted="a key that holds a mapping")
    at[names[-1]] = value
